"""The rules of schedules: the next cut-off."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, time, timedelta
from importlib.resources import files
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.payout.schedule import (
    Interval,
    Schedule,
    Weekday,
    next_time,
    parse_schedule,
    parse_zone,
)

TIME_ZONES = frozenset(files("tzdata").joinpath("zones").read_text().split()) - {"Factory"}
"""Every name of the IANA database, except the placeholder for a zone that is not set."""
_ZONE_NAMES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Pacific/Apia",
    "America/St_Johns",
    "America/Sao_Paulo",
    "Africa/Casablanca",
)
_CUT_OFFS = st.builds(time, st.integers(0, 23), st.integers(0, 59))
_REGULAR_INTERVALS = [interval for interval in Interval if interval is not Interval.MANUAL]
SCHEDULES = st.builds(
    Schedule,
    st.sampled_from(_REGULAR_INTERVALS),
    st.sampled_from(Weekday),
    st.integers(1, 31),
    _CUT_OFFS,
    st.sampled_from(_ZONE_NAMES).map(ZoneInfo),
)
MOMENTS = st.datetimes(
    # The time zone is checked separately.
    datetime(1990, 1, 1),  # noqa: DTZ001
    datetime(2040, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from(_ZONE_NAMES).map(ZoneInfo),
)


def _has_cut_off(schedule: Schedule, day: date) -> bool:
    """Each interval's contract, implemented independently of the rules."""
    is_last_day = (day + timedelta(days=1)).month != day.month
    return {
        Interval.DAILY: True,
        Interval.WEEKDAYS: day.strftime("%a") not in ("Sat", "Sun"),
        Interval.WEEKLY: day.strftime("%A").upper() == schedule.weekday,
        Interval.MONTHLY: day.day == schedule.day_of_month
        or (is_last_day and day.day < schedule.day_of_month),
    }[schedule.interval]


@given(SCHEDULES, MOMENTS)
@example(
    Schedule(Interval.DAILY, cut_off=time(2, 30), zone=ZoneInfo("Europe/Berlin")),
    datetime(2025, 3, 29, 12, tzinfo=UTC),
)
@example(
    Schedule(Interval.DAILY, cut_off=time(2, 30), zone=ZoneInfo("Europe/Berlin")),
    datetime(2025, 10, 26, 0, 45, tzinfo=UTC),
)
@example(
    Schedule(Interval.DAILY, cut_off=time(17), zone=ZoneInfo("Pacific/Apia")),
    datetime(2011, 12, 28, tzinfo=UTC),
)
@example(
    Schedule(Interval.DAILY, cut_off=time(0, 15), zone=ZoneInfo("America/Sao_Paulo")),
    datetime(2018, 11, 3, 12, tzinfo=UTC),
)
@example(
    Schedule(Interval.DAILY, cut_off=time(23, 45), zone=ZoneInfo("Asia/Pyongyang")),
    datetime(2018, 5, 4, 15, 5, tzinfo=UTC),
)
def test_each_day_has_one_cut_off_and_none_is_skipped(schedule: Schedule, after: datetime) -> None:
    """Over many runs, the cut-offs are those of exactly the days of the interval, each once, also
    on days with clock changes.
    """
    cut_offs, moment = [], after
    for _ in range(5):
        following = next_time(schedule, moment)
        assert following is not None
        assert following > moment
        assert following.tzinfo is UTC
        cut_offs.append(following)
        moment = following
    first = after.astimezone(schedule.zone).date() - timedelta(days=2)
    days = [first + timedelta(days=n) for n in range((cut_offs[-1].date() - first).days + 3)]
    expected = {
        schedule.cut_off_on(day) for day in days if _has_cut_off(schedule, day)
    }  # a day that a zone skipped shares its cut-off with the next
    assert cut_offs == sorted(moment for moment in expected if after < moment <= cut_offs[-1])


@given(SCHEDULES, st.dates(date(1990, 1, 1), date(2040, 1, 1)))
def test_a_cut_off_is_at_its_local_time(schedule: Schedule, day: date) -> None:
    """A cut-off is at its local time on its day. If the clocks skip that time, it is later by as
    much as they skip, which is less than a day.
    """
    moment = schedule.cut_off_on(day)
    local_time = moment.astimezone(schedule.zone).replace(tzinfo=None)
    expected_time = datetime.combine(day, schedule.cut_off)
    before, after = (
        (moment + timedelta(days=n)).astimezone(schedule.zone).utcoffset() for n in (-1, 1)
    )
    assert before is not None
    assert after is not None
    assert local_time - expected_time in (timedelta(0), after - before)
    assert local_time >= expected_time


@pytest.mark.parametrize(
    ("zone", "cut_off", "day", "expected"),
    [
        # The clocks skip from 02:00 to 03:00: the cut-off is at 03:30.
        ("Europe/Berlin", "02:30", "2025-03-30", "2025-03-30T01:30"),
        # The time occurs twice: the first one counts.
        ("Europe/Berlin", "02:30", "2025-10-26", "2025-10-26T00:30"),
        ("Europe/Berlin", "16:00", "2025-07-01", "2025-07-01T14:00"),
        ("America/New_York", "16:00", "2025-12-01", "2025-12-01T21:00"),
        # The clocks skip half an hour: at 02:45.
        ("Australia/Lord_Howe", "02:15", "2025-10-05", "2025-10-04T15:45"),
        # The clocks skip midnight: at 01:15.
        ("America/Sao_Paulo", "00:15", "2018-11-04", "2018-11-04T03:15"),
        ("UTC", "00:00", "2024-02-29", "2024-02-29T00:00"),
    ],
)
def test_cut_offs_on_days_with_clock_changes(
    zone: str, cut_off: str, day: str, expected: str
) -> None:
    """On days with clock changes the cut-off is the one that a calendar gives."""
    schedule = parse_schedule(Interval.DAILY, None, 0, cut_off, zone)
    expected_time = datetime.fromisoformat(f"{expected}+00:00")
    assert schedule.cut_off_on(date.fromisoformat(day)) == expected_time
    assert next_time(schedule, expected_time - timedelta(microseconds=1)) == expected_time
    assert next_time(schedule, expected_time) != expected_time


@given(st.integers(1, 31), st.integers(1, 2399))
def test_monthly_cut_offs_use_the_last_day_of_short_months(day_of_month: int, months: int) -> None:
    """MONTHLY has one cut-off in each month: on its day, or on the last day of a shorter month."""
    year, month = 1900 + months // 12, months % 12 + 1
    length = monthrange(year, month)[1]
    schedule = Schedule(Interval.MONTHLY, day_of_month=day_of_month)
    days = [day for day in range(1, length + 1) if schedule.has_cut_off_on(date(year, month, day))]
    assert days == [min(day_of_month, length)]


@given(MOMENTS)
def test_manual_never_pays_by_itself(after: datetime) -> None:
    """MANUAL has no cut-off."""
    assert next_time(parse_schedule(Interval.MANUAL, None, 0, "", ""), after) is None


@pytest.mark.parametrize(
    ("interval", "weekday", "day", "cut_off", "zone", "field", "reason"),
    [
        ("WEEKLY", None, 0, "16:00", "UTC", "weekday", ErrorReason.FIELD_REQUIRED),
        ("DAILY", "MONDAY", 0, "16:00", "UTC", "weekday", ErrorReason.FIELD_INVALID),
        ("MONTHLY", None, 0, "16:00", "UTC", "day_of_month", ErrorReason.FIELD_REQUIRED),
        ("MONTHLY", None, 32, "16:00", "UTC", "day_of_month", ErrorReason.FIELD_INVALID),
        ("MONTHLY", None, -1, "16:00", "UTC", "day_of_month", ErrorReason.FIELD_INVALID),
        ("WEEKDAYS", None, 5, "16:00", "UTC", "day_of_month", ErrorReason.FIELD_INVALID),
        ("DAILY", None, 0, "", "UTC", "cut_off", ErrorReason.FIELD_REQUIRED),
        ("DAILY", None, 0, "16:00", "", "time_zone", ErrorReason.FIELD_REQUIRED),
        ("MANUAL", None, 0, "16:00", "", "cut_off", ErrorReason.FIELD_INVALID),
        ("MANUAL", None, 0, "", "UTC", "time_zone", ErrorReason.FIELD_INVALID),
        *(
            ("DAILY", None, 0, text, "UTC", "cut_off", ErrorReason.FIELD_INVALID)
            for text in ("24:00", "9:00", "16:60", "16:00:00", "16:00\n", "１６:00", "noon")
        ),
    ],
)
def test_each_interval_requires_its_fields(
    interval: str,
    weekday: str | None,
    day: int,
    cut_off: str,
    zone: str,
    field: str,
    reason: ErrorReason,
) -> None:
    """Fields that an interval needs are required, others are rejected, and each error names its
    field.
    """
    with pytest.raises(ApiError) as error:
        parse_schedule(
            Interval(interval), Weekday(weekday) if weekday else None, day, cut_off, zone
        )
    assert (error.value.field, error.value.reason) == (field, reason)


@given(
    st.text(max_size=300)
    | st.sampled_from(
        [
            "localtime",
            "right/UTC",
            "posix/UTC",
            "../etc/passwd",
            "Europe",
            "Europe/",
            "Europe/../UTC",
            "UTC\n",
        ]
    )
)
def test_any_text_is_a_zone_or_a_named_error(text: str) -> None:
    """For any text the parser raises only its own error; an accepted name means the same on every
    machine.
    """
    try:
        assert parse_zone(text).key == text
        assert text in TIME_ZONES
    except ApiError as error:
        assert (error.reason, error.field) == (ErrorReason.FIELD_INVALID, "time_zone")


def test_every_name_of_tzdata_is_accepted() -> None:
    """Each IANA name is a time zone, links such as Singapore, EST5EDT and GMT included."""
    assert {
        "Singapore",
        "EST5EDT",
        "GMT",
        "Etc/GMT+5",
        "America/Argentina/Buenos_Aires",
    } <= TIME_ZONES
    assert {name for name in TIME_ZONES if parse_zone(name).key == name} == TIME_ZONES


@pytest.mark.parametrize(
    "zone",
    [
        "localtime",
        "posixrules",
        "Factory",
        "right/UTC",
        "Europe/Atlantis",
        "America/Argentina",
        "A" * 300,
        "A/" + "b" * 300,
    ],
)
def test_unknown_and_ambiguous_zones_are_rejected(zone: str) -> None:
    """A name that is not a zone, or that differs between machines, is rejected."""
    with pytest.raises(ApiError):
        parse_zone(zone)
