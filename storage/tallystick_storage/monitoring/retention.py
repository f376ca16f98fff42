"""Reduces old samples to fewer, and deletes them at the end of their retention."""

from __future__ import annotations

from typing import NamedTuple

from tallystick_storage.sql import Connection, Query, text

_MAX_DELETED = 10_000
# Retention runs in one process at a time, so that two do not wait for rows of each other.
_LOCK = text("""
    insert into thinning (resolution, end_time) values (:resolution, to_timestamp(0))
    on conflict (resolution) do update set end_time = thinning.end_time
""")
_LOCK_OF_DELETION = {"resolution": 1}
# The first interval that has samples which are not reduced yet, if all of it is old enough.
_NEXT_INTERVAL = text("""
    select cast(trunc(extract(epoch from min(s.record_time)) / :resolution) as bigint) * :resolution
    from (select record_time from sample where record_time >= (
        select end_time from thinning where resolution = :resolution)
        order by record_time limit 1) s
    where trunc(extract(epoch from s.record_time) / :resolution) * :resolution + :resolution
        <= extract(epoch from (select clock())) - :min_age
""")
# Of a gauge the highest sample of the interval is kept, otherwise the last one.
_THIN = text("""
    delete from sample s using (
        select x.series_id, x.record_time, row_number() over (
            partition by x.series_id
            order by case when r.kind = 'GAUGE' then x.value end desc, x.record_time desc) as rank
        from sample x join series r using (series_id)
        where x.record_time >= to_timestamp(:start)
            and x.record_time < to_timestamp(:start + :resolution)) k
    where k.rank > 1 and (s.series_id, s.record_time) = (k.series_id, k.record_time)
""")
_ADVANCE = text("""
    update thinning set end_time = to_timestamp(:start + :resolution)
    where resolution = :resolution
""")


def thin(connection: Connection, resolution: int, min_age: int) -> bool:
    """Keeps one sample of each series in the next interval of `resolution` seconds that ended more
    than `min_age` seconds ago. Returns whether there was one. Several processes may do it at once.
    """
    connection.execute(_LOCK, {"resolution": resolution})
    parameters = {"resolution": resolution, "min_age": min_age}
    start = connection.execute(_NEXT_INTERVAL, parameters).scalar_one_or_none()
    if start is None:
        return False
    connection.execute(_THIN, {"start": start, "resolution": resolution})
    connection.execute(_ADVANCE, {"start": start, "resolution": resolution})
    return True


# The totals of the last deleted sample become the base of its series, so that no increase is lost.
_DELETE_OLD = text("""
    with old as materialized (
        select s.series_id, s.record_time from sample s
        where s.record_time < (select clock()) - make_interval(secs => :max_age)
        order by s.record_time, s.series_id limit :limit),
    deleted as (
        delete from sample s using old
        where (s.series_id, s.record_time) = (old.series_id, old.record_time)
        returning s.series_id, s.record_time, s.value, s.bucket_counts),
    based as (
        update series r set base_value = d.value,
            base_bucket_counts = coalesce(d.bucket_counts, r.base_bucket_counts)
        from (select distinct on (series_id) series_id, value, bucket_counts from deleted
            order by series_id, record_time desc) d
        where r.series_id = d.series_id)
    select count(*) from deleted
""")


def delete_old(connection: Connection, max_age: int) -> bool:
    """Deletes a page of samples that are older than `max_age` seconds. Returns whether there may be
    more.
    """
    connection.execute(_LOCK, _LOCK_OF_DELETION)
    parameters = {"max_age": max_age, "limit": _MAX_DELETED}
    return int(connection.execute(_DELETE_OLD, parameters).scalar_one()) == _MAX_DELETED


class _EndedProcess(NamedTuple):
    process_id: str


# The process that ended first.
_FIND_ENDED = Query(
    _EndedProcess,
    """
    select cast(p.process_id as text) as process_id from process p
    where p.last_record_time < (select clock()) - make_interval(secs => case
        when (select count(*) from series) > :max_series then :min_age else :max_age end)
    order by p.last_record_time, p.process_id limit 1
    """,
)
_DELETE_SAMPLES = text("""
    delete from sample where (series_id, record_time) in (
        select x.series_id, x.record_time from series s join sample x using (series_id)
        where s.process_id = cast(:process_id as uuid) limit :limit)
""")
_DELETE_SERIES = text("delete from series where process_id = cast(:process_id as uuid)")
_DELETE_PROCESS = text("delete from process where process_id = cast(:process_id as uuid)")


def delete_ended(connection: Connection, max_series: int, min_age: int, max_age: int) -> bool:
    """Deletes a page of what a process recorded that has ended: more than `max_age` seconds ago, or
    more than `min_age` seconds ago while there are more than `max_series` series. Returns whether
    there was one.
    """
    connection.execute(_LOCK, _LOCK_OF_DELETION)
    process = _FIND_ENDED.one_or_none(
        connection, max_series=max_series, min_age=min_age, max_age=max_age
    )
    if process is None:
        return False
    parameters = {"process_id": process.process_id, "limit": _MAX_DELETED}
    if connection.execute(_DELETE_SAMPLES, parameters).rowcount < _MAX_DELETED:
        connection.execute(_DELETE_SERIES, parameters)
        connection.execute(_DELETE_PROCESS, parameters)
    return True
