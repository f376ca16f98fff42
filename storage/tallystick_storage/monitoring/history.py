"""Reads series and their samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class SelectedSeries(NamedTuple):
    """A series of a query. `attributes` has the name and the id of its process too."""

    series_id: int
    attributes: Mapping[str, str]
    boundaries: Sequence[float]


_SELECT = Query(
    SelectedSeries,
    """
    select x.series_id, x.attributes, x.boundaries
    from (
        select s.series_id, s.boundaries, s.attributes || jsonb_build_object(
            cast(:process_name as text), p.name, cast(:process_id as text), p.process_id)
            as attributes
        from series s join process p using (process_id)
        where s.metric = :metric and s.kind = :kind and s.create_time < to_timestamp(:end)
            and p.last_record_time >= to_timestamp(:start)) x
    where not exists (
        select from json_to_recordset(cast(:filters as json)) as f (attribute text, value text,
            is_negated boolean)
        where (coalesce(x.attributes ->> f.attribute, '') = f.value) = f.is_negated)
    order by x.series_id desc limit :limit
    """,
)


def select_series(
    connection: Connection,
    metric: str,
    kind: str,
    filters: Sequence[SeriesFilter],
    start: int,
    end: int,
    limit: int,
) -> list[SelectedSeries]:
    """The series of a metric that match all filters, and that were recorded between two times (in
    seconds since 1970), newest first.
    """
    return _SELECT.all(
        connection,
        metric=metric,
        kind=kind,
        filters=encode_rows([item._asdict() for item in filters]),
        start=start,
        end=end,
        limit=limit,
        process_name=PROCESS_NAME,
        process_id=PROCESS_ID,
    )


class StepRow(NamedTuple):
    """The sample of a series in a step, see `tallystick_core.monitoring.aggregation.Sample`. Step
    -1: its totals before the range.
    """

    series_id: int
    step: int
    value: float
    bucket_counts: Sequence[int] | None


# One index lookup for each step, however many samples it has.
_TOTALS = Query(
    StepRow,
    """
    select s.series_id, -1 as step, coalesce(b.value, s.base_value) as value,
        coalesce(b.bucket_counts, s.base_bucket_counts) as bucket_counts
    from series s left join lateral (
        select x.value, x.bucket_counts from sample x
        where x.series_id = s.series_id and x.record_time < to_timestamp(:start)
        order by x.record_time desc limit 1) b on true
    where s.series_id = any (cast(:series_ids as bigint[]))
    union all
    select s.series_id, n.step, x.value, x.bucket_counts
    from unnest(cast(:series_ids as bigint[])) as s (series_id)
    cross join generate_series(0, :step_count - 1) as n (step)
    cross join lateral (
        select x.value, x.bucket_counts from sample x
        where x.series_id = s.series_id
            and x.record_time >= to_timestamp(:start + n.step * :step)
            and x.record_time < to_timestamp(:start + (n.step + 1) * :step)
        order by x.record_time desc limit 1) x
    order by series_id, step limit :limit
    """,
)
_HIGHEST = Query(
    StepRow,
    """
    select x.series_id,
        cast((extract(epoch from x.step_time) - :start) / :step as int) as step, x.value,
        null as bucket_counts
    from (
        select series_id, date_bin(make_interval(secs => :step), record_time, to_timestamp(:start))
            as step_time, max(value) as value
        from sample where series_id = any (cast(:series_ids as bigint[]))
            and record_time >= to_timestamp(:start)
            and record_time < to_timestamp(:end)
        group by series_id, step_time) x
    order by x.series_id, x.step_time limit :limit
    """,
)


def read_steps(
    connection: Connection,
    series_ids: Sequence[int],
    start: int,
    step: int,
    step_count: int,
    limit: int,
    *,
    is_gauge: bool,
) -> list[StepRow]:
    """The samples of series in `step_count` steps of `step` seconds from `start` (seconds since
    1970), by series and step, at most `limit`: of gauges the highest value of each step, otherwise
    the last totals of each step, and those before the first.
    """
    query = _HIGHEST if is_gauge else _TOTALS
    return query.all(
        connection,
        series_ids=list(series_ids),
        start=start,
        step=step,
        step_count=step_count,
        end=start + step * step_count,
        limit=limit,
    )
