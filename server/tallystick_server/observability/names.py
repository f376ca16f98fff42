"""Every metric, span, batch and log event of the platform: name, unit and description.

Names follow the semantic conventions of OpenTelemetry where one exists; the others begin with
`tallystick.`. Units are in UCUM. `docs/reference/metrics.md` is generated from this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum, unique
from typing import NamedTuple


@unique
class MetricKind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric. `boundaries`: the upper limits of a histogram's buckets, in ascending order.

    `attributes`: each has few values, known before: a service, a method, a reason. An empty value
    is left out.
    """

    name: str
    kind: MetricKind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    fixed_attributes: Mapping[str, str] = field(default_factory=dict)
    """Attributes with one value, which the semantic conventions require."""

    @property
    def prometheus_name(self) -> str:
        """Its name in a scrape. A histogram has this name with _bucket, _count and _sum."""
        suffix = "_seconds" if self.unit == "s" else ""
        total = "_total" if self.kind is MetricKind.COUNTER else ""
        return f"{self.name.replace('.', '_')}{suffix}{total}"


class SpanName(NamedTuple):
    """The name of a span, with its variable parts in braces."""

    pattern: str
    description: str

    def format(self, **parts: str) -> str:
        return self.pattern.format(**parts)


@dataclass(frozen=True, slots=True)
class LogEvent:
    """A kind of log line that an operator looks for. Lines have it as `event_name`. `level`: that
    of all of its lines; docs/operations/logs.md says what it means.
    """

    name: str
    description: str
    level: str = "WARNING"

    @property
    def extra(self) -> dict[str, str]:
        """The argument `extra` of a logger's method."""
        return {"event_name": self.name}


_CALL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PROVIDER_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_DATABASE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
_BATCH_SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)

RPC_SERVER_CALL_DURATION = Metric(
    "rpc.server.call.duration",
    MetricKind.HISTOGRAM,
    "s",
    "Duration of a received call, from its message to its response. `error.type` is the error "
    "reason, and CANCELLED if the caller cancelled the call. Methods that do not exist are _OTHER.",
    ("rpc.method", "rpc.response.status_code", "error.type"),
    _CALL_SECONDS,
    {"rpc.system.name": "grpc"},
)
PROVIDER_CALL_DURATION = Metric(
    "tallystick.provider.call.duration",
    MetricKind.HISTOGRAM,
    "s",
    "Duration of a call to a provider, by its outcome. An operation that was not sent, such as "
    "while the circuit is open, is no call.",
    ("provider", "action", "outcome"),
    _PROVIDER_SECONDS,
)
BATCH_SIZE = Metric(
    "tallystick.batch.size",
    MetricKind.HISTOGRAM,
    "{item}",
    "Items of a batch.",
    ("batcher",),
    _BATCH_SIZES,
)
BATCH_DURATION = Metric(
    "tallystick.batch.duration",
    MetricKind.HISTOGRAM,
    "s",
    "Duration of a batch, without the time in which its items waited.",
    ("batcher",),
    _DATABASE_SECONDS,
)
BATCH_QUEUE_LENGTH = Metric(
    "tallystick.batch.queue.length",
    MetricKind.GAUGE,
    "{item}",
    "Items that wait for a batch in this process.",
    ("batcher",),
)
OPERATIONS_IN_FLIGHT = Metric(
    "tallystick.operations.in_flight",
    MetricKind.GAUGE,
    "{operation}",
    "Operations that this process advances now.",
    ("service",),
)
OPERATIONS_QUEUED = Metric(
    "tallystick.operations.queued",
    MetricKind.GAUGE,
    "{operation}",
    "Operations that are not complete, without dead letters, by the reason of their last retry; "
    "none if they were not retried. Up to 10,000 are counted.",
    ("service", "retry_reason"),
)
OPERATIONS_DUE = Metric(
    "tallystick.operations.due",
    MetricKind.GAUGE,
    "{operation}",
    "Operations that are due, and that no process has claimed yet. Up to 10,000 are counted.",
    ("service",),
)
OLDEST_DUE_AGE = Metric(
    "tallystick.operations.oldest_due.age",
    MetricKind.GAUGE,
    "s",
    "How long the operation that has waited longest has been due; 0: none is due.",
    ("service",),
)
LEASES_LOST = Metric(
    "tallystick.leases.lost",
    MetricKind.COUNTER,
    "{lease}",
    "Leases that expired before their holder gave them back, and that this process took over.",
    ("service",),
)
DEAD_LETTERS_CREATED = Metric(
    "tallystick.dead_letters.created",
    MetricKind.COUNTER,
    "{dead_letter}",
    "Dead letters that this process created, by cause.",
    ("cause",),
)
CHARGES_COMPLETED = Metric(
    "tallystick.charges.completed",
    MetricKind.COUNTER,
    "{charge}",
    "Charges that a provider accepted or declined. Those that were cancelled or have expired are "
    "not counted.",
    ("provider", "payment_method_type", "currency", "outcome"),
)
WEBHOOKS = Metric(
    "tallystick.webhooks.received",
    MetricKind.COUNTER,
    "{webhook}",
    "Webhooks that this process received, and what became of them.",
    ("provider", "result"),
)
WEBHOOK_EVENTS = Metric(
    "tallystick.webhook_events.received",
    MetricKind.COUNTER,
    "{event}",
    "Webhook events that this process received: new ones, and those that were stored before.",
    ("provider", "subject", "result"),
)
DEAD_LETTERS_OPEN = Metric(
    "tallystick.dead_letters.open",
    MetricKind.GAUGE,
    "{dead_letter}",
    "Dead letters that wait for an operator, by cause. Up to 10,000 are counted.",
    ("service", "cause"),
)
ALERTS_RAISED = Metric(
    "tallystick.alerts.raised",
    MetricKind.COUNTER,
    "{alert}",
    "Alerts that this process raised, by kind.",
    ("kind",),
)
ALERTS_OPEN = Metric(
    "tallystick.alerts.open",
    MetricKind.GAUGE,
    "{alert}",
    "Alerts that have not ended, by kind. Up to 10,000 are counted.",
    ("service", "kind"),
)
WORK_OPEN = Metric(
    "tallystick.work.open",
    MetricKind.GAUGE,
    "{item}",
    "Items that wait for a person, by queue: alerts, dead letters, approvals, unapplied charges, "
    "breaks. Up to 10,000 are counted.",
    ("service", "queue"),
)
OLDEST_WORK_AGE = Metric(
    "tallystick.work.oldest.age",
    MetricKind.GAUGE,
    "s",
    "Age of the oldest item that waits for a person, by queue; 0: none waits.",
    ("service", "queue"),
)
OUTBOX_LAG = Metric(
    "tallystick.outbox.lag",
    MetricKind.GAUGE,
    "s",
    "Age of the oldest event that is not published yet; 0: all are.",
    ("service",),
)
EVENTS_REJECTED = Metric(
    "tallystick.events.rejected",
    MetricKind.COUNTER,
    "{aggregate}",
    "Aggregates of which EventService began to reject an event.",
    ("service",),
)
MONEY_IN_FLIGHT = Metric(
    "tallystick.money.in_flight",
    MetricKind.GAUGE,
    "{minor_unit}",
    "Sum of the charges, or of the payouts, that are being sent, are pending, or are not booked "
    "yet, in minor units of the currency. Up to 20,000 operations are added.",
    ("service", "currency"),
)
CLEARING_EXPECTED = Metric(
    "tallystick.clearing.expected",
    MetricKind.GAUGE,
    "{minor_unit}",
    "Sum of the ledger's entries on a clearing account that no statement has yet, in minor units "
    "of the currency, by their age: `min_age_days` or older.",
    ("service", "account", "currency", "min_age_days"),
)
DB_OPERATION_DURATION = Metric(
    "db.client.operation.duration",
    MetricKind.HISTOGRAM,
    "s",
    "Duration of a transaction, a load (work in progress) or a read (for a caller), with its wait "
    "for a connection and its retries. `error.type` is the error reason or the exception.",
    ("db.namespace", "db.operation.name", "error.type"),
    _DATABASE_SECONDS,
    {"db.system.name": "postgresql"},
)
DB_CONNECTION_COUNT = Metric(
    "db.client.connection.count",
    MetricKind.GAUGE,
    "{connection}",
    "Connections of a pool, by state: used or idle. Idle ones may not be open yet.",
    ("db.client.connection.pool.name", "db.client.connection.state"),
)
DB_PENDING_REQUESTS = Metric(
    "db.client.connection.pending_requests",
    MetricKind.GAUGE,
    "{request}",
    "Transactions and reads that wait for a connection of a pool.",
    ("db.client.connection.pool.name",),
)
CLOCK_DEVIATION = Metric(
    "tallystick.clock.deviation",
    MetricKind.GAUGE,
    "s",
    "How far the clocks of this process and of its database differ at least, measured each second. "
    "With several databases the largest.",
)
DISK_UTILIZATION = Metric(
    "system.filesystem.utilization",
    MetricKind.GAUGE,
    "1",
    "Used fraction of the file system that holds the data folder of this process, which is that "
    "of the embedded PostgreSQL.",
)
PROCESS_CPU_TIME = Metric(
    "process.cpu.time", MetricKind.COUNTER, "s", "Processor time of this process."
)
RECORDING_FAILURES = Metric(
    "tallystick.metrics.recording_failures",
    MetricKind.COUNTER,
    "{recording}",
    "Recordings of the metrics of this process that MonitoringService did not accept. The next one "
    "has their increases.",
)
DROPPED_SERIES = Metric(
    "tallystick.metrics.dropped_series",
    MetricKind.GAUGE,
    "{series}",
    "Series that the last recording of this process left out, because there are as many as "
    "`monitoring.max_series`, or more than 1,000 have changed.",
)
SPANS_LOST = Metric(
    "tallystick.spans.lost",
    MetricKind.COUNTER,
    "{span}",
    "Spans of this process that were to be kept and are lost. `reason`: `too_many` waited, or were "
    "in one trace; MonitoringService `not_stored` them; the collector did not accept them, "
    "`not_exported`.",
    ("reason",),
)

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

CALLER_SPAN = SpanName("{method}", "A received call; the method has its package and service.")
UNKNOWN_METHOD_SPAN = SpanName("_OTHER", "A received call of a method that does not exist.")
SERVICE_CALL_SPAN = SpanName(
    "{method}", "A call to another service, with its retries; named as the received call."
)
PROVIDER_CALL_SPAN = SpanName("{provider} {action}", "A call to a provider.")
TRANSACTION_SPAN = SpanName(
    "transaction", "A transaction; `code.function.name` is the function that runs in it."
)
LOAD_SPAN = SpanName("load", "A read of work in progress.")
READ_SPAN = SpanName("read", "A read for a caller.")
BATCH_SPAN = SpanName("{batcher}", "A batch, linked to all of its members.")

SPANS = tuple(value for value in list(globals().values()) if isinstance(value, SpanName))

BATCHES: Mapping[str, str] = {
    "payment.check_admission": "finds existing payments, and whether new ones are admitted",
    "payment.create": "stores payments and their charges",
    "payment.risk_check": "records decisions of the risk provider",
    "payment.record": "records provider outcomes of charges",
    "payment.fall_back": "begins the next attempts of charges at their fallback providers",
    "payment.book": "credits wallets and posts to the ledger for charges",
    "payment.confirm_delivery": "releases pending credits of delivered orders",
    "payment.read": "reads payments",
    "payment.load_seller_owners": "reads the owners of sellers",
    "payment.claim_sellers": "claims sellers at WalletService",
    "payment.refresh_seller_owners": "reads the owners of sellers again at WalletService",
    "payout.create": "stores payouts",
    "payout.place_hold": "holds money of wallets for payouts",
    "payout.submit.{provider}": "sends payouts to a provider that takes several in one request",
    "payout.record": "records provider outcomes of payouts",
    "payout.book": "debits wallets and posts to the ledger for payouts",
    "payout.verify": "records provider outcomes of destination verifications",
    "payout.read": "reads payouts",
    "{service}.check_leases": "finds operations that are still leased",
    "{service}.reschedule": "reschedules, fails or dead-letters operations",
    "http.send_webhook_events": "sends webhook events to the service that stores them",
    "{service}.receive_webhook_events": "stores webhook events",
    "{service}.end_webhook_events": "ends webhook events that were applied",
    "wallet.change": "applies instructions to wallets",
    "ledger.post": "posts ledger transactions",
    "event.publish": "numbers and stores events",
    "sandbox.log": "stores the requests of the sandbox provider",
}
"""What each batch does, by the name of its batcher and of its span."""

INFO, ERROR = "INFO", "ERROR"
CALL_FAILED = LogEvent(
    "rpc.call.failed", "A call failed with INTERNAL: a fault of the platform.", ERROR
)
ITEM_REJECTED = LogEvent(
    "rpc.item.rejected", "A constraint rejected an item of a batch: a fault of the platform.", ERROR
)
CALLER_REJECTED = LogEvent(
    "service.caller_rejected", "Another service does not accept this service as its caller."
)
BOOKING_REJECTED = LogEvent(
    "service.booking_rejected", "WalletService or LedgerService rejects a release or a posting."
)
LOOKUP_REJECTED = LogEvent(
    "reconciliation.lookup_rejected",
    "PaymentService or PayoutService rejects to look up a line of a statement.",
)
ENTRIES_MISSING = LogEvent(
    "reconciliation.entries_missing",
    "More entries are in no file than one file opens breaks of; the next file opens the others.",
)
SELLER_OWNER_UNKNOWN = LogEvent(
    "service.seller_owner_unknown", "WalletService does not answer who owns a seller."
)
CIRCUIT_OPENED = LogEvent("provider.circuit.opened", "A provider failed again and again.")
CIRCUIT_CLOSED = LogEvent("provider.circuit.closed", "A provider answers again.")
ADAPTER_FAILED = LogEvent(
    "provider.adapter.failed",
    "An adapter failed or broke its interface; the outcome is Unknown.",
    ERROR,
)
WEBHOOK_UNREADABLE = LogEvent(
    "webhook.unreadable", "A signed webhook has no form that the adapter knows.", ERROR
)
WEBHOOK_NOT_STORED = LogEvent(
    "webhook.not_stored", "A webhook could not be stored; the provider delivers it again."
)
WEBHOOKS_NOT_ACCEPTED = LogEvent(
    "webhooks.not_accepted", "At the start: a provider's webhooks have no secrets in the settings."
)
WEBHOOK_EVENT_REJECTED = LogEvent(
    "webhook.event_rejected", "The service that stores events rejects a listed one.", ERROR
)
STATUS_PAGE_UNAVAILABLE = LogEvent(
    "status_page.unavailable", "A payment could not be read for a buyer; the page tries again."
)
WEBHOOKS_NOT_LISTED = LogEvent(
    "webhooks.not_listed", "A provider does not list its events; the next run tries again."
)
WEBHOOKS_FETCHED = LogEvent(
    "webhooks.fetched", "Events that a provider could not deliver were fetched and stored.", INFO
)
OPERATION_RESCHEDULED = LogEvent("operation.rescheduled", "A step failed; it is retried.", INFO)
FALLBACK_STARTED = LogEvent(
    "operation.fallback_started",
    "Nothing was sent to the provider of a charge; its next attempt goes to the fallback.",
    INFO,
)
OPERATION_DELAYED = LogEvent(
    "operation.delayed",
    "A dependency does not answer; the operation waits for the end of its lease.",
)
OPERATION_FAILED = LogEvent(
    "operation.failed", "An unexpected error; the operation waits for the end of its lease.", ERROR
)
OUTCOME_NOT_STORED = LogEvent(
    "operation.outcome_not_stored", "A provider outcome cannot be stored or applied.", ERROR
)
POLL_FAILED = LogEvent("operation.poll_failed", "A lookup of a completed operation failed.", ERROR)
LEASES_NOT_RELEASED = LogEvent(
    "operation.leases_not_released", "A drain could not release leases; they expire."
)
ALERT_RAISED = LogEvent("alert.raised", "An alert was raised.")
BATCHER_RESTARTED = LogEvent(
    "batch.worker_restarted", "A batcher's worker ended unexpectedly.", ERROR
)
PERIODIC_DELAYED = LogEvent("periodic.delayed", "Periodic work waits for a dependency.")
PERIODIC_FAILED = LogEvent("periodic.failed", "Periodic work failed; it runs again.", ERROR)
RELAY_DELAYED = LogEvent("outbox.relay.delayed", "EventService or the database does not answer.")
RELAY_FAILED = LogEvent(
    "outbox.relay.failed", "An unexpected error while events were published.", ERROR
)
EVENT_REJECTED = LogEvent("outbox.event.rejected", "EventService rejects an event.")
SCHEDULE_DELAYED = LogEvent("payout.schedule.delayed", "Payouts of a schedule wait.")
SCHEDULE_FAILED = LogEvent(
    "payout.schedule.failed", "Payouts of a schedule cannot be created.", ERROR
)
DATABASE_UNAVAILABLE = LogEvent(
    "database.unavailable", "A database does not answer; the health is NOT_SERVING."
)
DATABASE_AVAILABLE = LogEvent("database.available", "A database answers again.")
CERTIFICATE_REJECTED = LogEvent(
    "tls.certificate.rejected",
    "The files of a server's certificate and key cannot be used; the pair loaded before stays in "
    "use.",
    ERROR,
)
RECORDING_FAILED = LogEvent(
    "metrics.recording.failed", "MonitoringService does not record the metrics of this process."
)
RECORDING_RESUMED = LogEvent(
    "metrics.recording.resumed", "MonitoringService records the metrics of this process again."
)
SERIES_DROPPED = LogEvent(
    "metrics.series.dropped", "A recording left out series of metrics, because there are too many."
)
SCRAPE_FAILED = LogEvent("metrics.scrape.failed", "Metrics cannot be rendered.", ERROR)
PROCESS_STEP = LogEvent("process.step", "A process starts, serves, drains or has stopped.", INFO)
THREAD_FAILED = LogEvent("process.thread_failed", "A thread ended with an unexpected error.", ERROR)

LOG_EVENTS = tuple(value for value in list(globals().values()) if isinstance(value, LogEvent))
