"""Symptoms: figures of the recorded metrics that are too high when something is wrong.

Rules of Prometheus have the same limits, and call an operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tallystick_server.http.console.calls import CallFailed, PageCalls, Result
from tallystick_server.http.console.history import TIME_FORMAT, read_metrics
from tallystick_server.http.console.rendering import format_duration


@dataclass(frozen=True, slots=True)
class Symptom:
    """`rule`: that of Prometheus with the same limit; its name is a heading of the runbook.
    `window`: how far back points count. `fields`: of GetMetricHistory, without the times.
    """

    name: str
    rule: str
    metric: str
    limit: float
    fields: Mapping[str, Any]
    window: timedelta = timedelta(minutes=5)
    step: timedelta = timedelta(minutes=5)
    result: str = ""
    """Of a metric with the attribute `result`: the one that counts."""
    unless: str = ""
    """Another result: a group in which its value is above 0 is normal."""
    is_total: bool = False
    """Whether the points of the window are added. Otherwise the highest counts."""


_BY_PROCESS = {"group_by": ["service.name", "service.instance.id"]}
SYMPTOMS = (
    Symptom(
        "Time in which a provider answers 95 % of sends",
        "TallystickProviderSlow",
        "tallystick.provider.call.duration",
        5.0,
        {
            "filters": ["action=send"],
            "group_by": ["provider"],
            "aggregation": "AGGREGATION_QUANTILE",
            "quantile": "0.95",
        },
    ),
    Symptom(
        "Time of 99 % of transactions",
        "TallystickDatabaseSlow",
        "db.client.operation.duration",
        1.0,
        {
            "group_by": ["db.namespace"],
            "aggregation": "AGGREGATION_QUANTILE",
            "quantile": "0.99",
        },
    ),
    Symptom(
        "Webhooks that were fetched while none was delivered, in 2 hours",
        "TallystickWebhooksSilent",
        "tallystick.webhooks.received",
        0.0,
        {"group_by": ["provider", "result"], "aggregation": "AGGREGATION_SUM"},
        result="fetched",
        unless="stored",
        window=timedelta(hours=2),
        step=timedelta(minutes=10),
        is_total=True,
    ),
    Symptom(
        "Used part of the disk",
        "TallystickDiskNearlyFull",
        "system.filesystem.utilization",
        0.9,
        _BY_PROCESS,
    ),
    Symptom(
        "Clock deviation between a process and its database",
        "TallystickClockWrong",
        "tallystick.clock.deviation",
        5.0,
        _BY_PROCESS,
    ),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """The highest value of a symptom. `where`: the provider, database or process that has it.
    `value` and `limit` are for people.
    """

    symptom: Symptom
    error: CallFailed | None
    value: str
    limit: str
    where: str
    is_too_high: bool


async def read_symptoms(calls: PageCalls, now: datetime) -> list[Figure]:
    """The highest value of each symptom in its window."""
    results = await read_metrics(
        calls,
        [
            {
                "metric": symptom.metric,
                "start_time": f"{now - symptom.window:{TIME_FORMAT}}",
                "step": f"{symptom.step.total_seconds():.0f}s",
                **symptom.fields,
            }
            for symptom in SYMPTOMS
        ],
    )
    return [_to_figure(symptom, result) for symptom, result in zip(SYMPTOMS, results, strict=True)]


def _to_figure(symptom: Symptom, result: Result) -> Figure:
    unit, histories = result.values.get("unit", ""), result.values.get("histories", [])
    normal = set()
    if symptom.unless:
        others = _values_by_group(symptom, histories, symptom.unless)
        normal = {where for value, where in others if value > 0}
    values = [
        (0.0 if where in normal else value, where)
        for value, where in _values_by_group(symptom, histories, symptom.result)
    ]
    highest, where = max(values, default=(0.0, ""))
    return Figure(
        symptom,
        result.error,
        _format(highest, unit) if values else "–",
        _format(symptom.limit, unit),
        where,
        is_too_high=highest > symptom.limit,
    )


def _values_by_group(
    symptom: Symptom, histories: Sequence[Mapping[str, Any]], result: str
) -> list[tuple[float, str]]:
    """The value of each history with this result, with the values of its other attributes."""
    combine = sum if symptom.is_total else max
    names = [name for name in symptom.fields["group_by"] if name != "result"]
    return [
        (
            combine(point["value"] for point in history["points"]),
            ", ".join(filter(None, (history["attributes"].get(name) for name in names))),
        )
        for history in histories
        if history["points"] and history["attributes"].get("result", "") == result
    ]


def _format(value: float, unit: str) -> str:
    """A value with its unit: "5.2 s", "91 %", "3"."""
    match unit:
        case "s":
            return format_duration(timedelta(seconds=value))
        case "1":
            return f"{100 * value:.0f} %"
        case _:
            return f"{value:.0f}"
