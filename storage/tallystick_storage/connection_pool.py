"""Connections to a database, with a thread for each and a limit on the time without an answer."""

from __future__ import annotations

import logging
import os
import socket
from asyncio import AbstractEventLoop, CancelledError, TimerHandle, get_running_loop
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from time import monotonic
from typing import TypeVar

import psycopg

from tallystick_storage.sql import Connection, connect

T = TypeVar("T")
log = logging.getLogger(__name__)

# Seconds after which a connection is replaced, so that none to a former primary is kept.
_MAX_CONNECTION_AGE_SECONDS = 300
_MAX_PLAN_AGE_SECONDS = 30
# SQLSTATEs after which another connection may succeed: a server left read-only by a failover, a
# shutdown, or a plan from before a migration.
_OTHER_CONNECTION_STATES = ("25006", "57P01", "57P02", "57P03", "0A000")
_STALE_PLAN = "cached plan must not change result type"
_IDLE = psycopg.pq.TransactionStatus.IDLE


class Connections:
    """The open connections of a pool that no thread uses now, and how to open another.

    `settings`: of PostgreSQL. `keeps_plans`: a statement is planned once and not each time.
    """

    def __init__(
        self, url: str, settings: Mapping[str, str] | None = None, *, keeps_plans: bool = False
    ) -> None:
        self._url = url
        self._keeps_plans = keeps_plans
        plan_settings = {"plan_cache_mode": "force_generic_plan"} if keeps_plans else {}
        # In other time zones the first and last hours of the time range cannot be read back.
        all_settings = {"timezone": "UTC", **plan_settings, **(settings or {})}
        self._options = " ".join(f"-c {name}={value}" for name, value in all_settings.items())
        self._idle: deque[Connection] = deque()

    def take(self) -> Connection:
        """A connection for the caller alone, until it is given back. Nothing is sent on an idle
        one: it may be silent, and no watchdog sees it yet. Raises psycopg.Error.
        """
        now = monotonic()
        while connection := self._pop_idle():
            if now - connection.open_time < _MAX_CONNECTION_AGE_SECONDS:
                return connection
            connection.close()
        return self.open()

    def _pop_idle(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:  # another thread may have taken the last one
            return None

    def discard_old_plans(self, connection: Connection) -> None:
        """Discards plans that are due, so that none from a nearly empty table serves a large one.

        They are discarded when the connection is 1 s old, 2 s, 4 s and so on: tables seldom double
        while a plan is kept.
        """
        now = monotonic()
        if self._keeps_plans and now >= connection.plan_expire_time:
            connection.execute("discard plans")
            age_seconds = now - connection.open_time
            connection.plan_expire_time = now + min(age_seconds, _MAX_PLAN_AGE_SECONDS)

    def open(self) -> Connection:
        """Opens another connection. Raises psycopg.OperationalError."""
        return connect(
            self._url,
            options=self._options,
            connect_timeout=5,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=15_000,
        )

    def give_back(self, connection: Connection) -> None:
        """Rolls back what was not committed, and keeps the connection unless it is broken. Then no
        idle one is kept either: what broke it, such as a failover, may have broken them too.
        """
        roll_back(connection)
        connection.set_begin_time(None)
        if connection.closed or connection.info.transaction_status != _IDLE:
            connection.close()
            self.close()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Closes the idle connections."""
        while connection := self._pop_idle():
            connection.close()


def roll_back(connection: Connection) -> None:
    """Rolls back what was not committed, unless the connection is broken."""
    if not connection.closed and connection.info.transaction_status != _IDLE:
        with suppress(psycopg.Error):
            connection.rollback()


class ConnectionPool:
    """Connections, one thread for each, and a watchdog that cuts silent ones."""

    def __init__(
        self, connections: Connections, max_connections: int, name: str, max_silence_seconds: float
    ) -> None:
        self._connections = connections
        self._threads = ThreadPoolExecutor(max_connections, thread_name_prefix=name)
        self._max_silence_seconds = max_silence_seconds

    async def run(self, work: Callable[[GuardedConnection], T]) -> T:
        """Runs `work` once. If the database does not answer a statement in time, the connection is
        cut; the next try finds out whether the transaction was committed.

        The watchdog runs as long as the thread works, even if the caller no longer waits.
        """
        loop, guarded = get_running_loop(), GuardedConnection(self._connections)

        def run_in_thread() -> T:
            guarded.start_time = monotonic()
            try:
                return work(guarded)
            finally:
                guarded.is_finished = True

        self._watch(loop, guarded)
        try:
            result = await loop.run_in_executor(self._threads, run_in_thread)
        except CancelledError:
            guarded.is_abandoned = True
            raise
        except BaseException:
            guarded.stop_watching()
            raise
        guarded.stop_watching()
        return result

    def _watch(self, loop: AbstractEventLoop, guarded: GuardedConnection) -> None:
        """Cuts the connection when it has been silent for too long. Checks again as long as the
        thread works or has yet to start.
        """
        if guarded.is_finished or (guarded.is_abandoned and guarded.start_time is None):
            return
        remaining_seconds = self._max_silence_seconds - guarded.silent_seconds
        if remaining_seconds <= 0:
            guarded.cut(self._max_silence_seconds)
            remaining_seconds = self._max_silence_seconds
        guarded.timer = loop.call_later(remaining_seconds, self._watch, loop, guarded)

    def close(self) -> None:
        self._threads.shutdown()
        self._connections.close()


class GuardedConnection:
    """The connection of one try. `start_time`: when a thread started it, by `monotonic`.
    `is_abandoned`: no caller waits for it any more.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._connection: Connection | None = None
        self.start_time: float | None = None
        self.is_finished = False
        self.is_abandoned = False
        self.timer: TimerHandle | None = None

    @property
    def silent_seconds(self) -> float:
        """Seconds since the last statement was sent, or since the thread started; 0 before."""
        if self.start_time is None:
            return 0.0
        connection = self._connection
        send_time = self.start_time if connection is None else connection.send_time
        return monotonic() - max(self.start_time, send_time)

    def stop_watching(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Yields a connection that can be cut until the block ends."""
        connection = self._connection = self._connections.take()
        try:
            self._connections.discard_old_plans(connection)
            yield connection
        except psycopg.Error as error:
            if needs_other_connection(error):
                connection.close()
            raise
        finally:
            try:
                roll_back(connection)
            finally:
                self._connection = None  # after the rollback, which may hang, and before another
                self._connections.give_back(connection)  # thread can take the connection

    def cut(self, max_silence_seconds: float) -> None:
        """Closes the connection's socket. It never sends a cancellation, because during a COMMIT
        that could look like success.
        """
        connection = self._connection
        if connection is None:
            return
        with suppress(OSError, psycopg.Error):  # it has already ended
            with socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)
            log.warning(
                "closed a connection of %s: the database did not answer for %g seconds",
                connection.info.user,
                max_silence_seconds,
            )


def needs_other_connection(error: psycopg.Error) -> bool:
    """Whether another connection may succeed."""
    return error.sqlstate in _OTHER_CONNECTION_STATES and (
        error.sqlstate != "0A000" or _STALE_PLAN in str(error)
    )
