"""The units of charts: how values are written, and where an axis ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from tallystick_core.money import format_amount
from tallystick_server.http.console.rendering import format_duration

_STEPS = (1, 2, 5)
_LONG_TIMES = (60, 120, 300, 600, 1800, 3600, 7200, 21_600, 43_200)
"""Ends of an axis above a second minute, in seconds; after them whole days."""
_DAY_SECONDS = 86_400
_TIME_UNITS = ((_DAY_SECONDS, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_THOUSANDS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
_PERCENT_STEP = 25


@dataclass(frozen=True, slots=True)
class Unit:
    """`format`: a value as text. `axis_text`: a short one. `round_up`: the end of an axis for a
    value above 0. `range_of`: the bottom and the top of an axis for values.
    """

    format: Callable[[float], str]
    axis_text: Callable[[float], str]
    round_up: Callable[[float], float]
    range_of: Callable[[Sequence[float]], tuple[float, float]]


def _unit(
    format_value: Callable[[float], str],
    round_up: Callable[[float], float],
    axis_text: Callable[[float], str] | None = None,
) -> Unit:
    """A unit whose axes have 0."""

    def range_of(values: Sequence[float]) -> tuple[float, float]:
        lowest, highest = min(values), max(values)
        bottom = -round_up(-lowest) if lowest < 0 else 0.0
        return bottom, round_up(highest) if highest > 0 or not bottom else 0.0

    return Unit(format_value, axis_text or format_value, round_up, range_of)


def _round_up(value: float, scale: float = 1.0) -> float:
    """The next of 1, 2, 5, 10, 20, 50, … times the scale."""
    while True:
        for step in _STEPS:
            if value <= step * scale * (1 + 1e-9):
                return step * scale
        scale *= 10


def _round_up_seconds(value: float) -> float:
    if value <= _LONG_TIMES[0] / 2:
        return _round_up(value, 0.001)
    for time in _LONG_TIMES:
        if value <= time:
            return time
    return _round_up(value / _DAY_SECONDS) * _DAY_SECONDS


def _number_text(value: float) -> str:
    """A number with at most one decimal."""
    return f"{value:.1f}".removesuffix(".0")


def _short_text(value: float) -> str:
    """A number of few digits: 20000 as "20k"."""
    for size, sign in _THOUSANDS:
        if abs(value) >= size:
            return f"{_number_text(value / size)}{sign}"
    return _number_text(value)


def _short_time(seconds: float) -> str:
    """A time in one unit: 150 seconds as "2.5 min"."""
    for size, sign in _TIME_UNITS:
        if seconds >= size:
            return f"{_number_text(seconds / size)} {sign}"
    return f"{_number_text(1000 * seconds)} ms" if seconds else "0"


def _percent_range(values: Sequence[float]) -> tuple[float, float]:
    """Up to 100, from the quarter in which the lowest value is."""
    lowest = min(*values, 100 - _PERCENT_STEP)
    return float(lowest // _PERCENT_STEP * _PERCENT_STEP), 100.0


def money(currency: str) -> Unit:
    """Minor units of a currency."""
    return _unit(
        lambda value: format_amount(round(value), currency),
        _round_up,
        lambda value: _short_text(float(format_amount(round(value), currency))),
    )


COUNT = _unit(_number_text, _round_up, _short_text)
FRACTION = _unit(lambda value: f"{value:.2f}", lambda value: _round_up(value, 0.01))
SECONDS = _unit(
    lambda value: format_duration(timedelta(seconds=value)) if value else "0 s",
    _round_up_seconds,
    _short_time,
)
PERCENT = Unit(
    lambda value: f"{value:.1f} %",
    lambda value: f"{_number_text(value)} %",
    lambda value: 100.0,
    _percent_range,
)
