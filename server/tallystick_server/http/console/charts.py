"""Charts as SVG: where each bar is. The template draws them, with a table of the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 720, 160
_GAP = 4
_STEPS = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Series:
    """`tone`: its color: good, waiting or bad."""

    name: str
    tone: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar with a value for each series, from bottom to top."""

    label: str
    values: Sequence[int]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar, in the units of the drawing."""

    tone: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class GridLine:
    """A horizontal line with its value."""

    y: float
    text: str


@dataclass(frozen=True, slots=True)
class AxisLabel:
    """The label of a bar, in the middle below it."""

    x: float
    text: str


@dataclass(frozen=True, slots=True)
class BarChart:
    """Stacked bars. `bars`: the numbers, for the table."""

    title: str
    series: Sequence[Series]
    bars: Sequence[Bar]
    segments: Sequence[Segment]
    grid: Sequence[GridLine]
    labels: Sequence[AxisLabel]
    width: int = _WIDTH
    height: int = _HEIGHT

    @property
    def is_empty(self) -> bool:
        return not self.segments


def bar_chart(title: str, series: Sequence[Series], bars: Sequence[Bar]) -> BarChart:
    """Places stacked bars next to each other. About six of them have a label."""
    top = _round_up(max((sum(bar.values) for bar in bars), default=0))
    step = _WIDTH / max(1, len(bars))
    segments = []
    for index, bar in enumerate(bars):
        bottom = float(_HEIGHT)
        for part, value in zip(series, bar.values, strict=True):
            height = _HEIGHT * value / top
            bottom -= height
            if value:
                segments.append(
                    Segment(
                        part.tone,
                        round(index * step + _GAP / 2, 2),
                        round(bottom, 2),
                        round(step - _GAP, 2),
                        round(height, 2),
                    )
                )
    every = max(1, len(bars) // 6)
    return BarChart(
        title,
        series,
        bars,
        segments,
        [GridLine(0.0, str(top)), GridLine(float(_HEIGHT), "0")],
        [
            AxisLabel(round((index + 0.5) * step, 2), bar.label)
            for index, bar in enumerate(bars)
            if index % every == 0
        ],
    )


def _round_up(value: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50, …"""
    scale = 1
    while True:
        for step in _STEPS:
            if value <= step * scale:
                return step * scale
        scale *= 10
