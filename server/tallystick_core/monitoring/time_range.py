"""How long samples are kept at which resolution, and the steps of a query. Times are whole seconds
since 1970.
"""

from __future__ import annotations

from typing import NamedTuple

from tallystick_core.errors import ApiError, ErrorReason

MAX_STEPS = 1_000
_DEFAULT_STEPS = 300
_DEFAULT_RANGE_SECONDS = 3_600
_STEPS = (10, 20, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 10_800, 21_600, 86_400)
"""The lengths of steps, in seconds, of which one is chosen for a caller."""


class Tier(NamedTuple):
    """Samples up to this age are kept at this resolution, both in seconds."""

    max_age: int
    resolution: int


TIERS = (Tier(3_600, 10), Tier(86_400, 60), Tier(604_800, 600), Tier(2_592_000, 3_600))
"""By age. After the last one samples are deleted."""
GRACE_SECONDS = 120
"""Samples keep their resolution this much longer, for queries of exactly an hour or a day."""


class TimeRange(NamedTuple):
    """`step_count` steps of `step` seconds from `start`."""

    start: int
    step: int
    step_count: int

    @property
    def end(self) -> int:
        return self.start + self.step * self.step_count


def plan_range(now: int, start: int | None, end: int | None, step: int | None) -> TimeRange:
    """The steps that cover a range. None: the end is now, the start an hour earlier, and the step
    as long as the age of the samples and the number of points require. Raises FIELD_INVALID.
    """
    end = now if end is None else end
    start = end - _DEFAULT_RANGE_SECONDS if start is None else start
    if start >= end:
        raise _invalid("start_time", "must be before end_time, which is now if it is unset")
    if start < now - TIERS[-1].max_age - GRACE_SECONDS:
        days = TIERS[-1].max_age // 86_400
        raise _invalid(
            "start_time", f"must be at most {days} days ago: samples are not kept longer"
        )
    resolution = _resolution_at(now - start)
    if step is None:
        step = _choose_step(end - start, resolution)
    elif step < resolution or step % resolution:
        raise _invalid(
            "step",
            f"must be a multiple of {resolution} seconds, the distance of samples at start_time",
        )
    start -= start % step
    count = -((start - end) // step)
    if count > MAX_STEPS:
        min_step = -((start - end) // (MAX_STEPS - 1))
        min_step += -min_step % resolution
        raise _invalid("step", f"must be at least {min_step} seconds for this range")
    return TimeRange(start, step, count)


def _resolution_at(age: int) -> int:
    return next(tier.resolution for tier in TIERS if age <= tier.max_age + GRACE_SECONDS)


def _choose_step(seconds: int, resolution: int) -> int:
    min_step = max(resolution, seconds / _DEFAULT_STEPS)
    return next(step for step in _STEPS if step >= min_step)


def _invalid(field: str, text: str) -> ApiError:
    return ApiError(ErrorReason.FIELD_INVALID, f"{field} {text}.", field=field)
