"""Payout batches: their items, their progress, and their reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from tallystick_core.payout.batch import BatchState, ItemState
from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.pagination import Scan
from tallystick_storage.payout.schedules import BACK_OFF
from tallystick_storage.sql import Connection, Query, columns, text


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch. `seller_account`: of a run, its seller; "": all sellers. `cursor`: of a run, the
    position in the wallets.
    """

    payout_batch_id: str
    caller: str
    owner: str
    fingerprint: bytes
    traceparent: str
    is_run: bool
    seller_account: str
    currency: str
    cut_off_time: datetime | None
    state: str
    cursor: str
    item_count: int
    generated_count: int
    rejected_count: int
    skipped_count: int
    version: int
    create_time: datetime
    update_time: datetime
    done_time: datetime | None


@dataclass(frozen=True, slots=True)
class ChangedBatchRow(BatchRow):
    """A batch that was created or has changed its state, and the outbox row in which it is to be
    recorded.
    """

    outbox_sequence: int


class RequestedItemRow(NamedTuple):
    """A requested payout of a batch. `amount` in minor units; None: as much as can be paid."""

    payout_id: str
    seller_account: str
    amount: int | None
    currency: str
    payout_destination_id: str


class BatchTotalRow(NamedTuple):
    """The payouts of a batch in one state and currency: their number, and sums in minor units."""

    state: str
    currency: str
    payouts: int
    amount: Decimal
    fee: Decimal
    returned_amount: Decimal


class ReportItemRow(NamedTuple):
    """The result for one payout of a batch. `error`: a serialized google.rpc.Status; None: the
    payout is created.
    """

    payout_id: str
    seller_account: str
    error: bytes | None


@dataclass(slots=True)
class NewBatchRow:
    """A batch to store, GENERATING; `fingerprint` in hex."""

    payout_batch_id: str
    caller: str
    owner: str
    fingerprint: str
    traceparent: str
    is_run: bool
    seller_account: str
    currency: str
    cut_off_time: datetime | None
    item_count: int


@dataclass(slots=True)
class BatchItemRow:
    """One payout of a batch. `error` is a serialized google.rpc.Status in hex, if the item is
    REJECTED.
    """

    payout_batch_id: str
    payout_id: str
    seller_account: str
    amount: int | None
    currency: str
    payout_destination_id: str
    state: ItemState
    error: str | None = None


_INSERT = Query(
    ChangedBatchRow,
    f"""
    with b as (
        insert into payout_batch (payout_batch_id, caller, owner, fingerprint, traceparent, is_run,
            seller_account, currency, cut_off_time, state, cursor,
            item_count, generated_count, rejected_count, version, create_time, update_time)
        select :payout_batch_id, :caller, :owner, decode(:fingerprint, 'hex'), :traceparent,
            :is_run, :seller_account, :currency, :cut_off_time, 'GENERATING', '',
            :item_count, 0, 0, 1, t.now, t.now from (select clock() as now) t
        on conflict do nothing returning *),
    items as (
        insert into payout_batch_item (payout_batch_id, payout_id, seller_account, amount, currency,
            payout_destination_id, state)
        select r.payout_batch_id, r.payout_id, r.seller_account, r.amount, r.currency,
            r.payout_destination_id, r.state
        from json_to_recordset(cast(:items as json))
            as r (payout_batch_id text, payout_id text collate "C", seller_account text,
            amount bigint, currency text,
            payout_destination_id text, state text) join b on b.payout_batch_id = r.payout_batch_id
                order by r.payout_id),
    {insert_into_outbox("b", "'payoutBatches/' || payout_batch_id", "1")}
    select {columns(BatchRow, "b")}, sequence as outbox_sequence from b, outbox_sequence
    """,
)
_FIND = Query(BatchRow, "select {columns} from payout_batch where payout_batch_id = :id")
_LIST_GENERATING = Query(
    BatchRow,
    """
    select {columns} from payout_batch where state = 'GENERATING'
        and next_run_time <= (select clock()) order by next_run_time, payout_batch_id
            limit :limit
    """,
)
_RESCHEDULE = text(f"""
    update payout_batch set failure_count = failure_count + 1, next_run_time = clock() + {BACK_OFF}
        where payout_batch_id = :id and state = 'GENERATING'
""")
_LIST_OPEN = Query(
    BatchRow,
    "select {columns} from payout_batch where state = 'OPEN' and payout_batch_id > :after "
    "order by payout_batch_id limit :limit",
)
_LOCK = Query(BatchRow, "select {columns} from payout_batch where payout_batch_id = :id for update")
_LIST_REQUESTED = Query(
    RequestedItemRow,
    """
    select {columns} from payout_batch_item
    where payout_batch_id = :id and state = 'REQUESTED' order by payout_id limit :limit
    """,
)
_LOAD_ITEMS = Query(
    RequestedItemRow,
    "select {columns} from payout_batch_item where payout_batch_id = :id order by payout_id",
)
_UPSERT_ITEMS = text("""
    insert into payout_batch_item (payout_batch_id, payout_id, seller_account, amount, currency,
        payout_destination_id, state, error)
    select payout_batch_id, payout_id, seller_account, amount, currency, payout_destination_id,
        state, decode(error, 'hex')
    from json_to_recordset(cast(:items as json))
        as r (payout_batch_id text, payout_id text collate "C", seller_account text, amount bigint,
        currency text,
        payout_destination_id text, state text, error text) order by payout_id
    on conflict (payout_batch_id, payout_id) do update
        set state = excluded.state, error = excluded.error
""")
_RECORD_GENERATED = text("""
    update payout_batch
        set cursor = :cursor, item_count = greatest(item_count, generated_count + :generated),
        generated_count = generated_count + :generated,
        rejected_count = rejected_count + :rejected, skipped_count = skipped_count + :skipped,
            failure_count = 0 where payout_batch_id = :id
""")
_TRANSITION = Query(
    ChangedBatchRow,
    f"""
    with b as (
        update payout_batch p set state = :state, version = p.version + 1,
            update_time = greatest(p.update_time, t.now),
            done_time = case when :state = 'DONE' then t.now end
        from (select clock() as now) t where p.payout_batch_id = :id and p.state = :before
            returning p.*),
    {insert_into_outbox("b", "'payoutBatches/' || payout_batch_id")}
    select {columns(BatchRow, "b")}, sequence as outbox_sequence from b, outbox_sequence
    """,
)
# Every payout of a batch that is in progress has an operation.
_IS_IN_PROGRESS = text(
    "select exists (select from operation where payout_batch_id = :id and payout_batch_id <> '')"
)
_LOAD_TOTALS = Query(
    BatchTotalRow,
    """
    select state, currency, count(*) as payouts, sum(amount) as amount, sum(fee) as fee,
        sum(returned_amount) as returned_amount
    from payout where payout_batch_id = :id and payout_batch_id <> '' group by state, currency
        order by state, currency
    """,
)
_LOAD_REPORT = Query(
    ReportItemRow,
    """
    select {columns} from payout_batch_item
    where payout_batch_id = :id and payout_id > :after and state <> 'REQUESTED'
        and (not :rejected_only or state = 'REJECTED') order by payout_id limit :limit
    """,
)
# Looks up each payout in the order of the report. Another plan might read all payouts to find those
# in the state.
_LOAD_REPORT_IN_STATE = Query(
    ReportItemRow,
    f"""
    select {columns(ReportItemRow, "i")}
    from (select * from payout_batch_item where payout_batch_id = :id and payout_id > :after
        order by payout_id limit :max_scanned) i
    cross join lateral (select state from payout p where p.payout_id = i.payout_id
        and i.state = 'CREATED' offset 0) p
    where p.state = :state order by i.payout_id limit :limit
    """,
)
_LAST_SCANNED = text("""
    select payout_id from payout_batch_item where payout_batch_id = :id and payout_id > :after
        order by payout_id limit 1 offset :max_scanned - 1
""")
_MAX_SCANNED = 2000


def load_items(connection: Connection, payout_batch_id: str) -> Sequence[RequestedItemRow]:
    """The requested payouts of a batch, by id."""
    return _LOAD_ITEMS.all(connection, id=payout_batch_id)


def insert(
    connection: Connection, new: NewBatchRow, items: Sequence[BatchItemRow] = ()
) -> ChangedBatchRow | None:
    """Stores a batch with its requested payouts. Returns None if the id exists."""
    return _INSERT.one_or_none(
        connection,
        items=encode_rows(items),
        **{field: getattr(new, field) for field in new.__slots__},
    )


def find(connection: Connection, payout_batch_id: str) -> BatchRow | None:
    return _FIND.one_or_none(connection, id=payout_batch_id)


def list_generating(connection: Connection, limit: int) -> Sequence[BatchRow]:
    """Batches that are still generating payouts and are due, in the order in which they are due."""
    return _LIST_GENERATING.all(connection, limit=limit)


def reschedule(connection: Connection, payout_batch_id: str) -> None:
    """Reschedules a batch whose generation failed. It comes after the others, and the delay grows
    with each failure.
    """
    connection.execute(_RESCHEDULE, {"id": payout_batch_id})


def list_open(connection: Connection, after: str, limit: int) -> Sequence[BatchRow]:
    """Batches whose payouts are all created and not all final, by id after a given one."""
    return _LIST_OPEN.all(connection, after=after, limit=limit)


def lock(connection: Connection, payout_batch_id: str) -> BatchRow:
    """A batch, locked for generation."""
    return _LOCK.one(connection, id=payout_batch_id)


def list_requested(
    connection: Connection, payout_batch_id: str, limit: int
) -> Sequence[RequestedItemRow]:
    """The payouts that a batch has yet to create, by payout id."""
    return _LIST_REQUESTED.all(connection, id=payout_batch_id, limit=limit)


def record_generated(
    connection: Connection,
    payout_batch_id: str,
    items: Sequence[BatchItemRow],
    skipped_count: int,
    cursor: str,
) -> None:
    """Stores the results of some payouts of a locked batch, the number of skipped sellers, and the
    cursor in the wallets.
    """
    rejected_count = sum(item.state is ItemState.REJECTED for item in items)
    if items:
        connection.execute(_UPSERT_ITEMS, {"items": encode_rows(items)})
    connection.execute(
        _RECORD_GENERATED,
        {
            "id": payout_batch_id,
            "cursor": cursor,
            "generated": len(items),
            "rejected": rejected_count,
            "skipped": skipped_count,
        },
    )


def transition(
    connection: Connection, payout_batch_id: str, from_state: BatchState, to_state: BatchState
) -> ChangedBatchRow | None:
    """Moves a batch from a state to the next. Returns None if it is in another state."""
    return _TRANSITION.one_or_none(
        connection, id=payout_batch_id, before=from_state, state=to_state
    )


def is_in_progress(connection: Connection, payout_batch_id: str) -> bool:
    """Whether any payout of a batch is not final."""
    return bool(connection.execute(_IS_IN_PROGRESS, {"id": payout_batch_id}).scalar_one())


def load_totals(connection: Connection, payout_batch_id: str) -> Sequence[BatchTotalRow]:
    """The totals of a batch's payouts by state and currency."""
    return _LOAD_TOTALS.all(connection, id=payout_batch_id)


class ReportFilter(NamedTuple):
    """Which results of a batch to report. `state`: those of payouts in that state; "": of all."""

    payout_batch_id: str
    state: str
    rejected_only: bool


def load_report(
    connection: Connection, filters: ReportFilter, after: tuple[str] | None, limit: int
) -> Scan[ReportItemRow, tuple[str]]:
    """The results of a batch's payouts, by id after a given one. Those in a state may be rare in a
    batch, so a page examines 2,000 payouts and no more.
    """
    batch_id, state, rejected_only = filters
    values: dict[str, Any] = {
        "id": batch_id,
        "after": after[0] if after else "",
        "limit": limit,
    }
    if not state:
        return Scan(_LOAD_REPORT.all(connection, rejected_only=rejected_only, **values), None)
    if rejected_only:  # a rejected item has no payout
        return Scan([], None)
    values["max_scanned"] = _MAX_SCANNED
    items = _LOAD_REPORT_IN_STATE.all(connection, state=state, **values)
    last_id = connection.execute(_LAST_SCANNED, values).scalar_one_or_none()
    return Scan(items, None if last_id is None else (last_id,))
