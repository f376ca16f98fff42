"""Records samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from tallystick_storage.database import encode_rows
from tallystick_storage.sql import Connection, Query


@dataclass(frozen=True, slots=True)
class NewSample:
    """The present values of a series. `bucket_counts`: None except for a histogram."""

    metric: str
    kind: str
    attributes: Mapping[str, str]
    boundaries: Sequence[float]
    value: float
    bucket_counts: Sequence[int] | None


class RecordResult(NamedTuple):
    """`requested` is 0 if a later request of the process was recorded already."""

    requested: int
    recorded: int


_RECORD = Query(
    RecordResult,
    """
    with t as materialized (select clock() as now),
    p as (
        insert into process as p (process_id, name, last_sequence, last_record_time)
        select cast(:process_id as uuid), :process_name, :sequence, t.now from t
        on conflict (process_id) do update set last_sequence = excluded.last_sequence,
            last_record_time = greatest(p.last_record_time, excluded.last_record_time)
        where p.last_sequence < excluded.last_sequence
        returning p.process_id, p.last_record_time),
    requested as materialized (
        select p.process_id, p.last_record_time, r.*
        from p cross join json_to_recordset(cast(:samples as json)) as r (position int,
            metric text, kind text, attributes jsonb, boundaries float8[], value float8,
            bucket_counts bigint[])),
    stored as (
        select r.position, s.series_id from requested r join series s
            on (s.process_id, s.metric, s.attributes) = (r.process_id, r.metric, r.attributes)),
    created as (
        insert into series (process_id, metric, attributes, kind, boundaries, create_time)
        select r.process_id, r.metric, r.attributes, r.kind, r.boundaries, r.last_record_time
        from requested r where not exists (select from stored s where s.position = r.position)
        order by r.position
        limit greatest(:max_series - (select count(*) from series), 0)
        returning series_id, metric, attributes),
    target as (
        select position, series_id from stored
        union all
        select r.position, c.series_id from created c join requested r using (metric, attributes)),
    recorded as (
        insert into sample (series_id, record_time, value, bucket_counts)
        select t.series_id, r.last_record_time, r.value, r.bucket_counts
        from target t join requested r using (position)
        on conflict do nothing)
    select (select count(*) from requested) as requested, (select count(*) from target) as recorded
    """,
)


def record(
    connection: Connection,
    process_id: UUID,
    process_name: str,
    sequence: int,
    samples: Sequence[NewSample],
    max_series: int,
) -> RecordResult:
    """Records the samples of a process, by the clock of the database, unless a request with this or
    a higher sequence was recorded. The samples must have distinct series. A series above the limit
    is left out.
    """
    rows = [
        {
            "position": index,
            "metric": sample.metric,
            "kind": sample.kind,
            "attributes": dict(sample.attributes),
            "boundaries": list(sample.boundaries),
            "value": sample.value,
            "bucket_counts": None if sample.bucket_counts is None else list(sample.bucket_counts),
        }
        for index, sample in enumerate(samples)
    ]
    return _RECORD.one(
        connection,
        process_id=str(process_id),
        process_name=process_name,
        sequence=sequence,
        samples=encode_rows(rows),
        max_series=max_series,
    )
