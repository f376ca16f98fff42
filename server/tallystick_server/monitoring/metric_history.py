"""Reads metrics over time."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, TypeVar

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
from tallystick_server.rpc.batch import apply_each
from tallystick_storage.monitoring import history as store
from tallystick_storage.sql import Connection

_MAX_SERIES, _MAX_TOTAL_SERIES = 5_000, 20_000
_MAX_GROUPS = 50
_MAX_ROWS, _MAX_TOTAL_ROWS = 100_000, 200_000
"""Of a query, and of all queries of a call. No point is without a row, so the response is bounded
too.
"""

R = TypeVar("R", store.SelectedSeries, store.StepRow)
GroupKey = tuple[str, ...]
"""The values of the attributes by which series are grouped."""
Points = list[tuple[int, float]]
"""The values of steps, by their start in seconds since 1970, oldest first."""
PointsByGroup = Mapping[GroupKey, Points]


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


@dataclass(frozen=True, slots=True)
class _Selected:
    """The series that a query has selected, by their id."""

    query: HistoryQuery
    series: Mapping[int, _GroupedSeries]


def read_histories(
    connection: Connection, queries: Sequence[HistoryQuery | ApiError]
) -> list[PointsByGroup | ApiError]:
    """The points of each query, in order, by two statements for all. A query that is an error stays
    it. One that exceeds a limit has TOO_MANY_ITEMS or FIELD_INVALID.
    """
    selected = apply_each(_group_series, queries, _select_series(connection, queries))
    return apply_each(_points_of, selected, _read_steps(connection, selected))


def _select_series(
    connection: Connection, queries: Sequence[HistoryQuery | ApiError]
) -> list[Sequence[store.SelectedSeries] | ApiError]:
    selections = [
        store.Selection(
            number, query.metric, query.kind, query.filters, query.range.start, query.range.end
        )
        for number, query in enumerate(queries)
        if not isinstance(query, ApiError)
    ]
    rows = store.select_series(connection, selections, _MAX_SERIES + 1, _MAX_TOTAL_SERIES + 1)
    return _rows_by_query(rows, len(queries), _MAX_TOTAL_SERIES, "series")


def _read_steps(
    connection: Connection, selected: Sequence[_Selected | ApiError]
) -> list[Sequence[store.StepRow] | ApiError]:
    readings = [
        store.Reading(
            number, list(item.series), *item.query.range, item.query.kind is MetricKind.GAUGE
        )
        for number, item in enumerate(selected)
        if not isinstance(item, ApiError)
    ]
    rows = store.read_steps(connection, readings, _MAX_ROWS + 1, _MAX_TOTAL_ROWS + 1)
    return _rows_by_query(rows, len(selected), _MAX_TOTAL_ROWS, "samples")


def _rows_by_query(
    rows: Sequence[R], query_count: int, max_rows: int, name: str
) -> list[Sequence[R] | ApiError]:
    """The rows of each query, of rows in the order of queries. From the query with which they are
    too many, each has an error.
    """
    rows_by_query: list[list[R]] = [[] for _ in range(query_count)]
    for row in rows:
        rows_by_query[row.query].append(row)
    complete_count = rows[-1].query if len(rows) > max_rows else query_count
    error = ApiError(
        ErrorReason.TOO_MANY_ITEMS,
        f"The queries up to this one have more than {max_rows} {name} together: send this one in "
        "another call.",
    )
    return [
        own_rows if number < complete_count else error
        for number, own_rows in enumerate(rows_by_query)
    ]


def _group_series(query: HistoryQuery, rows: Sequence[store.SelectedSeries]) -> _Selected:
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
    return _Selected(query, grouped)


def _figure_of(attributes: Mapping[str, str]) -> Hashable:
    """The attributes of a series, except those of its process."""
    return frozenset(
        (name, value)
        for name, value in attributes.items()
        if name not in {PROCESS_NAME, PROCESS_ID}
    )


def _too_many(field: str, text: str) -> ApiError:
    return ApiError(ErrorReason.TOO_MANY_ITEMS, f"{field} {text}.", field=field)


def _points_of(selected: _Selected, rows: Sequence[store.StepRow]) -> PointsByGroup:
    if len(rows) > _MAX_ROWS:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"step must be longer: the {len(selected.series)} series have too many samples in the "
            "range. Or narrow the filters.",
            field="step",
        )
    if selected.query.kind is MetricKind.GAUGE:
        return _gauge_points(selected, rows)
    return _total_points(selected, rows)


def _gauge_points(selected: _Selected, rows: Sequence[store.StepRow]) -> PointsByGroup:
    query = selected.query
    highest: dict[GroupKey, dict[int, dict[Hashable, float]]] = {}
    for row in rows:
        series = selected.series[row.series_id]
        figures = highest.setdefault(series.key, {}).setdefault(row.step, {})
        figures[series.figure] = max(figures.get(series.figure, row.value), row.value)
    combine = sum if query.aggregation is Aggregation.SUM else max
    return {
        key: _timed(
            query.range, {step: combine(figures.values()) for step, figures in steps.items()}
        )
        for key, steps in highest.items()
    }


def _total_points(selected: _Selected, rows: Sequence[store.StepRow]) -> PointsByGroup:
    query = selected.query
    totals: dict[GroupKey, dict[int, StepTotals]] = {}
    for series_id, group in groupby(rows, lambda row: row.series_id):
        series = selected.series[series_id]
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
