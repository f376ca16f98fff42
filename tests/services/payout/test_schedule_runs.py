"""Runs of schedules whose cut-off has passed, of all sellers and of those with a schedule of their
own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import cycle
from threading import Event, Lock
from typing import Any

import psycopg
import pytest

from tallystick import Client
from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.payout import schedule_runner
from tallystick_storage import clock
from tallystick_storage.payout import schedules as schedule_store
from tallystick_storage.sql import Connection, connect
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.errors import from_status
from tests.support.payouts import (
    RETRY,
    batch_totals,
    create_destination,
    create_sale,
    get_batch,
    list_payouts,
    set_daily_schedule,
    wait_for_state,
    wait_until_done,
    wallet_amounts,
)
from tests.support.platform import (
    ServedPlatform,
    eventually,
    serve_platform,
    unique_id,
)
from tests.support.rows import update_rows


@pytest.fixture
def payout_provider() -> ScriptedPayoutProvider:
    return ScriptedPayoutProvider()


def make_schedules_due(databases: DatabaseUrls) -> None:
    """Makes every schedule due."""
    with psycopg.connect(databases.admin) as connection:
        connection.execute("set session_replication_role = replica")  # no triggers
        update_rows(
            connection,
            "update payout.payout_schedule set next_time = date_trunc('minute', now()) - interval "
            "'1 hour', next_run_time = now() - interval '1 hour' where next_time is not null",
        )


def _get_schedule(client: Client, seller: str) -> payout_pb2.PayoutSchedule:
    return client.payout.GetPayoutSchedule(
        pb.GetPayoutScheduleRequest(seller_account=seller, currency="EUR")
    ).payout_schedule


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
    (by_himself,) = list_payouts(payout_client, own_seller)
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
    assert len(list_payouts(payout_client, batch_id=id_)) == 5


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
        # code that runs between the read and the payouts; WalletService reads the time too
        if sets and connection.info.user.endswith("payout"):
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
    (payout,) = eventually(lambda: list_payouts(payout_client, seller))
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
    assert len(list_payouts(payout_client, seller)) == 1


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
        # WalletService and the setting of a schedule read the time too.
        is_payout = connection.info.user.endswith("payout")
        if is_payout and not setting_done.is_set() and setting.acquire(blocking=False):
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

    monkeypatch.setattr(clock, "now", fake_now)
    make_schedules_due(payout_platform.databases)
    (paid_payout,) = eventually(lambda: list_payouts(payout_client, other_seller))
    wait_for_state(payout_client, paid_payout.payout_id, "PAID")
    assert list_payouts(payout_client, changing_schedule) == []
    setting_done.set()
    (late_payout,) = eventually(lambda: list_payouts(payout_client, changing_schedule))
    wait_for_state(payout_client, late_payout.payout_id, "PAID")
    assert [
        len(list_payouts(payout_client, seller)) for seller in (changing_schedule, other_seller)
    ] == [1, 1]


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
        (paid_payout,) = eventually(lambda: list_payouts(client, own_seller))
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
            alerts = client.payout.ListAlerts(operator_pb2.ListAlertsRequest()).alerts
            return {
                alert.resource_name
                for alert in alerts
                if alert.kind == operator_pb2.ALERT_KIND_SCHEDULE_OVERDUE
            }

        assert eventually(
            lambda: overdue() == {"payoutSchedules/-/EUR", f"payoutSchedules/{closed_sellers}/EUR"}
        )
        assert not list_payouts(client, closed_sellers)


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

    def connect_to_payout() -> Connection:
        return connect(scratch_database.admin, options="-c search_path=payout")

    with ExitStack() as stack:
        with connect_to_payout() as connection:
            connection.execute("set session_replication_role = replica")
            for seller in ("c", "b", "a"):
                connection.execute(
                    "insert into payout_schedule values (%s, 'EUR', 'DAILY', '', 0, '12:00', "
                    "'UTC', 0, 0, 0, true, '', clock(), clock(), 0, 'x', '', 1, clock())",
                    [seller],
                )
        pool = stack.enter_context(ThreadPoolExecutor(1))
        holder = stack.enter_context(
            psycopg.connect(scratch_database.admin, options="-c search_path=payout")
        )
        holder.execute("select from payout_schedule where seller_account = 'a' for update")

        def run() -> None:
            with connect_to_payout() as connection:
                connection.execute("set session_replication_role = replica; begin")
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
    monkeypatch.setattr(schedule_runner, "MAX_SELLERS", 2)
    closed_sellers, own_seller = (
        [create_sale(payout_client, "8.00") for _ in range(5)],
        create_sale(payout_client, "8.00"),
    )
    for seller in (*closed_sellers, own_seller):
        create_destination(payout_client, seller)
        set_daily_schedule(payout_client, seller)

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
        (payout,) = eventually(lambda: list_payouts(payout_client, own_seller))
        wait_for_state(payout_client, payout.payout_id, "PAID")
        assert not any(list_payouts(payout_client, seller) for seller in closed_sellers)
        if poison == "payout":
            admin.execute("drop trigger no_payout on payout.payout")
        admin.execute(
            "update payout.payout_schedule set next_run_time = now() where failure_count > 0"
        )
    if poison == "time zone":
        for seller in closed_sellers:
            set_daily_schedule(payout_client, seller)
    assert eventually(lambda: all(list_payouts(payout_client, seller) for seller in closed_sellers))
    assert [
        len(list_payouts(payout_client, seller)) for seller in (*closed_sellers, own_seller)
    ] == [1] * 6


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
