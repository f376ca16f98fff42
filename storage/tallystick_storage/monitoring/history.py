"""Reads series and their samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from tallystick_core.monitoring.series_filter import PROCESS_ID, PROCESS_NAME, SeriesFilter
from tallystick_storage.database import encode_rows
from tallystick_storage.sql import Connection, Query


class SeriesRow(NamedTuple):
    """A series, and the process that it belongs to."""

    series_id: int
    metric: str
    kind: str
    attributes: Mapping[str, str]
    boundaries: Sequence[float]
    create_time: datetime
    process_id: UUID
    process_name: str
    last_record_time: datetime


class SeriesCriteria(NamedTuple):
    """The filter of a list; None does not filter."""

    metric: str | None


_SELECT_SERIES = """
    select s.series_id, s.metric, s.kind, s.attributes, s.boundaries, s.create_time, s.process_id,
        p.name as process_name, p.last_record_time
    from series s join process p using (process_id)
    where {condition} s.series_id > :after order by s.series_id limit :limit
"""
_LIST_ALL = Query(SeriesRow, _SELECT_SERIES.format(condition=""))
_LIST_OF_METRIC = Query(SeriesRow, _SELECT_SERIES.format(condition="s.metric = :metric and"))


def list_series(
    connection: Connection, criteria: SeriesCriteria, after: tuple[int] | None, limit: int
) -> list[SeriesRow]:
    """The series in the order of their ids, after one of them."""
    parameters = {"after": after[0] if after else 0, "limit": limit}
    if criteria.metric is None:
        return _LIST_ALL.all(connection, **parameters)
    return _LIST_OF_METRIC.all(connection, metric=criteria.metric, **parameters)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which series a query reads: those of a metric that match all filters, and that were recorded
    between two times, in seconds since 1970. `query`: its number.
    """

    query: int
    metric: str
    kind: str
    filters: Sequence[SeriesFilter]
    range_start: int
    range_end: int


class SelectedSeries(NamedTuple):
    """A series of a query. `attributes` has the name and the id of its process too."""

    query: int
    series_id: int
    attributes: Mapping[str, str]
    boundaries: Sequence[float]


# The limit keeps the series of a query a lookup of its own, whatever the statistics are.
_SELECT = Query(
    SelectedSeries,
    """
    select q.query, y.series_id, y.attributes, y.boundaries
    from json_to_recordset(cast(:selections as json)) as q (query int, metric text collate "C",
        kind text, filters json, range_start bigint, range_end bigint)
    cross join lateral (
        select x.series_id, x.attributes, x.boundaries
        from (
            select s.series_id, s.boundaries, s.attributes || jsonb_build_object(
                cast(:process_name as text), p.name, cast(:process_id as text), p.process_id)
                as attributes
            from series s join process p using (process_id)
            where s.metric = q.metric and s.kind = q.kind
                and s.create_time < to_timestamp(q.range_end)
                and p.last_record_time >= to_timestamp(q.range_start)) x
        where not exists (
            select from json_to_recordset(q.filters) as f (attribute text, value text,
                is_negated boolean)
            where (coalesce(x.attributes ->> f.attribute, '') = f.value) = f.is_negated)
        order by x.series_id desc limit :limit) y
    order by q.query, y.series_id desc limit :total_limit
    """,
)


def select_series(
    connection: Connection, selections: Sequence[Selection], limit: int, total_limit: int
) -> list[SelectedSeries]:
    """The series of queries, by query, newest first: at most `limit` of each, and the first
    `total_limit` of all.
    """
    if not selections:
        return []
    return _SELECT.all(
        connection,
        selections=encode_rows(selections),
        limit=limit,
        total_limit=total_limit,
        process_name=PROCESS_NAME,
        process_id=PROCESS_ID,
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """Which samples a query reads of its series, in steps from a time in seconds since 1970: of
    gauges the highest value of each step, otherwise the last totals of each step, and those before
    the first. `query`: its number.
    """

    query: int
    series_ids: Sequence[int]
    range_start: int
    step_seconds: int
    step_count: int
    is_gauge: bool


class StepRow(NamedTuple):
    """The sample of a query's series in a step, see
    `tallystick_core.monitoring.aggregation.Sample`. Step -1: its totals before the range.
    """

    query: int
    series_id: int
    step: int
    value: float
    bucket_counts: Sequence[int] | None


# Of totals one index lookup for each step, however many samples it has; of a gauge one index scan
# for each series. The limits keep it so while the statistics are those of empty tables.
_READ_STEPS = Query(
    StepRow,
    """
    select q.query, y.series_id, y.step, y.value, y.bucket_counts
    from json_to_recordset(cast(:readings as json)) as q (query int, series_ids bigint[],
        range_start bigint, step_seconds int, step_count int, is_gauge boolean)
    cross join lateral (
        select s.series_id, -1 as step, coalesce(b.value, s.base_value) as value,
            coalesce(b.bucket_counts, s.base_bucket_counts) as bucket_counts
        from series s left join lateral (
            select x.value, x.bucket_counts from sample x
            where x.series_id = s.series_id and x.record_time < to_timestamp(q.range_start)
            order by x.record_time desc limit 1) b on true
        where not q.is_gauge and s.series_id = any (q.series_ids)
        union all
        select i.series_id, n.step, x.value, x.bucket_counts
        from unnest(q.series_ids) as i (series_id)
        cross join generate_series(0, q.step_count - 1) as n (step)
        cross join lateral (
            select x.value, x.bucket_counts from sample x
            where x.series_id = i.series_id
                and x.record_time >= to_timestamp(q.range_start + n.step * q.step_seconds)
                and x.record_time < to_timestamp(q.range_start + (n.step + 1) * q.step_seconds)
            order by x.record_time desc limit 1) x
        where not q.is_gauge
        union all
        select i.series_id,
            cast((extract(epoch from x.step_time) - q.range_start) / q.step_seconds as int),
            x.value, null
        from unnest(q.series_ids) as i (series_id)
        cross join lateral (
            select date_bin(make_interval(secs => q.step_seconds), x.record_time,
                to_timestamp(q.range_start)) as step_time, max(x.value) as value
            from sample x
            where x.series_id = i.series_id and x.record_time >= to_timestamp(q.range_start)
                and x.record_time < to_timestamp(q.range_start + q.step_count * q.step_seconds)
            group by step_time) x
        where q.is_gauge
        order by series_id, step limit :limit) y
    order by q.query, y.series_id, y.step limit :total_limit
    """,
)


def read_steps(
    connection: Connection, readings: Sequence[Reading], limit: int, total_limit: int
) -> list[StepRow]:
    """The samples of queries, by query, series and step: at most `limit` of each query, and the
    first `total_limit` of all.
    """
    if not readings:
        return []
    return _READ_STEPS.all(
        connection, readings=encode_rows(readings), limit=limit, total_limit=total_limit
    )
