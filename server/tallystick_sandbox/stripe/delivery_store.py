"""The table of events that are delivered to webhook endpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from tallystick_storage.sql import Connection, Query, text


class Delivery(NamedTuple):
    """An event that is due at an endpoint. `try_count`: tries before this one; `position`: of the
    event in the order of all events; `now`: the present time, for the signature.
    """

    event_id: str
    endpoint: str
    try_count: int
    body: dict[str, Any]
    position: int
    now: datetime


_ADD = text("""
    insert into stripe_delivery (event_id, endpoint, try_count, next_try_time, create_time)
    select event_id, endpoint, 0, (select clock()), (select clock())
    from json_to_recordset(cast(:rows as json)) as r (event_id text, endpoint text)
    on conflict do nothing
""")
_HAS_DUE = text(
    "select exists (select from stripe_delivery where next_try_time <= (select clock()))"
)
_CLAIM = Query(
    Delivery,
    """
    update stripe_delivery d set next_try_time = clock() + cast(:lease as interval)
    from stripe_object o
    where o.id = d.event_id and (d.event_id, d.endpoint) in (
        select event_id, endpoint from stripe_delivery
        where next_try_time <= (select clock())
        order by next_try_time, event_id limit :limit for update skip locked)
    returning d.event_id, d.endpoint, d.try_count, o.body, o.sequence as position, clock() as now
    """,
)
_RECORD = text("""
    update stripe_delivery set try_count = try_count + 1, status = r.status,
        next_try_time = case
            when r.status between 200 and 299 or r.wait is null or try_count + 1 >= :max_tries
                then null
            else (select clock()) + cast(r.wait as interval) end
    from json_to_recordset(cast(:rows as json))
        as r (event_id text, endpoint text, status int, wait text)
    where stripe_delivery.event_id = r.event_id and stripe_delivery.endpoint = r.endpoint
""")
_RESEND = text("""
    update stripe_delivery set next_try_time = (select clock()), try_count = 0
    where event_id = :event_id
""")


def add_deliveries(connection: Connection, rows: Sequence[Mapping[str, str]]) -> None:
    """Adds deliveries that are due now. Rows have event_id and endpoint."""
    connection.execute(_ADD, {"rows": orjson.dumps([dict(row) for row in rows]).decode()})


def has_due_deliveries(connection: Connection) -> bool:
    is_due: bool = connection.execute(_HAS_DUE).scalar_one()
    return is_due


def claim_deliveries(connection: Connection, limit: int, lease_seconds: float) -> list[Delivery]:
    """Deliveries that are due. No other process claims them for `lease_seconds`."""
    return _CLAIM.all(connection, limit=limit, lease=f"{lease_seconds} seconds")


def record_tries(connection: Connection, rows: Sequence[dict[str, Any]], max_tries: int) -> None:
    """Records the HTTP status of a try each, 0 if there was none, and the wait before the next one.
    Rows have event_id, endpoint, status and wait: an interval, None if there is no next try.
    """
    connection.execute(_RECORD, {"rows": orjson.dumps(rows).decode(), "max_tries": max_tries})


def resend(connection: Connection, event_id: str) -> int:
    """Delivers an event again to all its endpoints. Returns their number."""
    return connection.execute(_RESEND, {"event_id": event_id}).rowcount
