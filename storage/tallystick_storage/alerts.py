"""Alerts, the same in every schema that has some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox


@dataclass(frozen=True, slots=True)
class AlertQuery:
    """One kind of what a person should know of now: a query for rows of subject and detail, and its
    parameters. `collection`: what too many are about.
    """

    kind: str
    collection: str
    query: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AlertCondition:
    """What is to be an open alert."""

    kind: str
    subject: str
    detail: str


MAX_PER_KIND = 1000
"""Alerts of a kind at a time; more are one, about the whole collection."""
_MAX_SCANNED = 5000
_MAX_COUNTED = 10_000

# The few providers that have such demands, found by steps in the index, since one may have a
# million.
_FAILING_PROVIDERS = f"""
    with recursive failing as (
        (select trouble, provider from due where trouble in ('FORBIDDEN', 'HELD_BACK')
            and next_attempt_time is not null
         order by trouble, provider limit 1)
        union all
        select n.trouble, n.provider from failing f cross join lateral (
            select d.trouble, d.provider from due d
            where d.trouble in ('FORBIDDEN', 'HELD_BACK') and d.next_attempt_time is not null
                and (d.trouble, d.provider) > (f.trouble, f.provider)
            order by d.trouble, d.provider limit 1) n)
    select 'providers/' || f.provider as subject, (
        select case when count(*) > {_MAX_COUNTED} then 'more than {_MAX_COUNTED}'
            else cast(count(*) as text) end from (
            select from due d where d.trouble = f.trouble
                and d.trouble in ('FORBIDDEN', 'HELD_BACK') and d.provider = f.provider
                and d.next_attempt_time is not null limit {_MAX_COUNTED + 1}) d) ||
                    ' {{waiting}} wait' as detail
    from failing f where f.trouble = '{{trouble}}'
"""
_DEAD_LETTERS = """
    select 'deadLetters/' || dead_letter_id as subject, cause || ': ' || detail as detail
        from dead_letter where state = 'OPEN'
    order by create_time desc, dead_letter_id desc
"""
_CALLER_REJECTED = f"""
    select 'services/' || service as subject, case when count(*) > {_MAX_COUNTED}
        then 'more than {_MAX_COUNTED}' else cast(count(*) as text) end
        || ' {{waiting}} wait: ' || min(detail) as detail
    from (select split_part(detail, '.', 2) as service, detail from due
        where trouble = 'CALLER_REJECTED' and next_attempt_time is not null
          limit {_MAX_COUNTED + 1}) d group by service
"""
# An alert whose own event is refused raises one about all such alerts, or there would be no end.
_EVENT_REJECTED = """
    select aggregate_id as subject, detail from refused_aggregate where refusals > 0
        and not starts_with(aggregate_id, 'alerts/')
    union all (select 'alerts/-', detail from refused_aggregate where aggregate_id > 'alerts/'
        and aggregate_id < 'alerts0' and refusals > 0 limit 1)
"""
_EVENTS_DELAYED = """
    select 'services/event' as subject,
        'the oldest event waits since ' || to_char(o.create_time, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as
        detail
    from ({oldest}) o where o.create_time < (select clock()) - cast(:events_wait as interval)
"""
OLDEST_IN_OUTBOX = "select create_time from outbox order by sequence limit 1"
"""The create_time of the oldest event that waits in the outbox, which is published in order."""
_COLUMNS = "alert_id, kind, subject, detail, create_time, end_time"
_CONDITIONS = (
    'select * from json_to_recordset(cast(:found as json)) as r (kind text collate "C", '
    "subject "
    'text collate "C", detail text)'
)
_OPEN_ALERTS = text(f"""
    with found as materialized (
        select f.* from ({_CONDITIONS}) f
        where not exists (select from alert a where a.kind = f.kind and a.subject = f.subject
            and a.end_time is null)
        order by f.kind, f.subject limit :most),
    new as (
        insert into alert (alert_id, kind, subject, number, detail, create_time)
        select current_schema() || '-' || f.kind || '-' || translate(f.subject, '/',
            '-') || '-' || n.number, f.kind, f.subject, n.number, f.detail, t.now
        from found f, (select clock() as now) t
        cross join lateral (select coalesce(max(a.number), 0) + 1 as number from alert a
            where a.kind = f.kind and a.subject = f.subject) n
        order by f.kind, f.subject returning *),
    {insert_into_outbox("new", "'alerts/' || alert_id", "1")}
    select {_COLUMNS}, sequence as told from new, told
""")
_END_CLEARED = text(f"""
    with found as materialized ({_CONDITIONS}),
    over as materialized (
        select a.alert_id from alert a where a.end_time is null
            and not exists (select from found f where f.kind = a.kind and f.subject = a.subject)
            and a.kind <> all (cast(:too_many as text[]))
        order by a.alert_id limit :most for update),
    ended as (update alert a set end_time = greatest(a.create_time, clock()) from over o
        where a.alert_id = o.alert_id returning a.*),
    {insert_into_outbox("ended", "'alerts/' || alert_id", "2")}
    select {_COLUMNS}, sequence as told from ended, told
""")
_END_BY_SUBJECT = text(f"""
    with over as materialized (
        select alert_id from alert where kind = :kind and subject = any (cast(:subjects as text[]))
            and end_time is null order by alert_id for update),
    ended as (update alert a set end_time = greatest(a.create_time, clock()) from over o
        where a.alert_id = o.alert_id returning a.*),
    {insert_into_outbox("ended", "'alerts/' || alert_id", "2")}
    select {_COLUMNS}, sequence as told from ended, told
""")
_LIST = f"""
    select {_COLUMNS} from alert
        where {{which}}
        and (create_time, alert_id) < (coalesce(cast(:before_time as timestamptz), 'infinity'),
        :before_id)
    order by create_time desc, alert_id desc limit :most
"""
_LIST_OPEN, _LIST_ALL = (
    text(_LIST.format(which="end_time is null")),
    text(_LIST.format(which="true")),
)


def operation_alert_queries(
    service_queries: Sequence[tuple[str, str, str]],
    operation_noun: str,
    limit_seconds: Mapping[str, float],
    max_event_delay_seconds: float,
) -> Sequence[AlertQuery]:
    """What a service finds that makes demands on providers: its own (kind, collection, query), and
    what all such have. `operation_noun`: what it calls its demands.

    `limit_seconds`: seconds that something may rest in a state, for the queries' parameters of that
    name; `max_event_delay_seconds`: that an event may wait to be published.
    """
    parameters = {state.lower(): f"{seconds} seconds" for state, seconds in limit_seconds.items()}
    shared_queries = (
        ("DEAD_LETTER", "deadLetters", _DEAD_LETTERS),
        ("CALLER_REJECTED", "services", _CALLER_REJECTED.format(waiting=operation_noun)),
        (
            "PROVIDER_FORBIDS",
            "providers",
            _FAILING_PROVIDERS.format(waiting=operation_noun, trouble="FORBIDDEN"),
        ),
        (
            "PROVIDER_FAILS",
            "providers",
            _FAILING_PROVIDERS.format(waiting=operation_noun, trouble="HELD_BACK"),
        ),
    )
    return [
        *(
            AlertQuery(kind, collection, query, parameters)
            for kind, collection, query in (*service_queries, *shared_queries)
        ),
        *event_alert_queries(max_event_delay_seconds),
    ]


def event_alert_queries(
    max_event_delay_seconds: float, oldest_query: str = OLDEST_IN_OUTBOX
) -> Sequence[AlertQuery]:
    """What every service finds that has events: those that EventService refuses, and that they
    wait.

    `max_event_delay_seconds`: seconds that an event may wait to be published; `oldest_query`: a
    select of the create_time of the one that has waited longest, if any.
    """
    parameters = {"events_wait": f"{max_event_delay_seconds} seconds"}
    return [
        AlertQuery("EVENT_REFUSED", "events", _EVENT_REJECTED, parameters),
        AlertQuery(
            "EVENTS_WAIT", "services", _EVENTS_DELAYED.format(oldest=oldest_query), parameters
        ),
    ]


def evaluate(
    connection: Connection, queries: Sequence[AlertQuery]
) -> tuple[list[AlertCondition], list[str]]:
    """What is to be an open alert now, and the kinds of which there are too many: those are one
    about "{collection}/-".
    """
    conditions, exceeded_kinds = [], []
    for query in queries:
        values = {**query.parameters, "most_looked_at": _MAX_SCANNED, "most": MAX_PER_KIND + 1}
        matches = connection.execute(
            text(f"select subject, detail from ({query.query}) f limit :most"), values
        ).all()
        if len(matches) > MAX_PER_KIND:
            exceeded_kinds.append(query.kind)
            message = f"more than {MAX_PER_KIND}; those that are new have no alerts of their own"
            conditions.append(AlertCondition(query.kind, f"{query.collection}/-", message))
        else:
            conditions += [
                AlertCondition(query.kind, subject, detail) for subject, detail in matches
            ]
    return conditions, exceeded_kinds


def open_alerts(
    connection: Connection, conditions: Sequence[AlertCondition], limit: int
) -> Sequence[Row[Any]]:
    """New alerts for up to so many that are found and have no open one, each with the outbox row in
    which all are to be told.
    """
    return connection.execute(_OPEN_ALERTS, {"found": encode_rows(conditions), "most": limit}).all()


def end_cleared(
    connection: Connection,
    conditions: Sequence[AlertCondition],
    exceeded_kinds: Sequence[str],
    limit: int,
) -> Sequence[Row[Any]]:
    """Ends up to so many open alerts that are not found any more; those, each with the outbox row
    in which all are to be told.

    Where there are `exceeded_kinds`, nobody knows which are still found, and none ends.
    """
    return connection.execute(
        _END_CLEARED,
        {"found": encode_rows(conditions), "too_many": list(exceeded_kinds), "most": limit},
    ).all()


def end_by_subject(
    connection: Connection, kind: str, subjects: Sequence[str]
) -> Sequence[Row[Any]]:
    """Ends the open alerts of a kind about subjects; those, each with the outbox row in which all
    are to be told.
    """
    return connection.execute(_END_BY_SUBJECT, {"kind": kind, "subjects": list(subjects)}).all()


def list_alerts(
    connection: Connection, before: tuple[datetime, str] | None, limit: int, *, include_ended: bool
) -> Sequence[Row[Any]]:
    """Open alerts, or all, newest first, before a given (create_time, id)."""
    before_time, before_id = before or (None, "")
    return connection.execute(
        _LIST_ALL if include_ended else _LIST_OPEN,
        {"before_time": before_time, "before_id": before_id, "most": limit},
    ).all()
