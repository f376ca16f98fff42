"""Panels: a chart of a metric over time, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tallystick_server.http.console.calls import CallFailed
from tallystick_server.http.console.charts import Chart, Series, Step, bar_chart, line_chart
from tallystick_server.http.console.history import Group, History, MetricQuery
from tallystick_server.http.console.units import PERCENT, SECONDS, Unit

CALLS = "rpc.server.call.duration"
"""The durations of calls that a service answered."""


@dataclass(frozen=True, slots=True)
class Panel:
    """`chart`: None if the metric could not be read. `hint`: what the figures mean."""

    title: str
    hint: str
    chart: Chart | None
    error: CallFailed | None = None


def line_panel(
    key: str,
    title: str,
    hint: str,
    steps: Sequence[Step],
    unit: Unit,
    *parts: tuple[History, Callable[[Group], str]],
) -> Panel:
    """Lines of one or more histories, each with the names of its groups."""
    error = next((history.error for history, _ in parts if history.error), None)
    if error is not None:
        return Panel(title, hint, None, error)
    lines = [line for history, name in parts for line in history.series(name)]
    return Panel(title, hint, line_chart(key, title, steps, lines, unit))


def latency_queries(method: str) -> tuple[MetricQuery, MetricQuery]:
    """The median and the 99 % of a method, by its full name."""
    filters = (f"rpc.method={method}",)
    return (
        MetricQuery(CALLS, (), "QUANTILE", filters, "0.5"),
        MetricQuery(CALLS, (), "QUANTILE", filters, "0.99"),
    )


def latency_panel(name: str, steps: Sequence[Step], median: History, slow: History) -> Panel:
    """The latency of a method, of the histories of `latency_queries`."""
    return line_panel(
        "latency",
        f"Latency of {name}",
        "Half of the calls are faster than the median, 99 of 100 than the other line.",
        steps,
        SECONDS,
        (median, lambda _: "median"),
        (slow, lambda _: "99 %"),
    )


def bar_panel(
    key: str,
    title: str,
    hint: str,
    steps: Sequence[Step],
    history: History,
    parts: Sequence[tuple[str, str, Callable[[Group], bool]]],
) -> Panel:
    """Stacked bars of a counter. `parts`: the name, the tone and the groups of each part."""
    if history.error is not None:
        return Panel(title, hint, None, history.error)
    series = [
        Series(name, _sum_of(history, len(steps), selects), tone) for name, tone, selects in parts
    ]
    return Panel(title, hint, bar_chart(key, title, steps, series))


def _sum_of(
    history: History, step_count: int, selects: Callable[[Group], bool]
) -> Sequence[float | None]:
    """The sums by step of the selected groups."""
    selected = [values for group, values in history.groups.items() if selects(group)]
    return [sum(values[index] or 0.0 for values in selected) for index in range(step_count)]


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The charges that ended, of one provider, method or currency. The values are by step."""

    name: str
    accepted_by_step: Sequence[float]
    declined_by_step: Sequence[float]

    @property
    def accepted(self) -> int:
        return round(sum(self.accepted_by_step))

    @property
    def declined(self) -> int:
        return round(sum(self.declined_by_step))

    @property
    def percent(self) -> float | None:
        """None: no charge ended."""
        return _percent(self.accepted, self.declined)


def _percent(accepted: float, declined: float) -> float | None:
    total = accepted + declined
    return 100 * accepted / total if total else None


ACCEPTED, DECLINED = "Succeeded", "Declined"
"""The outcomes of charges in tallystick.charges.completed."""


def acceptances(history: History) -> list[Acceptance]:
    """Of a history of charges grouped by an attribute and the outcome; most charges first."""
    step_count = max(map(len, history.groups.values()), default=0)
    none = [0.0] * step_count
    counts = history.counts().groups
    found = [
        Acceptance(
            name,
            [value or 0.0 for value in counts.get((name, ACCEPTED), none)],
            [value or 0.0 for value in counts.get((name, DECLINED), none)],
        )
        for name in {name for name, _ in counts}
    ]
    return sorted(found, key=lambda item: (-item.accepted - item.declined, item.name))


def total_acceptance(parts: Sequence[Acceptance]) -> Acceptance:
    """Of all parts together."""
    return Acceptance(
        "all",
        [sum(values) for values in zip(*(part.accepted_by_step for part in parts), strict=True)],
        [sum(values) for values in zip(*(part.declined_by_step for part in parts), strict=True)],
    )


def acceptance_panel(
    key: str, title: str, steps: Sequence[Step], history: History, name: Callable[[str], str]
) -> Panel:
    """The acceptance rate of each provider, method or currency. A step without charges has none."""
    if history.error is not None:
        return Panel(title, "", None, history.error)
    lines = [
        Series(
            name(part.name),
            [
                _percent(*counts)
                for counts in zip(part.accepted_by_step, part.declined_by_step, strict=True)
            ],
        )
        for part in acceptances(history)
    ]
    return Panel(title, "", line_chart(key, title, steps, lines, PERCENT))
