"""The outbox, the same in every schema that has one. It holds the changes of each transaction until
EventService has them, and the events that EventService rejects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from tallystick_storage.sql import Connection, Query, columns, text


class ChangedRow(Protocol):
    """A row as a statement changed it. The events of all rows that it changed belong in one outbox
    row.
    """

    @property
    def outbox_sequence(self) -> int: ...


class OutboxRow(NamedTuple):
    """The events of one statement. `request` is a serialized BatchPublishRequest with
    `event_count` events; it may hold more than EventService accepts in one call. `has_later`: the
    outbox has later rows.
    """

    sequence: int
    event_count: int
    request: bytes
    has_later: bool
    rejected_aggregates: Sequence[str] | None
    """The aggregates of its events that have an earlier event rejected by EventService. None: it
    rejects none.
    """


class RejectedEvent(NamedTuple):
    """A serialized event that EventService rejects, or that waits until an earlier event of its
    aggregate is published.
    """

    aggregate_id: str
    version: int
    event: bytes


_STORE_EVENTS = text("update outbox set request = :request where sequence = :sequence")
# A change draws its sequence number under the aggregate's lock, after the earlier change is
# committed. Reading in this order therefore never reorders an aggregate's changes.
_LIST_UNPUBLISHED = Query(
    OutboxRow,
    """
    select sequence, event_count, request,
        sequence < (select max(sequence) from outbox) as has_later, case
        when exists (select from rejected_aggregate)
        then array(select r.aggregate_id from rejected_aggregate r
            where r.aggregate_id = any (o.aggregate_ids)) end as rejected_aggregates
    from (
        select first_rows.*, cardinality(versions) as event_count,
            row_number() over (order by sequence) as position,
            sum(cardinality(versions)) over (order by sequence) as total_events
        from (select * from outbox order by sequence limit :max_rows) first_rows) o
    where position <= :min_rows or total_events <= :max_events order by sequence
    """,
)
_DELETE_PUBLISHED = text("delete from outbox where sequence = any (cast(:sequences as bigint[]))")


def insert_into_outbox(
    source: str, aggregate: str, version: str = "version", request: str = "null"
) -> str:
    """Returns the part of a statement that inserts one outbox row for the changes that the CTE
    `source` made, if any. Each change is named by aggregate id and version.

    `request`: an SQL expression for the serialized events of all these changes. Without it they
    must be stored by `store_events`.
    """
    return f"""outbox_sequence as (
        insert into outbox (aggregate_ids, versions, request) select array_agg({aggregate}),
            array_agg({version}), {request} from {source} having count(*) > 0
        returning sequence)"""


def store_events(connection: Connection, sequence: int, request: bytes) -> None:
    """Stores the events of the changes that the outbox row names. Without them the transaction does
    not commit.
    """
    connection.execute(_STORE_EVENTS, {"sequence": sequence, "request": request})


def list_unpublished(
    connection: Connection, min_rows: int, max_rows: int, max_events: int
) -> list[OutboxRow]:
    """The first `min_rows` rows that EventService has not confirmed, or up to `max_rows` while they
    have at most `max_events` events together. The changes of each aggregate are in order, starting
    with its first.
    """
    return _LIST_UNPUBLISHED.all(
        connection, min_rows=min_rows, max_rows=max_rows, max_events=max_events
    )


def delete_published(connection: Connection, sequences: Sequence[int]) -> None:
    """Deletes rows that EventService has confirmed."""
    connection.execute(_DELETE_PUBLISHED, {"sequences": list(sequences)})


# The delay of an aggregate: the first one, then doubled each time.
_DELAY = "least(2 ^ least({rejection_count}, 16), 300) * interval '1 second'"
_STORE_REJECTED_AGGREGATES = text(f"""
    insert into rejected_aggregate (aggregate_id, rejection_count, next_try_time, detail)
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
_LIST_DUE_EVENTS = Query(
    RejectedEvent,
    f"""
    select {columns(RejectedEvent, "e")}
    from (select aggregate_id, next_try_time from rejected_aggregate
        where next_try_time <= (select clock())
          order by next_try_time, aggregate_id limit :limit) r
    cross join lateral (select * from rejected_event e where e.aggregate_id = r.aggregate_id
        order by e.version limit :limit_each) e
    order by r.next_try_time, e.aggregate_id, e.version
    """,
)
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
        next_try_time = clock() + {_DELAY.format(rejection_count="a.rejection_count + 1")}
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
    """The given aggregates that have an event rejected by EventService."""
    return frozenset(
        connection.execute(
            _FIND_REJECTED_AGGREGATES, {"aggregate_ids": list(aggregate_ids)}
        ).scalars()
    )


def store_rejected_events(
    connection: Connection, details: Mapping[str, str], events: Sequence[RejectedEvent]
) -> None:
    """Stores events that wait: those of each aggregate from the rejected one on. `details` gives
    the reason by aggregate, for aggregates not yet known to be rejected.
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
    """The first events of up to `max_aggregates` aggregates that are due for another try, at most
    `max_per_aggregate` of each, in order.
    """
    return _LIST_DUE_EVENTS.all(connection, limit=max_aggregates, limit_each=max_per_aggregate)


def record_retries(
    connection: Connection, published_events: Sequence[RejectedEvent], details: Mapping[str, str]
) -> None:
    """Deletes events that EventService has accepted. Aggregates with a rejected event (`details`:
    the reason) wait longer.
    """
    aggregates = sorted({event.aggregate_id for event in published_events} | details.keys())
    connection.execute(
        _LOCK_AGGREGATES, {"aggregate_ids": aggregates}
    )  # a concurrent insert comes either before, and the next statements see it, or after
    keys = {
        "aggregate_ids": [event.aggregate_id for event in published_events],
        "versions": [event.version for event in published_events],
    }
    connection.execute(_DELETE_EVENTS, keys)
    connection.execute(
        _DELAY_AGGREGATES, {"aggregate_ids": list(details), "details": list(details.values())}
    )
    connection.execute(_DELETE_AGGREGATES, {"aggregate_ids": aggregates})
