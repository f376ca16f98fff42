"""Alerts, the same in every schema that has some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from tallystick_storage.outbox import told


@dataclass(frozen=True, slots=True)
class Findings:
    """What a person should know of now: a query for rows of kind, subject and detail, and its parameters."""

    query: str
    parameters: Mapping[str, str]


_OF_DEMANDS = """
    union all
    select 'DEAD_LETTER', 'deadLetters/' || dead_letter_id, cause || ': ' || detail from dead_letter where state = 'OPEN'
    union all
    select case trouble when 'FORBIDDEN' then 'PROVIDER_FORBIDS' else 'PROVIDER_FAILS' end, 'providers/' || provider, count(*) || ' {waiting} wait'
    from due where trouble in ('FORBIDDEN', 'HELD_BACK') and next_attempt_time is not null group by trouble, provider
"""
_COLUMNS = "alert_id, kind, subject, detail, create_time, end_time"
_RAISE = f"""
    with found as materialized (
        select f.* from ({{findings}}) f
        where not exists (select from alert a where a.kind = f.kind and a.subject = f.subject and a.end_time is null)
        order by f.kind, f.subject limit :most),
    new as (
        insert into alert (alert_id, kind, subject, number, detail, create_time)
        select f.kind || '-' || translate(substr(f.subject, strpos(f.subject, '/') + 1), '/', '-') || '-' || n.number, f.kind, f.subject, n.number, f.detail, t.now
        from found f, (select clock() as now) t
        cross join lateral (select coalesce(max(a.number), 0) + 1 as number from alert a where a.kind = f.kind and a.subject = f.subject) n
        order by f.kind, f.subject returning *),
    {told("new", "'alerts/' || alert_id", "1")}
    select {_COLUMNS}, sequence as told from new, told
"""
_END = f"""
    with found as materialized ({{findings}}),
    over as materialized (
        select a.alert_id from alert a where a.end_time is null and not exists (select from found f where f.kind = a.kind and f.subject = a.subject)
        order by a.alert_id limit :most for update),
    ended as (update alert a set end_time = greatest(a.create_time, clock()) from over o where a.alert_id = o.alert_id returning a.*),
    {told("ended", "'alerts/' || alert_id", "2")}
    select {_COLUMNS}, sequence as told from ended, told
"""
_LIST = text(f"""
    select {_COLUMNS} from alert where (:ended or end_time is null)
        and (create_time, alert_id) < (coalesce(cast(:before_time as timestamptz), 'infinity'), :before_id)
    order by create_time desc, alert_id desc limit :most
""")


def of_demands(own: str, waiting: str, limits: Mapping[str, float]) -> Findings:
    """What a service finds that makes demands on providers: its own query, and what all such have. `waiting`: what it calls its demands.

    `limits`: seconds that something may rest in a state, for the query's parameter of that name.
    """
    query = own + _OF_DEMANDS.replace("{waiting}", waiting)
    return Findings(query, {state.lower(): f"{seconds} seconds" for state, seconds in limits.items()})


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
