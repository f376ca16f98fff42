"""The numbered stream of events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tallystick_storage.database import ConstraintViolation, encode_rows
from tallystick_storage.sql import Connection, Query, columns, text

EventKey = tuple[str, int]
"""aggregate_id and aggregate_version; unique per event."""


@dataclass(slots=True)
class NewEvent:
    """An event to number; `body` is the message without its cursor."""

    aggregate_id: str
    aggregate_version: int
    type: str
    owner: str
    body: bytes

    @property
    def key(self) -> EventKey:
        return (self.aggregate_id, self.aggregate_version)


class EventConflict(ConstraintViolation):
    """An event with this key is already published with different content (`stored_body`)."""

    def __init__(self, key: EventKey, stored_body: bytes) -> None:
        super().__init__(
            "23505",
            "event_aggregate_id_aggregate_version_key",
            f"{key[0]}/{key[1]} is published with another content",
        )
        self.key = key
        self.stored_body = stored_body


class _PublishedRow(NamedTuple):
    """An event that was published before, and its stored body if that differs."""

    aggregate_id: str
    aggregate_version: int
    conflicting_body: bytes | None


_LOCK = text("select cursor from head for update")
# The previous statement takes the lock, so this one sees everything that earlier holders committed.
# All bodies are one parameter, split here; as a list of values each would be copied several times.
_PUBLISH = Query(
    _PublishedRow,
    """
    with requested as materialized (
        select r.*, exists (  -- "offset 0" keeps it a lookup by key
            select from event e where e.aggregate_id = r.aggregate_id
                and e.aggregate_version = r.aggregate_version offset 0) as is_published
        from json_to_recordset(cast(:events as json))
            as r (position int, aggregate_id text, aggregate_version bigint, type text, owner text,
            start int, length int)),
    e as (
        insert into event (cursor, aggregate_id, aggregate_version, type, owner, publish_time, body)
        select h.cursor + row_number() over (order by r.position), r.aggregate_id,
            r.aggregate_version,
            r.type, r.owner, t.now,
            substr(cast(:bodies as bytea), r.start, r.length)
        from requested r, head h, (select clock() as now) t
            where not r.is_published order by r.position),
    c as (update head
        set cursor = head.cursor + (select count(*) from requested where not is_published))
    select r.aggregate_id, r.aggregate_version, e.body as conflicting_body
    from requested r left join lateral (
        select e.body from event e where e.aggregate_id = r.aggregate_id
            and e.aggregate_version = r.aggregate_version
            and e.body <> substr(cast(:bodies as bytea), r.start, r.length) offset 0) e on true
    where r.is_published order by r.position
    """,
)


def publish(connection: Connection, events: Sequence[NewEvent]) -> set[EventKey]:
    """Numbers the new events, in order and without a gap. Returns the keys of the others. The keys
    must be distinct. Raises EventConflict.
    """
    connection.execute(_LOCK)
    items = []
    start = 1
    for index, event in enumerate(events):
        key = {"aggregate_id": event.aggregate_id, "aggregate_version": event.aggregate_version}
        items.append(
            {
                **key,
                "position": index,
                "type": event.type,
                "owner": event.owner,
                "start": start,
                "length": len(event.body),
            }
        )
        start += len(event.body)
    parameters = {"events": encode_rows(items), "bodies": b"".join(event.body for event in events)}
    published = _PUBLISH.all(connection, **parameters)
    for row in published:
        if row.conflicting_body is not None:
            raise EventConflict((row.aggregate_id, row.aggregate_version), row.conflicting_body)
    return {(row.aggregate_id, row.aggregate_version) for row in published}


_LAST_CURSOR = text("select cursor from head")


def last_cursor(connection: Connection) -> int:
    """The last cursor of the stream."""
    return int(connection.execute(_LAST_CURSOR).scalar_one())


_HORIZON = text("select cursor from horizon")
_PRUNE = text("select prune_events(make_interval(days => :days), :limit)")


def horizon(connection: Connection) -> int:
    """The last cursor that was deleted at the end of its retention; 0: none was."""
    return int(connection.execute(_HORIZON).scalar_one())


def prune(connection: Connection, retention_days: int, limit: int) -> int:
    """Deletes up to `limit` of the oldest events that were published more than `retention_days`
    days ago. Returns how many.
    """
    parameters = {"days": retention_days, "limit": limit}
    return int(connection.execute(_PRUNE, parameters).scalar_one())


class EventRow(NamedTuple):
    """A published event; `body` is the message without its cursor."""

    cursor: int
    body: bytes
    type: str
    owner: str
    aggregate_id: str


_LIST_BETWEEN = """
    select {columns} from event
    where {which} cursor > :after and cursor <= :until and (:owner = '' or owner = :owner)
        and (cardinality(cast(:types as text[])) = 0 or type = any (cast(:types as text[])))
    order by cursor limit :limit
"""
_LIST_ALL = Query(EventRow, _LIST_BETWEEN.replace("{which}", ""))
_LIST_OF_AGGREGATE = Query(
    EventRow, _LIST_BETWEEN.replace("{which}", "aggregate_id = :aggregate_id and")
)


# Each resource by its index: for one condition on all, the planner may read the stream by cursor.
_LIST_OF_AGGREGATES = Query(
    EventRow,
    f"""
    select {columns(EventRow, "e")} from unnest(cast(:aggregate_ids as text[])) r (aggregate_id)
    cross join lateral (select * from event e where e.aggregate_id = r.aggregate_id
        order by e.aggregate_version limit :limit) e
    order by e.cursor limit :limit
    """,
)


def list_of_aggregates(
    connection: Connection, aggregate_ids: Sequence[str], limit: int
) -> list[EventRow]:
    """The oldest events of some resources, which are distinct, in order."""
    return _LIST_OF_AGGREGATES.all(connection, aggregate_ids=list(aggregate_ids), limit=limit)


def list_between(
    connection: Connection,
    after: int,
    until: int,
    types: list[str],
    aggregate_id: str,
    owner: str,
    limit: int,
) -> list[EventRow]:
    """The next events after one cursor, up to another. Empty filters match everything."""
    parameters = {"after": after, "until": until, "types": types, "owner": owner, "limit": limit}
    query = _LIST_OF_AGGREGATE if aggregate_id else _LIST_ALL
    return query.all(connection, **parameters, aggregate_id=aggregate_id)
