"""Connections to a database, with a thread for each and a limit on the time of a try."""

from __future__ import annotations

import logging
import os
import socket
from asyncio import AbstractEventLoop, CancelledError, TimerHandle, get_running_loop
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError

T = TypeVar("T")
log = logging.getLogger(__name__)

# Seconds after which a connection is replaced, so that none to a former primary is kept.
_RECYCLE_SECONDS = 300
# SQLSTATEs after which another connection may succeed: a server left read-only by a failover, a
# shutdown, or a plan from before a migration.
_OTHER_CONNECTION_STATES = ("25006", "57P01", "57P02", "57P03", "0A000")
_STALE_PLAN = "cached plan must not change result type"


def open_engine(url: str, max_connections: int, statement_timeout: float | None = None) -> Engine:
    """Returns an engine with at most `max_connections` connections, opened on first use.
    `statement_timeout` is in seconds; None keeps the role's setting. No connection begins a
    transaction by itself.
    """
    timeout_option = (
        ""
        if statement_timeout is None
        else f" -c statement_timeout={round(statement_timeout * 1000)}"
    )
    return create_engine(
        url,
        isolation_level="AUTOCOMMIT",  # a transaction begins with its marker, in one message
        pool_size=max_connections,
        max_overflow=0,
        pool_timeout=10,
        pool_recycle=_RECYCLE_SECONDS,
        hide_parameters=True,  # keeps callers' values out of the logs
        connect_args={
            # In other time zones the first and last hours of the time range cannot be read back.
            "options": f"-c timezone=UTC{timeout_option}",
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        },
    )


class ConnectionPool:
    """Connections, one thread for each, and a watchdog that limits every try."""

    def __init__(
        self, engine: Engine, max_connections: int, name: str, max_try_seconds: float
    ) -> None:
        self.engine = engine
        self._threads = ThreadPoolExecutor(max_connections, thread_name_prefix=name)
        self._max_try_seconds = max_try_seconds

    async def run(self, work: Callable[[Engine, CancellableConnection], T]) -> T:
        """Runs `work` once. If the database does not answer in time, the connection is cut; the
        next try finds out whether the transaction was committed.

        The watchdog runs as long as the thread works, even if the caller no longer waits.
        """
        loop, cancellable = get_running_loop(), CancellableConnection()

        def run_in_thread() -> T:
            cancellable.start_time = loop.time()
            try:
                return work(self.engine, cancellable)
            finally:
                cancellable.is_finished = True

        self._watch(loop, cancellable)
        try:
            result = await loop.run_in_executor(self._threads, run_in_thread)
        except CancelledError:
            cancellable.is_abandoned = True
            raise
        except BaseException:
            cancellable.stop_watching()
            raise
        cancellable.stop_watching()
        return result

    def _watch(self, loop: AbstractEventLoop, cancellable: CancellableConnection) -> None:
        """Cuts the connection when its time is up. Checks again as long as the thread works or has
        yet to start.
        """
        if cancellable.is_finished or (cancellable.is_abandoned and cancellable.start_time is None):
            return
        remaining_seconds = (
            self._max_try_seconds
            if cancellable.start_time is None
            else cancellable.start_time + self._max_try_seconds - loop.time()
        )
        if remaining_seconds <= 0:
            cancellable.cut(self._max_try_seconds)
            remaining_seconds = self._max_try_seconds
        cancellable.timer = loop.call_later(remaining_seconds, self._watch, loop, cancellable)

    def close(self) -> None:
        self._threads.shutdown()
        self.engine.dispose()


class CancellableConnection:
    """The connection of one try. `start_time` is the loop time at which a thread started it;
    `is_abandoned` means that no caller waits for it any more.
    """

    def __init__(self) -> None:
        self._connection: Any = None
        self.start_time: float | None = None
        self.is_finished = False
        self.is_abandoned = False
        self.timer: TimerHandle | None = None

    def stop_watching(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    @contextmanager
    def connect(self, engine: Engine) -> Iterator[Connection]:
        """Yields a connection of the engine that can be cut until the block ends."""
        try:
            with engine.connect() as connection:
                self._connection = connection.connection.driver_connection
                try:
                    yield connection
                except DBAPIError as error:
                    if needs_other_connection(error):
                        connection.invalidate()
                    raise
        finally:
            # Only here: the rollback on return to the pool may hang too.
            self._connection = None

    def cut(self, seconds: float) -> None:
        """Closes the connection's socket. It never sends a cancellation, because during a COMMIT
        that could look like success.
        """
        with suppress(OSError, psycopg.Error, AttributeError):  # it has already ended
            with socket.socket(fileno=os.dup(self._connection.fileno())) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)
            log.warning("closed a connection: the database did not answer for %g seconds", seconds)


def needs_other_connection(error: DBAPIError) -> bool:
    """Whether another connection may succeed."""
    state = sqlstate_of(error)
    return state in _OTHER_CONNECTION_STATES and (
        state != "0A000" or _STALE_PLAN in str(error.orig)
    )


def sqlstate_of(error: DBAPIError) -> str:
    """The SQLSTATE of an error; "": it has none."""
    return getattr(error.orig, "sqlstate", None) or ""
