"""Transactions run exactly once, whatever happens to the connection; the guard rejects network
calls inside them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from benchmarks.growth.plans import StatementRecorder
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.operations.next_action import Circuit, NextAction
from tallystick_core.wallet.seller_ownership import SellerClaim
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.providers.circuit_breaker import BreakerSettings
from tallystick_server.providers.gateway import ProviderGateway
from tallystick_server.providers.provider_type import CallLimits
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_server.wallet.seller_ownership import Sellers
from tallystick_storage import connection_pool
from tallystick_storage import database as module
from tallystick_storage import sql as sql_module
from tallystick_storage.database import ConstraintViolation, Database, in_transaction
from tallystick_storage.sql import Connection, text
from tests.chaos.proxy import PostgresProxy
from tests.support.platform import unique_id


@pytest.fixture
def event_database(database: DatabaseUrls) -> Iterator[Database]:
    event_database = Database(database.service("event"), connections=2)
    yield event_database
    event_database.close()


def insert_event(aggregate: str, cursor: int):  # type: ignore[no-untyped-def]
    """Work that stores one row; a second run would be rejected."""

    def work(connection: Connection) -> str:
        connection.execute(
            text(
                "insert into event (cursor, aggregate_id, aggregate_version, type, owner, "
                "publish_time, body) values (:c, :a, 1, 'X', '', clock(), '')"
            ),
            {"c": cursor, "a": aggregate},
        )
        return aggregate

    return work


def count_events(database: DatabaseUrls, aggregate: str) -> int:
    with psycopg.connect(database.reader("event")) as connection:
        return connection.execute(  # type: ignore[index, no-any-return]
            "select count(*) from event where aggregate_id = %s", (aggregate,)
        ).fetchone()[0]


async def start_proxy(databases: DatabaseUrls) -> tuple[PostgresProxy, str]:
    """A proxy before PostgreSQL, and the URL of EventService's database through it."""
    url = make_url(databases.service("event"))
    proxy = PostgresProxy(Path(str(url.query["host"])) / f".s.PGSQL.{url.port or 5432}")
    through = url.set(host="127.0.0.1", port=await proxy.start(), query={})
    return proxy, through.render_as_string(hide_password=False)


def test_a_frozen_database_loses_its_connections(scratch_database: DatabaseUrls) -> None:
    """A transaction that gets no answer in time loses its connection and runs again: it is
    committed once.
    """
    event = Database(scratch_database.service("event"), connections=1, max_silence_seconds=0.3)
    aggregate, tries = unique_id("p"), []

    def work(connection: Connection) -> str:
        tries.append(1)
        if len(tries) == 1:
            connection.execute(text("select pg_sleep(1)"))
        return insert_event(aggregate, 1)(connection)  # type: ignore[no-any-return]

    assert asyncio.run(event.transact(work)) == aggregate
    assert len(tries) > 1  # on a slow machine a repeat may be cut too
    assert count_events(scratch_database, aggregate) == 1
    event.close()


def test_a_transaction_may_take_longer_than_each_of_its_statements(
    scratch_database: DatabaseUrls,
) -> None:
    """The time limit is one of silence: a transaction whose statements are all answered in time
    keeps its connection.
    """
    event, tries = (
        Database(scratch_database.service("event"), connections=1, max_silence_seconds=1),
        [],
    )

    def work(connection: Connection) -> None:
        tries.append(1)
        for _ in range(5):
            connection.execute(text("select pg_sleep(0.3)"))

    asyncio.run(event.transact(work))
    assert len(tries) == 1
    event.close()


def test_frozen_connections_are_cut_without_waiting_callers(
    scratch_database: DatabaseUrls,
) -> None:
    """Silent open connections that a failover has left are cut, even if every waiting caller has
    gone away.
    """

    async def run() -> str:
        proxy, through = await start_proxy(scratch_database)
        event = Database(through, connections=2, max_silence_seconds=1.0)
        try:
            await asyncio.gather(
                *(
                    event.transact(
                        lambda connection: connection.execute(text("select pg_sleep(0.1)"))
                    )
                    for _ in range(2)
                )
            )
            proxy.freeze()
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(
                        event.transact(lambda connection: connection.execute(text("select 1"))), 0.1
                    )
            async with asyncio.timeout(20):
                return await event.transact(insert_event(unique_id("f"), 1))
        finally:
            await proxy.stop()
            await asyncio.to_thread(event.close)

    assert asyncio.run(run())


@pytest.mark.parametrize("connection_age", [0.0, 100.0], ids=["plans kept", "plans due"])
def test_a_silent_connection_takes_the_idle_ones_along(
    scratch_database: DatabaseUrls,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    connection_age: float,
) -> None:
    """After a failover every open connection may be silent. One that is cut for its silence takes
    the idle ones along, so work waits for one time limit and not for one after another. A
    connection whose plans are to be discarded is watched as well.
    """

    async def run() -> None:
        proxy, through = await start_proxy(scratch_database)
        event = Database(through, connections=4, max_silence_seconds=1.0)

        def sleep(connection: Connection) -> None:
            connection.execute(text("select pg_sleep(0.2)"))

        try:
            await asyncio.gather(*(event.transact(sleep) for _ in range(4)))
            proxy.freeze()
            for timed_module in (connection_pool, sql_module):
                monkeypatch.setattr(
                    timed_module, "monotonic", lambda: time.monotonic() + connection_age
                )
            async with asyncio.timeout(20):
                await event.transact(lambda connection: connection.execute(text("select 1")))
            assert proxy.frozen_count == 4
        finally:
            await proxy.stop()
            await asyncio.to_thread(event.close)

    asyncio.run(run())
    cuts = [record for record in caplog.records if "did not answer" in record.message]
    assert len(cuts) == 1


def test_reads_and_writes_do_not_wait_for_each_other(scratch_database: DatabaseUrls) -> None:
    """While every write connection is busy callers can read; while every read connection is busy
    writes continue.
    """

    async def run() -> list[str]:
        event, finished = Database(scratch_database.service("event"), connections=1, readers=1), []

        async def note(name: str, work: Awaitable[object]) -> None:
            await work
            finished.append(name)

        def slow(connection: Connection) -> None:
            connection.execute(text("select pg_sleep(1)"))

        def quick(connection: Connection) -> None:
            connection.execute(text("select 1"))

        await asyncio.gather(
            note("slow work", event.transact(slow)), note("quick read", event.read(quick))
        )
        await asyncio.gather(
            note("slow read", event.read(slow)),
            note("quick work", event.transact(quick)),
            note("quick load", event.load(quick)),
        )
        event.close()
        return finished

    assert asyncio.run(run()) == [
        "quick read",
        "slow work",
        "quick work",
        "quick load",
        "slow read",
    ]


def test_a_read_that_times_out_is_not_retried(scratch_database: DatabaseUrls) -> None:
    """A read that exceeds its time limit is not retried: it is rejected with its own reason, and
    its connection is released.
    """
    event, tries = (
        Database(scratch_database.service("event"), connections=1, readers=1, read_timeout=0.2),
        [],
    )

    def work(connection: Connection) -> None:
        tries.append(1)
        connection.execute(text("select pg_sleep(30)"))

    with pytest.raises(ApiError) as error:
        asyncio.run(event.read(work))
    assert (error.value.reason, error.value.retry_after, len(tries)) == (
        ErrorReason.QUERY_TOO_SLOW,
        None,
        1,
    )
    event.close()


def test_a_transaction_that_times_out_is_retried_once(scratch_database: DatabaseUrls) -> None:
    """A transaction that exceeds the statement timeout may have waited for a lock: it is tried a
    second time, and no more.
    """
    event, tries = Database(scratch_database.service("event"), connections=1), []

    def work(connection: Connection) -> None:
        tries.append(1)
        connection.execute(text("set local statement_timeout = 100"))
        connection.execute(text("select pg_sleep(30)"))

    with pytest.raises(ApiError) as error:
        asyncio.run(event.transact(work))
    assert (error.value.reason, error.value.retry_after, len(tries)) == (
        ErrorReason.DEPENDENCY_UNAVAILABLE,
        1.0,
        2,
    )
    event.close()


def test_a_connection_to_a_read_only_server_is_replaced(scratch_database: DatabaseUrls) -> None:
    """A connection to a server that has become read-only, as after a failover, is dropped: the
    retry gets a new one.
    """
    event, backends = Database(scratch_database.service("event"), connections=1), []

    def work(connection: Connection) -> str:
        backends.append(connection.execute(text("select pg_backend_pid()")).scalar_one())
        if len(backends) == 1:
            connection.execute(text("set transaction read only"))
        return insert_event(unique_id("r"), 1)(connection)  # type: ignore[no-any-return]

    assert asyncio.run(event.transact(work))
    assert len(set(backends)) == 2
    event.close()


def test_a_migration_breaks_no_prepared_statement(scratch_database: DatabaseUrls) -> None:
    """A migration adds a column and so changes the result of `select *`: a previously prepared
    statement is retried on a new connection.
    """
    role = scratch_database.service("event")
    with psycopg.connect(scratch_database.admin, autocommit=True) as admin:
        admin.execute("create table event.toy (a int)")
        admin.execute("insert into event.toy values (1)")
        admin.execute(
            sql.SQL("grant select on event.toy to {}").format(
                sql.Identifier(str(make_url(role).username))
            )
        )
        event = Database(role, connections=1)

        async def run() -> list[int]:
            counts = []
            for query_number in range(9):
                if query_number == 8:
                    admin.execute("alter table event.toy add column b int")
                counts.append(
                    await event.load(
                        lambda connection: len(
                            connection.execute(text("select * from toy")).fetchall()[0]
                        )
                    )
                )
            return counts

        assert asyncio.run(run()) == [1] * 8 + [2]
        event.close()


@pytest.mark.parametrize("committed", [True, False])
def test_a_lost_commit_is_distinguished_from_a_failed_one(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """The connection breaks at COMMIT, after or before it took effect: the work is committed
    exactly once, and its result is returned.
    """
    real, calls = module.commit, []
    event = Database(scratch_database.service("event"), connections=1)

    def commit(connection: Connection) -> None:
        # The shared platform is not affected by this test.
        if connection.info.dbname != scratch_database.database_name:
            return real(connection)
        calls.append(1)
        if len(calls) > 1:
            return real(connection)
        if committed:
            real(connection)
        connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(module, "commit", commit)
    aggregate = unique_id("a")
    assert asyncio.run(event.transact(insert_event(aggregate, 1))) == aggregate
    assert count_events(scratch_database, aggregate) == 1
    assert len(calls) == 2
    event.close()


def test_repeatedly_lost_commit_answers_are_no_error(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each check after a lost COMMIT may lose its own answer: the work is still committed once, and
    its result is returned.
    """
    real, calls = module.commit, []
    event = Database(scratch_database.service("event"), connections=1)

    def commit(connection: Connection) -> None:
        real(connection)
        if connection.info.dbname == scratch_database.database_name:
            calls.append(1)
            if len(calls) < 4:
                connection.close()
                raise psycopg.OperationalError("gone")

    monkeypatch.setattr(module, "commit", commit)
    aggregate = unique_id("a")
    assert asyncio.run(event.transact(insert_event(aggregate, 1))) == aggregate
    assert (count_events(scratch_database, aggregate), len(calls)) == (1, 4)
    event.close()


def test_a_repeated_claim_of_a_seller_is_committed_again(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the answer to the COMMIT of a claim is lost, the repeat finds its own claim and commits: a
    standby may not have the first COMMIT yet.
    """
    real, calls = module.commit, []
    wallet = Database(scratch_database.service("wallet"), connections=1)

    def commit(connection: Connection) -> None:
        real(connection)
        calls.append(1)
        if len(calls) == 1:
            connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(module, "commit", commit)
    claims = [SellerClaim("shop", "market")]
    rows = asyncio.run(Sellers(wallet).claim(claims, "checkout", ""))
    assert [(row.seller_account, row.owner, row.version) for row in rows] == [("shop", "market", 1)]
    assert len(calls) == 2
    wallet.close()


def test_commit_and_rollback_count_as_statements(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit of silence begins again when COMMIT or ROLLBACK is sent."""
    connection = sql_module.connect(scratch_database.service("event"), Connection)
    times = iter(range(100))
    monkeypatch.setattr(sql_module, "monotonic", lambda: float(next(times)))
    for end in (connection.commit, connection.rollback):
        connection.execute("begin")
        begin_send_time = connection.send_time
        end()
        assert connection.send_time == begin_send_time + 1
    connection.close()


def test_the_time_of_a_transaction_is_known_only_in_it(event_database: Database) -> None:
    """A read has no begin_time, so that it cannot use that of an earlier transaction."""
    times: list[datetime] = []
    asyncio.run(event_database.transact(lambda connection: times.append(connection.begin_time)))
    with pytest.raises(RuntimeError, match="begin_time"):
        asyncio.run(event_database.load(lambda connection: times.append(connection.begin_time)))
    assert len(times) == 1


@pytest.mark.parametrize("committed", [True, False])
def test_a_repeat_of_idempotent_work_waits_for_the_first_commit(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """Idempotent work has no commit marker. If the answer to its COMMIT is lost, it runs again, and
    writes a marker then, so that its own COMMIT waits for a standby even if it changes nothing.
    """
    real, markers = module.commit, []
    event = Database(scratch_database.service("event"), connections=1)
    aggregate = unique_id("a")

    def commit(connection: Connection) -> None:
        if connection.info.dbname != scratch_database.database_name:
            return real(connection)
        own_markers = text("select count(*) from commit_marker where xmin::text = cast(:x as text)")
        own_id = text("select pg_current_xact_id_if_assigned()::text")
        transaction_id = connection.execute(own_id).scalar_one()
        markers.append(connection.execute(own_markers, {"x": transaction_id}).scalar_one())
        if len(markers) > 1:
            return real(connection)
        if committed:
            real(connection)
        connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    def work(connection: Connection) -> None:
        connection.execute(
            text(
                "insert into event (cursor, aggregate_id, aggregate_version, type, owner, "
                "publish_time, body) values (1, :a, 1, 'X', '', clock(), '') on conflict do nothing"
            ),
            {"a": aggregate},
        )

    monkeypatch.setattr(module, "commit", commit)
    asyncio.run(event.transact(work, idempotent=True))
    assert markers == [0, 1]
    assert count_events(scratch_database, aggregate) == 1
    event.close()


def test_a_killed_backend_is_survived(scratch_database: DatabaseUrls) -> None:
    """A backend that is killed in the middle of a transaction causes a retry; the work is
    not lost.
    """
    event = Database(scratch_database.service("event"), connections=1)
    aggregate, tries = unique_id("a"), []

    def work(connection: Connection) -> None:
        tries.append(1)
        insert_event(aggregate, 1)(connection)
        if len(tries) == 1:
            pid = connection.execute(text("select pg_backend_pid()")).scalar_one()
            with psycopg.connect(scratch_database.admin, autocommit=True) as admin:
                admin.execute("select pg_terminate_backend(%s)", (pid,))

    asyncio.run(event.transact(work))
    assert (len(tries), count_events(scratch_database, aggregate)) == (2, 1)
    event.close()


def test_retries_of_a_conflict_are_bounded(event_database: Database) -> None:
    """A serialization failure is retried; one that persists is CONFLICT, with a retry delay."""
    tries: list[int] = []

    def work(connection: Connection) -> None:
        tries.append(1)
        connection.execute(text("do $$ begin raise exception 'x' using errcode = '40001'; end $$"))

    with pytest.raises(ApiError) as error:
        asyncio.run(event_database.transact(work))
    assert error.value.reason is ErrorReason.CONFLICT
    assert error.value.retry_after
    assert len(tries) == 6


def test_a_constraint_violation_is_not_retried(
    event_database: Database, database: DatabaseUrls
) -> None:
    """A constraint violation is raised immediately, with its SQLSTATE and constraint; the
    transaction is rolled back.
    """
    aggregate, tries = unique_id("a"), []

    def work(connection: Connection) -> None:
        tries.append(1)
        insert_event(aggregate, 10**9)(connection)
        insert_event(aggregate, 10**9 + 1)(connection)

    with pytest.raises(ConstraintViolation) as error:
        asyncio.run(event_database.transact(work))
    assert error.value.sqlstate == "23505"
    assert "aggregate" in error.value.constraint
    assert (len(tries), count_events(database, aggregate)) == (1, 0)


def test_an_unreachable_database_is_dependency_unavailable(database: DatabaseUrls) -> None:
    """Without a connection the error is DEPENDENCY_UNAVAILABLE with a retry delay, never an
    exception of the driver.
    """
    away = Database("postgresql://x:y@127.0.0.1:1/none", connections=1)
    with pytest.raises(ApiError) as error:
        asyncio.run(away.transact(lambda _: None))
    assert error.value.reason is ErrorReason.DEPENDENCY_UNAVAILABLE
    away.close()


def test_no_network_call_is_made_inside_a_transaction(event_database: Database) -> None:
    """Providers and stubs do not run in a transaction's thread; outside of one the guard is off."""
    inside: list[object] = []

    def work(_: Connection) -> None:
        inside.append(in_transaction())
        execute: ProviderGateway = ProviderGateway(
            {},
            lambda _: asyncio.sleep(0, result=True),
            limits_of=lambda _: CallLimits(timeout_seconds=1, max_calls=1),
            breaker_settings=BreakerSettings(),
        )
        nothing: Any = None
        for call in (
            ServiceClient().call(nothing, nothing),
            execute.call(nothing, NextAction.SEND, Circuit.SENDS, nothing),
        ):
            with pytest.raises(RuntimeError, match="inside a transaction"):
                asyncio.run(call)

    asyncio.run(event_database.transact(work))
    assert inside == [True]
    assert not in_transaction()


def test_plans_are_discarded_again_and_again(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan from a nearly empty table must not serve a large one: a connection for work discards
    its plans when it is 1 s old, then when it is twice as old as at the last time, and at least
    every 30 s.
    """
    now = [1000.0]
    monkeypatch.setattr(connection_pool, "monotonic", lambda: now[0])
    monkeypatch.setattr(sql_module, "monotonic", lambda: now[0])
    recorder = StatementRecorder(scratch_database.service("event"), keeps_plans=True)
    statements: list[tuple[str, str, object]] = []
    recorder.listeners.append(statements)
    discard_ages = []
    for age in range(100):
        now[0] = 1000.0 + age
        connection = recorder.take()
        recorder.discard_old_plans(connection)
        if statements:
            discard_ages.append(age)
            statements.clear()
        assert connection.execute("show plan_cache_mode").scalar_one() == "force_generic_plan"
        statements.clear()
        recorder.give_back(connection)
    recorder.close()
    assert discard_ages == [1, 2, 4, 8, 16, 32, 62, 92]
