"""The dashboards of Grafana. scripts/generate writes them to deploy/grafana/dashboards/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_COLUMNS = 24
"""In which Grafana places panels."""
_HEIGHT = 8
_SCHEMA_VERSION = 39
_DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COUNT = "short"


@dataclass(frozen=True, slots=True)
class Query:
    """An expression of Prometheus. `legend`: the name of a series, with its labels in braces."""

    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A chart. `unit`: one of Grafana's, such as s, percentunit, ops or short."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of panels, three in a row. `name`: of its file and in its address."""

    name: str
    title: str
    panels: tuple[Panel, ...]

    def to_json(self) -> dict[str, Any]:
        """As Grafana reads it."""
        width = _COLUMNS // 3
        return {
            "uid": f"tallystick-{self.name}",
            "title": f"Tallystick: {self.title}",
            "tags": ["tallystick"],
            "schemaVersion": _SCHEMA_VERSION,
            "editable": False,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "templating": {
                "list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
            },
            "links": [
                {"type": "dashboards", "tags": ["tallystick"], "title": "", "asDropdown": False}
            ],
            "panels": [
                {
                    **_panel(panel),
                    "id": number + 1,
                    "gridPos": {
                        "x": number % 3 * width,
                        "y": number // 3 * _HEIGHT,
                        "w": width,
                        "h": _HEIGHT,
                    },
                }
                for number, panel in enumerate(self.panels)
            ],
        }


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATA_SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _DATA_SOURCE,
                "expr": query.expression,
                "legendFormat": query.legend,
            }
            for number, query in enumerate(panel.queries)
        ],
        "options": {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def _chart(title: str, description: str, unit: str, expression: str, legend: str) -> Panel:
    return Panel(title, description, unit, (Query(expression, legend),))


def _quantiles(title: str, description: str, metric: str, label: str, selector: str = "") -> Panel:
    """The median and the 99th percentile of a histogram in seconds, by a label."""
    rate = f"sum by ({label}, le) (rate({metric}_bucket{selector}[5m]))"
    return Panel(
        title,
        description,
        "s",
        tuple(
            Query(f"histogram_quantile({quantile}, {rate})", f"{{{{{label}}}}} {name}")
            for quantile, name in (("0.5", "p50"), ("0.99", "p99"))
        ),
    )


def _acceptance(labels: str) -> str:
    return (
        f'sum by ({labels}) (rate(tallystick_charges_completed_total{{outcome="Succeeded"}}[15m]))'
        f" / sum by ({labels}) (rate(tallystick_charges_completed_total[15m]))"
    )


_CALLS = "rpc_server_call_duration_seconds"
_NO_STREAMS = '{rpc_method!~".*/(Watch|Stream).*"}'
_ACCEPTANCE_BY_PROVIDER = _chart(
    "Acceptance rate by provider",
    "The part of the completed charges that the provider accepted.",
    "percentunit",
    _acceptance("provider"),
    "{{provider}}",
)

OVERVIEW = Dashboard(
    "overview",
    "overview",
    (
        _chart(
            "Open alerts",
            "What an operator must act on, by kind: see the runbooks in docs/operations/alerts/.",
            _COUNT,
            "max by (service, kind) (tallystick_alerts_open)",
            "{{service}} {{kind}}",
        ),
        _chart(
            "Processes",
            "1: the process answers scrapes; 0: it does not.",
            _COUNT,
            'up{job="tallystick"}',
            "{{instance}}",
        ),
        _chart(
            "Open dead letters",
            "Operations that wait for an operator, by cause.",
            _COUNT,
            "max by (service, cause) (tallystick_dead_letters_open)",
            "{{service}} {{cause}}",
        ),
        _chart(
            "Work that waits for a person",
            "Alerts, dead letters, approvals, unapplied charges and breaks, by queue.",
            _COUNT,
            "max by (service, queue) (tallystick_work_open)",
            "{{service}} {{queue}}",
        ),
        _chart(
            "Age of the oldest work",
            "How long the oldest item of each queue has waited for a person.",
            "s",
            "max by (service, queue) (tallystick_work_oldest_age_seconds)",
            "{{service}} {{queue}}",
        ),
        _ACCEPTANCE_BY_PROVIDER,
        _chart(
            "Acceptance rate by payment method",
            "The part of the completed charges that was accepted.",
            "percentunit",
            _acceptance("payment_method_type"),
            "{{payment_method_type}}",
        ),
        _chart(
            "Acceptance rate by currency",
            "The part of the completed charges that was accepted.",
            "percentunit",
            _acceptance("currency"),
            "{{currency}}",
        ),
        _chart(
            "Calls",
            "Received calls per second, by method.",
            "ops",
            f"sum by (rpc_method) (rate({_CALLS}_count[5m]))",
            "{{rpc_method}}",
        ),
        _chart(
            "Failed calls",
            "Calls per second that returned an error, by error reason.",
            "ops",
            f'sum by (error_type) (rate({_CALLS}_count{{error_type!=""}}[5m]))',
            "{{error_type}}",
        ),
        _quantiles(
            "Latency of calls",
            "Without streams, which are open for as long as their callers want.",
            _CALLS,
            "rpc_method",
            _NO_STREAMS,
        ),
        _chart(
            "Money in flight",
            "Charges and payouts that are neither failed nor booked, in minor units.",
            _COUNT,
            "max by (service, currency) (tallystick_money_in_flight)",
            "{{service}} {{currency}}",
        ),
        _chart(
            "Operations that are not complete",
            "By the reason of their last retry; none if they were not retried.",
            _COUNT,
            "max by (service, retry_reason) (tallystick_operations_queued)",
            "{{service}} {{retry_reason}}",
        ),
        _chart(
            "Operations that are due",
            "Those that no process has claimed yet.",
            _COUNT,
            "max by (service) (tallystick_operations_due)",
            "{{service}}",
        ),
        _chart(
            "Age of the oldest due operation",
            "Above a minute too few processes claim operations, or none.",
            "s",
            "max by (service) (tallystick_operations_oldest_due_age_seconds)",
            "{{service}}",
        ),
        _chart(
            "Age of the oldest unpublished event",
            "How far consumers of events are behind.",
            "s",
            "max by (service) (tallystick_outbox_lag_seconds)",
            "{{service}}",
        ),
        _chart(
            "Clearing by age",
            "Entries of the ledger that no statement has yet, in minor units, by their age in days "
            "or more.",
            _COUNT,
            "max by (account, currency, min_age_days) (tallystick_clearing_expected)",
            "{{account}} {{currency}} {{min_age_days}} d",
        ),
    ),
)
PROVIDERS = Dashboard(
    "providers",
    "providers",
    (
        _ACCEPTANCE_BY_PROVIDER,
        _chart(
            "Completed charges",
            "Charges per second that a provider accepted or declined.",
            "ops",
            "sum by (provider, outcome) (rate(tallystick_charges_completed_total[5m]))",
            "{{provider}} {{outcome}}",
        ),
        _chart(
            "Calls by outcome",
            "Calls to a provider per second. Unknown ones are looked up.",
            "ops",
            "sum by (provider, action, outcome)"
            " (rate(tallystick_provider_call_duration_seconds_count[5m]))",
            "{{provider}} {{action}} {{outcome}}",
        ),
        _quantiles(
            "Latency of requests",
            "Of calls that send a charge or a payout.",
            "tallystick_provider_call_duration_seconds",
            "provider",
            '{action="send"}',
        ),
        _chart(
            "Unknown outcomes",
            "The part of the calls that ended without a usable answer.",
            "percentunit",
            "sum by (provider)"
            ' (rate(tallystick_provider_call_duration_seconds_count{outcome="Unknown"}[15m]))'
            " / sum by (provider) (rate(tallystick_provider_call_duration_seconds_count[15m]))",
            "{{provider}}",
        ),
        _chart(
            "Webhooks",
            "Received webhooks per second, and what became of them.",
            "ops",
            "sum by (provider, result) (rate(tallystick_webhooks_received_total[5m]))",
            "{{provider}} {{result}}",
        ),
        _chart(
            "Webhook events",
            "New events per second, and those that were stored before.",
            "ops",
            "sum by (provider, subject, result)"
            " (rate(tallystick_webhook_events_received_total[5m]))",
            "{{provider}} {{subject}} {{result}}",
        ),
        _chart(
            "Operations that wait, by retry reason",
            "CIRCUIT_OPEN: the provider fails too often.",
            _COUNT,
            'max by (service, retry_reason) (tallystick_operations_queued{retry_reason!=""})',
            "{{service}} {{retry_reason}}",
        ),
        _chart(
            "New dead letters",
            "In the last hour, by cause.",
            _COUNT,
            "sum by (cause) (increase(tallystick_dead_letters_created_total[1h]))",
            "{{cause}}",
        ),
    ),
)
PROCESSES = Dashboard(
    "processes",
    "database and processes",
    (
        _quantiles(
            "Latency of transactions and reads",
            "By schema, with the wait for a connection and with retries.",
            "db_client_operation_duration_seconds",
            "db_namespace",
        ),
        _chart(
            "Transactions and reads",
            "Per second, by schema.",
            "ops",
            "sum by (db_namespace, db_operation_name)"
            " (rate(db_client_operation_duration_seconds_count[5m]))",
            "{{db_namespace}} {{db_operation_name}}",
        ),
        _chart(
            "Failed transactions and reads",
            "Per second, by error.",
            "ops",
            "sum by (db_namespace, error_type)"
            ' (rate(db_client_operation_duration_seconds_count{error_type!=""}[5m]))',
            "{{db_namespace}} {{error_type}}",
        ),
        _chart(
            "Used connections",
            "The part of each pool that is in use.",
            "percentunit",
            "sum by (instance, db_client_connection_pool_name)"
            ' (db_client_connection_count{db_client_connection_state="used"})'
            " / sum by (instance, db_client_connection_pool_name) (db_client_connection_count)",
            "{{instance}} {{db_client_connection_pool_name}}",
        ),
        _chart(
            "Waiting for a connection",
            "Transactions and reads, by pool.",
            _COUNT,
            "sum by (instance, db_client_connection_pool_name)"
            " (db_client_connection_pending_requests)",
            "{{instance}} {{db_client_connection_pool_name}}",
        ),
        _chart(
            "Processor",
            "Cores that a process uses. One process cannot use much more than one.",
            _COUNT,
            'rate(process_cpu_time_seconds_total{job="tallystick"}[5m])',
            "{{instance}}",
        ),
        _chart(
            "Clock deviation",
            "How far the clocks of a process and of its database differ.",
            "s",
            "max by (instance) (tallystick_clock_deviation_seconds)",
            "{{instance}}",
        ),
        _chart(
            "Disk",
            "The used part of the disk that holds the data folder of a process.",
            "percentunit",
            "max by (instance) (system_filesystem_utilization)",
            "{{instance}}",
        ),
        _chart(
            "Operations in flight",
            "Those that a process advances now.",
            _COUNT,
            "sum by (instance, service) (tallystick_operations_in_flight)",
            "{{instance}} {{service}}",
        ),
        _chart(
            "Lost leases",
            "Leases that expired in the last hour before their process gave them back.",
            _COUNT,
            "sum by (service) (increase(tallystick_leases_lost_total[1h]))",
            "{{service}}",
        ),
        _chart(
            "Waiting for a batch",
            "Items, by batcher.",
            _COUNT,
            "sum by (batcher) (tallystick_batch_queue_length)",
            "{{batcher}}",
        ),
        _chart(
            "Size of batches",
            "The mean number of items.",
            _COUNT,
            "sum by (batcher) (rate(tallystick_batch_size_sum[5m]))"
            " / sum by (batcher) (rate(tallystick_batch_size_count[5m]))",
            "{{batcher}}",
        ),
        _quantiles(
            "Duration of batches",
            "Without the time in which the items waited.",
            "tallystick_batch_duration_seconds",
            "batcher",
        ),
        _chart(
            "Rejected events",
            "Aggregates of which EventService began to reject an event, in the last hour.",
            _COUNT,
            "sum by (service) (increase(tallystick_events_rejected_total[1h]))",
            "{{service}}",
        ),
        _chart(
            "Rejected recordings of metrics",
            "Those that MonitoringService did not accept in the last hour.",
            _COUNT,
            "sum by (instance) (increase(tallystick_metrics_recording_failures_total[1h]))",
            "{{instance}}",
        ),
        _chart(
            "Dropped series",
            "Series that the last recording of a process left out.",
            _COUNT,
            "tallystick_metrics_dropped_series",
            "{{instance}}",
        ),
        _chart(
            "Lost spans",
            "Those of the last hour that were to be kept and are lost.",
            _COUNT,
            "sum by (instance, reason) (increase(tallystick_spans_lost_total[1h]))",
            "{{instance}} {{reason}}",
        ),
    ),
)
DASHBOARDS = (OVERVIEW, PROVIDERS, PROCESSES)
