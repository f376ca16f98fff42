"""Payouts that are created together in batches."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest

from tallystick import AlreadyExistsError, Client, TallystickError
from tallystick.event.v1 import event_service_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.provider.outcome import Declined, PayoutFailure, Submitted
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.payout import batch_generator
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.errors import expect_error_reason, from_status
from tests.support.payouts import (
    RETRY,
    batch_totals,
    create_destination,
    create_payout,
    create_sale,
    get_batch,
    set_daily_schedule,
    state_name,
    wait_for_state,
    wait_until_done,
)
from tests.support.platform import (
    ServedPlatform,
    eventually,
    payouts_of,
    serve_platform,
    unique_id,
)
from tests.support.rows import update_rows


@pytest.fixture
def payout_provider() -> ScriptedPayoutProvider:
    return ScriptedPayoutProvider()


def test_payouts_of_a_list_are_independent(
    payout_client: Client, payout_provider: ScriptedPayoutProvider
) -> None:
    """Each payout of a list is independent: paid, failed, or rejected with its reason. The batch is
    DONE when none is in progress, and its totals match.
    """
    good, poor, bad = (
        create_sale(payout_client, "10.00"),
        create_sale(payout_client, "1.00"),
        create_sale(payout_client, "5.00"),
    )
    for seller in (good, poor):
        create_destination(payout_client, seller)
    to = create_destination(payout_client, bad)
    payout_provider.script[to].append(Declined(PayoutFailure.PROVIDER_DECLINED, "risk"))
    ids = sorted(unique_id("p") for _ in range(3))
    new_payouts = [
        payout_pb2.NewPayout(payout_id=id_, seller_account=seller, amount=amount, currency="EUR")
        for id_, seller, amount in zip(ids, (good, poor, bad), ("4.00", "1.01", ""), strict=True)
    ]
    request = pb.CreatePayoutBatchRequest(
        payout_batch_id=(id_ := unique_id("b")), list=pb.PayoutList(payouts=new_payouts)
    )
    created = payout_client.payout.CreatePayoutBatch(request).payout_batch
    assert (created.item_count, created.caller) == (3, "dev")
    batch_response = wait_until_done(payout_client, id_)
    assert (
        batch_response.payout_batch.generated_count,
        batch_response.payout_batch.rejected_count,
        batch_response.payout_batch.version,
    ) == (3, 1, 3)
    assert batch_totals(batch_response) == {
        "PAID": (1, "4.00", "0.00"),
        "FAILED": (1, "5.00", "0.00"),
    }
    assert [line.payout_id for line in batch_response.items] == ids
    assert [line.WhichOneof("result") for line in batch_response.items] == [
        "payout",
        "error",
        "payout",
    ]
    assert from_status(batch_response.items[1].error).reason == "INSUFFICIENT_FUNDS"
    assert [line.payout_id for line in get_batch(payout_client, id_, rejected=True).items] == [
        ids[1]
    ]
    assert [
        line.payout_id
        for line in get_batch(payout_client, id_, payout_state=payout_pb2.PAYOUT_STATE_PAID).items
    ] == [ids[0]]
    assert [
        line.payout_id
        for line in payout_client.pages(
            payout_client.payout.GetPayoutBatch,
            pb.GetPayoutBatchRequest(payout_batch_id=id_, page_size=1),
            "items",
        )
    ] == ids
    reordered = pb.CreatePayoutBatchRequest(
        payout_batch_id=id_, list=pb.PayoutList(payouts=new_payouts[::-1])
    )
    assert (
        payout_client.payout.CreatePayoutBatch(reordered).payout_batch.state
        == payout_pb2.PAYOUT_BATCH_STATE_DONE
    )
    shorter = pb.CreatePayoutBatchRequest(
        payout_batch_id=id_, list=pb.PayoutList(payouts=new_payouts[:2])
    )
    assert (
        expect_error_reason(payout_client.payout.CreatePayoutBatch, shorter)
        == "IDEMPOTENCY_KEY_REUSED"
    )
    changed_request = pb.CreatePayoutBatchRequest(
        payout_batch_id=id_, list=pb.PayoutList(payouts=new_payouts)
    )
    changed_request.list.payouts[1].amount = "77.00"
    run = pb.CreatePayoutBatchRequest(
        payout_batch_id=id_, run=pb.NewPayoutRun(seller_account="s", currency="EUR")
    )
    for reused, field in (
        (shorter, "list.payouts"),
        (changed_request, "list.payouts.amount"),
        (run, "run"),
    ):
        with pytest.raises(AlreadyExistsError) as error:
            payout_client.payout.CreatePayoutBatch(reused)
        assert error.value.metadata == {"field": field}


def test_a_payout_without_an_amount_gets_the_remainder_of_its_list(payout_client: Client) -> None:
    """Of a seller's payouts in one list the one without an amount gets the remainder, at any
    position; a second such payout finds nothing.
    """
    seller = create_sale(payout_client, "40.00")
    create_destination(payout_client, seller)
    ids = sorted(unique_id("p") for _ in range(4))
    amounts = ("", "10.00", "20.00", "")
    new_payouts = [
        payout_pb2.NewPayout(payout_id=id_, seller_account=seller, amount=amount, currency="EUR")
        for id_, amount in zip(ids, amounts, strict=True)
    ]
    payout_client.payout.CreatePayoutBatch(
        pb.CreatePayoutBatchRequest(
            payout_batch_id=(id_ := unique_id("b")), list=pb.PayoutList(payouts=new_payouts)
        )
    )
    batch_response = wait_until_done(payout_client, id_)
    assert batch_totals(batch_response) == {"PAID": (3, "40.00", "0.00")}
    assert [line.payout.amount for line in batch_response.items] == ["10.00", "10.00", "20.00", ""]
    assert from_status(batch_response.items[3].error).reason == "INSUFFICIENT_FUNDS"


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (pb.CreatePayoutBatchRequest(payout_batch_id="b"), "FIELD_REQUIRED", "content"),
        (
            pb.CreatePayoutBatchRequest(payout_batch_id="b", list=pb.PayoutList()),
            "FIELD_REQUIRED",
            "list.payouts",
        ),
        (
            pb.CreatePayoutBatchRequest(
                payout_batch_id="run-1", run=pb.NewPayoutRun(currency="EUR")
            ),
            "FIELD_INVALID",
            "payout_batch_id",
        ),
        (
            pb.CreatePayoutBatchRequest(payout_batch_id="b", run=pb.NewPayoutRun(currency="XXX")),
            "CURRENCY_UNKNOWN",
            "run.currency",
        ),
        (
            pb.CreatePayoutBatchRequest(
                payout_batch_id="b",
                list=pb.PayoutList(payouts=[payout_pb2.NewPayout(payout_id="p")] * 1001),
            ),
            "TOO_MANY_ITEMS",
            "list.payouts",
        ),
        (
            pb.CreatePayoutBatchRequest(
                payout_batch_id="b",
                list=pb.PayoutList(
                    payouts=[
                        payout_pb2.NewPayout(
                            payout_id="p", seller_account="s", currency="EUR", amount="1"
                        )
                    ]
                    * 2
                ),
            ),
            "DUPLICATE_ITEM",
            "list.payouts[1].payout_id",
        ),
        (
            pb.CreatePayoutBatchRequest(
                payout_batch_id="b",
                list=pb.PayoutList(
                    payouts=[payout_pb2.NewPayout(payout_id="r-p", seller_account="s")]
                ),
            ),
            "FIELD_INVALID",
            "list.payouts[0].payout_id",
        ),
    ],
)
def test_an_invalid_list_is_rejected_as_a_whole(
    client: Client, request_: pb.CreatePayoutBatchRequest, reason: str, field: str
) -> None:
    """The form of the list is validated as a whole, and the first error names its field; nothing is
    stored.
    """
    with pytest.raises(TallystickError) as error:
        client.payout.CreatePayoutBatch(request_)
    assert (error.value.reason, error.value.field_violations[0].field) == (reason, field)
    assert (
        expect_error_reason(
            client.payout.GetPayoutBatch, pb.GetPayoutBatchRequest(payout_batch_id="b")
        )
        == "NOT_FOUND"
    )


def test_a_thousand_payouts_are_one_batch(payout_client: Client) -> None:
    """A batch of the maximum size is accepted; lines that cannot be paid are rejected one by
    one.
    """
    new_payouts = [
        payout_pb2.NewPayout(
            payout_id=f"p-{'x' * 50}-{n}",
            seller_account=f"nobody-{'y' * 50}-{n}",
            amount="1.00",
            currency="EUR",
        )
        for n in range(1000)
    ]
    payout_client.payout.CreatePayoutBatch(
        pb.CreatePayoutBatchRequest(
            payout_batch_id=(id_ := unique_id("b")), list=pb.PayoutList(payouts=new_payouts)
        )
    )
    batch_response = wait_until_done(payout_client, id_)
    assert (
        batch_response.payout_batch.generated_count,
        batch_response.payout_batch.rejected_count,
    ) == (1000, 1000)


def test_open_batches_do_not_delay_others(
    payout_client: Client, payout_provider: ScriptedPayoutProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Payouts may be in transit for days: however many batches wait for theirs, a new one is
    generated, and a batch whose payouts are final is DONE.
    """
    monkeypatch.setattr(batch_generator, "MAX_BATCHES", 1)
    for slow in (True, True, False, True, False):
        seller = create_sale(payout_client, "10.00")
        to = create_destination(payout_client, seller)
        payout_provider.script[to].extend([Submitted(unique_id("tr"))] * 500 * slow)
        request = pb.CreatePayoutBatchRequest(
            payout_batch_id=(id_ := unique_id("b")),
            run=pb.NewPayoutRun(seller_account=seller, currency="EUR"),
        )
        payout_client.payout.CreatePayoutBatch(request)
        if slow:
            assert eventually(
                lambda: (
                    get_batch(payout_client, id_).payout_batch.state
                    == payout_pb2.PAYOUT_BATCH_STATE_OPEN
                )
            )
        else:
            assert batch_totals(wait_until_done(payout_client, id_)) == {
                "PAID": (1, "10.00", "0.00")
            }


def test_payouts_committed_during_shutdown_are_paid(
    scratch_database: DatabaseUrls, payout_provider: ScriptedPayoutProvider
) -> None:
    """Payouts of a batch that are being committed when the process stops are paid during the drain:
    none remains leased to the stopped process.
    """
    stack = ExitStack()
    settings = Settings().replace(retry=RETRY, worker__scan_interval=0.1)
    platform = stack.enter_context(
        serve_platform(
            scratch_database,
            settings,
            dependencies=Dependencies(payout_providers={"sandbox": payout_provider}),
        )
    )
    payouts = payouts_of(platform)
    with platform.client() as client:
        sellers = [create_sale(client, "5.00") for _ in range(3)]
        for seller in sellers:
            create_destination(client, seller)
        items = [
            payout_pb2.NewPayout(
                payout_id=unique_id("p"), seller_account=seller, amount="5.00", currency="EUR"
            )
            for seller in sellers
        ]
        with (
            psycopg.connect(scratch_database.admin) as blocker,
            psycopg.connect(scratch_database.admin, autocommit=True) as admin,
            ThreadPoolExecutor() as pool,
        ):
            blocker.execute("lock table payout.payout in share mode")
            client.payout.CreatePayoutBatch(
                pb.CreatePayoutBatchRequest(
                    payout_batch_id=unique_id("b"), list=pb.PayoutList(payouts=items)
                )
            )
            waiting_query = (
                "select count(*) from pg_locks where relation = 'payout.payout'::regclass and not "
                "granted"
            )
            assert eventually(lambda: admin.execute(waiting_query).fetchone() != (0,))
            stop_future = pool.submit(stack.close)
            assert eventually(lambda: not payouts.generation.is_running)
            blocker.rollback()
            stop_future.result(60)
            remaining_row = admin.execute(
                "select state from payout.payout p left join payout.operation on operation_id = "
                "payout_id where lease_until > now()"
            ).fetchall()
            assert (
                remaining_row,
                admin.execute("select count(*) from payout.payout where state = 'PAID'").fetchone(),
            ) == ([], (3,))


def test_batches_that_cannot_be_generated_do_not_delay_others(
    payout_client: Client, payout_platform: ServedPlatform
) -> None:
    """However many batches fail to be generated, a later one is generated; the failed ones follow
    once the cause is removed.
    """
    seller, poor = create_sale(payout_client, "8.00"), create_sale(payout_client, "1.00")
    create_destination(payout_client, seller)

    def create(batch_id: str, seller: str) -> None:
        new = payout_pb2.NewPayout(payout_id=unique_id("p"), seller_account=seller, currency="EUR")
        payout_client.payout.CreatePayoutBatch(
            pb.CreatePayoutBatchRequest(payout_batch_id=batch_id, list=pb.PayoutList(payouts=[new]))
        )

    with psycopg.connect(payout_platform.databases.admin, autocommit=True) as admin:
        admin.execute("""
            create trigger no_report before update on payout.payout_batch_item for each row
                when (new.payout_batch_id like 'bad%')
            execute function payout.reject_change()""")
        bad = [unique_id("bad") for _ in range(batch_generator.MAX_BATCHES + 5)]
        for id_ in bad:
            create(id_, poor)
        create(id_ := unique_id("b"), seller)
        assert batch_totals(wait_until_done(payout_client, id_)) == {"PAID": (1, "8.00", "0.00")}
        assert {
            get_batch(payout_client, bad_batch_id).payout_batch.state for bad_batch_id in bad
        } == {payout_pb2.PAYOUT_BATCH_STATE_GENERATING}
        admin.execute("drop trigger no_report on payout.payout_batch_item")
        admin.execute("set session_replication_role = replica")
        update_rows(
            admin, "update payout.payout_batch set next_run_time = now() where state = 'GENERATING'"
        )
    assert all(
        wait_until_done(payout_client, bad_batch_id).payout_batch.rejected_count == 1
        for bad_batch_id in bad
    )


def test_every_change_is_published(payout_client: Client) -> None:
    """E1: every version of payouts, destinations, batches and schedules is published in order, and
    no event contains the bank account's token.
    """
    seller = create_sale(payout_client, "10.00")
    to = create_destination(payout_client, seller, token := unique_id("secret"))
    payout = create_payout(payout_client, seller)
    wait_for_state(payout_client, payout.payout_id, "PAID")
    set_daily_schedule(payout_client, seller)

    def published_versions(aggregate: str) -> list[int]:
        request = event_service_pb2.StreamEventsRequest(aggregate_id=aggregate)
        events = [answer.event for answer in payout_client.event.StreamEvents(request)]
        assert not any(token in str(event) for event in events)
        return [event.aggregate_version for event in events]

    assert eventually(lambda: published_versions(f"payouts/{payout.payout_id}") == [1, 2, 3, 4, 5])
    assert eventually(lambda: published_versions(f"payoutDestinations/{to}") == [1, 2])
    assert eventually(lambda: published_versions(f"payoutSchedules/{seller}/EUR") == [1])


def test_a_preview_names_each_blocker(payout_client: Client) -> None:
    """Each blocker is named with the amount it blocks; the previewed amount is the amount that is
    then paid.
    """
    seller = create_sale(payout_client, "10.00")
    preview = payout_client.payout.PreviewPayout(
        pb.PreviewPayoutRequest(seller_account=seller, currency="EUR")
    )
    assert [shortfall.blocker for shortfall in preview.shortfalls] == [
        payout_pb2.PAYOUT_BLOCKER_NO_DESTINATION
    ]
    to = create_destination(payout_client, seller)
    set_daily_schedule(payout_client, seller, reserve="2.50", fee="0.50")
    preview = payout_client.payout.PreviewPayout(
        pb.PreviewPayoutRequest(seller_account=seller, currency="EUR")
    )
    assert [(shortfall.blocker, shortfall.amount) for shortfall in preview.shortfalls] == [
        (payout_pb2.PAYOUT_BLOCKER_RESERVE, "2.50")
    ]
    assert (preview.amount, preview.net_amount, preview.fee, preview.payout_destination_id) == (
        "7.50",
        "7.00",
        "0.50",
        to,
    )
    assert preview.HasField("next_time")
    payout = create_payout(payout_client, seller)
    assert (payout.amount, payout.net_amount) == (preview.amount, preview.net_amount)
    assert state_name(wait_for_state(payout_client, payout.payout_id, "PAID").payout) == "PAID"
