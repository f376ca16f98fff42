"""Payout schedules: when sellers are paid automatically. A schedule has calendar days, a time of
day and a time zone.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from enum import StrEnum
from zoneinfo import ZoneInfo

from tallystick_core.errors import ApiError, ErrorReason

_TIME = re.compile(r"\A([01][0-9]|2[0-3]):([0-5][0-9])\Z", re.ASCII)
_ZONE = re.compile(
    r"\A(?!Factory\Z)[A-Z][A-Za-z0-9_+-]*(?:/[A-Za-z0-9_+-]+){0,2}\Z", re.ASCII
)  # no "localtime", which differs between machines
_DAY = timedelta(days=1)


class Interval(StrEnum):
    """How often a schedule pays."""

    DAILY = "DAILY"
    WEEKDAYS = "WEEKDAYS"
    """Monday to Friday. Public holidays are ignored, because they differ between banks."""
    WEEKLY = "WEEKLY"
    MONTHLY = "MONTHLY"
    MANUAL = "MANUAL"


class Weekday(StrEnum):
    """A day of the week, in the order of `date.weekday()`."""

    MONDAY = "MONDAY"
    TUESDAY = "TUESDAY"
    WEDNESDAY = "WEDNESDAY"
    THURSDAY = "THURSDAY"
    FRIDAY = "FRIDAY"
    SATURDAY = "SATURDAY"
    SUNDAY = "SUNDAY"


_WEEK = tuple(Weekday)


@dataclass(frozen=True, slots=True)
class Schedule:
    """The cut-offs at which payouts are generated: one on each scheduled day."""

    interval: Interval
    weekday: Weekday | None = None
    """Only with WEEKLY."""
    day_of_month: int = 0
    """Only with MONTHLY, 1 to 31. In a shorter month, its last day."""
    cut_off: time = time()
    """A whole minute in the local time of the zone."""
    zone: tzinfo = UTC

    def has_cut_off_on(self, day: date) -> bool:
        """Whether the schedule has a cut-off on this day in its zone."""
        match self.interval:
            case Interval.DAILY:
                return True
            case Interval.WEEKDAYS:
                return day.weekday() < 5
            case Interval.WEEKLY:
                return _WEEK[day.weekday()] is self.weekday
            case Interval.MONTHLY:
                return day.day == min(self.day_of_month, monthrange(day.year, day.month)[1])
            case Interval.MANUAL:
                return False

    def cut_off_on(self, day: date) -> datetime:
        """The cut-off on this day in the schedule's zone, converted to UTC.

        If a clock change skips the local time, the cut-off moves later by the skipped period. If
        the time occurs twice, the first one counts (RFC 5545, 3.3.5). So each day has exactly one
        cut-off.
        """
        return datetime.combine(day, self.cut_off, self.zone).astimezone(UTC)


def next_time(schedule: Schedule, after: datetime) -> datetime | None:
    """The first cut-off later than `after`, in UTC; None with MANUAL. `after` is timezone-aware, in
    any zone.
    """
    if schedule.interval is Interval.MANUAL:
        return None
    # a cut-off that a clock change skips may fall on the next day
    first = after.astimezone(schedule.zone).date() - _DAY
    return next(
        cut_off
        for cut_off in map(schedule.cut_off_on, _iter_days(schedule, first))
        if cut_off > after
    )


def _iter_days(schedule: Schedule, first: date) -> Iterator[date]:
    """The days with a cut-off, starting at `first`."""
    day = first
    while True:
        if schedule.has_cut_off_on(day):
            yield day
        day += _DAY


def parse_schedule(
    interval: Interval, weekday: Weekday | None, day_of_month: int, cut_off: str, time_zone: str
) -> Schedule:
    """Parses a schedule. Each field must be set exactly if its interval requires it. Raises
    FIELD_REQUIRED, FIELD_INVALID.
    """
    _check_presence("weekday", weekday is not None, interval, required=interval is Interval.WEEKLY)
    _check_presence(
        "day_of_month", day_of_month != 0, interval, required=interval is Interval.MONTHLY
    )
    _check_presence("cut_off", cut_off != "", interval, required=interval is not Interval.MANUAL)
    _check_presence(
        "time_zone", time_zone != "", interval, required=interval is not Interval.MANUAL
    )
    if interval is Interval.MANUAL:
        return Schedule(interval)
    if not 0 <= day_of_month <= 31:
        raise ApiError(
            ErrorReason.FIELD_INVALID, "day_of_month must be from 1 to 31.", field="day_of_month"
        )
    return Schedule(interval, weekday, day_of_month, _parse_time(cut_off), parse_zone(time_zone))


def _check_presence(field: str, is_set: bool, interval: Interval, *, required: bool) -> None:
    if required and not is_set:
        raise ApiError(
            ErrorReason.FIELD_REQUIRED,
            f"{field} is required with the interval {interval}.",
            field=field,
        )
    if is_set and not required:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"{field} must be unset with the interval {interval}.",
            field=field,
        )


def _parse_time(text: str) -> time:
    match = _TIME.match(text)
    if match is None:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "cut_off must be a time of day from 00:00 to 23:59, such as 16:30.",
            field="cut_off",
        )
    return time(int(match[1]), int(match[2]))


def parse_zone(text: str) -> ZoneInfo:
    """Parses an IANA time zone name; links such as "Singapore" are allowed. Raises
    FIELD_INVALID.
    """
    try:
        if _ZONE.match(text) is not None:
            return ZoneInfo(text)
    except (
        KeyError,
        ValueError,
        OSError,
    ):  # unknown zone; for a folder of the tzdata package it is an OSError
        pass
    raise ApiError(
        ErrorReason.FIELD_INVALID,
        "time_zone must be an IANA time zone such as Europe/Berlin, or UTC.",
        field="time_zone",
    )
