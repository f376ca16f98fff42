"""The outbox, the same in every schema that has one: what each transaction changed, deleted once
EventService has it; and the events that EventService refuses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """What a transaction has to tell: `request` is a BatchPublishRequest with so many events,
    serialized; it may hold more than EventService takes.
    """

    sequence: int
    event_count: int
    request: bytes
    rejected_aggregates: Sequence[str] = ()
    """The aggregates of its events of which EventService refuses an earlier event."""


@dataclass(frozen=True, slots=True)
class RejectedEvent:
    """An event, serialized, that EventService refuses, or that waits until an earlier one of its
    aggregate is published.
    """

    aggregate_id: str
    version: int
    event: bytes


_STORE_EVENTS = text("update outbox set request = :request where sequence = :sequence")
# An aggregate's later change draws its sequence number under the aggregate's lock, when the earlier
# one is committed: in this order none overtakes.
_LIST_UNPUBLISHED = text("""
    select o.sequence, cardinality(o.versions) as event_count, o.request, case
        when exists (select from rejected_aggregate)
        then array(select r.aggregate_id from rejected_aggregate r
            where r.aggregate_id = any (o.aggregate_ids)) end as rejected_aggregates
    from outbox o order by o.sequence limit :limit
""")
_DELETE_PUBLISHED = text("delete from outbox where sequence = any (cast(:sequences as bigint[]))")


def insert_into_outbox(source: str, aggregate: str, version: str = "version") -> str:
    """The part of a statement that names what another part, `source`, has changed: by an
    aggregate's id and its version, in one row of the outbox, if any.
    """
    return f"""outbox_sequence as (
        insert into outbox (aggregate_ids, versions) select array_agg({aggregate}),
            array_agg({version}) from {source} having count(*) > 0
        returning sequence)"""


def store_events(connection: Connection, sequence: int, request: bytes) -> None:
    """Says in events what the row names. Without it the transaction does not commit."""
    connection.execute(_STORE_EVENTS, {"sequence": sequence, "request": request})


def list_unpublished(connection: Connection, limit: int) -> list[OutboxRow]:
    """What EventService has not confirmed, up to so many rows; the changes of an aggregate in
    order, from its first on.
    """
    result = connection.execute(_LIST_UNPUBLISHED, {"limit": limit})
    return [
        OutboxRow(row.sequence, row.event_count, bytes(row.request), row.rejected_aggregates or ())
        for row in result
    ]


def delete_published(connection: Connection, sequences: Sequence[int]) -> None:
    """Forgets what EventService has confirmed."""
    connection.execute(_DELETE_PUBLISHED, {"sequences": list(sequences)})


# The first delay of an aggregate, then twice as long each time.
_DELAY = "least(2 ^ least({rejection_count}, 16), 300) * interval '1 second'"
_STORE_REJECTED_AGGREGATES = text(f"""
    insert into rejected_aggregate (aggregate_id, rejection_count, next_attempt_time, detail)
    select aggregate_id, case detail when '' then 0 else 1 end, clock() + case detail when ''
        then interval '0' else {_DELAY.format(rejection_count="1")} end, detail
    from unnest(cast(:aggregate_ids as text[]), cast(:details as text[]))
        as r (aggregate_id, detail) order by aggregate_id collate "C"
    on conflict (aggregate_id) do update set detail = case excluded.detail when ''
        then rejected_aggregate.detail else excluded.detail end
""")
_STORE_REJECTED_EVENTS = text("""
    insert into rejected_event (aggregate_id, version, event)
    select * from unnest(cast(:aggregate_ids as text[]), cast(:versions as bigint[]),
        cast(:events as bytea[])) as r (aggregate_id, version, event)
    order by aggregate_id collate "C", version
    on conflict (aggregate_id, version) do nothing
""")
_LIST_DUE_EVENTS = text("""
    select e.aggregate_id, e.version, e.event
    from (select aggregate_id, next_attempt_time from rejected_aggregate
        where next_attempt_time <= (select clock())
          order by next_attempt_time, aggregate_id limit :limit) r
    cross join lateral (select * from rejected_event e where e.aggregate_id = r.aggregate_id
        order by e.version limit :limit_each) e
    order by r.next_attempt_time, e.aggregate_id, e.version
""")
_LOCK_AGGREGATES = text(
    "select from rejected_aggregate where aggregate_id = any (cast(:aggregate_ids as text[])) "
    "order by aggregate_id for update"
)
_DELETE_EVENTS = text("""
    delete from rejected_event e
        using unnest(cast(:aggregate_ids as text[]), cast(:versions as bigint[])) as p
        (aggregate_id, version)
    where e.aggregate_id = p.aggregate_id and e.version = p.version
""")
_DELAY_AGGREGATES = text(f"""
    update rejected_aggregate a set rejection_count = a.rejection_count + 1, detail = r.detail,
        next_attempt_time = clock() + {_DELAY.format(rejection_count="a.rejection_count + 1")}
    from unnest(cast(:aggregate_ids as text[]), cast(:details as text[]))
        as r (aggregate_id, detail) where a.aggregate_id = r.aggregate_id
""")
_DELETE_AGGREGATES = text("""
    delete from rejected_aggregate a where a.aggregate_id = any (cast(:aggregate_ids as text[]))
        and not exists (select from rejected_event e where e.aggregate_id = a.aggregate_id)
""")
_FIND_REJECTED_AGGREGATES = text(
    "select aggregate_id from rejected_aggregate where aggregate_id = any (cast(:aggregate_ids as "
    "text[]))"
)


def find_rejected_aggregates(
    connection: Connection, aggregate_ids: Sequence[str]
) -> frozenset[str]:
    """Those of the aggregates of which EventService refuses an event."""
    return frozenset(
        connection.execute(
            _FIND_REJECTED_AGGREGATES, {"aggregate_ids": list(aggregate_ids)}
        ).scalars()
    )


def store_rejected_events(
    connection: Connection, details: Mapping[str, str], events: Sequence[RejectedEvent]
) -> None:
    """Stores events that wait: each aggregate's from the one that EventService refuses on.
    `details`: why, by aggregate, for those not known to be refused yet.
    """
    aggregates = sorted({event.aggregate_id for event in events})
    connection.execute(
        _STORE_REJECTED_AGGREGATES,
        {
            "aggregate_ids": aggregates,
            "details": [details.get(aggregate, "") for aggregate in aggregates],
        },
    )
    values = {
        "aggregate_ids": [event.aggregate_id for event in events],
        "versions": [event.version for event in events],
        "events": [event.event for event in events],
    }
    connection.execute(_STORE_REJECTED_EVENTS, values)


def list_due_events(
    connection: Connection, max_aggregates: int, max_per_aggregate: int
) -> list[RejectedEvent]:
    """The first events of up to so many aggregates that are to be tried again now, up to so many of
    each, in order.
    """
    result = connection.execute(
        _LIST_DUE_EVENTS, {"limit": max_aggregates, "limit_each": max_per_aggregate}
    )
    return [RejectedEvent(row.aggregate_id, row.version, bytes(row.event)) for row in result]


def record_retries(
    connection: Connection, published_events: Sequence[RejectedEvent], details: Mapping[str, str]
) -> None:
    """Deletes events that EventService has taken; the aggregates of which it refuses one
    (`details`: why) wait longer.
    """
    aggregates = sorted({event.aggregate_id for event in published_events} | details.keys())
    connection.execute(
        _LOCK_AGGREGATES, {"aggregate_ids": aggregates}
    )  # whoever adds an event meanwhile does it before, and the next statements see it, or after
    keys = {
        "aggregate_ids": [event.aggregate_id for event in published_events],
        "versions": [event.version for event in published_events],
    }
    connection.execute(_DELETE_EVENTS, keys)
    connection.execute(
        _DELAY_AGGREGATES, {"aggregate_ids": list(details), "details": list(details.values())}
    )
    connection.execute(_DELETE_AGGREGATES, {"aggregate_ids": aggregates})
