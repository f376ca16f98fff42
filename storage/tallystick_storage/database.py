"""Transactions are functions handed over. Here stands the only commit, and the only place that catches database errors."""

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

from tallystick_core.refusal import Reason, Refused

T = TypeVar("T")
log = logging.getLogger(__name__)

_active = threading.local()
_ATTEMPTS = 6
_FIRST_WAIT, _LONGEST_WAIT = 0.02, 0.5  # seconds between them: twice as long each time
_LONGEST = 30.0  # seconds of one try; a statement has 10, but a server that stands still does not count them
_RECYCLE = 300  # seconds after which a connection is replaced, so that none to a former primary is kept for ever
# SQLSTATEs after which the same transaction may succeed: conflict, resources, operator, lock timeout, idle too long, connection.
_AGAIN = ("40", "53", "57", "55P03", "25P03", "08")
_TOO_SLOW = "57014"  # the statement timeout: what took too long once will do so again, but for a lock or a cold cache
# After which it may succeed on another connection: a read-only server, which a failover leaves behind; a shutdown; a plan from before a migration.
_ELSEWHERE = ("25006", "57P01", "57P02", "57P03", "0A000")
_STALE_PLAN = "cached plan must not change result type"
# Classes that blame the data: retrying cannot help, and one item of the batch is the culprit.
_DATA = ("22", "23", "P0001")


class DataRefused(Exception):
    """The database refused the data itself, by a constraint, a trigger or a type. Halve the batch until the culprit is alone."""

    def __init__(self, sqlstate: str, constraint: str, message: str) -> None:
        super().__init__(f"{sqlstate} {constraint}: {message}")
        self.sqlstate = sqlstate
        self.constraint = constraint


class _Again(Exception):
    """This try has failed, or nobody knows; the next may succeed. `reason` is what the caller is told when none does."""

    def __init__(self, cause: Exception, reason: Reason, *, too_slow: bool = False) -> None:
        super().__init__(str(cause))
        self.reason = reason
        self.too_slow = too_slow


def in_transaction() -> bool:
    """Whether this thread is inside a transaction or a read; providers and stubs refuse to run there."""
    return getattr(_active, "value", False)


def rows(items: Sequence[Any]) -> str:
    """Dataclasses or dicts as one JSON parameter, for json_to_recordset. Integers beyond 64 bits must come as text, times as aware datetimes."""
    return orjson.dumps(items).decode()


def open_engine(url: str, connections: int, statement_timeout: float | None = None) -> Engine:
    """An engine with so many connections, made when they are first needed; `statement_timeout` in seconds, None: as the role has it."""
    limit = "" if statement_timeout is None else f" -c statement_timeout={round(statement_timeout * 1000)}"
    return create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_size=connections,
        max_overflow=0,
        pool_timeout=10,
        pool_recycle=_RECYCLE,
        hide_parameters=True,  # no value of a caller ends up in a log
        connect_args={
            "options": f"-c timezone=UTC{limit}",  # elsewhere the first and last hours of time cannot be read back
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
        },
    )


class Database:
    """One service's database: its login, its connections, its threads.

    `connections` is the number of transactions that run at once, `readers` that of the reads that callers ask for; each has a thread and a connection
    of its own. `read_timeout`: seconds that one statement of such a read may take. `longest`: seconds after which a try that is not answered is cut off.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int,
        readers: int = 2,
        read_timeout: float = 5.0,
        longest: float = _LONGEST,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
        engine: Callable[[str, int, float | None], Engine] = open_engine,
    ) -> None:
        self._work = _Pool(engine(url, connections, None), connections, "database", longest)
        self._reads = _Pool(engine(url, readers, read_timeout), readers, "reads", longest)
        self._new_id = new_id

    async def transact(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` in one transaction and commits it: exactly once, also when the answer to COMMIT is lost.

        `work` may run again, so it makes no ids and has no effects but SQL. Raises DataRefused, or Refused with CONFLICT or
        DEPENDENCY_UNAVAILABLE when several tries have failed.
        """
        unit = _Unit(work, self._new_id)
        return await _bounded(self._work, unit.run, attempts_if_slow=2)

    async def load(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` without a transaction, for work in progress: each statement sees its own moment. Raises as `transact` does."""
        return await _bounded(self._work, lambda engine, line: _read(engine, work, line), attempts_if_slow=2)

    async def read(self, work: Callable[[Connection], T], *, changed: bool = False) -> T:
        """Runs `work` without a transaction, for a caller who only looks: neither waits for work in progress nor delays it.

        `changed`: by the same call, which is committed and must not end as a read that was too slow: this runs as `load` does.
        Raises as `transact` does, and QUERY_TOO_SLOW for a statement that takes longer than `read_timeout`.
        """
        if changed:
            return await self.load(work)
        return await _bounded(self._reads, lambda engine, line: _read(engine, work, line), attempts_if_slow=1)

    def close(self) -> None:
        """Waits for what runs, and closes every connection."""
        for pool in (self._work, self._reads):
            pool.close()


class _Pool:
    """Connections, as many threads, and a watchdog over what runs on them."""

    def __init__(self, engine: Engine, connections: int, name: str, longest: float) -> None:
        self.engine = engine
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix=name)
        self._longest = longest

    async def once(self, attempt: Callable[[Engine, _Line], T]) -> T:
        """One try. What the database does not answer in time is cut off, which is a lost connection: the next try finds out what was committed.

        The watchdog stays while the thread works, also when nobody waits for it any more.
        """
        loop, line = get_running_loop(), _Line()

        def run() -> T:
            line.began = loop.time()
            try:
                return attempt(self.engine, line)
            finally:
                line.ended = True

        self._watch(loop, line)
        try:
            result = await loop.run_in_executor(self._threads, run)
        except CancelledError:
            line.abandoned = True
            raise
        except BaseException:
            line.stop_watching()
            raise
        line.stop_watching()
        return result

    def _watch(self, loop: AbstractEventLoop, line: _Line) -> None:
        """Cuts the connection when its time is up; looks again as long as the thread works, or is to begin."""
        if line.ended or (line.abandoned and line.began is None):
            return
        left = self._longest if line.began is None else line.began + self._longest - loop.time()
        if left <= 0:
            line.cut(self._longest)
            left = self._longest
        line.timer = loop.call_later(left, self._watch, loop, line)

    def close(self) -> None:
        self._threads.shutdown()
        self.engine.dispose()


async def _bounded(pool: _Pool, attempt: Callable[[Engine, _Line], T], *, attempts_if_slow: int) -> T:
    """Tries as often as it may help. `attempts_if_slow`: how often at most what runs into the statement timeout."""
    tries = 0
    while True:
        try:
            return await pool.once(attempt)
        except _Again as failed:
            tries += 1
            if tries >= (attempts_if_slow if failed.too_slow else _ATTEMPTS):
                log.warning("a transaction was given up: %s", failed)
                if failed.too_slow and attempts_if_slow == 1:
                    raise Refused(Reason.QUERY_TOO_SLOW, "The query takes too long; narrow it by a filter, or ask for a smaller page.") from failed
                message = "The database is not available, or the transaction kept conflicting with others; retry."
                raise Refused(failed.reason, message, retry_after=1.0) from failed
        await asyncio.sleep(min(_FIRST_WAIT * 2 ** (tries - 1), _LONGEST_WAIT))


class _Line:
    """The connection that one try is on. `began`: the loop's time at which a thread took it up; `abandoned`: nobody waits for it any more."""

    def __init__(self) -> None:
        self._connection: Any = None
        self.began: float | None = None
        self.ended = False
        self.abandoned = False
        self.timer: TimerHandle | None = None

    def stop_watching(self) -> None:
        if self.timer is not None:
            self.timer.cancel()

    @contextmanager
    def over(self, engine: Engine) -> Iterator[Connection]:
        """A connection of the engine, which can be cut until the block ends."""
        try:
            with engine.connect() as connection:
                self._connection = connection.connection.driver_connection
                try:
                    yield connection
                except DBAPIError as error:
                    if _is_elsewhere(error):
                        connection.invalidate()
                    raise
        finally:
            self._connection = None  # only now: a rollback on the way back to the pool may get no answer either

    def cut(self, seconds: float) -> None:
        """Closes the socket under it: never a cancellation, which at a COMMIT could look like success."""
        with suppress(OSError, psycopg.Error, AttributeError):  # it has ended meanwhile
            with socket.socket(fileno=os.dup(self._connection.fileno())) as copy:
                copy.shutdown(socket.SHUT_RDWR)
            log.warning("a connection was cut: the database did not answer for %g seconds", seconds)


class _Unit(Generic[T]):
    """One call of transact, over all its tries."""

    def __init__(self, work: Callable[[Connection], T], new_id: Callable[[], uuid.UUID]) -> None:
        self._work = work
        self._new_id = new_id
        self._mark = new_id()
        self._results: list[T] = []  # filled as soon as a COMMIT has been sent

    def run(self, engine: Engine, line: _Line) -> T:
        with _translated(), line.over(engine) as connection, _marked_active():
            if self._results and self._is_committed(connection):
                return self._results[-1]
            if not self._results:
                _insert_mark(connection, self._mark)
            result = self._work(connection)
            self._results.append(result)
            _commit(connection)
            return result

    def _is_committed(self, connection: Connection) -> bool:
        """Whether the COMMIT whose answer was lost has been made. Inserting the same mark waits out the old backend."""
        try:
            _insert_mark(connection, self._mark)
        except DBAPIError as error:
            if _sqlstate(error) != "23505":
                raise
            connection.rollback()
            _insert_mark(connection, self._new_id())  # its wait proves that a synchronous standby has the first
            _commit(connection)
            return True
        return False


def _insert_mark(connection: Connection, mark: uuid.UUID) -> None:
    connection.execute(_MARK, {"id": mark})


_MARK = text("insert into mark (id, create_time) values (:id, clock())")
_FORGET = text("""
    delete from mark where id = any (array(
        select id from mark where create_time < (select clock()) - cast(:age as interval) order by create_time limit :most))
""")
_MOST_FORGOTTEN = 10_000


def forget_marks(connection: Connection) -> bool:
    """Deletes marks that no lost COMMIT can ask for any more, up to so many; whether there may be more."""
    return connection.execute(_FORGET, {"age": "1 hour", "most": _MOST_FORGOTTEN}).rowcount == _MOST_FORGOTTEN


def _commit(connection: Connection) -> None:
    """Commits. A warning 01000 says that the wait for a standby was cut short: then nobody knows."""
    driver = connection.connection.driver_connection
    warnings: list[str] = []

    def note(notice: psycopg.errors.Diagnostic) -> None:
        warnings.append(notice.sqlstate or "")

    driver.add_notice_handler(note)  # type: ignore[union-attr]
    try:
        connection.commit()
    finally:
        driver.remove_notice_handler(note)  # type: ignore[union-attr]
    if "01000" in warnings:
        connection.invalidate()
        raise _Again(RuntimeError("COMMIT was not confirmed by the standby"), Reason.DEPENDENCY_UNAVAILABLE)


def _read(engine: Engine, work: Callable[[Connection], T], line: _Line) -> T:
    with _translated(), line.over(engine) as connection, _marked_active():
        return work(connection.execution_options(isolation_level="AUTOCOMMIT"))


@contextmanager
def _marked_active() -> Iterator[None]:
    _active.value = True
    try:
        yield
    finally:
        _active.value = False


@contextmanager
def _translated() -> Iterator[None]:
    """Database errors as what they mean for the caller."""
    try:
        yield
    except (InterfaceError, PoolTimeout) as error:
        raise _Again(error, Reason.DEPENDENCY_UNAVAILABLE) from error
    except DBAPIError as error:
        state = _sqlstate(error)
        if state.startswith(_DATA):
            diagnosis = getattr(error.orig, "diag", None)
            # the primary message only: the detail holds the row, and with it a token
            primary = getattr(diagnosis, "message_primary", "") or ""
            raise DataRefused(state, getattr(diagnosis, "constraint_name", "") or "", primary) from None
        if error.connection_invalidated or not state or state.startswith(_AGAIN) or _is_elsewhere(error):
            reason = Reason.CONFLICT if state.startswith(("40", "55P03")) else Reason.DEPENDENCY_UNAVAILABLE
            raise _Again(error, reason, too_slow=state == _TOO_SLOW) from error
        raise


def _is_elsewhere(error: DBAPIError) -> bool:
    """Whether it may succeed on another connection."""
    state = _sqlstate(error)
    return state in _ELSEWHERE and (state != "0A000" or _STALE_PLAN in str(error.orig))


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""
