"""Transactions are functions handed over. Here stands the only commit, and the only place that
catches database errors.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import uuid
from asyncio import AbstractEventLoop, CancelledError, TimerHandle, get_running_loop
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import orjson
import psycopg
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tallystick_core.errors import ApiError, ErrorReason

T = TypeVar("T")
log = logging.getLogger(__name__)

_active = threading.local()
_MAX_ATTEMPTS = 6
_FIRST_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.02, 0.5  # seconds between them: twice as long each time
# seconds of one try; a statement has 10, but a server that stands still does not count them
_MAX_ATTEMPT_SECONDS = 30.0
# seconds after which a connection is replaced, so that none to a former primary is kept for ever
_RECYCLE_SECONDS = 300
# SQLSTATEs after which the same transaction may succeed: conflict, resources, operator, lock
# timeout, idle too long, connection.
_RETRYABLE_STATES = ("40", "53", "57", "55P03", "25P03", "08")
# the statement timeout: what took too long once will do so again, but for a lock or a cold cache
_STATEMENT_TIMEOUT = "57014"
# After which it may succeed on another connection: a read-only server, which a failover leaves
# behind; a shutdown; a plan from before a migration.
_OTHER_CONNECTION_STATES = ("25006", "57P01", "57P02", "57P03", "0A000")
_STALE_PLAN = "cached plan must not change result type"
# Classes that blame the data: retrying cannot help, and one item of the batch is the culprit.
_DATA_ERROR_CLASSES = ("22", "23", "P0001")


class ConstraintViolation(Exception):
    """The database refused the data itself, by a constraint, a trigger or a type. Halve the batch
    until the culprit is alone.
    """

    def __init__(self, sqlstate: str, constraint: str, message: str) -> None:
        super().__init__(f"{sqlstate} {constraint}: {message}")
        self.sqlstate = sqlstate
        self.constraint = constraint


class _RetryableError(Exception):
    """This try has failed, or nobody knows; the next may succeed. `reason` is what the caller is
    told when none does.
    """

    def __init__(self, cause: Exception, reason: ErrorReason, *, too_slow: bool = False) -> None:
        super().__init__(str(cause))
        self.reason = reason
        self.too_slow = too_slow


def in_transaction() -> bool:
    """Whether this thread is inside a transaction or a read; providers and stubs refuse to run
    there.
    """
    return getattr(_active, "value", False)


def encode_rows(items: Sequence[Any]) -> str:
    """Dataclasses or dicts as one JSON parameter, for json_to_recordset. Integers beyond 64 bits
    must come as text, times as aware datetimes.
    """
    return orjson.dumps(items).decode()


def open_engine(url: str, max_connections: int, statement_timeout: float | None = None) -> Engine:
    """An engine with so many connections, made when they are first needed; `statement_timeout` in
    seconds, None: as the role has it.
    """
    timeout_option = (
        ""
        if statement_timeout is None
        else f" -c statement_timeout={round(statement_timeout * 1000)}"
    )
    return create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_size=max_connections,
        max_overflow=0,
        pool_timeout=10,
        pool_recycle=_RECYCLE_SECONDS,
        hide_parameters=True,  # no value of a caller ends up in a log
        connect_args={
            # elsewhere the first and last hours of time cannot be read back
            "options": f"-c timezone=UTC{timeout_option}",
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        },
    )


class Database:
    """One service's database: its login, its connections, its threads.

    `connections` is the number of transactions that run at once, `readers` that of the reads that
    callers ask for; each has a thread and a connection of its own. `read_timeout`: seconds that one
    statement of such a read may take. `max_attempt_seconds`: seconds after which a try that is not
    answered is cut off.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int,
        readers: int = 2,
        read_timeout: float = 5.0,
        max_attempt_seconds: float = _MAX_ATTEMPT_SECONDS,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
        engine_factory: Callable[[str, int, float | None], Engine] = open_engine,
    ) -> None:
        self._work = _ConnectionPool(
            engine_factory(url, connections, None), connections, "database", max_attempt_seconds
        )
        self._reads = _ConnectionPool(
            engine_factory(url, readers, read_timeout), readers, "reads", max_attempt_seconds
        )
        self._new_id = new_id

    async def transact(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in one transaction and commits it: exactly once, also when the answer to
        COMMIT is lost.

        `work` may run again, so it makes no ids and has no effects but SQL. Raises DataRefused, or
        Refused with CONFLICT or DEPENDENCY_UNAVAILABLE when several tries have failed.
        """
        transaction = _RetryableTransaction(work, self._new_id)
        return await _run_with_retries(self._work, transaction.run, max_slow_attempts=2)

    async def load(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` without a transaction, for work in progress: each statement sees its own
        moment. Raises as `transact` does.
        """
        return await _run_with_retries(
            self._work,
            lambda engine, cancellable: _read(engine, work, cancellable),
            max_slow_attempts=2,
        )

    async def read(self, work: Callable[[Connection], T], *, changed: bool = False) -> T:
        """Runs `work` without a transaction, for a caller who only looks: neither waits for work in
        progress nor delays it.

        `changed`: by the same call, which is committed and must not end as a read that was too
        slow: this runs as `load` does. Raises as `transact` does, and QUERY_TOO_SLOW for a
        statement that takes longer than `read_timeout`.
        """
        if changed:
            return await self.load(work)
        return await _run_with_retries(
            self._reads,
            lambda engine, cancellable: _read(engine, work, cancellable),
            max_slow_attempts=1,
        )

    def close(self) -> None:
        """Waits for what runs, and closes every connection."""
        for pool in (self._work, self._reads):
            pool.close()


class _ConnectionPool:
    """Connections, as many threads, and a watchdog over what runs on them."""

    def __init__(
        self, engine: Engine, max_connections: int, name: str, max_attempt_seconds: float
    ) -> None:
        self.engine = engine
        self._threads = ThreadPoolExecutor(max_connections, thread_name_prefix=name)
        self._max_attempt_seconds = max_attempt_seconds

    async def run_attempt(self, attempt: Callable[[Engine, _CancellableConnection], T]) -> T:
        """One try. What the database does not answer in time is cut off, which is a lost
        connection: the next try finds out what was committed.

        The watchdog stays while the thread works, also when nobody waits for it any more.
        """
        loop, cancellable = get_running_loop(), _CancellableConnection()

        def run_in_thread() -> T:
            cancellable.start_time = loop.time()
            try:
                return attempt(self.engine, cancellable)
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

    def _watch(self, loop: AbstractEventLoop, cancellable: _CancellableConnection) -> None:
        """Cuts the connection when its time is up; looks again as long as the thread works, or is
        to begin.
        """
        if cancellable.is_finished or (cancellable.is_abandoned and cancellable.start_time is None):
            return
        remaining_seconds = (
            self._max_attempt_seconds
            if cancellable.start_time is None
            else cancellable.start_time + self._max_attempt_seconds - loop.time()
        )
        if remaining_seconds <= 0:
            cancellable.cut(self._max_attempt_seconds)
            remaining_seconds = self._max_attempt_seconds
        cancellable.timer = loop.call_later(remaining_seconds, self._watch, loop, cancellable)

    def close(self) -> None:
        self._threads.shutdown()
        self.engine.dispose()


async def _run_with_retries(
    pool: _ConnectionPool,
    attempt: Callable[[Engine, _CancellableConnection], T],
    *,
    max_slow_attempts: int,
) -> T:
    """Tries as often as it may help. `max_slow_attempts`: how often at most what runs into the
    statement timeout.
    """
    attempts = 0
    while True:
        try:
            return await pool.run_attempt(attempt)
        except _RetryableError as error:
            attempts += 1
            if attempts >= (max_slow_attempts if error.too_slow else _MAX_ATTEMPTS):
                log.warning("a transaction was given up: %s", error)
                if error.too_slow and max_slow_attempts == 1:
                    raise ApiError(
                        ErrorReason.QUERY_TOO_SLOW,
                        "The query takes too long; narrow it by a filter, or ask for a smaller "
                        "page.",
                    ) from error
                message = (
                    "The database is not available, or the transaction kept conflicting with "
                    "others; retry."
                )
                raise ApiError(error.reason, message, retry_after=1.0) from error
        await asyncio.sleep(min(_FIRST_WAIT_SECONDS * 2 ** (attempts - 1), _MAX_WAIT_SECONDS))


class _CancellableConnection:
    """The connection that one try is on. `start_time`: the loop's time at which a thread took it
    up; `is_abandoned`: nobody waits for it any more.
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
        """A connection of the engine, which can be cut until the block ends."""
        try:
            with engine.connect() as connection:
                self._connection = connection.connection.driver_connection
                try:
                    yield connection
                except DBAPIError as error:
                    if _needs_other_connection(error):
                        connection.invalidate()
                    raise
        finally:
            # only now: a rollback on the way back to the pool may get no answer either
            self._connection = None

    def cut(self, seconds: float) -> None:
        """Closes the socket under it: never a cancellation, which at a COMMIT could look like
        success.
        """
        with suppress(OSError, psycopg.Error, AttributeError):  # it has ended meanwhile
            with socket.socket(fileno=os.dup(self._connection.fileno())) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)
            log.warning("a connection was cut: the database did not answer for %g seconds", seconds)


class _RetryableTransaction(Generic[T]):
    """One call of transact, over all its tries."""

    def __init__(self, work: Callable[[Connection], T], new_id: Callable[[], uuid.UUID]) -> None:
        self._work = work
        self._new_id = new_id
        self._marker_id = new_id()
        self._results: list[T] = []  # filled as soon as a COMMIT has been sent

    def run(self, engine: Engine, cancellable: _CancellableConnection) -> T:
        with _translate_errors(), cancellable.connect(engine) as connection, _track_active():
            if self._results and self._is_committed(connection):
                return self._results[-1]
            if not self._results:
                _insert_commit_marker(connection, self._marker_id)
            result = self._work(connection)
            self._results.append(result)
            _commit(connection)
            return result

    def _is_committed(self, connection: Connection) -> bool:
        """Whether the COMMIT whose answer was lost has been made. Inserting the same mark waits out
        the old backend.
        """
        try:
            _insert_commit_marker(connection, self._marker_id)
        except DBAPIError as error:
            if _sqlstate(error) != "23505":
                raise
            connection.rollback()
            # its wait proves that a synchronous standby has the first
            _insert_commit_marker(connection, self._new_id())
            _commit(connection)
            return True
        return False


def _insert_commit_marker(connection: Connection, marker_id: uuid.UUID) -> None:
    connection.execute(_INSERT_COMMIT_MARKER, {"id": marker_id})


_INSERT_COMMIT_MARKER = text("insert into commit_marker (id, create_time) values (:id, clock())")
_PRUNE_COMMIT_MARKERS = text("""
    delete from commit_marker where id = any (array(
        select id from commit_marker where create_time < (select clock()) - cast(:age as interval)
            order by create_time limit :limit))
""")
_MAX_PRUNED = 10_000


def prune_commit_markers(connection: Connection) -> bool:
    """Deletes marks that no lost COMMIT can ask for any more, up to so many; whether there may be
    more.
    """
    return (
        connection.execute(_PRUNE_COMMIT_MARKERS, {"age": "1 hour", "limit": _MAX_PRUNED}).rowcount
        == _MAX_PRUNED
    )


def _commit(connection: Connection) -> None:
    """Commits. A warning 01000 says that the wait for a standby was cut short: then nobody
    knows.
    """
    driver = connection.connection.driver_connection
    warnings: list[str] = []

    def record_notice(notice: psycopg.errors.Diagnostic) -> None:
        warnings.append(notice.sqlstate or "")

    driver.add_notice_handler(record_notice)  # type: ignore[union-attr]
    try:
        connection.commit()
    finally:
        driver.remove_notice_handler(record_notice)  # type: ignore[union-attr]
    if "01000" in warnings:
        connection.invalidate()
        raise _RetryableError(
            RuntimeError("COMMIT was not confirmed by the standby"),
            ErrorReason.DEPENDENCY_UNAVAILABLE,
        )


def _read(
    engine: Engine, work: Callable[[Connection], T], cancellable: _CancellableConnection
) -> T:
    with _translate_errors(), cancellable.connect(engine) as connection, _track_active():
        return work(connection.execution_options(isolation_level="AUTOCOMMIT"))


@contextmanager
def _track_active() -> Iterator[None]:
    _active.value = True
    try:
        yield
    finally:
        _active.value = False


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Database errors as what they mean for the caller."""
    try:
        yield
    except (InterfaceError, PoolTimeout) as error:
        raise _RetryableError(error, ErrorReason.DEPENDENCY_UNAVAILABLE) from error
    except DBAPIError as error:
        state = _sqlstate(error)
        if state.startswith(_DATA_ERROR_CLASSES):
            diagnosis = getattr(error.orig, "diag", None)
            # the primary message only: the detail holds the row, and with it a token
            primary_message = getattr(diagnosis, "message_primary", "") or ""
            raise ConstraintViolation(
                state, getattr(diagnosis, "constraint_name", "") or "", primary_message
            ) from None
        if (
            error.connection_invalidated
            or not state
            or state.startswith(_RETRYABLE_STATES)
            or _needs_other_connection(error)
        ):
            reason = (
                ErrorReason.CONFLICT
                if state.startswith(("40", "55P03"))
                else ErrorReason.DEPENDENCY_UNAVAILABLE
            )
            raise _RetryableError(error, reason, too_slow=state == _STATEMENT_TIMEOUT) from error
        raise


def _needs_other_connection(error: DBAPIError) -> bool:
    """Whether it may succeed on another connection."""
    state = _sqlstate(error)
    return state in _OTHER_CONNECTION_STATES and (
        state != "0A000" or _STALE_PLAN in str(error.orig)
    )


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""
