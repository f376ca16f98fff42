"""Periods, and what the missing values of a history mean."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from google.rpc import code_pb2, status_pb2

from tallystick_core.monitoring.time_range import plan_range
from tallystick_server.http.console.calls import PageCalls, Result
from tallystick_server.http.console.history import (
    NOW,
    PERIODS,
    Group,
    History,
    HistoryReader,
    MetricQuery,
    Period,
    period_of,
)
from tallystick_server.http.console.panels import acceptances, total_acceptance

TIME = datetime(2026, 11, 30, 18, 47, 13, 500_000, tzinfo=UTC)


@pytest.mark.parametrize("period", [*PERIODS, NOW], ids=lambda period: str(period.name))
@pytest.mark.parametrize("clock_ahead", [-100, 0, 100])
def test_monitoring_accepts_each_period(period: Period, clock_ahead: int) -> None:
    """Its steps are those that were asked for, also if the clock of its database differs."""
    start = int(period.start_at(TIME).timestamp())
    end = start + period.step_count * period.step_seconds
    now = int(TIME.timestamp()) + clock_ahead
    planned = plan_range(now, start, end, period.step_seconds)
    assert planned == (start, period.step_seconds, period.step_count)
    assert end - period.step_seconds <= TIME.timestamp() < end


def test_an_unknown_period_is_a_day() -> None:
    """So is none."""
    assert period_of("week").name == "week"
    assert period_of("").name == period_of("<b>").name == "day"


def test_the_steps_of_a_period_are_named_by_their_start() -> None:
    """In UTC, the last one contains the present."""
    steps = period_of("day").steps_at(TIME)
    assert len(steps) == 48
    assert [steps[0].text, steps[-1].text] == ["2026-11-29 19:00", "2026-11-30 18:30"]
    assert steps[-1].tick == "18:30"
    week = period_of("week")
    assert week.start_at(TIME) + timedelta(days=7) == datetime(2026, 11, 30, 21, tzinfo=UTC)
    assert week.steps_at(TIME)[-1].tick == "11-30"


class _OneCall:
    """Answers the queries of one call: the metric `bad` is rejected."""

    def __init__(self) -> None:
        self.metrics: list[str] = []

    async def attempt(self, _name: str, /, queries: list[dict[str, Any]]) -> Result:
        assert not self.metrics
        self.metrics = [query["metric"] for query in queries]
        return Result({"results": [self._result(metric) for metric in self.metrics]})

    def _result(self, metric: str) -> dict[str, Any]:
        if metric == "bad":
            status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="too many groups")
            return {"history": None, "error": status}
        history = {"attributes": {"name": metric}, "points": []}
        return {"history": {"histories": [history]}, "error": None}


def test_a_rejected_query_leaves_the_others_of_its_page() -> None:
    """One call reads the groups of a page, in their order; each history has its own error."""
    calls = _OneCall()
    reader = HistoryReader(cast(PageCalls, calls), NOW, TIME)
    a, bad, c = (MetricQuery(name, ("name",)) for name in ("a", "bad", "c"))
    (first, rejected), none, (third,) = asyncio.run(reader.read([a, bad], [], [c]))
    assert calls.metrics == ["a", "bad", "c"]
    assert (list(first.groups), first.error) == ([("a",)], None)
    assert (list(third.groups), third.error) == ([("c",)], None)
    assert none == []
    assert not rejected.groups
    assert rejected.error is not None
    assert rejected.error.text == "too many groups"


def test_a_gauge_that_leaves_out_zeros_is_0_where_others_were_read() -> None:
    """What was not recorded at all stays unknown."""
    reference = History({("a",): [1, None, 0], ("b",): [None, None, 5]})
    history = History({("x",): [None, None, 7], ("y",): [None, None, None]})
    assert history.with_zeros_like(reference).groups == {("x",): [0, None, 7], ("y",): [0, None, 0]}
    assert history.with_zeros_like(History({})).groups == history.groups


def test_a_counter_without_a_value_did_not_grow() -> None:
    """A rate becomes a number with the length of the step."""
    history = History({("x",): [None, 0.5]})
    assert history.counts(60).groups == {("x",): [0, 30]}


def test_the_last_value_of_each_group_counts() -> None:
    """A group without values has none."""
    history = History({("a",): [1, 9, None], ("b",): [None, None, None], ("c",): [4, None, 2]})
    assert history.latest() == {("a",): (1, 9), ("c",): (2, 2)}


def test_acceptance_counts_what_providers_decided() -> None:
    """By name, most charges first; the rate is that of the whole time, not of its steps."""
    groups: dict[Group, list[float | None]] = {
        ("acme", "Succeeded"): [1, None, 8],
        ("acme", "Declined"): [1, None, None],
        ("other", "Declined"): [None, 2, None],
    }
    acme, other = acceptances(History(groups))
    assert (acme.name, acme.accepted, acme.declined, acme.percent) == ("acme", 9, 1, 90)
    assert (other.name, other.accepted, other.declined, other.percent) == ("other", 0, 2, 0)
    total = total_acceptance([acme, other])
    assert (total.accepted, total.declined, total.percent) == (9, 3, 75)
    assert total_acceptance(acceptances(History({}))).percent is None
