"""Dead letters, the same in every schema that has them: operations that are not retried until an
operator decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from tallystick_core.operations.dead_letter import DeadLetterCause, DeadLetterState
from tallystick_core.operations.kind import KindName
from tallystick_storage.database import encode_rows
from tallystick_storage.operation_key import KEYS, OperationKey, key_parameters
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.pagination import PageKey, conditions_of, newest_first
from tallystick_storage.sql import Connection, Query, columns, text


@dataclass(slots=True)
class NewDeadLetter:
    """An operation to dead-letter, and the cause."""

    kind: KindName
    operation_id: str
    resource_name: str
    """Its public name, of which the id of the dead letter is made."""
    cause: DeadLetterCause
    detail: str
    retry_count: int
    provider: str


class DeadLetterFilter(NamedTuple):
    """Selects the dead letters that match every criterion; None matches everything. Calls that
    change dead letters ignore `state`: they apply to OPEN ones only.
    """

    state: DeadLetterState | None = None
    cause: DeadLetterCause | None = None
    provider: str | None = None
    from_time: datetime | None = None
    until_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """A dead letter. `operator`, `reason` and `evidence` are those of its end; "": none."""

    dead_letter_id: str
    kind: str
    operation_id: str
    resource_name: str
    cause: str
    detail: str
    retry_count: int
    state: str
    operator: str
    reason: str
    evidence: str
    create_time: datetime
    end_time: datetime | None
    provider: str


@dataclass(frozen=True, slots=True)
class ChangedDeadLetter(DeadLetterRow):
    """A dead letter that a statement created or ended."""

    outbox_sequence: int


class OpenDeadLetterCount(NamedTuple):
    cause: str
    provider: str
    dead_letter_count: int


_INSERT = Query(
    ChangedDeadLetter,
    f"""
    with new as (
        insert into dead_letter (dead_letter_id, kind, operation_id, number, cause, detail,
            retry_count, state,
            operator, reason, evidence, create_time, provider)
        select translate(r.resource_name, '/', '-') || '-' || n.number, r.kind, r.operation_id,
            n.number, r.cause,
            r.detail, r.retry_count, 'OPEN', '', '', '', clock(), r.provider
        from json_to_recordset(cast(:items as json))
            as r (kind text collate "C", operation_id text collate "C", resource_name text,
                cause text, detail text, retry_count int, provider text)
        cross join lateral (select coalesce(max(d.number), 0) + 1 as number from dead_letter d
            where d.kind = r.kind and d.operation_id = r.operation_id) n
        order by r.kind, r.operation_id returning *),
    {insert_into_outbox("new", "'deadLetters/' || dead_letter_id", "1")}
    select {columns(DeadLetterRow, "new")}, sequence as outbox_sequence from new, outbox_sequence
    """,
)
_END = Query(
    ChangedDeadLetter,
    f"""
    with l as materialized (
        select d.dead_letter_id from {KEYS} cross join lateral (
            select d.dead_letter_id from dead_letter d
            where d.kind = k.kind and d.operation_id = k.operation_id and d.state = 'OPEN'
                and (cast(:dead_letters as text[]) is null
                    or d.dead_letter_id = any (cast(:dead_letters as text[])))
            limit 1 for update) d),
    ended as (
        update dead_letter d set state = :state, operator = :operator, reason = :reason,
            evidence = :evidence, end_time = clock()
        from l where d.dead_letter_id = l.dead_letter_id returning d.*),
    {insert_into_outbox("ended", "'deadLetters/' || dead_letter_id", "2")}
    select {columns(DeadLetterRow, "d")}, sequence as outbox_sequence from ended d, outbox_sequence
    """,
)
_IS_OPEN = text(
    "select exists (select from dead_letter where kind = :kind and operation_id = :operation_id "
    "and state = 'OPEN')"
)
_HAS_CAUSE = text(
    "select exists (select from dead_letter where kind = :kind and operation_id = :operation_id "
    "and cause = :cause)"
)
_FIND = Query(DeadLetterRow, "select {columns} from dead_letter where dead_letter_id = :id")
_LIST = """
    select {{columns}} from dead_letter {where}
    order by create_time desc, dead_letter_id desc limit :limit
"""
_LIST_OPEN_AFTER = """
    select {{columns}} from dead_letter where {criteria}
        and (create_time, dead_letter_id) > (coalesce(cast(:after_time as timestamptz),
        '-infinity'), :after_id)
    order by create_time, dead_letter_id limit :limit
"""
_COUNT_OPEN = """
    select cause, provider, count(*) as dead_letter_count from dead_letter where {criteria}
    group by cause, provider order by cause, provider
"""
_CONDITIONS = {
    "state": "state = :state",
    "cause": "cause = :cause",
    "provider": "provider = :provider",
    "from_time": "create_time >= cast(:from_time as timestamptz)",
    "until_time": "create_time < cast(:until_time as timestamptz)",
}


def insert(connection: Connection, items: Sequence[NewDeadLetter]) -> Sequence[ChangedDeadLetter]:
    """Dead-letters the operations that have no open dead letter. Returns the new dead letters, each
    with the outbox row in which all are to be recorded.
    """
    return _INSERT.all(connection, items=encode_rows(items))


def end(
    connection: Connection,
    keys: Sequence[OperationKey],
    state: DeadLetterState,
    operator: str = "",
    reason: str = "",
    evidence: str = "",
    *,
    ids: Sequence[str] | None = None,
) -> Sequence[ChangedDeadLetter]:
    """Ends the open dead letters of operations, or only those with the given ids. Returns the ones
    that it ended, each with the outbox row in which all are recorded.
    """
    if not keys:
        return ()
    return _END.all(
        connection,
        **key_parameters(keys),
        state=state,
        operator=operator,
        reason=reason,
        evidence=evidence,
        dead_letters=None if ids is None else list(ids),
    )


def is_open(connection: Connection, key: OperationKey) -> bool:
    """Whether an operation has an open dead letter."""
    return bool(connection.execute(_IS_OPEN, key._asdict()).scalar_one())


def has_cause(connection: Connection, key: OperationKey, cause: DeadLetterCause) -> bool:
    """Whether an operation has, or ever had, a dead letter with that cause."""
    return bool(connection.execute(_HAS_CAUSE, {**key._asdict(), "cause": cause}).scalar_one())


def find(connection: Connection, dead_letter_id: str) -> DeadLetterRow | None:
    return _FIND.one_or_none(connection, id=dead_letter_id)


def list_dead_letters(
    connection: Connection,
    filters: DeadLetterFilter,
    before: PageKey | None,
    limit: int,
) -> Sequence[DeadLetterRow]:
    """Dead letters, newest first, before a given (create_time, id)."""
    key = "(create_time, dead_letter_id)"
    where, values = newest_first(_CONDITIONS, filters, key, before)
    query = Query(DeadLetterRow, _LIST.format(where=where))
    return query.all(connection, **values, limit=limit)


def list_open_after(
    connection: Connection,
    filters: DeadLetterFilter,
    after: PageKey | None,
    limit: int,
) -> Sequence[DeadLetterRow]:
    """Open dead letters, oldest first, after a given (create_time, id)."""
    after_time, after_id = after or (None, "")
    criteria, values = _open_criteria(filters)
    query = Query(DeadLetterRow, _LIST_OPEN_AFTER.format(criteria=criteria))
    return query.all(connection, **values, after_time=after_time, after_id=after_id, limit=limit)


def count_open(connection: Connection, filters: DeadLetterFilter) -> Sequence[OpenDeadLetterCount]:
    """The number of open dead letters by cause and provider."""
    criteria, values = _open_criteria(filters)
    return Query(OpenDeadLetterCount, _COUNT_OPEN.format(criteria=criteria)).all(
        connection, **values
    )


def _open_criteria(filters: DeadLetterFilter) -> tuple[str, dict[str, Any]]:
    """The conditions for the open dead letters that match, and their values."""
    conditions, values = conditions_of(_CONDITIONS, filters._replace(state=DeadLetterState.OPEN))
    return " and ".join(conditions), values
