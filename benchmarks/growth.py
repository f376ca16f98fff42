"""What each list, the monitor, the claims and verify cost with N payments: time, rows that their
plans read, and by which indexes.

`scripts/bench growth --payments N --waiting PART` seeds a database of its own, or uses the one that
is there from the last run of that size.
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import psycopg
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, Engine, event
from sqlalchemy import create_engine as engine_of

from benchmarks.seed.run import seed
from tallystick import AsyncClient
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.payment.state import ALERT_AFTER_SECONDS
from tallystick_core.payout.state import ALERT_AFTER_SECONDS as PAYOUT_ALERT_AFTER
from tallystick_server.app import serve
from tallystick_server.app.configuration import SERVICES, Settings
from tallystick_server.app.database.connections import DatabaseUrls, open_databases
from tallystick_server.app.wiring import Dependencies
from tallystick_server.rpc.pagination import PageToken
from tallystick_server.verify.run import verify
from tallystick_storage import alerts as alert_store
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database, open_engine, prune_commit_markers
from tallystick_storage.ledger import postings
from tallystick_storage.payment import orders
from tallystick_storage.payout import batches, payouts
from tallystick_storage.payout import schedules as schedule_store

_FOLDER = Path(".data/growth")
_REPETITIONS = 5
_DEFAULT_PAYMENTS = 1_000_000
REVIEW_SECONDS = 172_800.0
"""Seconds after which a review is overdue."""

ClientCall = Callable[[AsyncClient], Any]
DatabaseWork = Callable[[Connection], object]


def _timestamp(days_ago: float) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(datetime.now(UTC) - timedelta(days=days_ago))
    return timestamp


def _payments(**filters: Any) -> ClientCall:
    return lambda client: client.payment.ListPayments(
        payment_service_pb2.ListPaymentsRequest(**filters)
    )


def _payouts(**filters: Any) -> ClientCall:
    return lambda client: client.payout.ListPayouts(
        payout_service_pb2.ListPayoutsRequest(**filters)
    )


def _batch(**filters: Any) -> ClientCall:
    return lambda client: client.payout.GetPayoutBatch(
        payout_service_pb2.GetPayoutBatchRequest(**filters)
    )


def _transactions(**filters: Any) -> ClientCall:
    return lambda client: client.ledger.ListTransactions(
        ledger_service_pb2.ListTransactionsRequest(**filters)
    )


_OPEN, _FAILED = payment_pb2.PAYMENT_STATE_OPEN, payment_pb2.PAYMENT_STATE_FAILED
LIST_CALLS: dict[str, ClientCall] = {
    "ListPayments": _payments(),
    "ListPayments of a seller": _payments(seller_account="s-1"),
    "ListPayments of a large seller": _payments(seller_account="s-3"),
    "ListPayments of a buyer": _payments(buyer_account="b-2"),
    "ListPayments OPEN": _payments(payment_state=_OPEN),
    "ListPayments FAILED": _payments(payment_state=_FAILED),
    "ListPayments PARTIALLY_PAID (none)": _payments(
        payment_state=payment_pb2.PAYMENT_STATE_PARTIALLY_PAID
    ),
    "ListPayments of a time": _payments(
        create_time_from=_timestamp(20), create_time_until=_timestamp(10)
    ),
    "ListPayments before a time": _payments(create_time_until=_timestamp(25)),
    "ListPayments FAILED before a time": _payments(
        payment_state=_FAILED, create_time_until=_timestamp(15)
    ),
    "ListPayouts": _payouts(),
    "ListPayouts of a seller": _payouts(seller_account="s-1"),
    "ListPayouts AWAITING_APPROVAL": _payouts(
        payout_state=payout_pb2.PAYOUT_STATE_AWAITING_APPROVAL
    ),
    "ListPayouts FAILED": _payouts(payout_state=payout_pb2.PAYOUT_STATE_FAILED),
    "ListPayouts RETURNED (none)": _payouts(payout_state=payout_pb2.PAYOUT_STATE_RETURNED),
    "ListPayouts before a time": _payouts(create_time_until=_timestamp(5)),
    "ListPayoutDestinations": lambda client: client.payout.ListPayoutDestinations(
        payout_service_pb2.ListPayoutDestinationsRequest()
    ),
    "ListPayoutDestinations UNUSABLE (none)": lambda client: client.payout.ListPayoutDestinations(
        payout_service_pb2.ListPayoutDestinationsRequest(
            state=payout_pb2.PAYOUT_DESTINATION_STATE_UNUSABLE
        )
    ),
    "ListPayouts of a batch": _payouts(payout_batch_id="batch-1"),
    "GetPayoutBatch of two payouts": _batch(payout_batch_id="batch-2"),
    "GetPayoutBatch, second page": _batch(
        payout_batch_id="batch-1",
        page_token=PageToken("GetPayoutBatch", "batch-1", "", 0).make("p-2"),
    ),
    "GetPayoutSchedule": lambda client: client.payout.GetPayoutSchedule(
        payout_service_pb2.GetPayoutScheduleRequest(seller_account="s-1", currency="EUR")
    ),
    "GetPayoutSchedule, default": lambda client: client.payout.GetPayoutSchedule(
        payout_service_pb2.GetPayoutScheduleRequest(currency="EUR")
    ),
    "ListDeadLetters": lambda client: client.payment.ListDeadLetters(
        payment_service_pb2.ListDeadLettersRequest()
    ),
    "ListAlerts": lambda client: client.payment.ListAlerts(payment_service_pb2.ListAlertsRequest()),
    "ListAlerts, ended too": lambda client: client.payment.ListAlerts(
        payment_service_pb2.ListAlertsRequest(ended=True)
    ),
    "ListAlerts of wallets": lambda client: client.wallet.ListAlerts(
        wallet_service_pb2.ListAlertsRequest()
    ),
    "ListAlerts of the ledger": lambda client: client.ledger.ListAlerts(
        ledger_service_pb2.ListAlertsRequest()
    ),
    "ListUnappliedCharges": lambda client: client.payment.ListUnappliedCharges(
        payment_service_pb2.ListUnappliedChargesRequest()
    ),
    "ListUnappliedCharges, acknowledged too": lambda client: client.payment.ListUnappliedCharges(
        payment_service_pb2.ListUnappliedChargesRequest(acknowledged=True)
    ),
    "ListWallets": lambda client: client.wallet.ListWallets(
        wallet_service_pb2.ListWalletsRequest()
    ),
    "ListWallets in a currency": lambda client: client.wallet.ListWallets(
        wallet_service_pb2.ListWalletsRequest(currency="EUR")
    ),
    "ListWallets in a currency (none)": lambda client: client.wallet.ListWallets(
        wallet_service_pb2.ListWalletsRequest(currency="JPY")
    ),
    "ListWalletEntries": lambda client: client.wallet.ListWalletEntries(
        wallet_service_pb2.ListWalletEntriesRequest(seller_account="s-1", currency="EUR")
    ),
    "ListHolds": lambda client: client.wallet.ListHolds(
        wallet_service_pb2.ListHoldsRequest(seller_account="s-1")
    ),
    "ListAccounts": lambda client: client.ledger.ListAccounts(
        ledger_service_pb2.ListAccountsRequest()
    ),
    "ListAccounts of a prefix": lambda client: client.ledger.ListAccounts(
        ledger_service_pb2.ListAccountsRequest(prefix="sellers/")
    ),
    "ListAccounts in a currency (none)": lambda client: client.ledger.ListAccounts(
        ledger_service_pb2.ListAccountsRequest(currency="JPY")
    ),
    "ListTransactions": _transactions(),
    "ListTransactions REVERSAL (none)": _transactions(kind=ledger_pb2.TRANSACTION_KIND_REVERSAL),
    "ListTransactions of an account": _transactions(account="buyers/b-7"),
    "ListTransactions of the clearing account": _transactions(account="psp/sandbox/clearing"),
    "ListTransactions of a source id": _transactions(source_id="o-77"),
    "ListTransactions before any": _transactions(post_time_until=_timestamp(90)),
    "ListTransactions since a time": _transactions(post_time_from=_timestamp(90)),
    "GetAccount of the clearing account": lambda client: client.ledger.GetAccount(
        ledger_service_pb2.GetAccountRequest(account="psp/sandbox/clearing", currency="EUR")
    ),
    "GetTrialBalance, first page": lambda client: client.ledger.GetTrialBalance(
        ledger_service_pb2.GetTrialBalanceRequest(page_size=200)
    ),
}
"""Each list, as an operator asks it, with the filters that could be expensive."""
BOUNDED_LIST_CALLS: dict[str, ClientCall] = {
    "ListPayments of a seller and a state": _payments(seller_account="s-3", payment_state=_FAILED),
    "ListPayments of a seller and a state (none)": _payments(
        seller_account="s-3", payment_state=payment_pb2.PAYMENT_STATE_PARTIALLY_PAID
    ),
    "ListPayments of a seller and a buyer": _payments(seller_account="s-3", buyer_account="b-1"),
    "ListPayments PAID": _payments(payment_state=payment_pb2.PAYMENT_STATE_PAID),
    "ListPayouts of a seller and a state (none)": _payouts(
        seller_account="s-3", payout_state=payout_pb2.PAYOUT_STATE_RETURNED
    ),
    "ListPayouts of a batch and a state": _payouts(
        payout_batch_id="batch-1", payout_state=payout_pb2.PAYOUT_STATE_FAILED
    ),
    "GetPayoutBatch of 1,000 payouts": _batch(payout_batch_id="batch-1"),
    "GetPayoutBatch, refused (none)": _batch(payout_batch_id="batch-1", refused=True),
    "GetPayoutBatch FAILED": _batch(
        payout_batch_id="batch-1", payout_state=payout_pb2.PAYOUT_STATE_FAILED
    ),
    "ListPayouts PAID": _payouts(payout_state=payout_pb2.PAYOUT_STATE_PAID),
    "ListTransactions in a currency (none)": _transactions(currency="JPY"),
}
"""Lists that look at a bounded number of rows for what is rare, and batches, the totals of which
are counted.
"""


def _find_alerts(schema: str) -> DatabaseWork:
    queries_by_schema = {
        "payment": orders.alert_queries(ALERT_AFTER_SECONDS, REVIEW_SECONDS, 300),
        "payout": payouts.alert_queries(PAYOUT_ALERT_AFTER, 300),
        "wallet": alert_store.event_alert_queries(300),
        "ledger": postings.alert_queries(300),
    }
    return lambda connection: alert_store.evaluate(connection, queries_by_schema[schema])


MONITOR_QUERIES: dict[str, tuple[str, DatabaseWork]] = {
    "monitor of payments": ("payment", _find_alerts("payment")),
    "monitor of payouts": ("payout", _find_alerts("payout")),
    "monitor of wallets": ("wallet", _find_alerts("wallet")),
    "monitor of the ledger": ("ledger", _find_alerts("ledger")),
}
"""What the monitors look for, by schema."""
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
        lambda connection: operation_store.count_backlog(connection, "sandbox", "", 1000),
    ),
    "payouts to watch": ("payout", lambda connection: payouts.list_pollable(connection, 200)),
    "payouts under way of a batch": (
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
    "schedules that hold": (
        "payout",
        lambda connection: schedule_store.find_effective_schedules(
            connection, [(f"s-{number}", "EUR") for number in range(80)]
        ),
    ),
    "sellers with a schedule of their own": (
        "payout",
        lambda connection: schedule_store.find_sellers_with_schedule(
            connection, [f"s-{number}" for number in range(80)], "EUR"
        ),
    ),
    "batches to collect": ("payout", lambda connection: batches.list_generating(connection, 20)),
    "batches to close": ("payout", lambda connection: batches.list_open(connection, "", 20)),
    "payouts of a batch to make": (
        "payout",
        lambda connection: batches.list_requested(connection, "batch-1", 500),
    ),
    "unsent payouts to a destination": (
        "payout",
        lambda connection: payouts.list_unsent(connection, "d-s-1"),
    ),
}
"""What processes do all the time, by schema."""
HOUSEKEEPING: dict[str, tuple[str, DatabaseWork]] = {
    "marks to forget": ("payment", prune_commit_markers)
}
"""What processes do now and then, so much at a time."""


@dataclass
class QueryPlans:
    """The statements that some engines execute, and what their plans read."""

    statements: list[tuple[str, str, Any]] = field(default_factory=list)

    @contextmanager
    def capture(self, *engines: Engine) -> Iterator[QueryPlans]:
        """Captures what these engines execute until the block ends, and nothing that other engines
        of the process execute meanwhile.
        """

        def record(
            connection: Connection,
            _cursor: Any,
            statement: str,
            parameters: Any,
            _context: Any,
            _many: bool,
        ) -> None:
            url = connection.engine.url.set(drivername="postgresql").render_as_string(
                hide_password=False
            )
            self.statements.append((url, statement, parameters))

        for engine in engines:
            event.listen(engine, "before_cursor_execute", record)
        try:
            yield self
        finally:
            for engine in engines:
                event.remove(engine, "before_cursor_execute", record)

    def explain(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each statement's plan as it was executed, under the role and settings of who executed it;
        nothing of it stays.
        """
        for url, statement, parameters in self.statements:
            if (
                not statement.lstrip(" (\n")
                .lower()
                .startswith(("select", "with", "delete", "update"))
            ):
                continue
            with psycopg.connect(url) as connection:
                row = connection.execute(
                    f"explain (analyze, buffers, format json) {statement}".encode(), parameters
                ).fetchone()
                connection.rollback()
            yield statement, (row or ([],))[0][0]["Plan"]

    def nodes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each node of each plan."""
        for statement, plan in self.explain():
            for node in flatten(plan):
                yield statement, node


class ReadEngines:
    """Opens the databases of one platform. `engines`: those that answer callers' reads; relays,
    monitors and sweeps use others.
    """

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.dependencies = Dependencies(open_database=self._open)

    def _open(self, url: str, connections: int, new_id: Callable[[], UUID]) -> Database:
        return Database(url, connections=connections, new_id=new_id, engine_factory=self._engine)

    def _engine(self, url: str, connections: int, statement_timeout: float | None) -> Engine:
        engine = open_engine(url, connections, statement_timeout)
        if statement_timeout is not None:  # only callers' reads have a limit of their own
            self.engines.append(engine)
        return engine


def flatten(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A node of a plan, and all below it."""
    yield node
    for child in node.get("Plans", ()):
        yield from flatten(child)


def rows_read(node: dict[str, Any]) -> int:
    """How many rows a node of a plan took in hand, over all its loops."""
    filtered_rows = sum(
        node.get(f"Rows Removed by {reason}", 0)
        for reason in ("Filter", "Index Recheck", "Join Filter")
    )
    rows: float = (node.get("Actual Rows", 0) + filtered_rows) * node.get("Actual Loops", 1)
    return round(rows)


def blocks_read(plan: dict[str, Any]) -> int:
    """How many blocks a plan read, whether they were cached or not; among them are those of index
    entries that no row comes of.
    """
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def time_execution(
    database_urls: DatabaseUrls, schema: str, work: DatabaseWork, plans: QueryPlans | None = None
) -> float:
    """Does work in a transaction that is rolled back, under the service's role, and adds its
    statements to `plans`; the seconds it took.
    """
    engine = engine_of(database_urls.service(schema))
    try:
        with engine.connect() as connection:
            # a busy machine may let this process wait
            connection.exec_driver_sql("set idle_in_transaction_session_timeout = 0")
            start = time.perf_counter()
            with (plans or QueryPlans()).capture(engine):
                work(connection)
            seconds = time.perf_counter() - start
            connection.rollback()
            return seconds
    finally:
        engine.dispose()


def bench(
    payments: int, pending_fraction: float, print_status: Callable[[str], None]
) -> dict[str, Any]:
    """The figures, as `--json` prints them. `pending_fraction`: the part of the payments that waits
    for its provider.
    """
    payments = payments or _DEFAULT_PAYMENTS
    folder = _FOLDER / f"{payments}-{pending_fraction:g}"
    seed_file = folder / "seeded.json"
    with open_databases(Settings(), print_status, folder=folder) as database_urls:
        if not seed_file.exists():
            seed_file.write_text(
                json.dumps(
                    seed(database_urls, payments, print_status, pending_fraction=pending_fraction)
                )
            )
        seed_counts = json.loads(seed_file.read_text())
        with TemporaryDirectory() as socket_folder:
            rows = asyncio.run(
                _measure_calls(database_urls, f"unix:{socket_folder}/growth", print_status)
            )
        for name, (schema, work) in {**MONITOR_QUERIES, **WORKER_QUERIES, **HOUSEKEEPING}.items():
            rows[name] = _summarize(
                [time_execution(database_urls, schema, work) for _ in range(_REPETITIONS)],
                _capture_plans(database_urls, schema, work),
            )
            print_status(_format_row(name, rows[name]))
        start = time.perf_counter()
        report = verify(database_urls)
        rows["verify"] = {
            "ms": round((time.perf_counter() - start) * 1000),
            "passed": report.passed,
        }
        print_status(_format_row("verify", rows["verify"]))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "bench": "growth",
        "payments": payments,
        "waiting": pending_fraction,
        "seeded": seed_counts,
        "peak_mb": memory,
        "rows": rows,
    }


async def _measure_calls(
    database_urls: DatabaseUrls, address: str, print_status: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    settings = Settings().replace(
        server__listen=address, worker__sweep_interval=3600, worker__monitor_interval=3600
    )
    read_engines = ReadEngines()
    server = await serve.start(SERVICES, settings, database_urls.all(), read_engines.dependencies)
    client = AsyncClient(address)
    rows: dict[str, dict[str, Any]] = {}
    try:
        for name, call in {**LIST_CALLS, **BOUNDED_LIST_CALLS}.items():
            plans = QueryPlans()
            with plans.capture(*read_engines.engines):
                await call(client)
            times = []
            for _ in range(_REPETITIONS):
                start = time.perf_counter()
                await call(client)
                times.append(time.perf_counter() - start)
            rows[name] = _summarize(times, plans)
            print_status(_format_row(name, rows[name]))
    finally:
        await client.close()
        await server.stop(5.0)
    return rows


def _capture_plans(database_urls: DatabaseUrls, schema: str, work: DatabaseWork) -> QueryPlans:
    plans = QueryPlans()
    time_execution(database_urls, schema, work, plans)
    return plans


def _summarize(times: Sequence[float], plans: QueryPlans) -> dict[str, Any]:
    plan_trees = [plan for _, plan in plans.explain()]
    nodes = [node for plan in plan_trees for node in flatten(plan)]
    indexes = {node["Index Name"] for node in nodes if "Index Name" in node}
    indexes |= {
        f"all of {node['Relation Name']}" for node in nodes if node["Node Type"] == "Seq Scan"
    }
    return {
        "ms": round(statistics.median(times) * 1000, 1),
        "rows_read": max(map(rows_read, nodes), default=0),
        "blocks": sum(map(blocks_read, plan_trees)),
        "by": sorted(indexes),
    }


def _format_row(name: str, figures: dict[str, Any]) -> str:
    return (
        f"| {name} | {figures['ms']} | {figures.get('rows_read', '')} | "
        f"{figures.get('blocks', '')} | {', '.join(figures.get('by', ()))} |"
    )
