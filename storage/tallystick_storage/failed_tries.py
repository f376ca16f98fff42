"""The last failed tries of operations, for those who ask later why it took so long. Written when a
try fails, so an operation that succeeds at once has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_core.operations.kind import KindName
from tallystick_storage.database import encode_rows
from tallystick_storage.sql import Connection, Query, text


@dataclass(frozen=True, slots=True)
class NewFailedTry:
    """A try that did not complete its operation. `is_outage`: it fails as long as something is
    unavailable, so tries in a row with the same reason are one row. `has_next_try`: the operation
    is scheduled again.
    """

    kind: str
    operation_id: str
    attempt_number: int
    provider: str
    action: str
    retry_reason: str
    detail: str
    provider_request_id: str
    is_outage: bool
    has_next_try: bool


class FailedTryRow(NamedTuple):
    """`repeat_count` tries from `create_time` to `last_time`. `next_try_time` None: no further try
    was scheduled.
    """

    operation_id: str
    attempt_number: int
    provider: str
    action: str
    retry_reason: str
    detail: str
    provider_request_id: str
    repeat_count: int
    create_time: datetime
    last_time: datetime
    next_try_time: datetime | None


_INSERT = text("""
    insert into failed_try (kind, operation_id, number, attempt_number, provider, action,
        retry_reason, detail, provider_request_id, repeat_count, create_time, last_time,
        next_try_time)
    select r.kind, r.operation_id,
        case when r.is_outage and l.retry_reason = r.retry_reason and l.action = r.action
            then l.number else coalesce(l.number, 0) + 1 end,
        r.attempt_number, r.provider, r.action, r.retry_reason, r.detail, r.provider_request_id,
        1, t.now, t.now, case when r.has_next_try then op.next_try_time end
    from json_to_recordset(cast(:tries as json)) as r (kind text collate "C",
            operation_id text collate "C", attempt_number int, provider text, action text,
            retry_reason text, detail text, provider_request_id text, is_outage boolean,
            has_next_try boolean)
        cross join (select clock() as now) t
        left join operation op on op.kind = r.kind and op.operation_id = r.operation_id
        left join lateral (
            select f.number, f.retry_reason, f.action from failed_try f
            where f.kind = r.kind and f.operation_id = r.operation_id
            order by f.number desc limit 1) l on true
    on conflict (kind, operation_id, slot) do update set
        number = excluded.number, attempt_number = excluded.attempt_number,
        provider = excluded.provider, action = excluded.action,
        retry_reason = excluded.retry_reason, detail = excluded.detail,
        provider_request_id = excluded.provider_request_id,
        repeat_count = case when failed_try.number = excluded.number
            then failed_try.repeat_count + 1 else 1 end,
        create_time = case when failed_try.number = excluded.number
            then failed_try.create_time else excluded.create_time end,
        last_time = greatest(excluded.last_time, case when failed_try.number = excluded.number
            then failed_try.create_time end),
        next_try_time = excluded.next_try_time
""")
_LIST = Query(
    FailedTryRow,
    """
    select {columns} from failed_try
    where kind = :kind and operation_id = any (cast(:ids as text[]))
    order by create_time desc, number desc limit :limit + 1
    """,
)


def insert(connection: Connection, tries: Sequence[NewFailedTry]) -> None:
    """Stores a failed try of each operation, whose queue rows are locked. The oldest one goes if
    there are MAX_FAILED_TRIES. An operation occurs once.
    """
    connection.execute(_INSERT, {"tries": encode_rows(tries)})


def list_latest(
    connection: Connection, kind: KindName, operation_ids: Sequence[str], limit: int
) -> list[FailedTryRow]:
    """The failed tries of operations of a kind, newest first, and one more than `limit` if there
    are more.
    """
    return _LIST.all(connection, kind=kind, ids=list(operation_ids), limit=limit)
