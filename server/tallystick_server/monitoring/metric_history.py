"""Reads a metric over time."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.monitoring.aggregation import (
    Aggregation,
    MetricKind,
    Sample,
    StepTotals,
    increases,
    point_of,
)
from tallystick_core.monitoring.series_filter import (
    PROCESS_ID,
    PROCESS_NAME,
    SeriesFilter,
    group_key,
)
from tallystick_core.monitoring.time_range import TimeRange
from tallystick_storage.monitoring import history as store
from tallystick_storage.sql import Connection

_MAX_SERIES = 5_000
_MAX_GROUPS = 50
_MAX_ROWS = 100_000

GroupKey = tuple[str, ...]
"""The values of the attributes by which series are grouped."""
Points = list[tuple[int, float]]
"""The values of steps, by their start in seconds since 1970, oldest first."""


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """Which series of a metric become points, and how."""

    metric: str
    kind: MetricKind
    filters: Sequence[SeriesFilter]
    group_by: Sequence[str]
    aggregation: Aggregation
    quantile: float
    range: TimeRange
    is_shared: bool
    """Of a gauge: each series is one figure, whichever process has recorded it."""


class _GroupedSeries(NamedTuple):
    """`figure`: what the series has values of; with another process it may be the same."""

    key: GroupKey
    figure: Hashable
    boundaries: Sequence[float]


def read_history(connection: Connection, query: HistoryQuery) -> Mapping[GroupKey, Points]:
    """The points of each group, by its values. Raises TOO_MANY_ITEMS, FIELD_INVALID."""
    grouped = _select_series(connection, query)
    rows = store.read_steps(
        connection,
        list(grouped),
        *query.range,
        _MAX_ROWS + 1,
        is_gauge=query.kind is MetricKind.GAUGE,
    )
    if len(rows) > _MAX_ROWS:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"step must be longer: the {len(grouped)} series have too many samples in the range. "
            "Or narrow the filters.",
            field="step",
        )
    if query.kind is MetricKind.GAUGE:
        return _gauge_points(query, grouped, rows)
    return _total_points(query, grouped, rows)


def _select_series(connection: Connection, query: HistoryQuery) -> Mapping[int, _GroupedSeries]:
    rows = store.select_series(
        connection,
        query.metric,
        query.kind,
        query.filters,
        query.range.start,
        query.range.end,
        _MAX_SERIES + 1,
    )
    if len(rows) > _MAX_SERIES:
        raise _too_many("filters", f"must select at most {_MAX_SERIES} series; narrow them")
    grouped = {
        row.series_id: _GroupedSeries(
            group_key(row.attributes, query.group_by),
            _figure_of(row.attributes) if query.is_shared else row.series_id,
            row.boundaries,
        )
        for row in rows
    }
    if len({series.key for series in grouped.values()}) > _MAX_GROUPS:
        raise _too_many("group_by", f"must make at most {_MAX_GROUPS} groups; narrow the filters")
    return grouped


def _figure_of(attributes: Mapping[str, str]) -> Hashable:
    """The attributes of a series, except those of its process."""
    return frozenset(
        (name, value)
        for name, value in attributes.items()
        if name not in {PROCESS_NAME, PROCESS_ID}
    )


def _too_many(field: str, text: str) -> ApiError:
    return ApiError(ErrorReason.TOO_MANY_ITEMS, f"{field} {text}.", field=field)


def _gauge_points(
    query: HistoryQuery, grouped: Mapping[int, _GroupedSeries], rows: Sequence[store.StepRow]
) -> Mapping[GroupKey, Points]:
    highest: dict[GroupKey, dict[int, dict[Hashable, float]]] = {}
    for row in rows:
        series = grouped[row.series_id]
        figures = highest.setdefault(series.key, {}).setdefault(row.step, {})
        figures[series.figure] = max(figures.get(series.figure, row.value), row.value)
    combine = sum if query.aggregation is Aggregation.SUM else max
    return {
        key: _timed(
            query.range, {step: combine(figures.values()) for step, figures in steps.items()}
        )
        for key, steps in highest.items()
    }


def _total_points(
    query: HistoryQuery, grouped: Mapping[int, _GroupedSeries], rows: Sequence[store.StepRow]
) -> Mapping[GroupKey, Points]:
    totals: dict[GroupKey, dict[int, StepTotals]] = {}
    for series_id, group in groupby(rows, lambda row: row.series_id):
        series = grouped[series_id]
        base, *samples = (Sample(row.step, row.value, row.bucket_counts or ()) for row in group)
        for increase in increases(base, samples):
            steps = totals.setdefault(series.key, {})
            steps.setdefault(increase.step, StepTotals()).add(increase, series.boundaries)
    points = {}
    for key, steps in totals.items():
        values = {
            step: point_of(
                step_totals, query.kind, query.aggregation, query.range.step, query.quantile
            )
            for step, step_totals in steps.items()
        }
        points[key] = _timed(
            query.range, {step: value for step, value in values.items() if value is not None}
        )
    return points


def _timed(time_range: TimeRange, steps: Mapping[int, float]) -> Points:
    return [(time_range.start + step * time_range.step, steps[step]) for step in sorted(steps)]
