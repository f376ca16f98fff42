"""What is asked of a platform stays as cheap when it holds a thousand times as much: each list, the monitor and each claim follow an index."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import psycopg
import pytest
from sqlalchemy import Connection, Row, create_engine, make_url

from benchmarks.growth import (
    CALLS,
    CLAIMS,
    HOUSEKEEPING,
    LOOKED_AT,
    REVIEW,
    TURNS,
    Call,
    CallersReads,
    Plans,
    Work,
    blocks_read,
    executed,
    flat,
    rows_read,
)
from benchmarks.seed import payment_request, seed
from tallystick import AsyncClient, Client
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_pb2, payout_service_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2
from tallystick_core.payment import ALERT_AFTER
from tallystick_core.payout import ALERT_AFTER as PAYOUT_ALERT_AFTER
from tallystick_server.process.configuration import Settings
from tallystick_server.process.databases import Databases
from tallystick_server.process.verify import verify
from tallystick_server.runtime import alerts
from tallystick_storage import alert, ledger, outbox
from tallystick_storage.database import forget_marks
from tallystick_storage.payment import orders, unapplied
from tallystick_storage.payout import batch, payouts, schedule

from .conftest import Platform, flow_of, fresh_database, replayed, serving

T = TypeVar("T")
_PAYMENTS = 20_000
_MANY = 600
"""Rows beyond which a plan reads what grows; a page is 51 rows, with some look-ups for each."""


@pytest.fixture(scope="module")
def seeded(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """A database of 20,000 payments, a third of which wait for their provider."""
    with fresh_database(admin_url, tmp_path_factory.mktemp("seeded")) as known:
        seed(known, _PAYMENTS, print, waiting=0.3)
        yield known


@dataclass
class Large:
    """A platform over the seeded database, and the engines that answer its callers' reads."""

    platform: Platform
    reads: CallersReads


@pytest.fixture(scope="module")
def large(seeded: Databases) -> Iterator[Large]:
    reads = CallersReads()
    with serving(seeded, Settings(sweep_interval=3600, monitor_interval=3600), ports=reads.ports) as running:
        yield Large(running, reads)


def asked(large: Large, call: Call) -> Plans:
    """Asks the platform; the statements that it took."""
    plans = Plans()

    async def ask() -> None:
        client = AsyncClient(large.platform.address)
        try:
            with plans.captured(*large.reads.engines):
                await call(client)
        finally:
            await client.close()

    large.platform.run(ask)
    return plans


def done(known: Databases, schema: str, work: Work) -> Plans:
    plans = Plans()
    executed(known, schema, work, plans)
    return plans


def too_much(plans: Plans, most: int) -> list[str]:
    """What in the plans reads more rows, or all of a table that grows."""
    found = []
    for statement, node in plans.nodes():
        if rows_read(node) > most or (node["Node Type"] == "Seq Scan" and node["Relation Name"] not in SMALL):
            found.append(f"{node['Node Type']} {node.get('Index Name', node.get('Relation Name', ''))}: {rows_read(node)} rows of {statement}")
    return found


SMALL = ("head", "relayed", "duty", "refused_aggregate")
"""Tables of a few rows."""


def test_what_is_seeded_verifies(seeded: Databases) -> None:
    """A seeded database is what the platform would have written: every check of verify passes on it."""
    report = verify(seeded)
    assert report.passed, report.as_text()


def list_again(together: payout_service_pb2.GetPayoutBatchResponse) -> payout_service_pb2.CreatePayoutBatchRequest:
    """The request that a batch comes of, whose report is one page."""
    return payout_service_pb2.CreatePayoutBatchRequest(
        payout_batch_id=together.payout_batch.payout_batch_id,
        list=payout_service_pb2.PayoutList(
            payouts=[
                payout_pb2.NewPayout(
                    payout_id=item.payout_id,
                    seller_account=item.seller_account,
                    amount=item.payout.amount,
                    currency=item.payout.currency,
                    payout_destination_id=item.payout.payout_destination_id,
                )
                for item in together.items
            ]
        ),
    )


def test_what_is_seeded_is_a_repeat_when_it_is_sent_again(large: Large) -> None:
    """Requests that seeded rows could have come of are the same requests to the platform: it answers with what is there."""
    client = large.platform.client()
    order = client.payment.GetPaymentOrder(payment_service_pb2.GetPaymentOrderRequest(payment_order_id="o-1")).payment_order
    assert replayed(client.payment.CreatePayment, payment_request("c-1", "o-1", order.buyer_account, order.seller_account))
    paid = client.payout.GetPayout(payout_service_pb2.GetPayoutRequest(payout_id="p-1")).payout
    seller, destination = paid.seller_account, paid.payout_destination_id
    held = client.payout.GetPayoutSchedule(payout_service_pb2.GetPayoutScheduleRequest(seller_account=seller, currency="EUR")).payout_schedule
    assert held.seller_account == seller
    again = payout_service_pb2.CreatePayoutRequest(
        payout_id="p-1", seller_account=seller, amount=paid.amount, currency="EUR", payout_destination_id=destination
    )
    assert replayed(client.payout.CreatePayout, again)
    together = client.payout.GetPayoutBatch(payout_service_pb2.GetPayoutBatchRequest(payout_batch_id="batch-2"))
    assert replayed(client.payout.CreatePayoutBatch, list_again(together))
    schedule_ = payout_service_pb2.SetPayoutScheduleRequest(
        seller_account=seller, currency="EUR", interval=held.interval, day_of_month=held.day_of_month, cut_off=held.cut_off, time_zone=held.time_zone
    )
    assert replayed(client.payout.SetPayoutSchedule, schedule_)
    bank = payout_service_pb2.CreatePayoutDestinationRequest(
        payout_destination_id=destination, seller_account=seller, currency="EUR", bank_account_token="ba_ok"
    )
    assert replayed(client.payout.CreatePayoutDestination, bank)
    of = {"caller": "t", "currency": "EUR"}
    credit = wallet_service_pb2.Credit(cause="PAY_IN/o-1", seller_account=order.seller_account, amount="9.50", pending=True, **of)
    hold = wallet_service_pb2.NewHold(
        hold_id="payouts/p-1",
        seller_account=seller,
        amount=paid.amount,
        purpose=wallet_pb2.HOLD_PURPOSE_PAYOUT,
        **of,  # type: ignore[arg-type]
    )
    capture = wallet_service_pb2.HoldCapture(hold_id="payouts/p-1", amount=paid.amount)
    assert client.wallet.BatchCredit(wallet_service_pb2.BatchCreditRequest(credits=[credit])).results[0].replayed
    assert client.wallet.BatchPlaceHold(wallet_service_pb2.BatchPlaceHoldRequest(holds=[hold])).results[0].replayed
    assert client.wallet.BatchCaptureHold(wallet_service_pb2.BatchCaptureHoldRequest(captures=[capture])).results[0].replayed


def test_plans_are_those_of_what_was_asked(seeded: Databases, large: Large, client: Client) -> None:
    """What other platforms of the process execute meanwhile is not taken for what was asked, nor is what a platform does by itself."""

    def ask_another() -> None:
        client.payment.ListPayments(payment_service_pb2.ListPaymentsRequest())

    async def list_and_wait(asking: AsyncClient) -> None:
        await asyncio.to_thread(ask_another)
        await CALLS["ListDeadLetters"](asking)
        await flow_of(large.platform)._database.load(lambda connection: connection.exec_driver_sql("select 'by itself'"))

    def look(connection: Connection) -> None:
        ask_another()
        connection.exec_driver_sql("select 1")

    plans = asked(large, list_and_wait)
    assert {make_url(url).database for url, _, _ in plans.statements} == {make_url(seeded.admin).database}
    assert [statement for _, statement, _ in plans.statements if "dead_letter" not in statement] == []
    assert [statement for _, statement, _ in done(seeded, "payment", look).statements] == ["select 1"]


@pytest.mark.parametrize("name", CALLS)
def test_a_list_reads_a_page(large: Large, name: str) -> None:
    """No list reads, or sorts, more of a table than some rows for each of its page, whatever it is filtered by."""
    plans = asked(large, CALLS[name])
    assert plans.statements
    assert too_much(plans, _MANY) == []


@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_list_of_what_is_rare_looks_at_so_many(large: Large, name: str) -> None:
    """What has no index is looked for in so many rows, after which the page ends, and tells where to go on."""
    assert too_much(asked(large, LOOKED_AT[name]), 10_000) == []


@pytest.mark.parametrize("name", TURNS)
def test_the_monitor_looks_at_what_has_rested_too_long(seeded: Databases, name: str) -> None:
    """The monitor reads what it finds, up to so many of a kind, and nothing of what waits in time."""
    assert too_much(done(seeded, *TURNS[name]), 2 * alert.MOST_OF_KIND + 10) == []


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_reads_what_can_be_claimed(seeded: Databases, name: str) -> None:
    """However much waits, a claim reads what is due, and nothing else."""
    assert too_much(done(seeded, *CLAIMS[name]), 2 * 200 + 10) == []


@pytest.mark.parametrize("name", HOUSEKEEPING)
def test_housekeeping_reads_what_it_takes(seeded: Databases, name: str) -> None:
    """However much there is to do, housekeeping does so much in a transaction, and reads no more."""
    assert too_much(done(seeded, *HOUSEKEEPING[name]), 10_000) == []


def test_pages_of_what_is_rare_lead_to_all_of_it(large: Large) -> None:
    """Pages that end before they are full, because so many rows were looked at, lead on to every payment that fits, each once."""
    client = large.platform.client()
    request = payment_service_pb2.ListPaymentsRequest(seller_account="s-3", payment_state=payment_pb2.PAYMENT_STATE_FAILED)
    pages = [client.payment.ListPayments(request)]
    while pages[-1].next_page_token:
        request.page_token = pages[-1].next_page_token
        pages.append(client.payment.ListPayments(request))
    assert len(pages) > 1
    with psycopg.connect(large.platform.databases.admin) as connection:
        rows = connection.execute("""
            select checkout_id from payment.checkout c where payment_state = 'FAILED' and exists (
                select from payment.payment_order o where o.checkout_id = c.checkout_id and o.seller_account = 's-3')
            order by create_time desc, checkout_id desc
        """).fetchall()
    assert [payment.checkout_id for page in pages for payment in page.payments] == [checkout_id for (checkout_id,) in rows] != []


@contextmanager
def all_in_a_batch(databases: Databases) -> Iterator[None]:
    """All payouts stand in the report of batch-2 until the block ends."""
    with psycopg.connect(databases.admin, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")  # a report only grows
        put = connection.execute("""
            insert into payout.payout_batch_item
            select 'batch-2', payout_id, seller_account, amount, currency, payout_destination_id, 'MADE' from payout.payout
            on conflict do nothing returning payout_id
        """).fetchall()
        try:
            yield
        finally:
            ids = [payout_id for (payout_id,) in put]
            connection.execute("delete from payout.payout_batch_item where payout_batch_id = 'batch-2' and payout_id = any (%s)", (ids,))


def test_pages_of_a_report_lead_to_all_in_a_state(large: Large) -> None:
    """Pages of a report that end because so many payouts were looked at lead on to every payout in the state, each once; the totals come with the first."""
    client = large.platform.client()
    request = payout_service_pb2.GetPayoutBatchRequest(payout_batch_id="batch-2", payout_state=payout_pb2.PAYOUT_STATE_FAILED, page_size=20)
    with all_in_a_batch(large.platform.databases):
        pages = [client.payout.GetPayoutBatch(request)]
        while pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token
            pages.append(client.payout.GetPayoutBatch(request))
    with psycopg.connect(large.platform.databases.admin) as connection:
        rows = connection.execute("select payout_id from payout.payout where state = 'FAILED' order by payout_id").fetchall()
    assert [item.payout_id for page in pages for item in page.items] == [payout_id for (payout_id,) in rows] != []
    assert any(len(page.items) < 20 for page in pages[:-1])
    assert [len(page.payout_batch.totals) for page in pages] == [1, *(0 for _ in pages[1:])]


_ACKNOWLEDGED = {
    "payment": (
        """insert into unapplied_charge select 'u-' || n, 'c-' || n, c.checkout_id, 'shop', '', 'sandbox', 'r-' || n, 1, 'EUR', 'LATE', true, 3, clock(), clock(),
        'ann', 'x', clock() from generate_series(1, 5000) n, (select checkout_id from checkout limit 1) c""",
        "analyze unapplied_charge",
    ),
    "payout": (
        """insert into transfer select 'sandbox', 'r-' || n, p.payout_id, 'TWICE', 't-' || n, 1, 'EUR', null, '', clock(), null, 'ann', 'x', clock()
        from generate_series(1, 5000) n, (select payout_id from payout limit 1) p""",
        """insert into conflicting_report select p.payout_id, n, 'r-' || n, clock(), 'ann', 'x', clock()
        from generate_series(1, 5000) n, (select payout_id from payout limit 1) p""",
        "analyze transfer, conflicting_report",
    ),
}
"""By schema: 5,000 of each that operators have acknowledged."""


_REFUSED = (
    "insert into refused_aggregate select 'payments/r-' || n, 1, clock() + (n - 20) * interval '1 minute', 'x' from generate_series(1, 5000) n",
    "insert into refused_event select aggregate_id, n, 'x' from refused_aggregate, generate_series(1, 20) n",
    """insert into outbox (aggregate_ids, versions, request) select array_agg('payments/r-' || (m * 10 + n)), array_agg(21), 'x'
    from generate_series(1, 1000) m, generate_series(1, 10) n group by m""",
    "analyze outbox, refused_aggregate, refused_event",
)
"""5,000 aggregates with 20 events each that wait, 20 of them due, and 1,000 rows of the outbox."""


def nodes_over(databases: Databases, schema: str, prepare: Sequence[str], work: Work) -> list[dict[str, Any]]:
    """The nodes of the plans of what is read once some statements have prepared the schema. All is rolled back."""
    plans, nodes = Plans(), []
    engine = create_engine(databases.admin.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"set search_path = {schema}")
            connection.exec_driver_sql("set session_replication_role = replica")
            for statement in prepare:
                connection.exec_driver_sql(statement)
            with plans.captured(engine):
                work(connection)
            for _, statement, parameters in plans.statements:
                explained = connection.exec_driver_sql(f"explain (analyze, format json) {statement}", parameters).scalar_one()
                nodes += list(flat(explained[0]["Plan"]))
    finally:
        engine.dispose()
    return nodes


def _of_acknowledged(kind: str, findings: Sequence[alert.Finding]) -> Work:
    (finding,) = [finding for finding in findings if finding.kind == kind]
    return lambda connection: alert.find(connection, [finding])


@pytest.mark.parametrize(
    ("schema", "work"),
    [
        ("payment", lambda connection: unapplied.list_(connection, None, 51, acknowledged=False)),
        ("payment", lambda connection: unapplied.list_(connection, None, 51, acknowledged=True)),
        ("payment", _of_acknowledged("UNAPPLIED_CHARGE", orders.findings(ALERT_AFTER, REVIEW, 300))),
        ("payout", _of_acknowledged("STRAY_TRANSFER", payouts.findings(PAYOUT_ALERT_AFTER, 300))),
        ("payout", _of_acknowledged("PAYOUT_CONTRADICTED", payouts.findings(PAYOUT_ALERT_AFTER, 300))),
    ],
    ids=["list", "list of all", "UNAPPLIED_CHARGE", "STRAY_TRANSFER", "PAYOUT_CONTRADICTED"],
)
def test_what_was_acknowledged_is_not_read(seeded: Databases, schema: str, work: Work) -> None:
    """However much operators have acknowledged, what is open is found in an index of its own, and a page of all is a page."""
    nodes = nodes_over(seeded, schema, _ACKNOWLEDGED[schema], work)
    assert {node["Index Name"] for node in nodes if "Index Name" in node}
    assert [node for node in nodes if node["Node Type"] == "Seq Scan" or rows_read(node) > 51] == []


_DUE_SCHEDULES = (
    """insert into payout_schedule select case when n <= 150 then '' else 'due-' || n end, 'X' || n, 'DAILY', '', 0, '12:00', 'UTC', 0, 0, 0, true, '',
    clock() - n * interval '1 s', clock() - n * interval '1 s', 0, 'chief', '', 1, clock() from generate_series(1, 20000) n""",
    "analyze payout_schedule",
)
"""20,000 schedules whose cut-offs have come, 150 of them defaults."""
_DELIVERED = (
    "insert into to_release select 'd-' || n, 'shop', case when mod(n, 100) = 0 then 'x' else '' end, clock() from generate_series(1, 20000) n",
    "analyze to_release",
)
"""20,000 deliveries that the wallet was not told yet, 200 of which it has refused."""


@pytest.mark.parametrize(
    ("schema", "prepare", "work"),
    [
        ("payout", _DUE_SCHEDULES, lambda connection: schedule.due(connection, 200, default=True)),
        ("payout", _DUE_SCHEDULES, lambda connection: schedule.due(connection, 200, default=False)),
        ("payment", _DELIVERED, _of_acknowledged("RELEASE_STUCK", orders.findings(ALERT_AFTER, REVIEW, 300))),
    ],
    ids=["default schedules", "schedules of sellers", "RELEASE_STUCK"],
)
def test_of_two_sorts_each_is_found_in_an_index_of_its_own(database: Databases, schema: str, prepare: Sequence[str], work: Work) -> None:
    """However many schedules are due, or deliveries wait, a page of one sort reads a page, in the order of an index."""
    nodes = nodes_over(database, schema, prepare, work)
    assert {node["Index Name"] for node in nodes if "Index Name" in node}
    assert [node for node in nodes if node["Node Type"] in ("Seq Scan", "Sort") or rows_read(node) > 210] == []


_AS_A_ROLE = "set enable_seqscan = off; set plan_cache_mode = force_custom_plan"
_RUNS = (
    _AS_A_ROLE,
    """insert into payout_batch_item select 'batch-' || case when n > 20000 then 2 + mod(n, 500) else 2 end, 'q-' || n, 's-1', null, 'EUR', '', 'MADE', null
    from generate_series(1, 30000) n""",
    """insert into payout_batch select 'run-' || n, caller, owner, fingerprint, traceparent, true, '', 'EUR', clock(), case when n <= 30 then 'OPEN'
        when n <= 60 then 'COLLECTING' else 'DONE' end, '', 1, 0, 0, 0, case when n <= 30 then 2 when n <= 60 then 1 else 3 end, create_time, update_time,
        case when n > 60 then done_time end, create_time, 0
    from payout_batch, generate_series(1, 20000) n where payout_batch_id = 'batch-2'""",
    "analyze payout_batch, payout_batch_item",
)
"""A batch of 20,000 payouts more, none of which is there, and 20,000 runs, of which 30 are to be collected, and 30 to be closed."""
_ADVANCED = timedelta(days=1)
_KEYS = [(f"X{n}", "EUR") for n in range(200)] + [(f"due-{n}", f"X{n}") for n in range(151, 351)]


def _due(connection: Connection) -> Sequence[Row[Any]]:
    return schedule.due(connection, 500, default=False)


@pytest.mark.parametrize(
    ("prepare", "work"),
    [
        (_RUNS, lambda connection: batch.report(connection, "batch-2", "", "FAILED", 51, refused=False)),
        (_RUNS, lambda connection: batch.report(connection, "batch-2", "q-1", "", 51, refused=False)),
        (_RUNS, lambda connection: batch.report(connection, "batch-2", "", "", 51, refused=True)),
        (_RUNS, lambda connection: batch.collecting(connection, 20)),
        (_RUNS, lambda connection: batch.open_(connection, "run-1", 20)),
        (_RUNS, lambda connection: batch.is_under_way(connection, "batch-2")),
        (_RUNS, lambda connection: batch.postpone(connection, "run-40")),
        (_RUNS, _of_acknowledged("BATCH_STUCK", payouts.findings(PAYOUT_ALERT_AFTER, 300))),
        ((_AS_A_ROLE, *_DUE_SCHEDULES), lambda connection: schedule.postpone(connection, _due(connection))),
        ((_AS_A_ROLE, *_DUE_SCHEDULES), lambda connection: schedule.advance(connection, [(row, row.next_time + _ADVANCED) for row in _due(connection)])),
        ((_AS_A_ROLE, *_DUE_SCHEDULES), lambda connection: schedule.holding(connection, _KEYS)),
        ((_AS_A_ROLE, *_DUE_SCHEDULES), lambda connection: schedule.with_own(connection, [seller for seller, _ in _KEYS], "X160")),
        ((_AS_A_ROLE, *_DUE_SCHEDULES), _of_acknowledged("SCHEDULE_OVERDUE", payouts.findings(PAYOUT_ALERT_AFTER, 300))),
    ],
    ids=[
        "payouts of a batch in a state", "report", "refused", "collecting", "open", "under way", "batch put off", "BATCH_STUCK", "schedules put off",
        "schedules run", "schedules that hold", "own schedules", "SCHEDULE_OVERDUE",
    ],
)  # fmt: skip
def test_schedules_and_batches_are_found_in_an_index(seeded: Databases, prepare: Sequence[str], work: Work) -> None:
    """However many schedules and batches there are, and however large a batch is, what is read of them is what is asked for, or a bounded part of it."""
    nodes = nodes_over(seeded, "payout", prepare, work)
    assert {node["Index Name"] for node in nodes if "Index Name" in node}
    assert [(node["Node Type"], rows_read(node)) for node in nodes if node["Node Type"] == "Seq Scan" or rows_read(node) > 2010] == []


_SOME = [f"payments/r-{number}" for number in range(500)]


@pytest.mark.parametrize(
    "work",
    [
        lambda connection: outbox.unpublished(connection, 20),
        lambda connection: outbox.due(connection, 50, 10),
        lambda connection: outbox.refused(connection, _SOME),
    ],
    ids=["new", "due", "refused"],
)
def test_a_relay_reads_what_it_publishes(seeded: Databases, work: Work) -> None:
    """However many events EventService refuses, a relay finds the next rows of the outbox, the refused events that are due, and those of given aggregates,
    in indexes."""
    plans = Plans()
    engine = create_engine(seeded.admin.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:  # which is rolled back
            connection.exec_driver_sql("set search_path = payment")
            connection.exec_driver_sql("set session_replication_role = replica")
            connection.exec_driver_sql("set enable_seqscan = off")  # as the services' roles have it
            for statement in _REFUSED:
                connection.exec_driver_sql(statement)
            with plans.captured(engine):
                work(connection)
            ((_, statement, parameters),) = plans.statements
            explained = connection.exec_driver_sql(f"explain (analyze, format json) {statement}", parameters).scalar_one()
    finally:
        engine.dispose()
    nodes = [node for node in flat(explained[0]["Plan"]) if "Relation Name" in node]
    assert nodes
    # one row of the small table says whether there are any
    assert [node for node in nodes if rows_read(node) > (1 if node["Node Type"] == "Seq Scan" else 600)] == []


def last_plan(databases: Databases, accounts: int, work: Callable[[Connection], T]) -> tuple[T, dict[str, Any]]:
    """What is read from the ledger with so many accounts more, "a/1" and so on, and the plan of its last statement. All is rolled back."""
    plans = Plans()
    engine = create_engine(databases.admin.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("set search_path = ledger; set session_replication_role = replica; set enable_seqscan = off")
            connection.exec_driver_sql(
                "insert into account (account, currency, balance, entry_count, create_time)"
                f" select 'a/' || n, 'EUR', 0, 1, clock() from generate_series(1, {accounts}) n"
            )
            connection.exec_driver_sql("analyze account")
            with plans.captured(engine):
                result = work(connection)
            _, statement, parameters = plans.statements[-1]
            explained = connection.exec_driver_sql(f"explain (analyze, buffers, format json) {statement}", parameters).scalar_one()
    finally:
        engine.dispose()
    return result, explained[0]["Plan"]


def test_the_oldest_event_of_the_ledger_is_looked_up(seeded: Databases) -> None:
    """However far the book is ahead of what EventService has, and however many events of alerts wait, the monitor looks up the oldest of either."""

    def look(connection: Connection) -> list[alert.Found]:
        connection.exec_driver_sql("update relayed set sequence = 7")
        connection.exec_driver_sql(
            "insert into outbox (aggregate_ids, versions, request) select array['alerts/x-' || n], array[1], 'x' from generate_series(1, 5000) n"
        )
        connection.exec_driver_sql("analyze outbox")
        (finding,) = [finding for finding in ledger.findings(0) if finding.kind == "EVENTS_WAIT"]
        return alert.find(connection, [finding])[0]

    found, plan = last_plan(seeded, 0, look)
    assert [one.subject for one in found] == ["services/event"]
    read = {node["Relation Name"]: rows_read(node) for node in flat(plan) if "Relation Name" in node}
    assert read == {"outbox": 1, "relayed": 1, "tx": 1}


def test_accounts_of_a_prefix_are_read_from_it_on(seeded: Databases) -> None:
    """A page of accounts of a prefix reads no index entries of the accounts before it, however many there are."""
    rows, plan = last_plan(seeded, 50_000, lambda connection: ledger.list_accounts(connection, "sellers/", "", ("", ""), 51))
    assert len(rows) == 51
    assert {row.account.split("/")[0] for row in rows} == {"sellers"}
    assert blocks_read(plan) < 150


def test_a_posting_reads_its_accounts_alone(seeded: Databases) -> None:
    """A batch that posts to two hundred accounts looks these up, and does not read the thousands of others to merge them with."""
    names = [(f"a/{number}", "EUR") for number in range(1, 3000, 15)]
    _, plan = last_plan(seeded, 3000, lambda connection: ledger.lock_accounts(connection, ledger.account_ids(connection, names)))
    assert [node for node in flat(plan) if node.get("Relation Name") == "account" and rows_read(node) > _MANY] == []


def test_many_of_a_kind_are_one_alert(seeded: Databases) -> None:
    """More than a thousand of a kind are one alert about all of them, however often the monitor looks; it ends when they are gone."""
    findings = orders.findings(ALERT_AFTER, REVIEW, 300)
    raised: list[list[str]] = []
    ended: list[str] = []

    def look(connection: Connection) -> None:
        raised.extend([row.subject for row in alerts.apply(connection, findings) if row.kind == "ORDER_STUCK"] for _ in range(2))
        ended.extend(row.subject for row in alert.end(connection, [], [], 1000) if row.kind == "ORDER_STUCK")

    executed(seeded, "payment", look)
    assert raised == [["paymentOrders/-"], []]
    assert ended == ["paymentOrders/-"]


def test_a_backlog_of_marks_is_worked_off(own_database: Databases) -> None:
    """Marks go by so many in a transaction, and whether there are more is told, so that any number is worked off."""
    with psycopg.connect(own_database.admin, autocommit=True) as connection:
        connection.execute("insert into payment.mark select gen_random_uuid(), clock_timestamp() - interval '3 hours' from generate_series(1, 10001)")
    more: list[bool] = []

    def forget(connection: Connection) -> None:
        more.extend(forget_marks(connection) for _ in range(2))

    executed(own_database, "payment", forget)
    assert more == [True, False]
