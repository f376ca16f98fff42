"""Payouts that are created together: lists, schedule runs, and cut-offs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import cycle
from threading import Event, Lock
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, create_engine

from tallystick import AlreadyExistsError, Client, TallystickError
from tallystick.event.v1 import event_service_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.provider.outcome import Declined, PayoutFailure, Submitted
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.payout import batch_generator, schedule_runner
from tallystick_storage import clock
from tallystick_storage.payout import schedules as schedule_store
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.errors import expect_error_reason, from_status
from tests.support.payouts import (
    RETRY,
    create_destination,
    create_payout,
    create_sale,
    state_name,
    wait_for_state,
    wallet_amounts,
)
from tests.support.platform import (
    ServedPlatform,
    eventually,
    payout_worker_of,
    serve_platform,
    unique_id,
)
from tests.support.rows import update_rows


@pytest.fixture
def payout_provider() -> ScriptedPayoutProvider:
    return ScriptedPayoutProvider()


@pytest.fixture
def payout_platform(
    scratch_database: DatabaseUrls, payout_provider: ScriptedPayoutProvider
) -> Iterator[ServedPlatform]:
    """All services on a private database, because a run includes every seller."""
    settings = Settings().replace(retry=RETRY, worker__scan_interval=0.1)
    with serve_platform(
        scratch_database,
        settings,
        dependencies=Dependencies(payout_providers={"sandbox": payout_provider}),
    ) as served_platform:
        yield served_platform


@pytest.fixture
def payout_client(payout_platform: ServedPlatform) -> Iterator[Client]:
    with payout_platform.client() as client:
        yield client


def get_batch(client: Client, batch_id: str, **values: object) -> pb.GetPayoutBatchResponse:
    return client.payout.GetPayoutBatch(
        pb.GetPayoutBatchRequest(payout_batch_id=batch_id, **values)  # type: ignore[arg-type]
    )


def wait_until_done(client: Client, batch_id: str) -> pb.GetPayoutBatchResponse:
    """Waits until the batch is DONE and returns it."""
    assert eventually(
        lambda: get_batch(client, batch_id).payout_batch.state == payout_pb2.PAYOUT_BATCH_STATE_DONE
    )
    return get_batch(client, batch_id)


def batch_totals(response: pb.GetPayoutBatchResponse) -> dict[str, tuple[int, str, str]]:
    state_enum = payout_pb2.PayoutState
    return {
        state_enum.Name(total.payout_state).removeprefix("PAYOUT_STATE_"): (
            total.payout_count,
            total.amount,
            total.fee,
        )
        for total in response.payout_batch.totals
    }


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


def make_schedules_due(databases: DatabaseUrls) -> None:
    """Makes every schedule due."""
    with psycopg.connect(databases.admin.replace("+psycopg", "")) as connection:
        connection.execute("set session_replication_role = replica")  # no triggers
        update_rows(
            connection,
            "update payout.payout_schedule set next_time = date_trunc('minute', now()) - interval "
            "'1 hour', next_run_time = now() - interval '1 hour' where next_time is not null",
        )


def set_daily_schedule(
    client: Client, seller: str = "", **values: Any
) -> payout_pb2.PayoutSchedule:
    request = pb.SetPayoutScheduleRequest(
        seller_account=seller,
        currency="EUR",
        interval=payout_pb2.PAYOUT_INTERVAL_DAILY,
        cut_off="16:00",
        time_zone="Europe/Berlin",
        **values,
    )
    return client.payout.SetPayoutSchedule(request).payout_schedule


def test_a_cut_off_pays_every_seller_once(
    payout_client: Client, payout_platform: ServedPlatform
) -> None:
    """At its cut-off the default schedule pays all sellers that use it, as one batch, by its terms.
    Other sellers are rejected with a reason, except those below the minimum, who are counted and
    have no row. A seller with an own schedule is paid by that. The next cut-off is later, and no
    cut-off pays twice.
    """
    sellers = [create_sale(payout_client, "10.00") for _ in range(5)]
    own_seller, nowhere, small = (
        create_sale(payout_client, "8.00"),
        create_sale(payout_client, "10.00"),
        create_sale(payout_client, "0.50"),
    )
    for seller in (*sellers, own_seller, small):
        create_destination(payout_client, seller)
    assert (
        set_daily_schedule(payout_client, fee="0.20", reserve="1.00", minimum_amount="1.00").version
        == 1
    )
    assert (
        set_daily_schedule(payout_client, fee="0.20", reserve="1.00", minimum_amount="1.00").version
        == 1
    )
    assert set_daily_schedule(payout_client, own_seller, fee="0.10").version == 1
    make_schedules_due(payout_platform.databases)
    cut_off = payout_client.payout.GetPayoutSchedule(
        pb.GetPayoutScheduleRequest(currency="EUR")
    ).payout_schedule.next_time.ToDatetime()
    id_ = f"run-EUR-{cut_off:%Y%m%dT%H%MZ}"
    assert eventually(
        lambda: (
            payout_client.payout.GetPayoutSchedule(
                pb.GetPayoutScheduleRequest(currency="EUR")
            ).payout_schedule.next_time.ToDatetime()
            > cut_off
        )
    )
    batch_response = wait_until_done(payout_client, id_)
    assert batch_totals(batch_response) == {"PAID": (5, "45.00", "1.00")}
    assert batch_response.payout_batch.run.cut_off_time.ToDatetime() == cut_off
    counted = (
        batch_response.payout_batch.generated_count,
        batch_response.payout_batch.rejected_count,
        batch_response.payout_batch.skipped_count,
    )
    assert counted == (6, 1, 1)
    error = {
        line.seller_account: from_status(line.error).reason
        for line in get_batch(payout_client, id_, rejected=True).items
    }
    assert error == {nowhere: "DESTINATION_UNUSABLE"}
    assert small not in {line.seller_account for line in get_batch(payout_client, id_).items}
    assert {wallet_amounts(payout_client, seller) for seller in sellers} == {
        ("1.00", "0.00", "0.00")
    }
    (by_himself,) = payout_client.pages(
        payout_client.payout.ListPayouts,
        pb.ListPayoutsRequest(seller_account=own_seller),
        "payouts",
    )
    wait_for_state(payout_client, by_himself.payout_id, "PAID")
    assert (by_himself.amount, by_himself.fee, by_himself.payout_batch_id) == ("8.00", "0.10", "")
    # The same cut-off again, as if the stored time had been lost.
    make_schedules_due(payout_platform.databases)
    assert eventually(
        lambda: (
            payout_client.payout.GetPayoutSchedule(
                pb.GetPayoutScheduleRequest(currency="EUR")
            ).payout_schedule.next_time.ToDatetime()
            > cut_off
        )
    )
    assert (
        len(
            list(
                payout_client.pages(
                    payout_client.payout.ListPayouts,
                    pb.ListPayoutsRequest(payout_batch_id=id_),
                    "payouts",
                )
            )
        )
        == 5
    )


def test_a_schedule_can_be_run_immediately(payout_client: Client) -> None:
    """A caller runs a seller's schedule immediately, whatever its interval; the run is the
    requested batch.
    """
    seller = create_sale(payout_client, "10.00")
    create_destination(payout_client, seller)
    request = pb.CreatePayoutBatchRequest(
        payout_batch_id=(id_ := unique_id("b")),
        run=pb.NewPayoutRun(seller_account=seller, currency="EUR"),
    )
    payout_client.payout.CreatePayoutBatch(request)
    batch_response = wait_until_done(payout_client, id_)
    assert batch_totals(batch_response) == {"PAID": (1, "10.00", "0.00")}
    assert not batch_response.payout_batch.run.HasField("cut_off_time")
    assert wallet_amounts(payout_client, seller) == ("0.00", "0.00", "0.00")


def test_open_batches_do_not_delay_others(
    payout_client: Client, payout_provider: ScriptedPayoutProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Payouts may be in transit for days: however many batches wait for theirs, a new one is
    generated, and a batch whose payouts are final is DONE.
    """
    monkeypatch.setattr(batch_generator, "_MAX_BATCHES", 1)
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


@pytest.mark.parametrize("whose", ["the seller's", "the default"])
def test_a_schedule_set_during_its_run_applies_to_the_next(
    payout_client: Client,
    payout_platform: ServedPlatform,
    monkeypatch: pytest.MonkeyPatch,
    whose: str,
) -> None:
    """A schedule that is set between the read of due schedules and the payouts applies from then
    on. Its next cut-off is its own, and the present cut-off is run once.
    """
    seller = create_sale(payout_client, "10.00")
    create_destination(payout_client, seller)
    of = seller if whose == "the seller's" else ""
    set_daily_schedule(payout_client, of)
    real, sets = clock.now, [1]

    def fake_now(connection: Connection) -> Any:
        if sets:  # code that runs between the read and the payouts
            sets.clear()
            weekly = {
                "interval": payout_pb2.PAYOUT_INTERVAL_WEEKLY,
                "weekday": payout_pb2.WEEKDAY_MONDAY,
                "cut_off": "05:00",
                "time_zone": "UTC",
            }
            payout_client.payout.SetPayoutSchedule(
                pb.SetPayoutScheduleRequest(seller_account=of, currency="EUR", **weekly)  # type: ignore[arg-type]
            )
        return real(connection)

    monkeypatch.setattr(clock, "now", fake_now)
    make_schedules_due(payout_platform.databases)
    (payout,) = eventually(
        lambda: list(
            payout_client.pages(
                payout_client.payout.ListPayouts,
                pb.ListPayoutsRequest(seller_account=seller),
                "payouts",
            )
        )
    )
    wait_for_state(payout_client, payout.payout_id, "PAID")
    (current_schedule,) = eventually(
        lambda: [
            next_schedule
            for next_schedule in [_get_schedule(payout_client, of)]
            if next_schedule.next_time.ToDatetime(UTC) > datetime.now(UTC)
        ]
    )
    assert (
        current_schedule.next_time.ToDatetime().isoweekday(),
        current_schedule.next_time.ToDatetime().hour,
    ) == (1, 5)
    assert (
        len(
            list(
                payout_client.pages(
                    payout_client.payout.ListPayouts,
                    pb.ListPayoutsRequest(seller_account=seller),
                    "payouts",
                )
            )
        )
        == 1
    )


def test_a_schedule_that_changes_constantly_does_not_delay_others(
    payout_client: Client, payout_platform: ServedPlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often one schedule is set between the read of due schedules and the payouts, the
    others of the page are paid; it is paid when the updates stop.
    """
    changing_schedule, other_seller = (
        create_sale(payout_client, "10.00"),
        create_sale(payout_client, "10.00"),
    )
    for seller in (changing_schedule, other_seller):
        create_destination(payout_client, seller)
        set_daily_schedule(payout_client, seller)
    real, setting_done, setting = clock.now, Event(), Lock()
    zones = cycle(("Europe/Berlin", "UTC"))

    def fake_now(connection: Connection) -> Any:
        # Setting the schedule also reads the time.
        if not setting_done.is_set() and setting.acquire(blocking=False):
            try:  # each read sees an older version than the payouts
                schedule_fields = {
                    "interval": payout_pb2.PAYOUT_INTERVAL_DAILY,
                    "cut_off": "05:00",
                    "time_zone": next(zones),
                }
                payout_client.payout.SetPayoutSchedule(
                    pb.SetPayoutScheduleRequest(
                        seller_account=changing_schedule,
                        currency="EUR",
                        **schedule_fields,  # type: ignore[arg-type]
                    )
                )
            finally:
                setting.release()
        return real(connection)

    def payouts(seller: str) -> list[payout_pb2.Payout]:
        return list(
            payout_client.pages(
                payout_client.payout.ListPayouts,
                pb.ListPayoutsRequest(seller_account=seller),
                "payouts",
            )
        )

    monkeypatch.setattr(clock, "now", fake_now)
    make_schedules_due(payout_platform.databases)
    (paid_payout,) = eventually(lambda: payouts(other_seller))
    wait_for_state(payout_client, paid_payout.payout_id, "PAID")
    assert payouts(changing_schedule) == []
    setting_done.set()
    (late_payout,) = eventually(lambda: payouts(changing_schedule))
    wait_for_state(payout_client, late_payout.payout_id, "PAID")
    assert [len(payouts(seller)) for seller in (changing_schedule, other_seller)] == [1, 1]


def _get_schedule(client: Client, seller: str) -> payout_pb2.PayoutSchedule:
    return client.payout.GetPayoutSchedule(
        pb.GetPayoutScheduleRequest(seller_account=seller, currency="EUR")
    ).payout_schedule


@pytest.mark.parametrize("poison", ["time zone", "weekday", "storage"])
def test_a_schedule_that_cannot_be_run_does_not_delay_others(
    scratch_database: DatabaseUrls, poison: str
) -> None:
    """A schedule (default or a seller's) that cannot be read, or whose run the database fails to
    store, delays nobody else. The others are paid at their cut-offs, lists are generated, and an
    alert names each.
    """
    bank = ScriptedPayoutProvider()
    settings = Settings().replace(
        retry=RETRY,
        worker__scan_interval=0.1,
        worker__monitor_interval=0.2,
        payout__alert_after={"GENERATING": 0.1},
    )
    with (
        serve_platform(
            scratch_database,
            settings,
            dependencies=Dependencies(payout_providers={"sandbox": bank}),
        ) as platform,
        platform.client() as client,
    ):
        closed_sellers, own_seller, listed_seller = (create_sale(client, "8.00") for _ in range(3))
        for seller in (closed_sellers, own_seller, listed_seller):
            create_destination(client, seller)
        set_daily_schedule(client)
        set_daily_schedule(client, closed_sellers)
        set_daily_schedule(client, own_seller)
        with psycopg.connect(scratch_database.admin) as connection:
            if poison == "storage":  # neither the data nor a transient state
                connection.execute("""
                    create function payout.fail() returns trigger language plpgsql as $$
                    begin raise exception 'broken' using errcode = 'XX001'; end $$""")
                connection.execute("""
                    create trigger broken before insert on payout.payout_batch for each row
                        when (new.is_run) execute function payout.fail()""")
                connection.execute(f"""
                    create trigger broken before insert on payout.payout for each row
                        when (new.seller_account = '{closed_sellers}')
                    execute function payout.fail()""")
            else:
                wrong = {
                    "time zone": "time_zone = 'Mars/Base'",
                    "weekday": "interval = 'WEEKLY', weekday = 'MOONDAY'",
                }[poison]
                connection.execute("set session_replication_role = replica")  # no triggers
                update_rows(
                    connection,
                    f"update payout.payout_schedule set {wrong} where seller_account in ('', %s)",
                    (closed_sellers,),
                )
        make_schedules_due(scratch_database)
        (paid_payout,) = eventually(
            lambda: list(
                client.pages(
                    client.payout.ListPayouts,
                    pb.ListPayoutsRequest(seller_account=own_seller),
                    "payouts",
                )
            )
        )
        wait_for_state(client, paid_payout.payout_id, "PAID")
        new = payout_pb2.NewPayout(
            payout_id=unique_id("p"), seller_account=listed_seller, currency="EUR"
        )
        client.payout.CreatePayoutBatch(
            pb.CreatePayoutBatchRequest(
                payout_batch_id=(id_ := unique_id("b")), list=pb.PayoutList(payouts=[new])
            )
        )
        assert batch_totals(wait_until_done(client, id_)) == {"PAID": (1, "8.00", "0.00")}

        def overdue() -> set[str]:
            alerts = client.payout.ListAlerts(pb.ListAlertsRequest()).alerts
            return {
                alert.resource_name
                for alert in alerts
                if alert.kind == operator_pb2.ALERT_KIND_SCHEDULE_OVERDUE
            }

        assert eventually(
            lambda: overdue() == {"payoutSchedules/-/EUR", f"payoutSchedules/{closed_sellers}/EUR"}
        )
        assert not list(
            client.pages(
                client.payout.ListPayouts,
                pb.ListPayoutsRequest(seller_account=closed_sellers),
                "payouts",
            )
        )


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
    payout_worker = payout_worker_of(platform)
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
            assert eventually(lambda: not payout_worker.generation.is_running)
            blocker.rollback()
            stop_future.result(60)
            remaining_row = admin.execute(
                "select state from payout.payout p left join payout.operation on operation_id = "
                "'p-' || payout_id where lease_until > now()"
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
        bad = [unique_id("bad") for _ in range(batch_generator._MAX_BATCHES + 5)]
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


@pytest.mark.parametrize(
    "change",
    [
        lambda c, rows: schedule_store.advance(c, [(row, row.next_time) for row in rows]),
        schedule_store.reschedule,
    ],
    ids=["advance", "reschedule"],
)
def test_schedules_are_locked_in_order(
    scratch_database: DatabaseUrls, change: Callable[[Connection, Sequence[Any]], object]
) -> None:
    """Schedules that are changed together are locked by seller, whatever their stored and requested
    order, so that two changes never deadlock.
    """
    engine = create_engine(
        scratch_database.admin.replace("postgresql://", "postgresql+psycopg://"),
        connect_args={"options": "-c search_path=payout"},
    )
    with ExitStack() as stack:
        stack.callback(engine.dispose)
        with engine.begin() as connection:
            connection.exec_driver_sql("set session_replication_role = replica")
            for seller in ("c", "b", "a"):
                connection.exec_driver_sql(
                    "insert into payout_schedule values (%s, 'EUR', 'DAILY', '', 0, '12:00', "
                    "'UTC', 0, 0, 0, true, '', clock(), clock(), 0, 'x', '', 1, clock())",
                    (seller,),
                )
        pool = stack.enter_context(ThreadPoolExecutor(1))
        holder = stack.enter_context(
            psycopg.connect(scratch_database.admin, options="-c search_path=payout")
        )
        holder.execute("select from payout_schedule where seller_account = 'a' for update")

        def run() -> None:
            with engine.connect() as connection:
                connection.exec_driver_sql("set session_replication_role = replica")
                change(
                    connection,
                    sorted(
                        schedule_store.list_due(connection, 3, defaults_only=False),
                        key=lambda row: row.seller_account,
                        reverse=True,
                    ),
                )
                connection.rollback()

        changing = pool.submit(run)
        with psycopg.connect(
            scratch_database.admin, autocommit=True, options="-c search_path=payout"
        ) as looker:
            waiting_query = (
                "select count(*) from pg_stat_activity where datname = current_database() and "
                "wait_event_type = 'Lock'"
            )
            assert eventually(lambda: looker.execute(waiting_query).fetchone() != (0,))
            looker.execute(
                "select from payout_schedule where seller_account in ('b', 'c') for update nowait"
            )
        holder.rollback()
        changing.result(timeout=30)


@pytest.mark.parametrize("poison", ["time zone", "payout"])
def test_many_schedules_that_cannot_be_run_do_not_delay_later_ones(
    payout_client: Client,
    payout_platform: ServedPlatform,
    monkeypatch: pytest.MonkeyPatch,
    poison: str,
) -> None:
    """More schedules than a page holds cannot be read, or their payouts cannot be stored: a later
    schedule is run, and they are run once the cause is removed.
    """
    monkeypatch.setattr(schedule_runner, "_MAX_SELLERS", 2)
    closed_sellers, own_seller = (
        [create_sale(payout_client, "8.00") for _ in range(5)],
        create_sale(payout_client, "8.00"),
    )
    for seller in (*closed_sellers, own_seller):
        create_destination(payout_client, seller)
        set_daily_schedule(payout_client, seller)

    def payouts_of(seller: str) -> list[payout_pb2.Payout]:
        return list(
            payout_client.pages(
                payout_client.payout.ListPayouts,
                pb.ListPayoutsRequest(seller_account=seller),
                "payouts",
            )
        )

    with psycopg.connect(payout_platform.databases.admin, autocommit=True) as admin:
        if poison == "payout":
            named = ", ".join(f"'{seller}'" for seller in closed_sellers)
            admin.execute(f"""
                create trigger no_payout before insert on payout.payout for each row
                    when (new.seller_account in ({named}))
                execute function payout.reject_change()""")
        admin.execute("set session_replication_role = replica")  # no triggers
        update_rows(
            admin,
            """
            update payout.payout_schedule
                set next_time = date_trunc('minute', now()) - interval '1 hour' * case
                when seller_account = %s then 1 else 2 end,
                next_run_time = now() - interval '1 hour' * case when seller_account = %s then 1
                    else 2 end,
                time_zone = case when seller_account = any (%s) then 'Mars/Base'
                    else time_zone end""",
            (own_seller, own_seller, closed_sellers if poison == "time zone" else []),
        )
        (payout,) = eventually(lambda: payouts_of(own_seller))
        wait_for_state(payout_client, payout.payout_id, "PAID")
        assert not any(payouts_of(seller) for seller in closed_sellers)
        if poison == "payout":
            admin.execute("drop trigger no_payout on payout.payout")
        admin.execute(
            "update payout.payout_schedule set next_run_time = now() where failure_count > 0"
        )
    if poison == "time zone":
        for seller in closed_sellers:
            set_daily_schedule(payout_client, seller)
    assert eventually(lambda: all(payouts_of(seller) for seller in closed_sellers))
    assert [len(payouts_of(seller)) for seller in (*closed_sellers, own_seller)] == [1] * 6


def test_a_passed_cut_off_is_not_lost_by_a_change(
    payout_client: Client, payout_platform: ServedPlatform
) -> None:
    """A schedule that is changed after its cut-off and before its run still runs for that cut-off;
    one that is made MANUAL does not.
    """
    set_daily_schedule(payout_client)
    assert eventually(lambda: move_generation_lease(payout_platform.databases))
    make_schedules_due(payout_platform.databases)
    came = payout_client.payout.GetPayoutSchedule(
        pb.GetPayoutScheduleRequest(currency="EUR")
    ).payout_schedule.next_time
    changed_schedule = set_daily_schedule(payout_client, fee="0.30")
    assert (changed_schedule.version, changed_schedule.next_time) == (2, came)
    manual = pb.SetPayoutScheduleRequest(currency="EUR", interval=payout_pb2.PAYOUT_INTERVAL_MANUAL)
    assert not payout_client.payout.SetPayoutSchedule(manual).payout_schedule.HasField("next_time")


def move_generation_lease(databases: DatabaseUrls) -> bool:
    """Moves the leader lease of batch generation to an idle process; returns whether a process held
    it.
    """
    with psycopg.connect(databases.admin) as connection:
        statement = (
            "update payout.leader_lease set holder_id = gen_random_uuid(), lease_until = now() + "
            "interval '1 hour' where name = 'generate_batches'"
        )
        return connection.execute(statement).rowcount == 1


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
