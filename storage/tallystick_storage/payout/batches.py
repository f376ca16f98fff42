"""Payout batches: their items, their progress, and their reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tallystick_core.payout.batch import BatchState, ItemState
from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.payout.schedules import BACK_OFF
from tallystick_storage.sql import Connection, Row, text

_COLUMNS = """b.payout_batch_id, b.caller, b.owner, b.fingerprint, b.traceparent, b.is_run,
    b.seller_account, b.currency, b.cut_off_time, b.state, b.cursor, b.item_count,
    b.generated_count, b.rejected_count, b.skipped_count, b.version, b.create_time, b.update_time,
        b.done_time"""


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


_INSERT = text(f"""
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
    select {_COLUMNS}, sequence as outbox_sequence from b, outbox_sequence
""")
_FIND = text(f"select {_COLUMNS} from payout_batch b where b.payout_batch_id = :id")
_LIST_GENERATING = text(f"""
    select {_COLUMNS} from payout_batch b where b.state = 'GENERATING'
        and b.next_run_time <= (select clock()) order by b.next_run_time, b.payout_batch_id
            limit :limit
""")
_RESCHEDULE = text(f"""
    update payout_batch set failure_count = failure_count + 1, next_run_time = clock() + {BACK_OFF}
        where payout_batch_id = :id and state = 'GENERATING'
""")
_LIST_OPEN = text(
    f"select {_COLUMNS} from payout_batch b where b.state = 'OPEN' and b.payout_batch_id > :after "
    "order by b.payout_batch_id limit :limit"
)
_LOCK = text(f"select {_COLUMNS} from payout_batch b where b.payout_batch_id = :id for update")
_LIST_REQUESTED = text("""
    select payout_id, seller_account, amount, currency, payout_destination_id from payout_batch_item
    where payout_batch_id = :id and state = 'REQUESTED' order by payout_id limit :limit
""")
_LOAD_ITEMS = text("""
    select payout_id, seller_account, amount, currency, payout_destination_id from payout_batch_item
        where payout_batch_id = :id order by payout_id
""")
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
_TRANSITION = text(f"""
    with b as (
        update payout_batch p set state = :state, version = p.version + 1,
            update_time = greatest(p.update_time, t.now),
            done_time = case when :state = 'DONE' then t.now end
        from (select clock() as now) t where p.payout_batch_id = :id and p.state = :before
            returning p.*),
    {insert_into_outbox("b", "'payoutBatches/' || payout_batch_id")}
    select {_COLUMNS}, sequence as outbox_sequence from b, outbox_sequence
""")
# Every payout of a batch that is in progress has an operation.
_IS_IN_PROGRESS = text(
    "select exists (select from operation where payout_batch_id = :id and payout_batch_id <> '')"
)
_LOAD_TOTALS = text("""
    select state, currency, count(*) as payouts, sum(amount) as amount, sum(fee) as fee,
        sum(returned_amount) as returned_amount
    from payout where payout_batch_id = :id and payout_batch_id <> '' group by state, currency
        order by state, currency
""")
_LOAD_REPORT = text("""
    select payout_id, seller_account, state as item_state, error from payout_batch_item
    where payout_batch_id = :id and payout_id > :after and state <> 'REQUESTED'
        and (not :rejected_only or state = 'REJECTED') order by payout_id limit :limit
""")
# Looks up each payout in the order of the report. Another plan might read all payouts to find those
# in the state.
_LOAD_REPORT_IN_STATE = text("""
    select i.payout_id, i.seller_account, i.state as item_state, i.error
    from (select * from payout_batch_item where payout_batch_id = :id and payout_id > :after
        order by payout_id limit :max_scanned) i
    cross join lateral (select state from payout p where p.payout_id = i.payout_id
        and i.state = 'CREATED' offset 0) p
    where p.state = :state order by i.payout_id limit :limit
""")
_LAST_SCANNED = text("""
    select payout_id from payout_batch_item where payout_batch_id = :id and payout_id > :after
        order by payout_id limit 1 offset :max_scanned - 1
""")
_MAX_SCANNED = 2000


def load_items(connection: Connection, payout_batch_id: str) -> Sequence[Row[Any]]:
    """The requested payouts of a batch, by id."""
    return connection.execute(_LOAD_ITEMS, {"id": payout_batch_id}).all()


def insert(
    connection: Connection, new: NewBatchRow, items: Sequence[BatchItemRow] = ()
) -> Row[Any] | None:
    """Stores a batch with its requested payouts. Returns it with the outbox row in which it is to
    be recorded, or None if the id exists.
    """
    values: dict[str, Any] = {field: getattr(new, field) for field in new.__slots__}
    return connection.execute(_INSERT, {**values, "items": encode_rows(items)}).one_or_none()


def find(connection: Connection, payout_batch_id: str) -> Row[Any] | None:
    return connection.execute(_FIND, {"id": payout_batch_id}).one_or_none()


def list_generating(connection: Connection, limit: int) -> Sequence[Row[Any]]:
    """Batches that are still generating payouts and are due, in the order in which they are due."""
    return connection.execute(_LIST_GENERATING, {"limit": limit}).all()


def reschedule(connection: Connection, payout_batch_id: str) -> None:
    """Reschedules a batch whose generation failed. It comes after the others, and the delay grows
    with each failure.
    """
    connection.execute(_RESCHEDULE, {"id": payout_batch_id})


def list_open(connection: Connection, after: str, limit: int) -> Sequence[Row[Any]]:
    """Batches whose payouts are all created and not all final, by id after a given one."""
    return connection.execute(_LIST_OPEN, {"after": after, "limit": limit}).all()


def lock(connection: Connection, payout_batch_id: str) -> Row[Any]:
    """A batch, locked for generation."""
    return connection.execute(_LOCK, {"id": payout_batch_id}).one()


def list_requested(connection: Connection, payout_batch_id: str, limit: int) -> Sequence[Row[Any]]:
    """The payouts that a batch has yet to create, by payout id."""
    return connection.execute(_LIST_REQUESTED, {"id": payout_batch_id, "limit": limit}).all()


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
) -> Row[Any] | None:
    """Moves a batch from a state to the next. Returns it with the outbox row in which it is to be
    recorded, or None if it is in another state.
    """
    return connection.execute(
        _TRANSITION, {"id": payout_batch_id, "before": from_state, "state": to_state}
    ).one_or_none()


def is_in_progress(connection: Connection, payout_batch_id: str) -> bool:
    """Whether any payout of a batch is not final."""
    return bool(connection.execute(_IS_IN_PROGRESS, {"id": payout_batch_id}).scalar_one())


def load_totals(connection: Connection, payout_batch_id: str) -> Sequence[Row[Any]]:
    """The totals of a batch's payouts by state and currency, in minor units."""
    return connection.execute(_LOAD_TOTALS, {"id": payout_batch_id}).all()


def load_report(
    connection: Connection,
    payout_batch_id: str,
    after: str,
    state: str,
    limit: int,
    *,
    rejected_only: bool,
) -> tuple[Sequence[Row[Any]], str | None]:
    """The results of a batch's payouts, by id after a given one, and the id up to which they were
    examined; None: to the end.

    `state` selects the payouts in that state; "" selects all. Matches may be rare in a batch, so a
    page examines 2,000 payouts and no more.
    """
    values: dict[str, Any] = {"id": payout_batch_id, "after": after, "limit": limit}
    if not state:
        return connection.execute(
            _LOAD_REPORT, {**values, "rejected_only": rejected_only}
        ).all(), None
    if rejected_only:  # a rejected item has no payout
        return [], None
    values["max_scanned"] = _MAX_SCANNED
    items = connection.execute(_LOAD_REPORT_IN_STATE, {**values, "state": state}).all()
    return items, connection.execute(_LAST_SCANNED, values).scalar_one_or_none()
