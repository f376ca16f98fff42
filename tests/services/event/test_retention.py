"""Events are deleted at the end of their retention, and everyone who reads them knows it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import psycopg
import pytest

from tallystick import Client, TallystickError
from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest, StreamEventsRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.event.retention import prune_events
from tallystick_server.verify.run import verify
from tests.support.events import payment_created
from tests.support.payments import create_payment
from tests.support.platform import (
    ServedPlatform,
    database_of,
    eventually,
    serve_platform,
)
from tests.support.rows import update_rows

DAYS = 30


def advance_clock(databases: DatabaseUrls, days: int) -> None:
    """Moves the clock of EventService ahead of the present."""
    with psycopg.connect(databases.admin, autocommit=True) as admin:
        admin.execute(
            "create or replace function event.clock() returns timestamptz language sql volatile as "
            f"'select clock_timestamp() + make_interval(days => {days})'"
        )


def fetch_horizon(databases: DatabaseUrls) -> tuple[int, int, int]:
    """The horizon, the oldest cursor that is stored (0: none), and the head."""
    with psycopg.connect(databases.admin) as admin:
        row = admin.execute(
            "select (select cursor from event.horizon), (select coalesce(min(cursor), 0) from "
            "event.event), (select cursor from event.head)"
        ).fetchone()
    assert row is not None
    return row


def prune(platform: ServedPlatform) -> int:
    return platform.run_in_loop(  # type: ignore[no-any-return]
        partial(prune_events, database_of(platform, "event"), DAYS)
    )


def stream(client: Client, after_cursor: int) -> list[event_pb2.Event]:
    request = StreamEventsRequest(after_cursor=after_cursor)
    return [response.event for response in client.event.StreamEvents(request)]


@pytest.fixture
def pruned(scratch_database: DatabaseUrls) -> Iterator[ServedPlatform]:
    """A platform with a payment whose events were deleted, and one whose events are kept."""
    with serve_platform(scratch_database) as platform, platform.client() as client:
        create_payment(client, "5.00")
        assert eventually(lambda: verify(scratch_database).passed and is_relayed(scratch_database))
        advance_clock(scratch_database, DAYS + 1)
        assert prune(platform) > 0
        create_payment(client, "6.00")
        assert eventually(lambda: is_relayed(scratch_database))
        yield platform


def is_relayed(databases: DatabaseUrls) -> bool:
    """Whether no event waits to be published."""
    with psycopg.connect(databases.admin) as admin:
        row = admin.execute(
            "select (select count(*) from payment.outbox) + (select count(*) from wallet.outbox) + "
            "(select sum(h.sequence - r.sequence) from ledger.head h join ledger.relayed r using "
            "(book))"
        ).fetchone()
    return row == (0,)


def test_events_are_kept_by_default() -> None:
    """Without the setting nothing is ever deleted."""
    assert Settings().event.retention_days == 0


def test_old_events_are_deleted_and_new_ones_stay(pruned: ServedPlatform) -> None:
    """Only events beyond the retention are deleted, up to the horizon; another run finds none, and
    verify passes although older changes have no event any more.
    """
    horizon, oldest, head = fetch_horizon(pruned.databases)
    assert 0 < horizon < head
    assert oldest == horizon + 1
    assert prune(pruned) == 0
    report = verify(pruned.databases)
    assert report.passed, report.as_text()


def test_an_event_is_pruned_only_once_all_before_it_are(scratch_database: DatabaseUrls) -> None:
    """Events are deleted in the order of their cursors: an old one behind a young one stays, so
    that no gap arises.
    """
    with serve_platform(scratch_database) as platform, platform.client() as client:
        for number, days in enumerate((DAYS + 2, 0, DAYS + 2), 1):
            advance_clock(scratch_database, -days)
            event = payment_created(f"payments/p-{number}", 1)
            client.event.BatchPublish(BatchPublishRequest(events=[event]))
        advance_clock(scratch_database, 0)
        assert prune(platform) == 1
        assert fetch_horizon(scratch_database) == (1, 2, 3)


def test_an_expired_cursor_is_rejected(pruned: ServedPlatform) -> None:
    """A consumer whose cursor is before the horizon gets CURSOR_EXPIRED (OUT_OF_RANGE) with the
    oldest cursor that is available, and can resume there; from the horizon on it misses nothing.
    """
    horizon, _, head = fetch_horizon(pruned.databases)
    with pruned.client() as client:
        for after_cursor in (0, horizon - 1):
            with pytest.raises(TallystickError) as error:
                stream(client, after_cursor)
            assert error.value.reason == "CURSOR_EXPIRED"
            assert error.value.metadata["oldest"] == str(horizon)
        resumed = stream(client, int(error.value.metadata["oldest"]))
        assert [event.cursor for event in resumed] == [*range(horizon + 1, head + 1)]


@pytest.mark.parametrize(
    ("edit", "violation"),
    [
        (
            "delete from event.event where cursor = (select min(cursor) from event.event)",
            "with a gap",
        ),
        (
            "delete from event.event where cursor = (select max(cursor) from event.event)",
            "but the events end at",
        ),
        ("update event.horizon set cursor = cursor - 1", "with a gap"),
        (
            "with h as (update event.horizon set cursor = cursor + 1) "
            "delete from event.event where cursor = (select min(cursor) from event.event)",
            "event.horizon t: does not match its seal",
        ),
    ],
)
def test_tampering_beyond_the_horizon_is_found(
    pruned: ServedPlatform, edit: str, violation: str
) -> None:
    """E1: verify tolerates what the retention deleted and nothing else: no deleted event above the
    horizon, and no other horizon.
    """
    with psycopg.connect(pruned.databases.admin, autocommit=True) as admin:
        admin.execute("set session_replication_role = replica")  # no triggers
        update_rows(admin, edit)
    assert violation in verify(pruned.databases).as_text()


def test_a_recent_change_without_an_event_is_found(pruned: ServedPlatform) -> None:
    """E1: a change after the horizon that has no event is reported, even if the cursors were
    renumbered without a gap and the seals are not looked at.
    """
    with psycopg.connect(pruned.databases.admin, autocommit=True) as admin:
        admin.execute("set session_replication_role = replica")
        update_rows(
            admin,
            "update payment.order_history set create_time = create_time + interval '40 days' where "
            "version = 1",
        )
    assert "version 1: has no event" in verify(pruned.databases).as_text()


@pytest.mark.parametrize(
    ("statement", "state"),
    [
        ("delete from event where cursor > (select cursor from horizon)", "P0001"),
        ("update event set type = ''", "P0001"),
        ("truncate event", "P0001"),
        ("delete from horizon", "P0001"),
        ("update horizon set cursor = cursor - 1", "P0001"),
        ("update horizon set cursor = (select cursor + 1 from head)", "P0001"),
    ],
)
def test_the_database_deletes_only_below_the_horizon(
    pruned: ServedPlatform, statement: str, state: str
) -> None:
    """L4: even the owner can delete no event above the horizon, nor lower the horizon, nor raise it
    past the head.
    """
    with psycopg.connect(pruned.databases.admin, autocommit=True) as admin:
        admin.execute("set search_path = event")
        with pytest.raises(psycopg.Error) as error:
            admin.execute(statement)
    assert error.value.sqlstate == state


def test_the_service_deletes_only_by_the_function(pruned: ServedPlatform) -> None:
    """L4: the role of EventService has no privilege to delete events or to move the horizon."""
    for statement in ("delete from event", "update horizon set cursor = 0"):
        with psycopg.connect(
            pruned.databases.service("event").replace("+psycopg", ""), autocommit=True
        ) as service:
            with pytest.raises(psycopg.Error) as error:
                service.execute(statement)
            assert error.value.sqlstate == "42501"
