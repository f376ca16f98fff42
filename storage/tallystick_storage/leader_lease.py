"""Leases for work that only one process does at a time."""

from __future__ import annotations

from uuid import UUID

from tallystick_storage.sql import Connection, text

_ACQUIRE = text("""
    insert into leader_lease (name, holder_id, lease_until)
        values (:name, :holder_id, clock() + cast(:seconds as interval))
    on conflict (name) do update set holder_id = excluded.holder_id,
        lease_until = excluded.lease_until
        where leader_lease.holder_id = excluded.holder_id
            or leader_lease.lease_until <= (select clock())
    returning name
""")


def try_acquire_lease(
    connection: Connection, name: str, holder_id: UUID, lease_seconds: float
) -> bool:
    """Whether this process is the leader for the next `lease_seconds` seconds. It stays the leader
    as long as it renews in time.
    """
    values = {"name": name, "holder_id": holder_id, "seconds": f"{lease_seconds} seconds"}
    return connection.execute(_ACQUIRE, values).scalar_one_or_none() is not None
