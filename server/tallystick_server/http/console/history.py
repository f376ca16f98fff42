"""Metrics over time, as MonitoringService has recorded them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from math import isfinite
from typing import Any

from tallystick_server.http.console.calls import CallFailed, PageCalls, Result
from tallystick_server.http.console.charts import Series, Step

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
"""Times in the JSON of the API."""
Group = tuple[str, ...]
"""The values of the attributes by which a metric is grouped; "" for one that is missing."""


@dataclass(frozen=True, slots=True)
class Period:
    """A time until now, in steps. `tick`: how a step is shown below a chart. The steps are
    multiples of the distance of samples of that age.
    """

    name: str
    text: str
    step_seconds: int
    step_count: int
    tick: str

    def start_at(self, now: datetime) -> datetime:
        """The start of the first step; the last one contains the present."""
        now_seconds = int(now.timestamp())
        end = now_seconds - now_seconds % self.step_seconds + self.step_seconds
        return datetime.fromtimestamp(end - self.step_seconds * self.step_count, UTC)

    def steps_at(self, now: datetime) -> list[Step]:
        start, length = self.start_at(now), timedelta(seconds=self.step_seconds)
        times = [start + index * length for index in range(self.step_count)]
        return [Step(f"{time:%Y-%m-%d %H:%M}", format(time, self.tick)) for time in times]


PERIODS = (
    Period("hour", "the last hour", 60, 60, "%H:%M"),
    Period("day", "the last day", 1_800, 48, "%H:%M"),
    Period("week", "the last week", 10_800, 56, "%m-%d"),
    Period("month", "the last 30 days", 43_200, 60, "%m-%d"),
)
PERIOD_CHOICES = [(period.name, period.text) for period in PERIODS]
NOW = Period("now", "the last 15 minutes", 10, 90, "%H:%M")
"""For present values: the last one counts."""


def period_of(name: str) -> Period:
    """The period of a name; a day for another one."""
    return next((period for period in PERIODS if period.name == name), PERIODS[1])


@dataclass(frozen=True, slots=True)
class MetricQuery:
    """Which series of a metric are read, and how they become one value for each group and step.
    `filters` and `quantile`: as in GetMetricHistory. `aggregation`: without its prefix.
    """

    metric: str
    group_by: Sequence[str] = ()
    aggregation: str = "SUM"
    filters: Sequence[str] = ()
    quantile: str = ""


@dataclass(frozen=True, slots=True)
class History:
    """The values of each group by step, or the error. None: a step without a value."""

    groups: Mapping[Group, Sequence[float | None]]
    error: CallFailed | None = None

    def latest(self) -> dict[Group, tuple[int, float]]:
        """The last value of each group, with its step."""
        return {
            group: max((index, value) for index, value in enumerate(values) if value is not None)
            for group, values in self.groups.items()
            if any(value is not None for value in values)
        }

    def only(self, selects: Callable[[Group], bool]) -> History:
        """The groups that a function selects."""
        return History(
            {group: self.groups[group] for group in self.groups if selects(group)}, self.error
        )

    def without(self, selects: Callable[[Group], bool]) -> History:
        """The other groups."""
        return self.only(lambda group: not selects(group))

    def counts(self, factor: float = 1.0) -> History:
        """Of counters: a step without a value had no increase. `factor`: of each value."""
        return History(
            {
                group: [factor * (value or 0.0) for value in values]
                for group, values in self.groups.items()
            },
            self.error,
        )

    def with_zeros_like(self, reference: History) -> History:
        """Of gauges that leave out what is 0: 0 in the steps in which the reference has a value."""
        has_values = [
            any(value is not None for value in step)
            for step in zip(*reference.groups.values(), strict=True)
        ]
        return History(
            {
                group: [
                    0.0 if value is None and has_value else value
                    for value, has_value in zip(
                        values, has_values or [False] * len(values), strict=True
                    )
                ]
                for group, values in self.groups.items()
            },
            self.error,
        )

    def series(self, name: Callable[[Group], str]) -> list[Series]:
        """A series for each group."""
        return [Series(name(group), values) for group, values in self.groups.items()]


@dataclass(frozen=True, slots=True)
class HistoryReader:
    """Reads metrics over the steps of a period until `now`."""

    calls: PageCalls
    period: Period
    now: datetime

    @property
    def steps(self) -> list[Step]:
        return self.period.steps_at(self.now)

    async def read(self, *groups: Sequence[MetricQuery]) -> list[list[History]]:
        """The histories of groups of queries, such as those of a section: one call for all."""
        start = self.period.start_at(self.now)
        queries = [query for group in groups for query in group]
        results = await read_metrics(
            self.calls, [_to_fields(query, self.period, start) for query in queries]
        )
        histories = iter(
            _history_of(result, query, self.period, start)
            for result, query in zip(results, queries, strict=True)
        )
        return [list(islice(histories, len(group))) for group in groups]


async def read_metrics(calls: PageCalls, queries: Sequence[Mapping[str, Any]]) -> list[Result]:
    """The responses of GetMetricHistory to queries with these fields, by one call for all."""
    name = "monitoring.BatchGetMetricHistories"
    answer = await calls.attempt(name, queries=queries)
    if answer.error is not None:
        return [answer] * len(queries)
    return [
        Result({}, CallFailed(name, result["error"]))
        if result["error"] is not None
        else Result(result["history"])
        for result in answer.values["results"]
    ]


def _to_fields(query: MetricQuery, period: Period, start: datetime) -> Mapping[str, Any]:
    end = start + period.step_count * timedelta(seconds=period.step_seconds)
    return {
        "metric": query.metric,
        "group_by": list(query.group_by),
        "filters": list(query.filters),
        "aggregation": f"AGGREGATION_{query.aggregation}",
        "quantile": query.quantile,
        "start_time": f"{start:{TIME_FORMAT}}",
        "end_time": f"{end:{TIME_FORMAT}}",
        "step": f"{period.step_seconds}s",
    }


def _history_of(result: Result, query: MetricQuery, period: Period, start: datetime) -> History:
    groups: dict[Group, Sequence[float | None]] = {}
    for history in result.values.get("histories", []):
        attributes: Mapping[str, Any] = history["attributes"]
        values: list[float | None] = [None] * period.step_count
        for point in history["points"]:
            index = (point["time"] - start) // timedelta(seconds=period.step_seconds)
            if 0 <= index < period.step_count and isfinite(point["value"]):
                values[index] = point["value"]
        groups[tuple(attributes.get(name, "") for name in query.group_by)] = values
    return History(groups, result.error)
