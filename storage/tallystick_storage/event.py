"""The numbered stream of events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from tallystick_storage.database import rows

EventKey = tuple[str, int]
"""aggregate_id and aggregate_version: one event for each."""


@dataclass(slots=True)
class NewEvent:
    """An event to number; `body` is the message without its cursor, in hex."""

    aggregate_id: str
    aggregate_version: int
    type: str
    create_time: datetime
    body: str

    @property
    def key(self) -> EventKey:
        return (self.aggregate_id, self.aggregate_version)


_LOCK = text("select cursor from head for update")
# The lock is taken by the statement before, so this one sees all that earlier holders committed.
_PUBLISH = text("""
    with r as materialized (
        select r.*, row_number() over (order by r.place) as n
        from rows from (jsonb_to_recordset(cast(:events as jsonb)) as (aggregate_id text, aggregate_version bigint, type text,
            create_time timestamptz, body text)) with ordinality as r (aggregate_id, aggregate_version, type, create_time, body, place)
        where not exists (  -- "offset 0" keeps it a look-up by key
            select from event e where e.aggregate_id = r.aggregate_id and e.aggregate_version = r.aggregate_version offset 0)),
    e as (
        insert into event (cursor, aggregate_id, aggregate_version, type, create_time, body)
        select h.cursor + r.n, r.aggregate_id, r.aggregate_version, r.type, r.create_time, decode(r.body, 'hex') from r, head h order by r.n
        returning aggregate_id, aggregate_version),
    c as (update head set cursor = head.cursor + (select count(*) from r))
    select aggregate_id, aggregate_version from e
""")


def publish(connection: Connection, events: Sequence[NewEvent]) -> set[EventKey]:
    """Numbers those events that are new, in order, without a gap; returns their keys. No key may stand twice among them."""
    connection.execute(_LOCK)
    return {(row.aggregate_id, row.aggregate_version) for row in connection.execute(_PUBLISH, {"events": rows(events)})}


_END = text("select cursor from head")


def end(connection: Connection) -> int:
    """The last cursor there is."""
    return int(connection.execute(_END).scalar_one())


_AFTER = text("""
    select cursor, body from event
    where cursor > :after and (:aggregate_id = '' or aggregate_id = :aggregate_id)
        and (cardinality(cast(:types as text[])) = 0 or type = any (cast(:types as text[])))
    order by cursor limit :most
""")


def after(connection: Connection, cursor: int, types: list[str], aggregate_id: str, most: int) -> Sequence[Row[Any]]:
    """The next events behind a cursor; empty filters do not filter."""
    return connection.execute(_AFTER, {"after": cursor, "types": types, "aggregate_id": aggregate_id, "most": most}).all()
