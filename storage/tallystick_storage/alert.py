"""Alerts, the same in every schema that has some, and whose turn it is to raise them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from tallystick_storage.database import rows


@dataclass(slots=True)
class Finding:
    """Something that a person should know of; `subject` is "{collection}/{id}"."""

    kind: str
    subject: str
    detail: str


_TURN = text("""
    insert into duty (name, holder, until_time) values (:name, :holder, clock() + cast(:seconds as interval))
    on conflict (name) do update set holder = excluded.holder, until_time = excluded.until_time
        where duty.holder = excluded.holder or duty.until_time <= clock()
    returning name
""")
_COLUMNS = "alert_id, kind, subject, detail, times, create_time, last_time, end_time"
_FOUND = text("""
    with f as materialized (select * from json_to_recordset(cast(:findings as json)) as r (kind text, subject text, detail text)),
    again as (
        update alert a set times = a.times + 1, last_time = clock() from f
        where a.kind = f.kind and a.subject = f.subject and a.end_time is null returning a.kind, a.subject)
    select f.kind, f.subject, f.detail from f where not exists (
        select from alert a where a.kind = f.kind and a.subject = f.subject and a.end_time is null)
    order by f.kind, f.subject
""")
_RAISE = text(f"""
    with new as (
        insert into alert (alert_id, kind, subject, number, detail, times, create_time, last_time)
        select r.kind || '-' || split_part(r.subject, '/', 2) || '-' || n.number, r.kind, r.subject, n.number, r.detail, 1, t.now, t.now
        from json_to_recordset(cast(:findings as json)) as r (kind text, subject text, detail text), (select clock() as now) t
        cross join lateral (select coalesce(max(a.number), 0) + 1 as number from alert a where a.kind = r.kind and a.subject = r.subject) n
        returning *),
    told as (
        insert into outbox (aggregate_ids, versions) select array_agg('alerts/' || alert_id), array_agg(1) from new having count(*) > 0
        returning sequence)
    select {_COLUMNS}, sequence as told from new, told
""")
_OPEN = text("select kind, subject from alert where end_time is null order by kind, subject")
_END = text(f"""
    with r as materialized (select * from json_to_recordset(cast(:over as json)) as r (kind text, subject text)),
    ended as (
        update alert a set end_time = clock() from r where a.kind = r.kind and a.subject = r.subject and a.end_time is null returning a.*),
    told as (
        insert into outbox (aggregate_ids, versions) select array_agg('alerts/' || alert_id), array_agg(2) from ended having count(*) > 0
        returning sequence)
    select {_COLUMNS}, sequence as told from ended, told
""")
_LIST = text(f"""
    select {_COLUMNS} from alert where (:ended or end_time is null)
        and (create_time, alert_id) < (coalesce(cast(:before_time as timestamptz), 'infinity'), :before_id)
    order by create_time desc, alert_id desc limit :most
""")


def take_turn(connection: Connection, name: str, holder: UUID, seconds: float) -> bool:
    """Whether this holder does the work for the next so many seconds; it keeps its turn as long as it comes back in time."""
    values = {"name": name, "holder": holder, "seconds": f"{seconds} seconds"}
    return connection.execute(_TURN, values).one_or_none() is not None


def note(connection: Connection, findings: Sequence[Finding]) -> list[Finding]:
    """Counts those that have an open alert once more; returns the others."""
    return [Finding(row.kind, row.subject, row.detail) for row in connection.execute(_FOUND, {"findings": rows(findings)})]


def raise_(connection: Connection, findings: Sequence[Finding]) -> Sequence[Row[Any]]:
    """New alerts for findings that have no open one, each with the outbox row in which all are to be told."""
    return connection.execute(_RAISE, {"findings": rows(findings)}).all()


def end_others(connection: Connection, findings: Sequence[Finding]) -> Sequence[Row[Any]]:
    """Ends the open alerts that are not found any more; those, each with the outbox row in which all are to be told."""
    found = {(finding.kind, finding.subject) for finding in findings}
    over = [{"kind": row.kind, "subject": row.subject} for row in connection.execute(_OPEN) if (row.kind, row.subject) not in found]
    return connection.execute(_END, {"over": rows(over)}).all() if over else ()


def list_(connection: Connection, before: tuple[datetime, str] | None, most: int, *, ended: bool) -> Sequence[Row[Any]]:
    """Open alerts, or all, newest first, before a given (create_time, id)."""
    time, alert_id = before or (None, "")
    return connection.execute(_LIST, {"ended": ended, "before_time": time, "before_id": alert_id, "most": most}).all()
