"""Symptoms of the console are too high exactly when their rules of Prometheus would fire."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from tallystick_server.http.console.calls import PageCalls, Result
from tallystick_server.http.console.pages.symptoms import read_symptoms


class _Histories:
    """Answers BatchGetMetricHistories with the counts of webhooks by result, and with the clocks of
    two processes of one name; other metrics have none.
    """

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts

    async def attempt(self, _name: str, /, queries: list[dict[str, Any]]) -> Result:
        results = [{"history": self._history(query), "error": None} for query in queries]
        return Result({"results": results})

    def _history(self, query: dict[str, Any]) -> dict[str, Any]:
        if query["metric"] == "tallystick.clock.deviation":
            assert query["group_by"] == ["service.name", "service.instance.id"]
            clocks = [
                {
                    "attributes": {"service.instance.id": id_, "service.name": "tallystick-all"},
                    "points": [{"value": seconds}],
                }
                for id_, seconds in (("4c1f", 7.5), ("9d02", 0.1))
            ]
            return {"unit": "s", "histories": clocks}
        if query["metric"] != "tallystick.webhooks.received":
            return {"unit": "s", "histories": []}
        assert query["group_by"] == ["provider", "result"]
        histories = [
            {"attributes": {"provider": "stripe", "result": name}, "points": [{"value": count}]}
            for name, count in self._counts.items()
        ]
        return {"unit": "{event}", "histories": histories}


@pytest.mark.parametrize(
    ("counts", "is_too_high", "value"),
    [
        ({"fetched": 3}, True, "3"),
        ({"fetched": 3, "stored": 0}, True, "3"),
        ({"fetched": 3, "stored": 1}, False, "0"),
        ({"fetched": 0, "stored": 5}, False, "0"),
        ({}, False, "–"),
    ],
    ids=["none delivered", "none of two hours", "late", "delivered", "no events"],
)
def test_webhooks_are_silent_only_if_none_is_delivered(
    counts: dict[str, int], is_too_high: bool, value: str
) -> None:
    """An event may be fetched a moment before it is delivered, or after a restart."""
    calls = cast(PageCalls, _Histories(counts))
    figures = asyncio.run(read_symptoms(calls, datetime.now(UTC)))
    (figure,) = (f for f in figures if f.symptom.rule == "TallystickWebhooksSilent")
    assert (figure.is_too_high, figure.value) == (is_too_high, value)


def test_a_symptom_of_a_process_names_it() -> None:
    """By its name and its id, because several processes may have one name."""
    calls = cast(PageCalls, _Histories({}))
    figures = asyncio.run(read_symptoms(calls, datetime.now(UTC)))
    (figure,) = (f for f in figures if f.symptom.rule == "TallystickClockWrong")
    assert (figure.is_too_high, figure.where) == (True, "tallystick-all, 4c1f")
    (disk,) = (f for f in figures if f.symptom.rule == "TallystickDiskNearlyFull")
    assert disk.symptom.fields == figure.symptom.fields
