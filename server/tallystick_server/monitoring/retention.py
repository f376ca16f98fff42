"""Reduces the samples of metrics as they grow old, and deletes old traces."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from tallystick_core.monitoring.time_range import GRACE_SECONDS, TIERS
from tallystick_storage.database import Database
from tallystick_storage.monitoring import retention as store
from tallystick_storage.monitoring import traces
from tallystick_storage.monitoring.traces import TraceLimits

_MAX_TRANSACTIONS = 2_000
"""Of each kind in one run; the next run continues."""
_MIN_ENDED_SECONDS = 600
"""How long a process must not have recorded before its series may be deleted for newer ones."""


async def delete_old(database: Database, max_series: int, trace_limits: TraceLimits) -> None:
    """Keeps the samples of each age at its resolution, and deletes those that are too old, as well
    as traces, in short transactions. While there are nearly too many series, those of the process
    that ended first are deleted. Several processes may do it at once.
    """
    steps = [
        partial(store.thin, resolution=tier.resolution, min_age=younger.max_age + GRACE_SECONDS)
        for younger, tier in pairwise(TIERS)
    ]
    max_age = TIERS[-1].max_age + GRACE_SECONDS
    steps += [
        partial(store.delete_old, max_age=max_age),
        partial(
            store.delete_ended,
            max_series=max_series * 9 // 10,
            min_age=_MIN_ENDED_SECONDS,
            max_age=max_age,
        ),
        partial(traces.prune_traces, limits=trace_limits),
    ]
    for step in steps:
        for _ in range(_MAX_TRANSACTIONS):
            if not await database.transact(step, idempotent=True):
                break
