"""The outbox, the same in every schema that has one: a row for each change, deleted once EventService has it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from tallystick_storage.database import rows

Key = tuple[str, int]
"""aggregate_id and version."""

# Some aggregates, and of each all rows from its lowest version on, so that none is published before an earlier one of its own.
_UNPUBLISHED = text("""
    select x.aggregate_id, x.version from outbox x
    where x.aggregate_id in (select aggregate_id from (select aggregate_id from outbox limit :most) as few)
    order by x.aggregate_id, x.version limit :most
""")
_PUBLISHED = text("""
    delete from outbox x using jsonb_to_recordset(cast(:keys as jsonb)) as k (id text, version bigint)
    where x.aggregate_id = k.id and x.version = k.version
""")


def unpublished(connection: Connection, most: int) -> list[Key]:
    """Changes that EventService has not confirmed; those of an aggregate in order, from its first on."""
    return [(aggregate, version) for aggregate, version in connection.execute(_UNPUBLISHED, {"most": most})]


def published(connection: Connection, keys: Sequence[Key]) -> None:
    """Forgets changes that EventService has confirmed."""
    connection.execute(_PUBLISHED, {"keys": as_json(keys)})


def as_json(keys: Sequence[Key]) -> str:
    """Keys as one parameter: rows of (id, version)."""
    return rows([{"id": key, "version": version} for key, version in keys])
