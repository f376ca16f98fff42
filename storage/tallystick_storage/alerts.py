"""Alerts, the same in every schema that has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_core.operations.alert import AlertKind
from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.pagination import PageKey, before_parameters
from tallystick_storage.sql import Connection, Query, columns


@dataclass(frozen=True, slots=True)
class AlertQuery:
    """One kind of alert: a query for rows of resource_name and detail, with its parameters. If it
    finds too many, one alert about `collection` replaces them.
    """

    kind: AlertKind
    collection: str
    query: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AlertCondition:
    """A condition that must have an open alert."""

    kind: AlertKind
    resource_name: str
    detail: str


class _Match(NamedTuple):
    """A row that an alert query finds."""

    resource_name: str
    detail: str


@dataclass(frozen=True, slots=True)
class AlertRow:
    alert_id: str
    kind: str
    resource_name: str
    detail: str
    create_time: datetime
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class ChangedAlert(AlertRow):
    """An alert that a statement opened or ended."""

    outbox_sequence: int


MAX_PER_KIND = 1000
"""The maximum number of alerts per kind. More are replaced by one about the whole collection."""
_MAX_SCANNED = 5000
_MAX_COUNTED = 10_000

# The few providers that have such operations, found by index probes, because one provider may have
# a million.
_FAILING_PROVIDERS = f"""
    with recursive failing as (
        (select retry_reason, provider from operation
            where retry_reason in ('UNAUTHORIZED', 'CIRCUIT_OPEN')
            and next_try_time is not null
         order by retry_reason, provider limit 1)
        union all
        select n.retry_reason, n.provider from failing f cross join lateral (
            select op.retry_reason, op.provider from operation op
            where op.retry_reason in ('UNAUTHORIZED', 'CIRCUIT_OPEN')
                and op.next_try_time is not null
                and (op.retry_reason, op.provider) > (f.retry_reason, f.provider)
            order by op.retry_reason, op.provider limit 1) n)
    select 'providers/' || f.provider as resource_name, (
        select case when count(*) > {_MAX_COUNTED} then 'more than {_MAX_COUNTED}'
            else cast(count(*) as text) end from (
            select from operation op where op.retry_reason = f.retry_reason
                and op.retry_reason in ('UNAUTHORIZED', 'CIRCUIT_OPEN') and op.provider = f.provider
                and op.next_try_time is not null limit {_MAX_COUNTED + 1}) op) ||
                    ' {{waiting}} wait' as detail
    from failing f where f.retry_reason = '{{retry_reason}}'
"""
_DEAD_LETTERS = """
    select 'deadLetters/' || dead_letter_id as resource_name, cause || ': ' || detail as detail
        from dead_letter where state = 'OPEN'
    order by create_time desc, dead_letter_id desc
"""
_CALLER_REJECTED = f"""
    select 'services/' || service as resource_name, case when count(*) > {_MAX_COUNTED}
        then 'more than {_MAX_COUNTED}' else cast(count(*) as text) end
        || ' {{waiting}} wait: ' || min(detail) as detail
    from (select split_part(detail, '.', 2) as service, detail from operation
        where retry_reason = 'CALLER_REJECTED' and next_try_time is not null
          limit {_MAX_COUNTED + 1}) d group by service
"""
# An alert whose own event is rejected raises one alert about all such alerts; otherwise each alert
# would raise another.
_EVENT_REJECTED = """
    select aggregate_id as resource_name, detail from rejected_aggregate where rejection_count > 0
        and not starts_with(aggregate_id, 'alerts/')
    union all (select 'alerts/-', detail from rejected_aggregate where aggregate_id > 'alerts/'
        and aggregate_id < 'alerts0' and rejection_count > 0 limit 1)
"""
_EVENTS_DELAYED = """
    select 'services/event' as resource_name,
        'the oldest event is from ' || to_char(o.create_time, 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as
        detail
    from ({oldest}) o where o.create_time < (select clock()) - cast(:max_event_delay as interval)
"""
OLDEST_IN_OUTBOX = "select create_time from outbox order by sequence limit 1"
"""The create_time of the oldest event in the outbox, which is published in order."""
_CONDITIONS = (
    'select * from json_to_recordset(cast(:found as json)) as r (kind text collate "C", '
    "resource_name "
    'text collate "C", detail text)'
)
_OPEN_ALERTS = Query(
    ChangedAlert,
    f"""
    with found as materialized (
        select f.* from ({_CONDITIONS}) f
        where not exists (select from alert a where a.kind = f.kind
            and a.resource_name = f.resource_name
            and a.end_time is null)
        order by f.kind, f.resource_name limit :limit),
    new as (
        insert into alert (alert_id, kind, resource_name, number, detail, create_time)
        select current_schema() || '-' || f.kind || '-' || translate(f.resource_name, '/',
            '-') || '-' || n.number, f.kind, f.resource_name, n.number, f.detail, t.now
        from found f, (select clock() as now) t
        cross join lateral (select coalesce(max(a.number), 0) + 1 as number from alert a
            where a.kind = f.kind and a.resource_name = f.resource_name) n
        order by f.kind, f.resource_name returning *),
    {insert_into_outbox("new", "'alerts/' || alert_id", "1")}
    select {columns(AlertRow, "new")}, sequence as outbox_sequence from new, outbox_sequence
    """,
)
_END_CLEARED = Query(
    ChangedAlert,
    f"""
    with found as materialized ({_CONDITIONS}),
    over as materialized (
        select a.alert_id from alert a where a.end_time is null
            and not exists (select from found f where f.kind = a.kind
                and f.resource_name = a.resource_name)
            and a.kind <> all (cast(:too_many as text[]))
        order by a.alert_id limit :limit for update),
    ended as (update alert a set end_time = greatest(a.create_time, clock()) from over o
        where a.alert_id = o.alert_id returning a.*),
    {insert_into_outbox("ended", "'alerts/' || alert_id", "2")}
    select {columns(AlertRow, "ended")}, sequence as outbox_sequence from ended, outbox_sequence
    """,
)
_END_BY_RESOURCE_NAME = Query(
    ChangedAlert,
    f"""
    with over as materialized (
        select alert_id from alert where kind = :kind
            and resource_name = any (cast(:resource_names as text[]))
            and end_time is null order by alert_id for update),
    ended as (update alert a set end_time = greatest(a.create_time, clock()) from over o
        where a.alert_id = o.alert_id returning a.*),
    {insert_into_outbox("ended", "'alerts/' || alert_id", "2")}
    select {columns(AlertRow, "ended")}, sequence as outbox_sequence from ended, outbox_sequence
    """,
)
_LIST = """
    select {{columns}} from alert
        where {which}
        and (create_time, alert_id) < (coalesce(cast(:before_time as timestamptz), 'infinity'),
        :before_id)
    order by create_time desc, alert_id desc limit :limit
"""
_LIST_OPEN, _LIST_ALL = (
    Query(AlertRow, _LIST.format(which="end_time is null")),
    Query(AlertRow, _LIST.format(which="true")),
)


def operation_alert_queries(
    service_queries: Sequence[tuple[AlertKind, str, str]],
    operation_noun: str,
    limit_seconds: Mapping[str, float],
    max_event_delay_seconds: float,
) -> Sequence[AlertQuery]:
    """The alerts of a service that calls providers: its own (kind, collection, query), and those
    common to all. `operation_noun` is the service's name for its operations.

    `limit_seconds` gives the seconds that a resource may stay in a state, for the query parameters
    of the same name. `max_event_delay_seconds` is how long an event may wait to be published.
    """
    parameters = {state.lower(): f"{seconds} seconds" for state, seconds in limit_seconds.items()}
    shared_queries = (
        (AlertKind.DEAD_LETTER, "deadLetters", _DEAD_LETTERS),
        (AlertKind.CALLER_REJECTED, "services", _CALLER_REJECTED.format(waiting=operation_noun)),
        (
            AlertKind.PROVIDER_UNAUTHORIZED,
            "providers",
            _FAILING_PROVIDERS.format(waiting=operation_noun, retry_reason="UNAUTHORIZED"),
        ),
        (
            AlertKind.PROVIDER_UNAVAILABLE,
            "providers",
            _FAILING_PROVIDERS.format(waiting=operation_noun, retry_reason="CIRCUIT_OPEN"),
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
    """The alerts of every service that has events: rejected events and delayed events.

    `max_event_delay_seconds` is how many seconds an event may wait to be published. `oldest_query`
    selects the create_time of the event that has waited longest, if any.
    """
    parameters = {"max_event_delay": f"{max_event_delay_seconds} seconds"}
    return [
        AlertQuery(AlertKind.EVENT_REJECTED, "events", _EVENT_REJECTED, parameters),
        AlertQuery(
            AlertKind.EVENTS_DELAYED,
            "services",
            _EVENTS_DELAYED.format(oldest=oldest_query),
            parameters,
        ),
    ]


def evaluate(
    connection: Connection, queries: Sequence[AlertQuery]
) -> tuple[list[AlertCondition], list[AlertKind]]:
    """The conditions that must have an open alert now, and the kinds with too many. Each of those
    kinds gets one alert about "{collection}/-".
    """
    conditions, exceeded_kinds = [], []
    for query in queries:
        matches = Query(_Match, f"select {{columns}} from ({query.query}) f limit :limit").all(
            connection, **query.parameters, max_scanned=_MAX_SCANNED, limit=MAX_PER_KIND + 1
        )
        if len(matches) > MAX_PER_KIND:
            exceeded_kinds.append(query.kind)
            message = f"more than {MAX_PER_KIND}; those that are new have no alerts of their own"
            conditions.append(AlertCondition(query.kind, f"{query.collection}/-", message))
        else:
            conditions += [
                AlertCondition(query.kind, resource_name, detail)
                for resource_name, detail in matches
            ]
    return conditions, exceeded_kinds


def open_alerts(
    connection: Connection, conditions: Sequence[AlertCondition], limit: int
) -> Sequence[ChangedAlert]:
    """Opens up to `limit` alerts for conditions without an open one. Returns them, each with the
    outbox row in which all are to be recorded.
    """
    return _OPEN_ALERTS.all(connection, found=encode_rows(conditions), limit=limit)


def end_cleared(
    connection: Connection,
    conditions: Sequence[AlertCondition],
    exceeded_kinds: Sequence[AlertKind],
    limit: int,
) -> Sequence[ChangedAlert]:
    """Ends up to `limit` open alerts whose condition no longer holds. Returns them, each with the
    outbox row in which all are to be recorded.

    Alerts of `exceeded_kinds` stay open, because it is unknown which of their conditions still
    hold.
    """
    return _END_CLEARED.all(
        connection, found=encode_rows(conditions), too_many=list(exceeded_kinds), limit=limit
    )


def end_by_resource_name(
    connection: Connection, kind: AlertKind, resource_names: Sequence[str]
) -> Sequence[ChangedAlert]:
    """Ends the open alerts of a kind about the given resources. Returns them, each with the
    outbox row in which all are to be recorded.
    """
    return _END_BY_RESOURCE_NAME.all(connection, kind=kind, resource_names=list(resource_names))


class AlertFilter(NamedTuple):
    """Which alerts to list."""

    include_ended: bool


def list_alerts(
    connection: Connection, filters: AlertFilter, before: PageKey | None, limit: int
) -> Sequence[AlertRow]:
    """Alerts, newest first, before a given (create_time, id)."""
    query = _LIST_ALL if filters.include_ended else _LIST_OPEN
    return query.all(connection, **before_parameters(before), limit=limit)
