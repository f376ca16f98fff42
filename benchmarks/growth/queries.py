"""The database work of monitors, workers and housekeeping that is measured."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from tallystick_core.operations.kind import KindName
from tallystick_server.app.configuration import Settings
from tallystick_server.app.services import SERVICES, find_spec
from tallystick_server.app.wiring import implementation_of
from tallystick_storage import alerts as alert_store
from tallystick_storage import gauges
from tallystick_storage import operations as operation_store
from tallystick_storage.database import prune_commit_markers
from tallystick_storage.payment import charges
from tallystick_storage.payout import batches, payouts, transfers
from tallystick_storage.payout import schedules as schedule_store
from tallystick_storage.reconciliation import lookups, statement_files
from tallystick_storage.reconciliation import postings as reconciliation_postings
from tallystick_storage.sql import Connection
from tallystick_storage.webhook_events import SubjectKey

_REPORTED = SubjectKey("sandbox", "seed-1", "")
REVIEW_SECONDS = 172_800.0
"""Seconds after which a review is overdue."""

DatabaseWork = Callable[[Connection], object]


def _find_alerts(schema: str) -> DatabaseWork:
    find_queries = implementation_of(find_spec(schema)).alert_queries
    if find_queries is None:
        raise ValueError(f"The {schema} service has no alerts.")
    queries = find_queries(Settings().replace(payment__review_timeout=REVIEW_SECONDS))
    return lambda connection: alert_store.evaluate(connection, queries)


MONITOR_QUERIES: dict[str, tuple[str, DatabaseWork]] = {
    "monitor of payments": ("payment", _find_alerts("payment")),
    "monitor of payouts": ("payout", _find_alerts("payout")),
    "monitor of wallets": ("wallet", _find_alerts("wallet")),
    "monitor of the ledger": ("ledger", _find_alerts("ledger")),
    "monitor of reconciliation": ("reconciliation", _find_alerts("reconciliation")),
}
"""The alert queries of the monitors, each with its schema."""
GAUGE_QUERIES: dict[str, tuple[str, DatabaseWork]] = {
    f"{query.metric} of {spec.name}": (spec.name, partial(gauges.read_gauges, queries=[query]))
    for spec in SERVICES
    for query in implementation_of(spec).gauge_queries
}
"""The metrics that the monitors read, each with its schema."""
WORKER_QUERIES: dict[str, tuple[str, DatabaseWork]] = {
    "claim of charges": (
        "payment",
        lambda connection: operation_store.claim(connection, "sandbox", 200, 60.0),
    ),
    "claim of payouts": (
        "payout",
        lambda connection: operation_store.claim(connection, "sandbox", 200, 60.0),
    ),
    "backlog of charges": (
        "payment",
        lambda connection: operation_store.count_backlog(
            connection, KindName.CHARGE, "sandbox", 1000
        ),
    ),
    "charge of a provider's reference": (
        "payment",
        lambda connection: charges.find_reported(connection, [_REPORTED]),
    ),
    "payout of a provider's reference": (
        "payout",
        lambda connection: transfers.find_reported(connection, [_REPORTED]),
    ),
    "payouts to poll": ("payout", lambda connection: payouts.list_pollable(connection, 200)),
    "payouts in progress of a batch": (
        "payout",
        lambda connection: batches.is_in_progress(connection, "b-none"),
    ),
    "schedules of sellers that are due": (
        "payout",
        lambda connection: schedule_store.list_due(connection, 500, defaults_only=False),
    ),
    "default schedules that are due": (
        "payout",
        lambda connection: schedule_store.list_due(connection, 20, defaults_only=True),
    ),
    "schedules in force": (
        "payout",
        lambda connection: schedule_store.find_effective_schedules(
            connection, [(f"s-{number}", "EUR") for number in range(80)]
        ),
    ),
    "sellers with their own schedule": (
        "payout",
        lambda connection: schedule_store.find_sellers_with_schedule(
            connection, [f"s-{number}" for number in range(80)], "EUR"
        ),
    ),
    "batches to generate": ("payout", lambda connection: batches.list_generating(connection, 20)),
    "batches to close": ("payout", lambda connection: batches.list_open(connection, "", 20)),
    "requested payouts of a batch": (
        "payout",
        lambda connection: batches.list_requested(connection, "batch-1", 500),
    ),
    "breaks to look up": (
        "reconciliation",
        lambda connection: lookups.list_open(connection, (datetime.fromtimestamp(0, UTC), "")),
    ),
    "postings to send": (
        "reconciliation",
        lambda connection: reconciliation_postings.list_due(
            connection, reconciliation_postings.BEFORE_ALL, 200
        ),
    ),
    "unsent payouts to a destination": (
        "payout",
        lambda connection: payouts.list_unsent(connection, "d-s-1"),
    ),
}
"""What workers read all the time, each with its schema."""
HOUSEKEEPING: dict[str, tuple[str, DatabaseWork]] = {
    "commit markers to prune": ("payment", prune_commit_markers),
    "statement files to delete": ("reconciliation", statement_files.delete_abandoned),
}
"""What processes clean up now and then, a bounded number of rows at a time."""
