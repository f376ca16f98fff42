"""The inbox of webhook events; the table is the same in every schema that calls providers.

Locks: operations, then webhook events, then dead letters.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_core.operations.kind import KindName
from tallystick_core.operations.webhook_event import WebhookEventState
from tallystick_storage.database import encode_rows
from tallystick_storage.pagination import PageKey, newest_first
from tallystick_storage.sql import Connection, Query, columns, text


@dataclass(slots=True)
class NewWebhookEvent:
    """A webhook event to store. `state`: RECEIVED, or IGNORED if nothing is to be done."""

    webhook_event_id: str
    provider: str
    event_id: str
    event_type: str
    subject: str
    reference: str
    client_reference: str
    account: str
    traceparent: str
    state: WebhookEventState
    provider_time: datetime


@dataclass(frozen=True, slots=True)
class WebhookEventRow:
    """A stored webhook event. `resource_name`: what it was applied to; "": nothing yet."""

    webhook_event_id: str
    provider: str
    event_id: str
    event_type: str
    subject: str
    reference: str
    client_reference: str
    account: str
    traceparent: str
    state: str
    resource_name: str
    provider_time: datetime
    receive_time: datetime
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class EventOperationRow(WebhookEventRow):
    """A webhook event with its tries; None: none, or no operation."""

    retry_counts: dict[str, int] | None


class SubjectKey(NamedTuple):
    """How an event names the charge or payout that it is about; "": it does not."""

    provider: str
    reference: str
    client_reference: str


class FoundSubject(NamedTuple):
    """The operation that a key names; None: there is none."""

    provider: str
    reference: str
    client_reference: str
    operation_id: str | None


class WebhookEventFilter(NamedTuple):
    """Selects the events that match every criterion; None matches everything."""

    state: WebhookEventState | None
    provider: str | None
    reference: str | None


@dataclass(slots=True)
class AppliedEvent:
    """An event whose subject was looked up."""

    webhook_event_id: str
    resource_name: str


_INSERT = text("""
    with new as (
        insert into webhook_event (webhook_event_id, provider, event_id, event_type, subject,
            reference, client_reference, account, traceparent, state, resource_name,
            provider_time, receive_time, end_time)
        select r.webhook_event_id, r.provider, r.event_id, r.event_type, r.subject, r.reference,
            r.client_reference, r.account, r.traceparent, r.state, '', r.provider_time, t.now,
            case when r.state <> 'RECEIVED' then t.now end
        from json_to_recordset(cast(:events as json))
            as r (webhook_event_id text collate "C", provider text, event_id text,
                event_type text, subject text, reference text, client_reference text,
                account text, traceparent text, state text, provider_time timestamptz),
            (select clock() as now) t
        order by r.webhook_event_id
        on conflict do nothing returning *),
    new_operation as (
        insert into operation (kind, operation_id, provider, next_try_time, lease_until,
            lease_token, is_leased, maybe_sent, lookup_only, retry_reason, detail)
        select 'webhook_event', webhook_event_id, provider, receive_time,
            receive_time + cast(:lease as interval), 1,
            cast(:lease as interval) > interval '0', false, true, '', ''
        from new where state = 'RECEIVED')
    select webhook_event_id from new
""")
_LOAD_OPERATIONS = Query(
    EventOperationRow,
    f"""
    select {columns(WebhookEventRow, "e")}, op.retry_counts
    from webhook_event e
    left join operation op on op.kind = 'webhook_event' and op.operation_id = e.webhook_event_id
    where e.webhook_event_id = any (cast(:ids as text[]))
    order by e.webhook_event_id
    """,
)
_LOCK_RECEIVED = text("""
    select webhook_event_id from webhook_event
        where webhook_event_id = any (cast(:ids as text[])) and state = 'RECEIVED'
    order by webhook_event_id for update
""")
_END = text("""
    with ended as (
        update webhook_event e set state = :state, resource_name = r.resource_name,
            end_time = clock()
        from json_to_recordset(cast(:events as json))
            as r (webhook_event_id text, resource_name text)
        where e.webhook_event_id = r.webhook_event_id and e.state = 'RECEIVED'
        returning e.webhook_event_id)
    delete from operation where kind = 'webhook_event'
        and operation_id = any (array(select webhook_event_id from ended))
""")
_REPLAY = text("""
    with l as materialized (
        select * from webhook_event where webhook_event_id = :id and state in ('APPLIED', 'CLOSED')
        for update),
    received as (
        update webhook_event e set state = 'RECEIVED', resource_name = '', end_time = null
        from l where e.webhook_event_id = l.webhook_event_id
        returning e.*)
    insert into operation (kind, operation_id, provider, next_try_time, lease_until,
        lease_token, is_leased, maybe_sent, lookup_only, retry_reason, detail)
    select 'webhook_event', webhook_event_id, provider, t.now, t.now, 1, false, false, true, '', ''
    from received, (select clock() as now) t
""")
_FIND = Query(WebhookEventRow, "select {columns} from webhook_event where webhook_event_id = :id")
_LIST = """
    select {{columns}} from webhook_event {where}
    order by receive_time desc, webhook_event_id desc limit :limit
"""
_CONDITIONS = {
    "state": "state = :state",
    "provider": "provider = :provider",
    "reference": "reference = :reference",
}


def find_subjects_query(kind: KindName, money_table: str, id_column: str) -> Query[FoundSubject]:
    """The query for the operations of a kind that events name. `money_table`: the money that a
    provider has moved, by its reference. It belongs to one operation, so that one comes first.
    """
    attempt = f"select a.operation_id from attempt a where a.kind = '{kind}'"
    return Query(
        FoundSubject,
        f"""
        select k.provider, k.reference, k.client_reference, coalesce(
            (select m.{id_column} from {money_table} m where m.provider = k.provider
                and m.provider_reference = k.reference),
            ({attempt} and a.operation_id = k.client_reference and a.provider = k.provider limit 1),
            ({attempt} and a.provider = k.provider and a.indexed_reference = k.reference limit 1))
            as operation_id
        from unnest(cast(:providers as text[]), cast(:references as text[]),
            cast(:client_references as text[])) as k (provider, reference, client_reference)
        """,
    )


def find_subjects(
    connection: Connection, query: Query[FoundSubject], keys: Collection[SubjectKey]
) -> dict[SubjectKey, str]:
    """The operations that events name, found by a query of `find_subjects_query`."""
    ordered = sorted(keys)
    rows = query.all(
        connection,
        providers=[key.provider for key in ordered],
        references=[key.reference for key in ordered],
        client_references=[key.client_reference for key in ordered],
    )
    return {
        SubjectKey(row.provider, row.reference, row.client_reference): row.operation_id
        for row in rows
        if row.operation_id is not None
    }


def insert(
    connection: Connection, events: Sequence[NewWebhookEvent], lease_seconds: float
) -> set[str]:
    """Stores the events that are not stored yet. The operations of those that are RECEIVED are
    leased for `lease_seconds` seconds; 0: they are due. Returns the ids of the new events.
    """
    parameters = {"events": encode_rows(events), "lease": f"{lease_seconds} seconds"}
    return set(connection.execute(_INSERT, parameters).scalars())


def load_operations(
    connection: Connection, webhook_event_ids: Sequence[str]
) -> list[EventOperationRow]:
    """Events in any state, with their operations."""
    return _LOAD_OPERATIONS.all(connection, ids=list(webhook_event_ids))


def lock_received(connection: Connection, webhook_event_ids: Sequence[str]) -> set[str]:
    """Locks events. Returns those that are not applied or closed."""
    return set(connection.execute(_LOCK_RECEIVED, {"ids": list(webhook_event_ids)}).scalars())


def end(connection: Connection, events: Sequence[AppliedEvent], state: WebhookEventState) -> None:
    """Ends locked events that are RECEIVED, and their operations."""
    connection.execute(_END, {"events": encode_rows(events), "state": state})


def replay(connection: Connection, webhook_event_id: str) -> None:
    """Schedules an event that was applied or closed once more."""
    connection.execute(_REPLAY, {"id": webhook_event_id})


def find(connection: Connection, webhook_event_id: str) -> WebhookEventRow | None:
    return _FIND.one_or_none(connection, id=webhook_event_id)


def list_webhook_events(
    connection: Connection, filters: WebhookEventFilter, before: PageKey | None, limit: int
) -> Sequence[WebhookEventRow]:
    """Webhook events, newest first, before a given (receive_time, id)."""
    key = "(receive_time, webhook_event_id)"
    where, values = newest_first(_CONDITIONS, filters, key, before)
    query = Query(WebhookEventRow, _LIST.format(where=where))
    return query.all(connection, **values, limit=limit)
