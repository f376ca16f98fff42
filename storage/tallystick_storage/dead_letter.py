"""Dead letters, the same in every schema that has some: what is not tried again before a person has decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from tallystick_storage.database import rows
from tallystick_storage.outbox import told


@dataclass(slots=True)
class NewDeadLetter:
    """What is set aside, and why; `subject` is "{collection}/{id}"."""

    subject: str
    cause: str
    detail: str
    tries: int


_COLUMNS = "dead_letter_id, subject, cause, detail, tries, state, operator, reason, evidence, create_time, end_time"
_INSERT = text(f"""
    with new as (
        insert into dead_letter (dead_letter_id, subject, number, cause, detail, tries, state, operator, reason, evidence, create_time)
        select split_part(r.subject, '/', 2) || '-' || n.number, r.subject, n.number, r.cause, r.detail, r.tries, 'OPEN', '', '', '', clock()
        from json_to_recordset(cast(:items as json)) as r (subject text, cause text, detail text, tries int)
        cross join lateral (  -- the id does not say of which collection it is
            select coalesce(max(d.number), 0) + 1 as number
            from dead_letter d, unnest(array['charges', 'payouts', 'payoutDestinations']) as c (collection)
            where d.subject = c.collection || '/' || split_part(r.subject, '/', 2)) n
        order by r.subject returning *),
    {told("new", "'deadLetters/' || dead_letter_id", "1")}
    select {_COLUMNS}, sequence as told from new, told
""")
_END = text(f"""
    with l as materialized (
        select dead_letter_id from dead_letter where subject = any (cast(:subjects as text[])) and state = 'OPEN' order by subject for update),
    ended as (
        update dead_letter d set state = :state, operator = :operator, reason = :reason, evidence = :evidence, end_time = clock()
        from l where d.dead_letter_id = l.dead_letter_id returning d.*),
    {told("ended", "'deadLetters/' || dead_letter_id", "2")}
    select {_COLUMNS}, sequence as told from ended, told
""")
_FIND = text(f"select {_COLUMNS} from dead_letter where dead_letter_id = :id")
_LIST = text(f"""
    select {_COLUMNS} from dead_letter where (:state = '' or state = :state)
        and (create_time, dead_letter_id) < (coalesce(cast(:before_time as timestamptz), 'infinity'), :before_id)
    order by create_time desc, dead_letter_id desc limit :most
""")


def insert(connection: Connection, items: Sequence[NewDeadLetter]) -> Sequence[Row[Any]]:
    """Sets subjects aside that have no open dead letter; the dead letters, each with the outbox row in which all are to be told."""
    return connection.execute(_INSERT, {"items": rows(items)}).all()


def end(connection: Connection, subjects: Sequence[str], state: str, operator: str = "", reason: str = "", evidence: str = "") -> Sequence[Row[Any]]:
    """Ends the open dead letters of subjects; those that ended by it, each with the outbox row in which all are to be told."""
    values = {"subjects": list(subjects), "state": state, "operator": operator, "reason": reason, "evidence": evidence}
    return connection.execute(_END, values).all()


def find(connection: Connection, dead_letter_id: str) -> Row[Any] | None:
    return connection.execute(_FIND, {"id": dead_letter_id}).one_or_none()


def list_(connection: Connection, state: str, before: tuple[datetime, str] | None, most: int) -> Sequence[Row[Any]]:
    """Dead letters in a state, or all, newest first, before a given (create_time, id)."""
    time, dead_letter_id = before or (None, "")
    return connection.execute(_LIST, {"state": state, "before_time": time, "before_id": dead_letter_id, "most": most}).all()
