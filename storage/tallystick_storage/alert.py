"""Alerts, the same in every schema that has some, and whose turn it is to raise them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text


@dataclass(frozen=True, slots=True)
class Findings:
    """What a person should know of now: a query for rows of kind, subject and detail, and its parameters."""

    query: str
    parameters: Mapping[str, str]


_TURN = text("""
    insert into duty (name, holder, until_time) values (:name, :holder, clock() + cast(:seconds as interval))
    on conflict (name) do update set holder = excluded.holder, until_time = excluded.until_time
        where duty.holder = excluded.holder or duty.until_time <= (select clock())
    returning name
""")
_COLUMNS = "alert_id, kind, subject, detail, create_time, end_time"
_RAISE = f"""
    with found as materialized (
        select f.* from ({{findings}}) f
        where not exists (select from alert a where a.kind = f.kind and a.subject = f.subject and a.end_time is null)
        order by f.kind, f.subject limit :most),
    new as (
        insert into alert (alert_id, kind, subject, number, detail, create_time)
        select f.kind || '-' || split_part(f.subject, '/', 2) || '-' || n.number, f.kind, f.subject, n.number, f.detail, t.now
        from found f, (select clock() as now) t
        cross join lateral (select coalesce(max(a.number), 0) + 1 as number from alert a where a.kind = f.kind and a.subject = f.subject) n
        order by f.kind, f.subject returning *),
    told as (
        insert into outbox (aggregate_ids, versions) select array_agg('alerts/' || alert_id), array_agg(1) from new having count(*) > 0
        returning sequence)
    select {_COLUMNS}, sequence as told from new, told
"""
_END = f"""
    with found as materialized ({{findings}}),
    over as materialized (
        select a.alert_id from alert a where a.end_time is null and not exists (select from found f where f.kind = a.kind and f.subject = a.subject)
        order by a.alert_id limit :most for update),
    ended as (update alert a set end_time = clock() from over o where a.alert_id = o.alert_id returning a.*),
    told as (
        insert into outbox (aggregate_ids, versions) select array_agg('alerts/' || alert_id), array_agg(2) from ended having count(*) > 0
        returning sequence)
    select {_COLUMNS}, sequence as told from ended, told
"""
_LIST = text(f"""
    select {_COLUMNS} from alert where (:ended or end_time is null)
        and (create_time, alert_id) < (coalesce(cast(:before_time as timestamptz), 'infinity'), :before_id)
    order by create_time desc, alert_id desc limit :most
""")


def take_turn(connection: Connection, name: str, holder: UUID, seconds: float) -> bool:
    """Whether this holder does the work for the next so many seconds; it keeps its turn as long as it comes back in time."""
    values = {"name": name, "holder": holder, "seconds": f"{seconds} seconds"}
    return connection.execute(_TURN, values).one_or_none() is not None


def raise_(connection: Connection, findings: Findings, most: int) -> Sequence[Row[Any]]:
    """New alerts for up to so many findings that have no open one, each with the outbox row in which all are to be told."""
    return connection.execute(text(_RAISE.format(findings=findings.query)), {**findings.parameters, "most": most}).all()


def end(connection: Connection, findings: Findings, most: int) -> Sequence[Row[Any]]:
    """Ends up to so many open alerts that are not found any more; those, each with the outbox row in which all are to be told."""
    return connection.execute(text(_END.format(findings=findings.query)), {**findings.parameters, "most": most}).all()


def list_(connection: Connection, before: tuple[datetime, str] | None, most: int, *, ended: bool) -> Sequence[Row[Any]]:
    """Open alerts, or all, newest first, before a given (create_time, id)."""
    time, alert_id = before or (None, "")
    return connection.execute(_LIST, {"ended": ended, "before_time": time, "before_id": alert_id, "most": most}).all()
