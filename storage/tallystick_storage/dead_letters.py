"""Dead letters, the same in every schema that has some: what is not tried again before a person has
decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, TextClause, text

from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox


@dataclass(slots=True)
class NewDeadLetter:
    """What is set aside, and why; `subject` is "{collection}/{id}"."""

    subject: str
    cause: str
    detail: str
    tries: int
    provider: str


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Which dead letters: those that meet every criterion; "" and None are none. `state` is no
    criterion of a call that changes them: it is OPEN.
    """

    state: str = ""
    cause: str = ""
    provider: str = ""
    from_time: datetime | None = None
    until_time: datetime | None = None


_COLUMNS = (
    "dead_letter_id, subject, cause, detail, tries, state, operator, reason, evidence, "
    "create_time, end_time, provider"
)
_INSERT = text(f"""
    with new as (
        insert into dead_letter (dead_letter_id, subject, number, cause, detail, tries, state,
            operator, reason, evidence, create_time, provider)
        select translate(r.subject, '/', '-') || '-' || n.number, r.subject, n.number, r.cause,
            r.detail, r.tries, 'OPEN', '', '', '', clock(), r.provider
        from json_to_recordset(cast(:items as json))
            as r (subject text collate "C", cause text, detail text, tries int, provider text)
        cross join lateral (select coalesce(max(d.number), 0) + 1 as number from dead_letter d
            where d.subject = r.subject) n
        order by r.subject returning *),
    {insert_into_outbox("new", "'deadLetters/' || dead_letter_id", "1")}
    select {_COLUMNS}, sequence as told from new, told
""")
_END = text(f"""
    with l as materialized (
        select dead_letter_id from dead_letter where subject = any (cast(:subjects as text[]))
            and state = 'OPEN'
            and (cast(:ids as text[]) is null or dead_letter_id = any (cast(:ids as text[])))
                order by subject for update),
    ended as (
        update dead_letter d set state = :state, operator = :operator, reason = :reason,
            evidence = :evidence, end_time = clock()
        from l where d.dead_letter_id = l.dead_letter_id returning d.*),
    {insert_into_outbox("ended", "'deadLetters/' || dead_letter_id", "2")}
    select {_COLUMNS}, sequence as told from ended, told
""")
_IS_OPEN = text(
    "select exists (select from dead_letter where subject = :subject and state = 'OPEN')"
)
_HAS_CAUSE = text(
    "select exists (select from dead_letter where subject = :subject and cause = :cause)"
)
_FIND = text(f"select {_COLUMNS} from dead_letter where dead_letter_id = :id")
_LIST = """
    select {columns} from dead_letter
        where (create_time, dead_letter_id) < (coalesce(cast(:before_time as timestamptz),
        'infinity'), :before_id) and {criteria}
    order by create_time desc, dead_letter_id desc limit :most
"""
_LIST_OPEN_AFTER = """
    select {columns} from dead_letter where state = 'OPEN'
        and (create_time, dead_letter_id) > (coalesce(cast(:after_time as timestamptz),
        '-infinity'), :after_id)
        and {criteria} order by create_time, dead_letter_id limit :most
"""
_COUNT_OPEN = (
    "select cause, provider, count(*) as letters from dead_letter where state = 'OPEN' and "
    "{criteria} group by cause, provider order by cause, provider"
)
_CONDITIONS = {
    "state": "state = :state",
    "cause": "cause = :cause",
    "provider": "provider = :provider",
    "from_time": "create_time >= cast(:from_time as timestamptz)",
    "until_time": "create_time < cast(:until_time as timestamptz)",
}


def insert(connection: Connection, items: Sequence[NewDeadLetter]) -> Sequence[Row[Any]]:
    """Sets subjects aside that have no open dead letter; the dead letters, each with the outbox row
    in which all are to be told.
    """
    return connection.execute(_INSERT, {"items": encode_rows(items)}).all()


def end(
    connection: Connection,
    subjects: Sequence[str],
    state: str,
    operator: str = "",
    reason: str = "",
    evidence: str = "",
    *,
    ids: Sequence[str] | None = None,
) -> Sequence[Row[Any]]:
    """Ends the open dead letters of subjects, or those of them with these ids; those that ended by
    it, each with the outbox row in which all are told.
    """
    values = {
        "subjects": list(subjects),
        "state": state,
        "operator": operator,
        "reason": reason,
        "evidence": evidence,
    }
    return connection.execute(_END, {**values, "ids": None if ids is None else list(ids)}).all()


def is_open(connection: Connection, subject: str) -> bool:
    """Whether a subject is a dead letter now."""
    return bool(connection.execute(_IS_OPEN, {"subject": subject}).scalar_one())


def has_cause(connection: Connection, subject: str, cause: str) -> bool:
    """Whether a subject is, or ever was, a dead letter of that cause."""
    return bool(connection.execute(_HAS_CAUSE, {"subject": subject, "cause": cause}).scalar_one())


def find(connection: Connection, dead_letter_id: str) -> Row[Any] | None:
    return connection.execute(_FIND, {"id": dead_letter_id}).one_or_none()


def list_dead_letters(
    connection: Connection,
    filters: DeadLetterFilter,
    before: tuple[datetime, str] | None,
    limit: int,
) -> Sequence[Row[Any]]:
    """Dead letters, newest first, before a given (create_time, id)."""
    before_time, before_id = before or (None, "")
    return connection.execute(
        *_query(_LIST, filters, before_time=before_time, before_id=before_id, most=limit)
    ).all()


def list_open_after(
    connection: Connection,
    filters: DeadLetterFilter,
    after: tuple[datetime, str] | None,
    limit: int,
) -> Sequence[Row[Any]]:
    """Open dead letters, oldest first, after a given (create_time, id)."""
    after_time, after_id = after or (None, "")
    return connection.execute(
        *_query(_LIST_OPEN_AFTER, filters, after_time=after_time, after_id=after_id, most=limit)
    ).all()


def count_open(connection: Connection, filters: DeadLetterFilter) -> Sequence[Row[Any]]:
    """How many open dead letters there are, by cause and provider."""
    return connection.execute(*_query(_COUNT_OPEN, filters)).all()


def now(connection: Connection) -> datetime:
    """The database's time."""
    time: datetime = connection.execute(text("select clock()")).scalar_one()
    return time


def _query(
    statement: str, filters: DeadLetterFilter, **parameters: Any
) -> tuple[TextClause, dict[str, Any]]:
    """A statement with only the criteria that are set, so that the planner can use their
    indexes.
    """
    values = {name: value for name in _CONDITIONS if (value := getattr(filters, name))}
    criteria = " and ".join(_CONDITIONS[name] for name in values) or "true"
    return text(statement.format(columns=_COLUMNS, criteria=criteria)), {**parameters, **values}
