"""Charts: where bars and lines are, and the table of their numbers."""

from __future__ import annotations

import re

import pytest

from tallystick_server.http.console.charts import (
    MAX_LINES,
    Series,
    Step,
    bar_chart,
    line_chart,
)
from tallystick_server.http.console.units import COUNT, FRACTION, PERCENT, SECONDS, Unit, money


def steps(count: int) -> list[Step]:
    return [Step(f"step {number}", str(number)) for number in range(count)]


def points(data: str) -> list[tuple[str, float, float]]:
    """The commands of a path that go to a point."""
    return [
        (command, float(x), float(y))
        for command, x, y in re.findall(r"([ML])([\d.]+) ([\d.]+)", data)
    ]


def test_the_bars_of_a_chart_have_the_size_of_their_values() -> None:
    """Segments are stacked without a gap, inside the drawing, in proportion to their values."""
    series = [Series("a", [3, 0, 0], "good"), Series("b", [1, 0, 5], "bad")]
    chart = bar_chart("key", "title", steps(3), series)
    assert [mark.text for mark in chart.grid] == ["5", "0"]
    lower, upper, single = chart.segments
    assert lower.height == 3 * upper.height
    assert upper.y + upper.height == pytest.approx(lower.y)
    assert lower.y + lower.height == pytest.approx(chart.height)
    assert (single.y, single.height) == (0.0, chart.height)
    assert lower.x + lower.width < single.x
    assert bar_chart("key", "title", steps(1), [Series("a", [0], "good")]).is_empty


def test_a_line_is_as_high_as_its_values() -> None:
    """The top of the drawing is the end of the axis, the bottom is 0."""
    chart = line_chart("key", "title", steps(3), [Series("a", [0, 5, 10])], COUNT)
    assert [(mark.at, mark.text) for mark in chart.grid] == [(0, "10"), (75, "5"), (150, "0")]
    assert points(chart.paths[0].data) == [("M", 80, 150), ("L", 240, 75), ("L", 400, 0)]


def test_a_step_without_a_value_interrupts_a_line() -> None:
    """It is not drawn as 0, and a lone value is visible as a short stroke."""
    (path,) = line_chart(
        "key", "title", steps(5), [Series("a", [1, 1, None, 1, None])], COUNT
    ).paths
    assert [command for command, _, _ in points(path.data)] == ["M", "L", "M"]
    assert path.data.count("h6") == 1
    assert path.data.endswith("h6")


def test_few_lines_are_drawn_and_all_are_in_the_table() -> None:
    """The highest ones; those that are always 0 only in percent, where 0 is a figure."""
    lines = [Series(f"line {number}", [number, 0]) for number in range(MAX_LINES + 3)]
    chart = line_chart("key", "title", steps(2), lines, COUNT)
    assert [item.name for item in chart.legend] == [
        f"line {number}" for number in (8, 7, 6, 5, 4, 3)
    ]
    assert len({path.style for path in chart.paths}) == MAX_LINES
    assert chart.omitted_count == 3
    assert len(chart.columns) == len(lines)
    zeros = [Series("a", [0, 0]), Series("unknown", [None, None])]
    assert line_chart("key", "title", steps(2), zeros, COUNT).is_empty
    assert line_chart("key", "title", steps(2), zeros, COUNT).columns == ["a"]
    assert not line_chart("key", "title", steps(2), zeros, PERCENT).is_empty


def test_the_table_has_each_value_newest_first() -> None:
    """With its unit; a step without a value has a dash."""
    lines = [Series("a", [0.25, None]), Series("b", [1.5, 0.012])]
    chart = line_chart("key", "title", steps(2), lines, SECONDS)
    assert chart.columns == ["b", "a"]
    assert chart.rows == [("step 1", ["12 ms", "–"]), ("step 0", ["1.5 s", "250 ms"])]


def test_the_description_has_what_is_drawn() -> None:
    """For those who do not see it: the time, and the last, lowest and highest value."""
    chart = line_chart("key", "title", steps(3), [Series("acme", [90, 50, 75.5])], PERCENT)
    assert chart.description == (
        "From step 0 to step 2 (UTC). acme: last 75.5 %, lowest 50.0 %, highest 90.0 %."
    )


@pytest.mark.parametrize(
    ("unit", "values", "texts"),
    [
        (COUNT, [0], ["1", "0"]),
        (COUNT, [3, 17], ["20", "0"]),
        (COUNT, [120_000], ["200k", "0"]),
        (COUNT, [-30, 4], ["5", "-50"]),
        (COUNT, [-30, -4], ["0", "-50"]),
        (FRACTION, [0.04], ["0.05", "0.00"]),
        (SECONDS, [0.0031], ["5 ms", "0"]),
        (SECONDS, [45], ["1 min", "0"]),
        (SECONDS, [5_000], ["2 h", "0"]),
        (SECONDS, [200_000], ["5 d", "0"]),
        (PERCENT, [99.5], ["100 %", "75 %"]),
        (PERCENT, [80, 30], ["100 %", "25 %"]),
        (PERCENT, [0], ["100 %", "0 %"]),
        (money("EUR"), [1_234_56], ["2k", "0"]),
        (money("JPY"), [1_234_567], ["2M", "0"]),
    ],
)
def test_an_axis_holds_its_values(unit: Unit, values: list[float], texts: list[str]) -> None:
    """It ends at a round number, and has 0 unless the unit is percent."""
    bottom, top = unit.range_of(values)
    assert bottom <= min(values) <= max(values) <= top
    assert [unit.axis_text(top), unit.axis_text(bottom)] == texts


def test_the_middle_of_an_axis_of_times_is_exact() -> None:
    """It is the half of its end, and not rounded to whole minutes."""
    chart = line_chart("key", "title", steps(2), [Series("a", [0, 280])], SECONDS)
    assert [mark.text for mark in chart.grid] == ["5 min", "2.5 min", "0"]


def test_money_has_the_decimals_of_its_currency() -> None:
    """A sum in minor units is written as the API writes amounts."""
    assert money("EUR").format(123456.0) == "1234.56"
    assert money("JPY").format(123456.0) == "123456"
