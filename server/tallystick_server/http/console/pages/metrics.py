"""Metrics of the platform over time, for engineers on call."""

from __future__ import annotations

from collections.abc import Sequence

from tallystick_server.http.console.history import (
    PERIOD_CHOICES,
    History,
    HistoryReader,
    MetricQuery,
    period_of,
)
from tallystick_server.http.console.panels import (
    CALLS,
    Panel,
    bar_panel,
    latency_panel,
    latency_queries,
    line_panel,
)
from tallystick_server.http.console.rendering import format_words
from tallystick_server.http.console.units import COUNT, FRACTION, SECONDS
from tallystick_server.http.console.visit import Answer, Page, Visit

_PROVIDER_CALLS = "tallystick.provider.call.duration"
_DEFAULT_METHOD = "payment.CreatePayment"


async def show_metrics(visit: Visit) -> Answer:
    """GET /console/metrics: calls, providers, queues and processes over a period."""
    period = period_of(visit.query.get("period", ""))
    methods = visit.calls.full_names()
    method = visit.query.get("method", "")
    method = method if method in methods else _DEFAULT_METHOD
    reader = HistoryReader(visit.calls, period, visit.time)
    calls, providers, processes = await reader.read(
        _call_queries(methods[method]), _PROVIDER_QUERIES, _PROCESS_QUERIES
    )
    values = {
        "period": period,
        "filters": [
            ("period", "Period", PERIOD_CHOICES),
            ("method", "Method", [(name, name) for name in sorted(methods)]),
        ],
        "chosen": {"period": period.name, "method": method},
        "sections": [
            ("Calls", _call_panels(reader, method, *calls)),
            ("Providers", _provider_panels(reader, *providers)),
            ("Processes", _process_panels(reader, *processes)),
        ],
    }
    return Page("metrics.html", "Metrics", values)


def _call_queries(full_name: str) -> Sequence[MetricQuery]:
    return (
        *latency_queries(full_name),
        MetricQuery(CALLS, ("error.type",), "RATE", (f"rpc.method={full_name}",)),
        MetricQuery(CALLS, ("error.type",), "RATE", ("error.type!=",)),
    )


def _call_panels(
    reader: HistoryReader,
    method: str,
    median: History,
    slow: History,
    calls: History,
    failed: History,
) -> list[Panel]:
    seconds = reader.period.step_seconds
    return [
        latency_panel(method, reader.steps, median, slow),
        bar_panel(
            "calls",
            f"Calls of {method}",
            "",
            reader.steps,
            calls.counts(seconds),
            [
                ("succeeded", "good", lambda group: not group[0]),
                ("failed", "bad", lambda group: bool(group[0])),
            ],
        ),
        line_panel(
            "failed",
            "Failed calls of all methods",
            "By the reason of the error.",
            reader.steps,
            COUNT,
            (failed.counts(seconds), lambda group: format_words(group[0])),
        ),
    ]


_PROVIDER_QUERIES = (
    MetricQuery(_PROVIDER_CALLS, ("provider",), "QUANTILE", quantile="0.99"),
    MetricQuery(_PROVIDER_CALLS, ("provider",), "RATE", ("outcome=Unknown",)),
    MetricQuery(_PROVIDER_CALLS, ("provider",), "RATE", ("outcome=NotSent",)),
    MetricQuery("tallystick.dead_letters.created", ("cause",)),
)


def _provider_panels(
    reader: HistoryReader, slow: History, unknown: History, not_sent: History, dead_letters: History
) -> list[Panel]:
    seconds = reader.period.step_seconds
    return [
        line_panel(
            "provider-latency",
            "Latency of providers",
            "99 of 100 calls to the provider are faster.",
            reader.steps,
            SECONDS,
            (slow, lambda group: group[0]),
        ),
        line_panel(
            "provider-failures",
            "Failed calls to providers",
            "Unknown: no usable answer, so the operation is looked up. Not sent: it is retried.",
            reader.steps,
            COUNT,
            (unknown.counts(seconds), lambda group: f"{group[0]}, unknown"),
            (not_sent.counts(seconds), lambda group: f"{group[0]}, not sent"),
        ),
        line_panel(
            "dead-letters",
            "New dead letters",
            "By cause.",
            reader.steps,
            COUNT,
            (dead_letters.counts(), lambda group: format_words(group[0])),
        ),
    ]


_PROCESS_QUERIES = (
    MetricQuery("tallystick.outbox.lag", ("service",), "MAX"),
    MetricQuery("db.client.operation.duration", ("db.namespace",), "QUANTILE", (), "0.99"),
    MetricQuery("process.cpu.time", ("service.name",), "RATE"),
)


def _process_panels(
    reader: HistoryReader, lag: History, database: History, processor: History
) -> list[Panel]:
    return [
        line_panel(
            "lag",
            "Age of the oldest unpublished event",
            "How far consumers of events are behind.",
            reader.steps,
            SECONDS,
            (lag, lambda group: group[0]),
        ),
        line_panel(
            "database",
            "Duration of transactions and reads",
            "99 of 100 are faster, with the wait for a connection; by schema.",
            reader.steps,
            SECONDS,
            (database, lambda group: group[0]),
        ),
        line_panel(
            "processor",
            "Processors in use",
            "1: one processor is fully used; by name of the process.",
            reader.steps,
            FRACTION,
            (processor, lambda group: group[0]),
        ),
    ]
