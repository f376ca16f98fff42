"""Fills a fresh database."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg

from benchmarks.measure import StatusPrinter
from benchmarks.seed.batches import clone_batches, clone_schedules
from benchmarks.seed.clone import RowCloner, fetch_value
from benchmarks.seed.events import clone_events
from benchmarks.seed.indexes import without_indexes
from benchmarks.seed.ledger import chain_ledger
from benchmarks.seed.monitoring import seed_monitoring
from benchmarks.seed.payments import clone_payments
from benchmarks.seed.payouts import clone_payouts
from benchmarks.seed.reconciliation import clone_reconciliation
from benchmarks.seed.sellers import clone_sellers
from benchmarks.seed.source_tables import create_source_tables
from benchmarks.seed.templates import PAYMENT_TOKENS, PAYOUT_AMOUNTS, create_templates
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.errors import StartupError

DEFAULT_PENDING_FRACTION = 0.01
MIN_PAYMENTS = 1000
COUNTED_TABLES = (
    "payment.checkout",
    "payment.operation",
    "payout.payout",
    "payout.payout_batch",
    "payout.payout_schedule",
    "ledger.tx",
    "ledger.entry",
    "ledger.account",
    "event.event",
    "reconciliation.statement_line",
    "reconciliation.break",
    "monitoring.sample",
    "monitoring.span",
    "payment.alert",
)
"""Their rows are counted at the end."""


def seed(
    database_urls: DatabaseUrls,
    payments: int,
    print_status: StatusPrinter,
    *,
    pending_fraction: float = DEFAULT_PENDING_FRACTION,
) -> dict[str, int | float]:
    """Fills a fresh database with this number of payments, and returns the row counts of the larger
    tables and the `seconds` it took.

    `pending_fraction`: the part of the payments that waits for the provider, 0 to 1. Raises
    StartupError if the database is not fresh.
    """
    start = time.perf_counter()
    _require_fresh(database_urls)
    asyncio.run(create_templates(database_urls))
    print_status("Created the templates")
    with psycopg.connect(database_urls.admin, autocommit=True) as connection:
        # no triggers: what they would check is cloned whole
        connection.execute("set session_replication_role = replica")
        connection.execute(
            "set synchronous_commit = off; set work_mem = '256MB'; set maintenance_work_mem = '1GB'"
        )
        with without_indexes(connection, print_status):
            create_source_tables(connection, payments, pending_fraction)
            _clone_all(connection, database_urls.admin, payments, print_status)
        seed_monitoring(connection, payments)
        print_status("Filled the history of metrics and the traces")
        print_status("Analyzing")
        connection.execute("vacuum analyze")
        counts = {
            table: int(fetch_value(connection, f"select count(*) from {table}"))
            for table in COUNTED_TABLES
        }
    return {**counts, "seconds": round(time.perf_counter() - start, 1)}


def _require_fresh(database_urls: DatabaseUrls) -> None:
    with psycopg.connect(database_urls.admin) as connection:
        if fetch_value(connection, "select exists (select from event.event)"):
            raise StartupError(
                "The database already has data. Choose a fresh one by TALLYSTICK_DATA_DIR or "
                "TALLYSTICK_DATABASE__URL."
            )


def _clone_all(
    connection: psycopg.Connection[Any], admin_url: str, payments: int, print_status: StatusPrinter
) -> None:
    cloner = RowCloner(connection)
    for kind in PAYMENT_TOKENS:
        clone_payments(cloner, kind)
        print_status(f"Cloned payments that are {kind}")
    clone_sellers(cloner)
    for state in PAYOUT_AMOUNTS:
        clone_payouts(cloner, state)
    clone_batches(cloner)
    clone_schedules(cloner, payments)
    print_status("Cloned wallets and payouts")
    last_template_sequence = chain_ledger(connection, admin_url)
    print_status("Chained the ledger")
    clone_reconciliation(cloner, last_template_sequence)
    print_status("Cloned statements and breaks")
    clone_events(cloner, last_template_sequence)
    print_status("Cloned events")
    _insert_commit_markers(connection, payments)


def _insert_commit_markers(connection: psycopg.Connection[Any], payments: int) -> None:
    connection.execute(f"""
        insert into payment.commit_marker
        select gen_random_uuid(), clock_timestamp() - i * interval '2 hours' / {payments}
            from generate_series(1, {payments}, 10) i
    """)
