"""Runs functions in transactions. The only module that commits and translates database errors."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import orjson
import psycopg

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_storage.connection_pool import (
    ConnectionPool,
    Connections,
    GuardedConnection,
    needs_other_connection,
)
from tallystick_storage.sql import Connection, text

T = TypeVar("T")
log = logging.getLogger(__name__)

_active = threading.local()
_MAX_TRIES = 6
_FIRST_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.02, 0.5  # seconds between tries, doubled each time
# Seconds without an answer. A statement may take 10 s, but a frozen server does not enforce that.
_MAX_SILENCE_SECONDS = 15.0
# SQLSTATEs after which the same transaction may succeed: conflict, insufficient resources, operator
# intervention, lock timeout, idle timeout, connection failure.
_RETRYABLE_STATES = ("40", "53", "57", "55P03", "25P03", "08")
# Statement timeout. A retry helps only if the cause was a lock or a cold cache.
_STATEMENT_TIMEOUT = "57014"
# Classes caused by the data: a retry cannot help, and one item of the batch is the cause.
_DATA_ERROR_CLASSES = ("22", "23", "P0001")


class ConstraintViolation(Exception):
    """The database rejected the data because of a constraint, a trigger or a type. Halve the batch
    until the invalid item is alone.
    """

    def __init__(self, sqlstate: str, constraint: str, message: str) -> None:
        super().__init__(f"{sqlstate} {constraint}: {message}")
        self.sqlstate = sqlstate
        self.constraint = constraint


class _RetryableError(Exception):
    """The try failed or its outcome is unknown; the next one may succeed. `reason` is reported to
    the caller when every try fails.
    """

    def __init__(self, cause: Exception, reason: ErrorReason, *, too_slow: bool = False) -> None:
        super().__init__(str(cause))
        self.reason = reason
        self.too_slow = too_slow


def in_transaction() -> bool:
    """Whether this thread is inside a transaction or a read. Providers and stubs raise an error
    there.
    """
    return getattr(_active, "value", False)


def encode_rows(items: Sequence[Any]) -> str:
    """Encodes dataclasses or dicts as one JSON parameter for json_to_recordset. Integers beyond 64
    bits must be text, and times must be aware datetimes.
    """
    return orjson.dumps(items).decode()


class Database:
    """One service's database: its login, its connections, its threads.

    `connections` limits concurrent transactions and `readers` limits concurrent reads for callers;
    each has its own thread and connection. `read_timeout` limits one statement of such a read, in
    seconds. `max_silence_seconds` is the time after which a connection without an answer is cut.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int,
        readers: int = 2,
        read_timeout: float = 5.0,
        max_silence_seconds: float = _MAX_SILENCE_SECONDS,
        new_id: Callable[[], uuid.UUID] = uuid.uuid4,
        open_connections: Callable[..., Connections] = Connections,
    ) -> None:
        self._work = ConnectionPool(
            open_connections(url, keeps_plans=True), connections, "database", max_silence_seconds
        )
        self._reads = ConnectionPool(
            open_connections(url, {"statement_timeout": f"{round(read_timeout * 1000)}"}),
            readers,
            "reads",
            max_silence_seconds,
        )
        self._new_id = new_id
        self._commit_event = asyncio.Event()

    async def transact(self, work: Callable[[Connection], T], *, idempotent: bool = False) -> T:
        """Runs `work` in one transaction and commits it exactly once, even if the answer to COMMIT
        is lost.

        `work` may run again, so it must not generate ids or have effects other than SQL.
        `idempotent`: it may also run again after it was committed; its second result is as good as
        the first. Such a transaction costs no commit marker. Raises
        ConstraintViolation, or ApiError with CONFLICT or DEPENDENCY_UNAVAILABLE after several
        failed tries.
        """
        transaction = _RetryableTransaction(work, self._new_id, idempotent=idempotent)
        result = await _run_with_retries(self._work, transaction.run, max_slow_tries=2)
        self._commit_event.set()
        return result

    async def wait_for_commit(self, timeout_seconds: float) -> None:
        """Waits until a transaction of this process commits, at most `timeout_seconds`. Those that
        were committed since the last call count.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._commit_event.wait()
        self._commit_event.clear()

    async def load(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` without a transaction, for work in progress. Each statement has its own
        snapshot. Raises as `transact` does.
        """
        return await _run_with_retries(
            self._work,
            lambda guarded: _read(work, guarded),
            max_slow_tries=2,
        )

    async def read(self, work: Callable[[Connection], T], *, changed: bool = False) -> T:
        """Runs `work` without a transaction, for a caller that only reads. It neither waits for
        work in progress nor delays it.

        `changed`: the same call has already committed a change, so it must not fail because of a
        slow read; it then runs as `load` does. Raises as `transact` does, and QUERY_TOO_SLOW if a
        statement takes longer than `read_timeout`.
        """
        if changed:
            return await self.load(work)
        return await _run_with_retries(
            self._reads,
            lambda guarded: _read(work, guarded),
            max_slow_tries=1,
        )

    def close(self) -> None:
        """Waits for running work and closes every connection."""
        for pool in (self._work, self._reads):
            pool.close()


async def _run_with_retries(
    pool: ConnectionPool,
    work: Callable[[GuardedConnection], T],
    *,
    max_slow_tries: int,
) -> T:
    """Retries while a retry may help. `max_slow_tries` limits the tries that hit the statement
    timeout.
    """
    tries = 0
    while True:
        try:
            return await pool.run(work)
        except _RetryableError as error:
            tries += 1
            if tries >= (max_slow_tries if error.too_slow else _MAX_TRIES):
                log.warning("a transaction failed, and is not retried: %s", error)
                if error.too_slow and max_slow_tries == 1:
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
        await asyncio.sleep(min(_FIRST_WAIT_SECONDS * 2 ** (tries - 1), _MAX_WAIT_SECONDS))


class _RetryableTransaction(Generic[T]):
    """One call of `transact`, across all its tries."""

    def __init__(
        self,
        work: Callable[[Connection], T],
        new_id: Callable[[], uuid.UUID],
        *,
        idempotent: bool,
    ) -> None:
        self._work = work
        self._new_id = new_id
        self._marker_id = None if idempotent else new_id()
        self._results: list[T] = []  # filled once a COMMIT is about to be sent

    def run(self, guarded: GuardedConnection) -> T:
        with _translate_errors(), guarded.connect() as connection, _track_active():
            if not self._results:
                _begin(connection, self._marker_id)
            elif self._marker_id is None:
                # A write: its COMMIT waits until a synchronous standby has the first one too.
                _begin(connection, self._new_id())
            elif self._is_committed(connection, self._marker_id):
                return self._results[-1]
            result = self._work(connection)
            self._results.append(result)
            commit(connection)
            return result

    def _is_committed(self, connection: Connection, marker_id: uuid.UUID) -> bool:
        """Whether the COMMIT whose answer was lost took effect. Inserting the same marker waits for
        the old backend to finish. Otherwise the transaction has begun again.
        """
        try:
            _begin(connection, marker_id)
        except psycopg.errors.UniqueViolation:
            connection.rollback()
            # Waiting for this commit proves that a synchronous standby has the first one.
            _begin(connection, self._new_id())
            commit(connection)
            return True
        return False


def _begin(connection: Connection, marker_id: uuid.UUID | None) -> None:
    """Begins a transaction, inserts its marker, if any, and reads the time, in one message to the
    server.
    """
    time_sql = (
        f"insert into commit_marker (id, create_time) values ('{marker_id}', clock()) "
        "returning create_time"
        if marker_id
        else "select clock()"
    )
    cursor = connection.execute(f"begin isolation level read committed; {time_sql}")
    cursor.nextset()
    connection.set_begin_time(cursor.scalar_one())


_PRUNE_COMMIT_MARKERS = text("""
    delete from commit_marker where id = any (array(
        select id from commit_marker where create_time < (select clock()) - cast(:age as interval)
            order by create_time limit :limit))
""")
_MAX_PRUNED = 10_000


def prune_commit_markers(connection: Connection) -> bool:
    """Deletes up to a page of markers that no lost COMMIT can need any more. Returns whether there
    may be more.
    """
    return (
        connection.execute(_PRUNE_COMMIT_MARKERS, {"age": "1 hour", "limit": _MAX_PRUNED}).rowcount
        == _MAX_PRUNED
    )


def commit(connection: Connection) -> None:
    """Commits. Warning 01000 means that the wait for a standby was interrupted, so the outcome is
    unknown.
    """
    warnings: list[str] = []

    def record_notice(notice: psycopg.errors.Diagnostic) -> None:
        warnings.append(notice.sqlstate or "")

    connection.add_notice_handler(record_notice)
    try:
        connection.commit()
    finally:
        connection.remove_notice_handler(record_notice)
    if "01000" in warnings:
        connection.close()
        raise _RetryableError(
            RuntimeError("COMMIT was not confirmed by the standby"),
            ErrorReason.DEPENDENCY_UNAVAILABLE,
        )


def _read(work: Callable[[Connection], T], guarded: GuardedConnection) -> T:
    with _translate_errors(), guarded.connect() as connection, _track_active():
        return work(connection)


@contextmanager
def read_snapshot(connection: Connection) -> Iterator[None]:
    """Runs the statements of the block on one snapshot, for `read`. After an error the pool rolls
    back.
    """
    connection.execute("begin isolation level repeatable read read only")
    yield
    connection.rollback()


@contextmanager
def _track_active() -> Iterator[None]:
    _active.value = True
    try:
        yield
    finally:
        _active.value = False


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Translates database errors into errors that callers understand."""
    try:
        yield
    except psycopg.Error as error:
        state = error.sqlstate or ""
        if state.startswith(_DATA_ERROR_CLASSES):
            # Only the primary message: the detail contains the row, and with it a token.
            raise ConstraintViolation(
                state, error.diag.constraint_name or "", error.diag.message_primary or ""
            ) from None
        if not state or state.startswith(_RETRYABLE_STATES) or needs_other_connection(error):
            reason = (
                ErrorReason.CONFLICT
                if state.startswith(("40", "55P03"))
                else ErrorReason.DEPENDENCY_UNAVAILABLE
            )
            raise _RetryableError(error, reason, too_slow=state == _STATEMENT_TIMEOUT) from error
        raise
