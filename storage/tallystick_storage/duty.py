"""Work that one process does at a time for all of them."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, text

_TURN = text("""
    insert into duty (name, holder, until_time) values (:name, :holder, clock() + cast(:seconds as interval))
    on conflict (name) do update set holder = excluded.holder, until_time = excluded.until_time
        where duty.holder = excluded.holder or duty.until_time <= (select clock())
    returning name
""")


def take_turn(connection: Connection, name: str, holder: UUID, seconds: float) -> bool:
    """Whether this holder does the work for the next so many seconds; it keeps its turn as long as it comes back in time."""
    values = {"name": name, "holder": holder, "seconds": f"{seconds} seconds"}
    return connection.execute(_TURN, values).one_or_none() is not None
