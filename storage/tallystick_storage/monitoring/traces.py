"""Stores and reads traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from tallystick_core.monitoring.spans import MAX_SPANS_OF_TRACE
from tallystick_storage.database import encode_rows
from tallystick_storage.pagination import PageKey, Scan, before_parameters
from tallystick_storage.sql import Connection, Query, text

_MAX_EXAMINED = 2_000
_MAX_DELETED = 1_000


@dataclass(frozen=True, slots=True)
class SpanRow:
    """A span, as it is stored."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: str
    service_name: str
    start_time: datetime
    end_time: datetime
    failed: bool
    attributes: Mapping[str, str]


class TraceRow(NamedTuple):
    """A trace. Its name and its service are those of its earliest span."""

    trace_id: str
    name: str
    service_name: str
    start_time: datetime
    end_time: datetime
    failed: bool
    span_count: int


class SpanResult(NamedTuple):
    """How many spans are new, and how many were left out for the limit of a trace."""

    recorded: int
    dropped: int


class TraceLimits(NamedTuple):
    """How many spans and bytes are stored, and for how many seconds."""

    max_spans: int
    max_bytes: int
    max_age: float


_LOCK = text("select from span_total for update")
_RECORD = Query(
    SpanResult,
    """
    with r as materialized (
        select * from json_to_recordset(cast(:spans as json)) as r (position int, trace_id text,
            span_id text, parent_span_id text, name text, kind text, service_name text,
            start_time timestamptz, end_time timestamptz, failed boolean, attributes jsonb,
            byte_count int)),
    fresh as materialized (
        select r.*, row_number() over (partition by r.trace_id order by r.position)
            + coalesce(t.span_count, 0) as number
        from r left join trace t on t.trace_id = r.trace_id
        where not exists (select from span s
            where s.trace_id = r.trace_id and s.span_id = r.span_id)),
    kept as materialized (select * from fresh where number <= :max_of_trace),
    added as materialized (
        select trace_id, (array_agg(name order by start_time, position))[1] as name,
            (array_agg(service_name order by start_time, position))[1] as service_name,
            min(start_time) as start_time, max(end_time) as end_time, bool_or(failed) as failed,
            count(*) as span_count, sum(byte_count) as byte_count
        from kept group by trace_id),
    traces as (
        insert into trace as t (trace_id, name, service_name, start_time, end_time, failed,
            span_count, byte_count, receive_time)
        select a.trace_id, a.name, a.service_name, a.start_time, a.end_time, a.failed,
            a.span_count, a.byte_count, (select clock()) from added a
        on conflict (trace_id) do update set
            name = case when excluded.start_time < t.start_time then excluded.name
                else t.name end,
            service_name = case when excluded.start_time < t.start_time
                then excluded.service_name else t.service_name end,
            start_time = least(t.start_time, excluded.start_time),
            end_time = greatest(t.end_time, excluded.end_time),
            failed = t.failed or excluded.failed,
            span_count = t.span_count + excluded.span_count,
            byte_count = t.byte_count + excluded.byte_count),
    spans as (
        insert into span (trace_id, span_id, parent_span_id, name, kind, service_name, start_time,
            end_time, failed, attributes)
        select trace_id, span_id, parent_span_id, name, kind, service_name, start_time, end_time,
            failed, attributes from kept),
    total as (
        update span_total u set span_count = u.span_count + a.span_count,
            byte_count = u.byte_count + a.byte_count
        from (select coalesce(sum(span_count), 0) as span_count,
            coalesce(sum(byte_count), 0) as byte_count from added) a)
    select (select count(*) from kept) as recorded,
        (select count(*) from fresh where number > :max_of_trace) as dropped
    """,
)
# The oldest traces, as many as are above a limit or too old.
_PRUNE = text("""
    with excess as (
        select u.span_count - :max_spans as span_count, u.byte_count - :max_bytes as byte_count
        from span_total u),
    oldest as (
        select t.*, sum(t.span_count) over w - t.span_count as spans_before,
            sum(t.byte_count) over w - t.byte_count as bytes_before
        from (select trace_id, receive_time, span_count, byte_count from trace
            order by receive_time, trace_id limit :limit) t
        window w as (order by t.receive_time, t.trace_id)),
    old as materialized (
        select o.trace_id, o.span_count, o.byte_count from oldest o cross join excess e
        where o.spans_before < e.span_count or o.bytes_before < e.byte_count
            or o.receive_time < (select clock()) - make_interval(secs => :max_age)),
    spans as (delete from span s using old where s.trace_id = old.trace_id),
    traces as (delete from trace t using old where t.trace_id = old.trace_id),
    total as (
        update span_total u set span_count = u.span_count - d.span_count,
            byte_count = u.byte_count - d.byte_count
        from (select coalesce(sum(span_count), 0) as span_count,
            coalesce(sum(byte_count), 0) as byte_count from old) d)
    select count(*) from old
""")


def record_spans(
    connection: Connection, spans: Sequence[SpanRow], limits: TraceLimits
) -> SpanResult:
    """Stores the spans that are not stored yet, and deletes the oldest traces above the limits.
    The spans must have distinct ids.
    """
    rows = []
    for position, span in enumerate(spans):
        row = asdict(span)
        rows.append({**row, "position": position, "byte_count": len(encode_rows([row]))})
    connection.execute(_LOCK)
    result = _RECORD.one(connection, spans=encode_rows(rows), max_of_trace=MAX_SPANS_OF_TRACE)
    while _prune(connection, limits):
        continue
    return result


def prune_traces(connection: Connection, limits: TraceLimits) -> bool:
    """Deletes a page of the traces above the limits. Returns whether there may be more."""
    connection.execute(_LOCK)
    return _prune(connection, limits)


def _prune(connection: Connection, limits: TraceLimits) -> bool:
    parameters = {**limits._asdict(), "limit": _MAX_DELETED}
    return int(connection.execute(_PRUNE, parameters).scalar_one()) == _MAX_DELETED


_SELECT_TRACE = Query(TraceRow, "select {columns} from trace where trace_id = :trace_id")
_SELECT_SPANS = Query(
    SpanRow, "select {columns} from span where trace_id = :trace_id order by start_time, span_id"
)


def find_trace(connection: Connection, trace_id: str) -> tuple[TraceRow, list[SpanRow]] | None:
    """A trace and its spans, by their start. None: there is none."""
    trace = _SELECT_TRACE.one_or_none(connection, trace_id=trace_id)
    return None if trace is None else (trace, _SELECT_SPANS.all(connection, trace_id=trace_id))


class TraceCriteria(NamedTuple):
    """The filters of a list; False, 0 and "" do not filter."""

    failed: bool
    min_duration: timedelta
    name: str

    def match(self, row: TraceRow) -> bool:
        return (
            row.failed >= self.failed
            and row.end_time - row.start_time >= self.min_duration
            and self.name in ("", row.name)
        )


_NEWEST = Query(
    TraceRow,
    """
    select {columns} from trace
    where cast(:before_time as timestamptz) is null
        or (start_time, trace_id) < (cast(:before_time as timestamptz), :before_id)
    order by start_time desc, trace_id desc limit :limit
    """,
)


def list_traces(
    connection: Connection, criteria: TraceCriteria, before: PageKey | None, limit: int
) -> Scan[TraceRow, PageKey]:
    """Traces, newest first. There is no index for the filters, so a page examines the newest 2,000
    traces and no more.
    """
    has_filters = criteria != TraceCriteria(False, timedelta(), "")
    max_examined = _MAX_EXAMINED if has_filters else limit
    examined = _NEWEST.all(connection, **before_parameters(before), limit=max_examined)
    rows = [row for row in examined if criteria.match(row)]
    is_complete = len(examined) < max_examined
    last_key = None if is_complete else (examined[-1].start_time, examined[-1].trace_id)
    return Scan(rows[:limit], last_key)
