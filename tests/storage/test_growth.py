"""Calls cost the same when the platform holds a thousand times as much data: each list, the monitor
and each claim use an index.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import psycopg
import pytest
from sqlalchemy import make_url

from benchmarks.growth.calls import BOUNDED_LIST_CALLS, LIST_CALLS, ClientCall
from benchmarks.growth.plans import (
    QueryPlans,
    StatementRecorder,
    StatementRecorders,
    blocks_read,
    flatten,
    rolled_back,
    rows_read,
    time_execution,
)
from benchmarks.growth.queries import (
    GAUGE_QUERIES,
    HOUSEKEEPING,
    MONITOR_QUERIES,
    REVIEW_SECONDS,
    WORKER_QUERIES,
    DatabaseWork,
)
from benchmarks.seed.destinations import seed_destinations
from benchmarks.seed.kept import QUIET_SETTINGS
from benchmarks.seed.run import seed
from benchmarks.seed.templates import payment_request
from tallystick import AsyncClient, Client
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.payment.state import ALERT_AFTER_SECONDS
from tallystick_core.payout.state import ALERT_AFTER_SECONDS as PAYOUT_ALERT_AFTER
from tallystick_core.reconciliation.breaks import KINDS_ENDED_BY_BOOKING
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.errors import StartupError
from tallystick_server.operations import alerts
from tallystick_server.outbox.relay import MAX_EVENTS, MAX_ROWS, MIN_ROWS
from tallystick_server.verify.run import verify
from tallystick_storage import alerts as alert_store
from tallystick_storage import outbox
from tallystick_storage.database import prune_commit_markers
from tallystick_storage.ledger import postings
from tallystick_storage.ledger import queries as ledger_queries
from tallystick_storage.payment import alerts as payment_alerts
from tallystick_storage.payment import unapplied_charges
from tallystick_storage.payout import alerts as payout_alerts
from tallystick_storage.payout import batches
from tallystick_storage.payout import schedules as schedule_store
from tallystick_storage.reconciliation import breaks, open_items
from tallystick_storage.sql import Connection
from tests.support.platform import (
    ServedPlatform,
    database_of,
    fresh_database,
    is_replayed,
    serve_platform,
)

T = TypeVar("T")
_PAYMENT_COUNT = 20_000
_MAX_ROWS = 600
"""More rows than this mean that a plan's cost grows with the table; a page is 51 rows, with some
lookups for each.
"""


@pytest.fixture(scope="module")
def seeded_database(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DatabaseUrls]:
    """A database of 20,000 payments, a third of which wait for their provider."""
    with fresh_database(admin_url, tmp_path_factory.mktemp("seeded")) as databases:
        seed(databases, _PAYMENT_COUNT, print, pending_fraction=0.3)
        yield databases


@dataclass
class LargePlatform:
    """A platform on the seeded database, and the recorders of its callers' reads."""

    platform: ServedPlatform
    recorders: StatementRecorders


@pytest.fixture(scope="module")
def large_platform(seeded_database: DatabaseUrls) -> Iterator[LargePlatform]:
    recorders = StatementRecorders()
    with serve_platform(
        seeded_database,
        Settings().replace(**QUIET_SETTINGS),
        dependencies=recorders.dependencies,
    ) as served_platform:
        yield LargePlatform(served_platform, recorders)


def plans_of_call(large_platform: LargePlatform, call: ClientCall) -> QueryPlans:
    """Calls the platform and records the statements that it executed."""
    plans = QueryPlans()

    async def make_call() -> None:
        client = AsyncClient(large_platform.platform.address)
        try:
            with plans.capture(*large_platform.recorders.reads):
                await call(client)
        finally:
            await client.close()

    large_platform.platform.run_in_loop(make_call)
    return plans


def plans_of_work(databases: DatabaseUrls, schema: str, work: DatabaseWork) -> QueryPlans:
    plans = QueryPlans()
    time_execution(databases, schema, work, plans)
    return plans


def excessive_reads(plans: QueryPlans, max_rows: int) -> list[str]:
    """The plan nodes that read more rows than the limit, or a whole growing table."""
    problems = []
    for statement, node in plans.nodes():
        if rows_read(node) > max_rows or (
            node["Node Type"] == "Seq Scan" and node["Relation Name"] not in SMALL_TABLES
        ):
            problems.append(
                f"{node['Node Type']} {node.get('Index Name', node.get('Relation Name', ''))}: "
                f"{rows_read(node)} rows of {statement}"
            )
    return problems


SMALL_TABLES = (
    *("head", "horizon", "relayed", "leader_lease", "rejected_aggregate"),
    *("expected_sum", "break_sum"),
)
"""Tables of a few rows, or of sums that are read whole."""


def test_verify_passes_on_seeded_data(seeded_database: DatabaseUrls) -> None:
    """The platform could have written the seeded database: every check of verify passes on it."""
    report = verify(seeded_database)
    assert report.passed, report.as_text()


def test_seeded_destinations_verify(scratch_database: DatabaseUrls) -> None:
    """The platform could have written the destinations that `scripts/bench payouts` uses: every
    check of verify passes on them.
    """
    seed_destinations(scratch_database, 3)
    report = verify(scratch_database)
    assert report.passed, report.as_text()
    with psycopg.connect(scratch_database.admin) as connection:
        rows = connection.execute(
            "select payout_destination_id from payout.payout_destination where state = 'VERIFIED'"
        ).fetchall()
    assert {"d-seller-0", "d-seller-1", "d-seller-2"} <= {id_ for (id_,) in rows}


def test_a_database_is_seeded_once(seeded_database: DatabaseUrls) -> None:
    """Seeding rejects a database that has data, before it drops any index."""
    with pytest.raises(StartupError, match="already has data"):
        seed(seeded_database, _PAYMENT_COUNT, print)


def batch_request_of(
    batch: payout_service_pb2.GetPayoutBatchResponse,
) -> payout_service_pb2.CreatePayoutBatchRequest:
    """The request of a batch whose report is one page."""
    return payout_service_pb2.CreatePayoutBatchRequest(
        payout_batch_id=batch.payout_batch.payout_batch_id,
        list=payout_service_pb2.PayoutList(
            payouts=[
                payout_pb2.NewPayout(
                    payout_id=item.payout_id,
                    seller_account=item.seller_account,
                    amount=item.payout.amount,
                    currency=item.payout.currency,
                    payout_destination_id=item.payout.payout_destination_id,
                )
                for item in batch.items
            ]
        ),
    )


def test_requests_of_seeded_rows_are_replays(large_platform: LargePlatform) -> None:
    """The requests of seeded rows are replays for the platform: it answers with the stored rows."""
    client = large_platform.platform.client()
    order = client.payment.GetPaymentOrder(
        payment_service_pb2.GetPaymentOrderRequest(payment_order_id="o-1")
    ).payment_order
    assert is_replayed(
        client.payment.CreatePayment,
        payment_request("c-1", "o-1", order.buyer_account, order.seller_account),
    )
    paid_payout = client.payout.GetPayout(
        payout_service_pb2.GetPayoutRequest(payout_id="p-1")
    ).payout
    seller, destination = paid_payout.seller_account, paid_payout.payout_destination_id
    current_schedule = client.payout.GetPayoutSchedule(
        payout_service_pb2.GetPayoutScheduleRequest(seller_account=seller, currency="EUR")
    ).payout_schedule
    assert current_schedule.seller_account == seller
    repeated_request = payout_service_pb2.CreatePayoutRequest(
        payout_id="p-1",
        seller_account=seller,
        amount=paid_payout.amount,
        currency="EUR",
        payout_destination_id=destination,
    )
    assert is_replayed(client.payout.CreatePayout, repeated_request)
    together = client.payout.GetPayoutBatch(
        payout_service_pb2.GetPayoutBatchRequest(payout_batch_id="batch-2")
    )
    assert is_replayed(client.payout.CreatePayoutBatch, batch_request_of(together))
    schedule_ = payout_service_pb2.SetPayoutScheduleRequest(
        seller_account=seller,
        currency="EUR",
        interval=current_schedule.interval,
        day_of_month=current_schedule.day_of_month,
        cut_off=current_schedule.cut_off,
        time_zone=current_schedule.time_zone,
    )
    assert is_replayed(client.payout.SetPayoutSchedule, schedule_)
    bank = payout_service_pb2.CreatePayoutDestinationRequest(
        payout_destination_id=destination,
        seller_account=seller,
        currency="EUR",
        bank_account_token="ba_ok",
    )
    assert is_replayed(client.payout.CreatePayoutDestination, bank)
    of = {"caller": "t", "currency": "EUR"}
    credit = wallet_service_pb2.Credit(
        source_id="PAY_IN/o-1",
        seller_account=order.seller_account,
        amount="9.50",
        pending=True,
        **of,
    )
    hold = wallet_service_pb2.NewHold(
        hold_id="payouts/p-1",
        seller_account=seller,
        amount=paid_payout.amount,
        purpose=wallet_pb2.HOLD_PURPOSE_PAYOUT,
        **of,  # type: ignore[arg-type]
    )
    capture = wallet_service_pb2.HoldCapture(hold_id="payouts/p-1", amount=paid_payout.amount)
    assert (
        client.wallet.BatchCredit(wallet_service_pb2.BatchCreditRequest(credits=[credit]))
        .results[0]
        .replayed
    )
    assert (
        client.wallet.BatchPlaceHold(wallet_service_pb2.BatchPlaceHoldRequest(holds=[hold]))
        .results[0]
        .replayed
    )
    assert (
        client.wallet.BatchCaptureHold(
            wallet_service_pb2.BatchCaptureHoldRequest(captures=[capture])
        )
        .results[0]
        .replayed
    )


def test_plans_are_attributed_to_their_call(
    seeded_database: DatabaseUrls, large_platform: LargePlatform, client: Client
) -> None:
    """Statements of other platforms in the process, and of a platform's background work, are not
    attributed to a call.
    """

    def call_other_platform() -> None:
        client.payment.ListPayments(payment_service_pb2.ListPaymentsRequest())

    async def list_and_wait(asking: AsyncClient) -> None:
        await asyncio.to_thread(call_other_platform)
        await LIST_CALLS["ListDeadLetters"](asking)
        await database_of(large_platform.platform, "payment").load(
            lambda connection: connection.execute("select 'by itself'")
        )

    def look(connection: Connection) -> None:
        call_other_platform()
        connection.execute("select 1")

    plans = plans_of_call(large_platform, list_and_wait)
    assert {make_url(url).database for url, _, _ in plans.statements} == {
        make_url(seeded_database.admin).database
    }
    assert [
        statement for _, statement, _ in plans.statements if "dead_letter" not in statement
    ] == []
    assert [
        statement for _, statement, _ in plans_of_work(seeded_database, "payment", look).statements
    ] == ["select 1"]


@pytest.mark.parametrize("name", LIST_CALLS)
def test_a_list_reads_a_page(large_platform: LargePlatform, name: str) -> None:
    """No list reads or sorts more than some rows for each item of its page, with any filter."""
    plans = plans_of_call(large_platform, LIST_CALLS[name])
    assert plans.statements
    assert excessive_reads(plans, _MAX_ROWS) == []


@pytest.mark.parametrize("name", BOUNDED_LIST_CALLS)
def test_a_search_without_an_index_examines_a_bounded_number(
    large_platform: LargePlatform, name: str
) -> None:
    """A search without an index examines a bounded number of rows, then the page ends with a token
    to continue.
    """
    assert excessive_reads(plans_of_call(large_platform, BOUNDED_LIST_CALLS[name]), 10_000) == []


def test_the_clearing_report_reads_sums(large_platform: LargePlatform) -> None:
    """Of hours and of breaks, and the entries of a few hours only: there are thousands of both."""
    plans = plans_of_call(
        large_platform,
        lambda client: client.reconciliation.GetClearingReport(
            reconciliation_service_pb2.GetClearingReportRequest()
        ),
    )
    assert any("expected_sum" in statement for _, statement, _ in plans.statements)
    assert [node for _, node in plans.nodes() if rows_read(node) > 3_000] == []


@pytest.mark.parametrize("name", MONITOR_QUERIES)
def test_the_monitor_reads_only_rows_that_raise_an_alert(
    seeded_database: DatabaseUrls, name: str
) -> None:
    """The monitor reads only rows that raise an alert, up to a limit for each kind, and no row that
    waits within its time.
    """
    assert (
        excessive_reads(
            plans_of_work(seeded_database, *MONITOR_QUERIES[name]),
            2 * alert_store.MAX_PER_KIND + 10,
        )
        == []
    )


@pytest.mark.parametrize("name", GAUGE_QUERIES)
def test_the_monitor_reads_a_bounded_number_for_a_metric(
    seeded_database: DatabaseUrls, name: str
) -> None:
    """However many operations wait, a metric reads a bounded number of rows, by index."""
    plans = plans_of_work(seeded_database, *GAUGE_QUERIES[name])
    assert excessive_reads(plans, 10_000) == []


@pytest.mark.parametrize("name", WORKER_QUERIES)
def test_a_claim_reads_only_due_operations(seeded_database: DatabaseUrls, name: str) -> None:
    """However many operations wait, a claim reads only due ones."""
    assert (
        excessive_reads(plans_of_work(seeded_database, *WORKER_QUERIES[name]), 2 * 200 + 10) == []
    )


@pytest.mark.parametrize("name", HOUSEKEEPING)
def test_housekeeping_reads_a_bounded_number(seeded_database: DatabaseUrls, name: str) -> None:
    """However much there is to clean up, housekeeping processes a bounded number in a transaction,
    and reads no more.
    """
    assert excessive_reads(plans_of_work(seeded_database, *HOUSEKEEPING[name]), 10_000) == []


@pytest.mark.parametrize(
    "work",
    [
        lambda connection: breaks.list_waiting(connection, KINDS_ENDED_BY_BOOKING, "", 200),
        lambda connection: open_items.list_arrived(connection, 10, 50, 200),
    ],
    ids=["of providers", "of banks"],
)
def test_resolved_breaks_are_not_read(
    seeded_database: DatabaseUrls, work: Callable[[Connection], object]
) -> None:
    """However many breaks are resolved, only open ones are read to find those that end by a
    booking.
    """
    with psycopg.connect(seeded_database.admin) as connection:
        (row,) = connection.execute(
            "select count(*) filter (where state = 'OPEN'), count(*) from reconciliation.break"
        ).fetchall()
    assert row[1] > 2 * row[0] - 10 > 1000
    plans = plans_of_work(seeded_database, "reconciliation", work)
    read = [rows_read(node) for _, node in plans.nodes() if node.get("Relation Name") == "break"]
    assert read
    assert max(read) <= row[0]


def test_pages_of_a_search_contain_every_match_once(large_platform: LargePlatform) -> None:
    """Pages that end early, because the limit of examined rows was reached, lead to every matching
    payment, each once.
    """
    client = large_platform.platform.client()
    request = payment_service_pb2.ListPaymentsRequest(
        seller_account="s-3", payment_state=payment_pb2.PAYMENT_STATE_FAILED
    )
    pages = [client.payment.ListPayments(request)]
    while pages[-1].next_page_token:
        request.page_token = pages[-1].next_page_token
        pages.append(client.payment.ListPayments(request))
    assert len(pages) > 1
    with psycopg.connect(large_platform.platform.databases.admin) as connection:
        rows = connection.execute("""
            select checkout_id from payment.checkout c where payment_state = 'FAILED' and exists (
                select from payment.payment_order o where o.checkout_id = c.checkout_id
                    and o.seller_account = 's-3')
            order by create_time desc, checkout_id desc
        """).fetchall()
    assert (
        [payment.checkout_id for page in pages for payment in page.payments]
        == [checkout_id for (checkout_id,) in rows]
        != []
    )


@contextmanager
def all_payouts_in_batch(databases: DatabaseUrls) -> Iterator[None]:
    """All payouts belong to batch-2 until the block ends."""
    with psycopg.connect(databases.admin, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")  # a report only grows
        inserted = connection.execute("""
            insert into payout.payout_batch_item
            select 'batch-2', payout_id, seller_account, amount, currency, payout_destination_id,
                'CREATED' from payout.payout
            on conflict do nothing returning payout_id
        """).fetchall()
        try:
            yield
        finally:
            ids = [payout_id for (payout_id,) in inserted]
            connection.execute(
                "delete from payout.payout_batch_item where payout_batch_id = 'batch-2' and "
                "payout_id = any (%s)",
                (ids,),
            )


def test_pages_of_a_report_contain_every_payout_once(large_platform: LargePlatform) -> None:
    """Report pages that end early, because the limit of examined payouts was reached, lead to every
    payout in the state, each once; the totals are on the first page.
    """
    client = large_platform.platform.client()
    request = payout_service_pb2.GetPayoutBatchRequest(
        payout_batch_id="batch-2", payout_state=payout_pb2.PAYOUT_STATE_FAILED, page_size=20
    )
    with all_payouts_in_batch(large_platform.platform.databases):
        pages = [client.payout.GetPayoutBatch(request)]
        while pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token
            pages.append(client.payout.GetPayoutBatch(request))
    with psycopg.connect(large_platform.platform.databases.admin) as connection:
        rows = connection.execute(
            "select payout_id from payout.payout where state = 'FAILED' order by payout_id"
        ).fetchall()
    assert (
        [item.payout_id for page in pages for item in page.items]
        == [payout_id for (payout_id,) in rows]
        != []
    )
    assert any(len(page.items) < 20 for page in pages[:-1])
    assert [len(page.payout_batch.totals) for page in pages] == [1, *(0 for _ in pages[1:])]


_ACKNOWLEDGED_SQL = {
    "payment": (
        """insert into unapplied_charge select 'u-' || n, 'c-' || n, c.checkout_id, 'shop', '',
            'sandbox', 'r-' || n, 1, 'EUR', 'LATE', true, 3, clock(), clock(),
        'ann', 'x', clock() from generate_series(1, 5000) n, (select checkout_id from checkout
            limit 1) c""",
        "analyze unapplied_charge",
    ),
    "payout": (
        """insert into transfer select 'sandbox', 'r-' || n, p.payout_id, 'DUPLICATE', 't-' || n, 1,
            'EUR', null, '', clock(), null, 'ann', 'x', clock()
        from generate_series(1, 5000) n, (select payout_id from payout limit 1) p""",
        """insert into conflicting_report select p.payout_id, n, 'r-' || n, clock(), 'ann', 'x',
            clock()
        from generate_series(1, 5000) n, (select payout_id from payout limit 1) p""",
        "analyze transfer, conflicting_report",
    ),
}
"""By schema: 5,000 rows of each kind that operators have acknowledged."""


_REJECTED_EVENTS_SQL = (
    (
        "insert into rejected_aggregate select 'payments/r-' || n, 1, clock() + (n - 20) * "
        "interval '1 minute', 'x' from generate_series(1, 5000) n"
    ),
    (
        "insert into rejected_event select aggregate_id, n, 'x' from rejected_aggregate, "
        "generate_series(1, 20) n"
    ),
    """insert into outbox (aggregate_ids, versions,
        request) select array_agg('payments/r-' || (m * 10 + n)), array_agg(21), 'x'
    from generate_series(1, 1000) m, generate_series(1, 10) n group by m""",
    "analyze outbox, rejected_aggregate, rejected_event",
)
"""5,000 aggregates with 20 waiting events each, 20 of them due, and 1,000 rows of the outbox."""


def plan_nodes(
    databases: DatabaseUrls, schema: str, prepare: Sequence[str], work: DatabaseWork
) -> list[dict[str, Any]]:
    """The plan nodes of the reads after some statements have prepared the schema. Everything is
    rolled back.
    """
    plans, nodes = QueryPlans(), []
    recorder = StatementRecorder(databases.admin)
    with rolled_back(recorder) as connection:
        connection.execute(f"set search_path = {schema}")
        connection.execute("set session_replication_role = replica")
        for statement in prepare:
            connection.execute(statement)
        with plans.capture(recorder):
            work(connection)
        for _, statement, parameters in plans.statements:
            explanation = connection.execute(
                f"explain (analyze, format json) {statement}", parameters
            ).scalar_one()
            nodes += list(flatten(explanation[0]["Plan"]))
    return nodes


def _find_alerts(kind: str, findings: Sequence[alert_store.AlertQuery]) -> DatabaseWork:
    (finding,) = [finding for finding in findings if finding.kind == kind]
    return lambda connection: alert_store.evaluate(connection, [finding])


@pytest.mark.parametrize(
    ("schema", "work"),
    [
        (
            "payment",
            lambda connection: unapplied_charges.list_unapplied_charges(
                connection, unapplied_charges.UnappliedChargeFilter(False), None, 51
            ),
        ),
        (
            "payment",
            lambda connection: unapplied_charges.list_unapplied_charges(
                connection, unapplied_charges.UnappliedChargeFilter(True), None, 51
            ),
        ),
        (
            "payment",
            _find_alerts(
                "UNAPPLIED_CHARGE",
                payment_alerts.alert_queries(ALERT_AFTER_SECONDS, REVIEW_SECONDS, 300),
            ),
        ),
        (
            "payout",
            _find_alerts(
                "UNMATCHED_TRANSFER", payout_alerts.alert_queries(PAYOUT_ALERT_AFTER, 300)
            ),
        ),
        (
            "payout",
            _find_alerts(
                "PAYOUT_STATUS_CONFLICT", payout_alerts.alert_queries(PAYOUT_ALERT_AFTER, 300)
            ),
        ),
    ],
    ids=["list", "list of all", "UNAPPLIED_CHARGE", "UNMATCHED_TRANSFER", "PAYOUT_STATUS_CONFLICT"],
)
def test_acknowledged_rows_are_not_read(
    seeded_database: DatabaseUrls, schema: str, work: DatabaseWork
) -> None:
    """However many rows operators have acknowledged, open ones have an index of their own, and a
    page of all rows reads one page.
    """
    nodes = plan_nodes(seeded_database, schema, _ACKNOWLEDGED_SQL[schema], work)
    assert {node["Index Name"] for node in nodes if "Index Name" in node}
    assert [node for node in nodes if node["Node Type"] == "Seq Scan" or rows_read(node) > 51] == []


_DUE_SCHEDULES_SQL = (
    """insert into payout_schedule select case when n <= 150 then '' else 'due-' || n end, 'X' || n,
        'DAILY', '', 0, '12:00', 'UTC', 0, 0, 0, true, '',
    clock() - n * interval '1 s', clock() - n * interval '1 s', 0, 'chief', '', 1, clock()
        from generate_series(1, 20000) n""",
    "analyze payout_schedule",
)
"""20,000 due schedules, 150 of them defaults."""
_DELIVERED_SQL = (
    (
        "insert into pending_release select 'd-' || n, 'shop', case when mod(n, 100) = 0 then 'x' "
        "else '' end, clock() from generate_series(1, 20000) n"
    ),
    "analyze pending_release",
)
"""20,000 deliveries that WalletService has not received yet, 200 of which it has rejected."""


@pytest.mark.parametrize(
    ("schema", "prepare", "work"),
    [
        (
            "payout",
            _DUE_SCHEDULES_SQL,
            lambda connection: schedule_store.list_due(connection, 200, defaults_only=True),
        ),
        (
            "payout",
            _DUE_SCHEDULES_SQL,
            lambda connection: schedule_store.list_due(connection, 200, defaults_only=False),
        ),
        (
            "payment",
            _DELIVERED_SQL,
            _find_alerts(
                "RELEASE_STUCK",
                payment_alerts.alert_queries(ALERT_AFTER_SECONDS, REVIEW_SECONDS, 300),
            ),
        ),
    ],
    ids=["default schedules", "schedules of sellers", "RELEASE_STUCK"],
)
def test_each_kind_of_row_is_found_in_its_own_index(
    database: DatabaseUrls, schema: str, prepare: Sequence[str], work: DatabaseWork
) -> None:
    """However many schedules are due, or deliveries wait, a page of one kind reads one page, in
    index order.
    """
    nodes = plan_nodes(database, schema, prepare, work)
    assert {node["Index Name"] for node in nodes if "Index Name" in node}
    assert [
        node for node in nodes if node["Node Type"] in ("Seq Scan", "Sort") or rows_read(node) > 210
    ] == []


_FORCE_INDEX_SQL = "set enable_seqscan = off; set plan_cache_mode = force_custom_plan"
_RUNS_SQL = (
    _FORCE_INDEX_SQL,
    """insert into payout_batch_item select 'batch-' || case when n > 20000 then 2 + mod(n, 500)
        else 2 end, 'q-' || n, 's-1', null, 'EUR', '', 'CREATED', null
    from generate_series(1, 30000) n""",
    """insert into payout_batch select 'run-' || n, caller, owner, fingerprint, traceparent, true,
        '', 'EUR', clock(), case when n <= 30 then 'OPEN'
        when n <= 60 then 'GENERATING' else 'DONE' end, '', 1, 0, 0, 0, case when n <= 30 then 2
            when n <= 60 then 1 else 3 end, create_time, update_time,
        case when n > 60 then done_time end, create_time, 0
    from payout_batch, generate_series(1, 20000) n where payout_batch_id = 'batch-2'""",
    "analyze payout_batch, payout_batch_item",
)
"""A batch of 20,000 more payouts, none of which exists yet, and 20,000 runs, of which 30 are to be
generated, and 30 to be completed.
"""
_ADVANCE_BY = timedelta(days=1)
_SCHEDULE_KEYS = [(f"X{n}", "EUR") for n in range(200)] + [
    (f"due-{n}", f"X{n}") for n in range(151, 351)
]


def _due_schedules(connection: Connection) -> Sequence[schedule_store.DueScheduleRow]:
    return schedule_store.list_due(connection, 500, defaults_only=False)


@pytest.mark.parametrize(
    ("prepare", "work"),
    [
        (
            _RUNS_SQL,
            lambda connection: batches.load_report(
                connection, batches.ReportFilter("batch-2", "FAILED", False), None, 51
            ),
        ),
        (
            _RUNS_SQL,
            lambda connection: batches.load_report(
                connection, batches.ReportFilter("batch-2", "", False), ("q-1",), 51
            ),
        ),
        (
            _RUNS_SQL,
            lambda connection: batches.load_report(
                connection, batches.ReportFilter("batch-2", "", True), None, 51
            ),
        ),
        (_RUNS_SQL, lambda connection: batches.list_generating(connection, 20)),
        (_RUNS_SQL, lambda connection: batches.list_open(connection, "run-1", 20)),
        (_RUNS_SQL, lambda connection: batches.is_in_progress(connection, "batch-2")),
        (_RUNS_SQL, lambda connection: batches.reschedule(connection, "run-40")),
        (
            _RUNS_SQL,
            _find_alerts("BATCH_STUCK", payout_alerts.alert_queries(PAYOUT_ALERT_AFTER, 300)),
        ),
        (
            (_FORCE_INDEX_SQL, *_DUE_SCHEDULES_SQL),
            lambda connection: schedule_store.reschedule(connection, _due_schedules(connection)),
        ),
        (
            (_FORCE_INDEX_SQL, *_DUE_SCHEDULES_SQL),
            lambda connection: schedule_store.advance(
                connection,
                [(row, row.next_time + _ADVANCE_BY) for row in _due_schedules(connection)],
            ),
        ),
        (
            (_FORCE_INDEX_SQL, *_DUE_SCHEDULES_SQL),
            lambda connection: schedule_store.find_effective_schedules(connection, _SCHEDULE_KEYS),
        ),
        (
            (_FORCE_INDEX_SQL, *_DUE_SCHEDULES_SQL),
            lambda connection: schedule_store.find_sellers_with_schedule(
                connection, [seller for seller, _ in _SCHEDULE_KEYS], "X160"
            ),
        ),
        (
            (_FORCE_INDEX_SQL, *_DUE_SCHEDULES_SQL),
            _find_alerts("SCHEDULE_OVERDUE", payout_alerts.alert_queries(PAYOUT_ALERT_AFTER, 300)),
        ),
    ],
    ids=[
        "payouts of a batch in a state",
        "report",
        "rejected",
        "generating",
        "open",
        "under way",
        "batch put off",
        "BATCH_STUCK",
        "schedules put off",
        "schedules run",
        "schedules that hold",
        "own schedules",
        "SCHEDULE_OVERDUE",
    ],
)
def test_schedules_and_batches_are_found_by_index(
    seeded_database: DatabaseUrls, prepare: Sequence[str], work: DatabaseWork
) -> None:
    """However many schedules and batches there are, and however large a batch is, reads fetch only
    the requested rows, or a bounded number.
    """
    nodes = plan_nodes(seeded_database, "payout", prepare, work)
    assert {node["Index Name"] for node in nodes if "Index Name" in node}
    assert [
        (node["Node Type"], rows_read(node))
        for node in nodes
        if node["Node Type"] == "Seq Scan" or rows_read(node) > 2010
    ] == []


_AGGREGATE_IDS = [f"payments/r-{number}" for number in range(500)]


@pytest.mark.parametrize(
    "work",
    [
        lambda connection: outbox.list_unpublished(connection, MIN_ROWS, MAX_ROWS, MAX_EVENTS),
        lambda connection: outbox.list_due_events(connection, 50, 10),
        lambda connection: outbox.find_rejected_aggregates(connection, _AGGREGATE_IDS),
    ],
    ids=["new", "due", "rejected"],
)
def test_a_relay_reads_only_what_it_publishes(
    seeded_database: DatabaseUrls, work: DatabaseWork
) -> None:
    """However many events EventService rejects, a relay finds three things in indexes: the next
    rows of the outbox, the due rejected events, and those of given aggregates.
    """
    plans = QueryPlans()
    recorder = StatementRecorder(seeded_database.admin)
    with rolled_back(recorder) as connection:  # which is rolled back
        connection.execute("set search_path = payment")
        connection.execute("set session_replication_role = replica")
        connection.execute("set enable_seqscan = off")  # the services' roles
        for statement in _REJECTED_EVENTS_SQL:
            connection.execute(statement)
        with plans.capture(recorder):
            work(connection)
        ((_, statement, parameters),) = plans.statements
        explained = connection.execute(
            f"explain (analyze, format json) {statement}", parameters
        ).scalar_one()
    nodes = [node for node in flatten(explained[0]["Plan"]) if "Relation Name" in node]
    assert nodes
    # One row of the small table shows whether there are any. Each event looks up its aggregate.
    assert [
        node
        for node in nodes
        if rows_read(node) > (1 if node["Node Type"] == "Seq Scan" else MAX_EVENTS)
    ] == []


def last_plan(
    databases: DatabaseUrls, accounts: int, work: Callable[[Connection], T]
) -> tuple[T, dict[str, Any]]:
    """Reads from the ledger with the given number of additional accounts, "a/1" and so on; returns
    the result and the plan of the last statement. Everything is rolled back.
    """
    plans = QueryPlans()
    recorder = StatementRecorder(databases.admin)
    with rolled_back(recorder) as connection:
        connection.execute(
            "set search_path = ledger; set session_replication_role = replica; set "
            "enable_seqscan = off"
        )
        connection.execute(
            "insert into account (book, account, currency, balance, entry_count, create_time)"
            f" select 'main', 'a/' || n, 'EUR', 0, 1, clock() from generate_series(1, {accounts}) n"
        )
        connection.execute("analyze account")
        with plans.capture(recorder):
            result = work(connection)
        _, statement, parameters = plans.statements[-1]
        explanation = connection.execute(
            f"explain (analyze, buffers, format json) {statement}", parameters
        ).scalar_one()
    return result, explanation[0]["Plan"]


def test_the_oldest_unpublished_event_is_found_by_index(seeded_database: DatabaseUrls) -> None:
    """However many events EventService still lacks, and however many alert events wait, the monitor
    looks up the oldest of each kind.
    """

    def look(connection: Connection) -> list[alert_store.AlertCondition]:
        connection.execute("update relayed set sequence = 7")
        connection.execute(
            "insert into outbox (aggregate_ids, versions, request) select array['alerts/x-' || "
            "n], array[1], 'x' from generate_series(1, 5000) n"
        )
        connection.execute("analyze outbox")
        (finding,) = [
            finding for finding in postings.alert_queries(0) if finding.kind == "EVENTS_DELAYED"
        ]
        return alert_store.evaluate(connection, [finding])[0]

    findings, plan = last_plan(seeded_database, 0, look)
    assert [alert_finding.resource_name for alert_finding in findings] == ["services/event"]
    read = {
        node["Relation Name"]: rows_read(node) for node in flatten(plan) if "Relation Name" in node
    }
    assert read == {"outbox": 1, "relayed": 1, "tx": 1}


def test_accounts_with_a_prefix_are_read_by_index(seeded_database: DatabaseUrls) -> None:
    """A page of accounts with a prefix reads no index entries of earlier accounts, however many
    there are.
    """
    rows, plan = last_plan(
        seeded_database,
        50_000,
        lambda connection: ledger_queries.list_accounts(
            connection, ledger_queries.AccountFilter("main", "sellers/", ""), None, 51
        ),
    )
    assert len(rows) == 51
    assert {row.account.split("/")[0] for row in rows} == {"sellers"}
    assert blocks_read(plan) < 150


def test_a_posting_reads_only_its_accounts(seeded_database: DatabaseUrls) -> None:
    """A batch that posts to two hundred accounts looks these up, and does not scan thousands of
    others for a merge join.
    """
    names = [(f"a/{number}", "EUR") for number in range(1, 3000, 15)]
    _, plan = last_plan(
        seeded_database,
        3000,
        lambda connection: postings.lock_accounts(
            connection, "main", postings.open_accounts(connection, "main", names)
        ),
    )
    assert [
        node
        for node in flatten(plan)
        if node.get("Relation Name") == "account" and rows_read(node) > _MAX_ROWS
    ] == []


def test_many_conditions_of_a_kind_are_one_alert(seeded_database: DatabaseUrls) -> None:
    """More than a thousand conditions of a kind are one alert about all of them, on every run of
    the monitor; it ends when they are gone.
    """
    findings = payment_alerts.alert_queries(ALERT_AFTER_SECONDS, REVIEW_SECONDS, 300)
    raised_subjects: list[list[str]] = []
    ended_subjects: list[str] = []

    def look(connection: Connection) -> None:
        raised_subjects.extend(
            [
                row.resource_name
                for row in alerts.reconcile(connection, findings)
                if row.kind == "ORDER_STUCK"
            ]
            for _ in range(2)
        )
        ended_subjects.extend(
            row.resource_name
            for row in alert_store.end_cleared(connection, [], [], 1000)
            if row.kind == "ORDER_STUCK"
        )

    time_execution(seeded_database, "payment", look)
    assert raised_subjects == [["paymentOrders/-"], []]
    assert ended_subjects == ["paymentOrders/-"]


def test_commit_markers_are_pruned_in_bounded_transactions(scratch_database: DatabaseUrls) -> None:
    """Commit markers are deleted in bounded transactions, which report whether more remain, so that
    any number can be deleted.
    """
    with psycopg.connect(scratch_database.admin, autocommit=True) as connection:
        connection.execute(
            "insert into payment.commit_marker select gen_random_uuid(), clock_timestamp() - "
            "interval '3 hours' from generate_series(1, 10001)"
        )
    has_more: list[bool] = []

    def forget(connection: Connection) -> None:
        has_more.extend(prune_commit_markers(connection) for _ in range(2))

    time_execution(scratch_database, "payment", forget)
    assert has_more == [True, False]
