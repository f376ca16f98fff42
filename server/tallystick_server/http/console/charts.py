"""Charts as SVG: where each bar and each line is, and the same numbers as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tallystick_server.http.console.units import COUNT, PERCENT, Unit

MAX_LINES = 6
"""How many lines a chart draws; each has a color and a pattern of its own."""
_WIDTH, _HEIGHT = 480, 150
_GAP = 2
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Step:
    """A step in time: its text in the table, and the shorter one below the chart."""

    text: str
    tick: str


@dataclass(frozen=True, slots=True)
class Series:
    """The value of each step. None: there is none. `tone`: the color of its bars: good, waiting
    or bad.
    """

    name: str
    values: Sequence[float | None]
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar, in the units of the drawing."""

    tone: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Path:
    """A line as the data of an SVG path; steps without a value interrupt it."""

    style: str
    data: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A text at a place of an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class LegendItem:
    """What a color or a pattern means, with the last value."""

    style: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing, and its numbers. `key`: identifies it on its page. `description`: the drawing in
    words. `rows`: the texts of the table, by step. `omitted_count`: how many columns of the table
    are not drawn.
    """

    key: str
    title: str
    description: str
    grid: Sequence[Mark]
    ticks: Sequence[Mark]
    legend: Sequence[LegendItem]
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    segments: Sequence[Segment] = ()
    paths: Sequence[Path] = ()
    omitted_count: int = 0
    width: int = _WIDTH
    height: int = _HEIGHT

    @property
    def is_empty(self) -> bool:
        return not self.segments and not self.paths


def bar_chart(key: str, title: str, steps: Sequence[Step], series: Sequence[Series]) -> Chart:
    """Bars of counts, next to each other; the series are stacked from bottom to top."""
    totals = [
        sum(values[index] or 0 for values in (part.values for part in series))
        for index in range(len(steps))
    ]
    top = COUNT.round_up(max(totals, default=0))
    segments = []
    for index in range(len(steps)):
        bottom = float(_HEIGHT)
        for part in series:
            height = _HEIGHT * (part.values[index] or 0) / top
            bottom -= height
            if height:
                segments.append(_segment(part.tone, index, len(steps), bottom, height))
    return Chart(
        key,
        title,
        _describe(steps, series, COUNT),
        [Mark(0.0, COUNT.axis_text(top)), Mark(float(_HEIGHT), "0")],
        _ticks(steps),
        [LegendItem(part.tone, part.name, "") for part in series],
        [part.name for part in series],
        _rows(steps, series, COUNT),
        segments=segments,
    )


def _segment(tone: str, index: int, count: int, y: float, height: float) -> Segment:
    width = _WIDTH / count
    return Segment(
        tone,
        round(index * width + _GAP / 2, 2),
        round(y, 2),
        round(width - _GAP, 2),
        round(height, 2),
    )


def line_chart(
    key: str, title: str, steps: Sequence[Step], lines: Sequence[Series], unit: Unit
) -> Chart:
    """A line for each series, the highest first. Above MAX_LINES the others are in the table only,
    and so are those that are always 0, except in percent.
    """
    lines = sorted(
        (line for line in lines if _present(line)), key=lambda line: -max(_present(line))
    )
    drawn = [line for line in lines if unit is PERCENT or any(_present(line))][:MAX_LINES]
    values = [value for line in drawn for value in _present(line)]
    bottom, top = unit.range_of(values) if values else (0.0, 1.0)
    styles = [f"line-{number}" for number in range(1, len(drawn) + 1)]
    middle = (bottom + top) / 2
    return Chart(
        key,
        title,
        _describe(steps, drawn, unit),
        [
            Mark(_height_of(value, bottom, top), unit.axis_text(value))
            for value in (top, middle, bottom)
        ],
        _ticks(steps),
        [
            LegendItem(style, line.name, unit.format(_present(line)[-1]))
            for style, line in zip(styles, drawn, strict=True)
        ],
        [line.name for line in lines],
        _rows(steps, lines, unit),
        paths=[
            Path(style, _path_data(line.values, bottom, top))
            for style, line in zip(styles, drawn, strict=True)
        ],
        omitted_count=len(lines) - len(drawn),
    )


def _present(series: Series) -> list[float]:
    return [value for value in series.values if value is not None]


def _height_of(value: float, bottom: float, top: float) -> float:
    return round(_HEIGHT * (top - value) / (top - bottom), 1)


def _path_data(values: Sequence[float | None], bottom: float, top: float) -> str:
    """A step without neighbors is a short stroke, so that it is visible."""
    width = _WIDTH / len(values)
    parts = []
    for index, value in enumerate(values):
        if value is None:
            continue
        x, y = round((index + 0.5) * width, 1), _height_of(value, bottom, top)
        continues = index > 0 and values[index - 1] is not None
        parts.append(f"{'L' if continues else 'M'}{x} {y}")
        if not continues and (index + 1 == len(values) or values[index + 1] is None):
            parts.append("h6")
    return "".join(parts)


def _ticks(steps: Sequence[Step]) -> list[Mark]:
    """About five of the steps."""
    width = _WIDTH / max(1, len(steps))
    every = max(1, -(-len(steps) // _TICKS))
    return [
        Mark(round((index + 0.5) * width, 1), steps[index].tick)
        for index in range(every // 2, len(steps), every)
    ]


def _rows(
    steps: Sequence[Step], series: Sequence[Series], unit: Unit
) -> list[tuple[str, Sequence[str]]]:
    """The newest step first."""
    return [
        (
            step.text,
            ["–" if value is None else unit.format(value) for value in values],
        )
        for step, *values in reversed(
            list(zip(steps, *(part.values for part in series), strict=True))
        )
    ]


def _describe(steps: Sequence[Step], series: Sequence[Series], unit: Unit) -> str:
    if not steps:
        return ""
    sentences = [f"From {steps[0].text} to {steps[-1].text} (UTC)."]
    for part in series:
        values = _present(part)
        if values:
            last, lowest, highest = (
                unit.format(value) for value in (values[-1], min(values), max(values))
            )
            sentences.append(f"{part.name}: last {last}, lowest {lowest}, highest {highest}.")
    return " ".join(sentences)
