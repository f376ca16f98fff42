"""Work that one process does at a time for all of them."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection, text

_ACQUIRE = text("""
    insert into duty (name, holder, until_time)
        values (:name, :holder, clock() + cast(:seconds as interval))
    on conflict (name) do update set holder = excluded.holder, until_time = excluded.until_time
        where duty.holder = excluded.holder or duty.until_time <= (select clock())
    returning name
""")


def try_acquire_lease(
    connection: Connection, name: str, owner_id: UUID, lease_seconds: float
) -> bool:
    """Whether this holder does the work for the next so many seconds; it keeps its turn as long as
    it comes back in time.
    """
    values = {"name": name, "holder": owner_id, "seconds": f"{lease_seconds} seconds"}
    return connection.execute(_ACQUIRE, values).one_or_none() is not None
