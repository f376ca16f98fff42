"""Deletes events at the end of their retention."""

from __future__ import annotations

from functools import partial

from tallystick_storage.database import Database
from tallystick_storage.event import events as store

_MAX_DELETED = 1000
"""Events that one transaction deletes."""


async def prune_events(database: Database, retention_days: int) -> int:
    """Deletes the events that were published more than `retention_days` days ago, oldest first, in
    short transactions. Several processes may do it at once. Returns the number of events.
    """
    total = 0
    while count := await database.transact(
        partial(store.prune, retention_days=retention_days, limit=_MAX_DELETED)
    ):
        total += count
    return total
