"""Deliveries of orders, kept until the wallet has released the sellers' money."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tallystick_core.payment.state import PaymentTransitionReason
from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.payment.orders import OrderRow
from tallystick_storage.sql import Connection, Query, columns, text


@dataclass(frozen=True, slots=True)
class DeliveredOrderRow(OrderRow):
    """An order whose delivery was recorded, and the outbox row in which this is to be recorded."""

    caller: str
    owner: str
    traceparent: str
    outbox_sequence: int


class PendingReleaseRow(NamedTuple):
    payment_order_id: str
    caller: str


_CONFIRM_DELIVERY = Query(
    DeliveredOrderRow,
    f"""
    with l as materialized (
        select o.payment_order_id, c.caller, c.owner, c.traceparent from payment_order o
            join checkout c on c.checkout_id = o.checkout_id
        where o.payment_order_id = any (cast(:ids as text[])) and o.status = 'SUCCESS'
            and o.wallet_updated and o.ledger_updated
            and o.delivery_confirmed_time is null
        order by o.payment_order_id for update of o),
    changed as (
        update payment_order o set delivery_confirmed_time = greatest(o.update_time, t.now),
            version = o.version + 1,
            update_time = greatest(o.update_time, t.now)
        from l, (select clock() as now) t where o.payment_order_id = l.payment_order_id
            returning o.*, l.caller, l.owner, l.traceparent),
    history as (
        insert into order_history (payment_order_id, version, from_status, to_status,
            transition_reason,
            wallet_updated, ledger_updated, delivered, captured_amount, refunded_amount,
            disputed_amount, pending_reason,
            next_action_url, failure_reason, decline_code, provider_reference, attempt_count,
                create_time)
        select payment_order_id, version, status, status, :transition_reason, wallet_updated,
            ledger_updated,
            true, captured_amount, refunded_amount, disputed_amount, pending_reason,
            next_action_url, failure_reason,
            decline_code, provider_reference, attempt_count, update_time from changed),
    release as (insert into pending_release (payment_order_id, caller, rejection_message,
        create_time) select payment_order_id, caller, '', update_time from changed),
    {insert_into_outbox("changed", "'paymentOrders/' || payment_order_id")}
    select {columns(OrderRow)}, caller, owner, traceparent, sequence as outbox_sequence
        from changed, outbox_sequence
    """,
)
_LIST_RELEASABLE = Query(
    PendingReleaseRow,
    """
    select {columns} from pending_release where next_try_time <= (select clock())
        order by next_try_time, create_time, payment_order_id limit :limit
    """,
)
_MARK_RELEASE_REJECTED = text("""
    with l as materialized (
        select t.payment_order_id, r.message from pending_release t
            join json_to_recordset(cast(:rejections as json)) as r (id text, message text)
        on t.payment_order_id = r.id order by t.payment_order_id for update of t),
    recorded as (
        update pending_release t set rejection_message = l.message, retry_count = t.retry_count + 1,
            next_try_time = clock() + least(power(2, least(t.retry_count, 9)),
            300) * interval '1 second'
        from l where t.payment_order_id = l.payment_order_id returning t.payment_order_id,
            t.retry_count)
    select payment_order_id from recorded where retry_count = 1 order by payment_order_id
""")
_MARK_RELEASED = text(
    "delete from pending_release where payment_order_id = any (cast(:ids as text[]))"
)


def confirm_delivery(connection: Connection, order_ids: list[str]) -> list[DeliveredOrderRow]:
    """Records deliveries of orders that are booked and not yet recorded as delivered. Returns those
    orders, all with the same outbox row.
    """
    return _CONFIRM_DELIVERY.all(
        connection,
        ids=order_ids,
        transition_reason=PaymentTransitionReason.DELIVERY_CONFIRMED,
    )


def list_releasable(connection: Connection, limit: int) -> list[PendingReleaseRow]:
    """Delivered orders whose money the wallet is to release now, with their callers. Orders never
    rejected by the wallet come first, then the oldest.
    """
    return _LIST_RELEASABLE.all(connection, limit=limit)


def mark_released(connection: Connection, order_ids: list[str]) -> None:
    """Deletes the pending releases that the wallet has completed."""
    connection.execute(_MARK_RELEASED, {"ids": order_ids})


def mark_release_rejected(connection: Connection, messages: Mapping[str, str]) -> list[str]:
    """Stores the wallet's rejection by order, and schedules a retry after 1 s, doubling up to 300
    s. Returns the orders that it had not rejected before.
    """
    if not messages:
        return []
    items = encode_rows(
        [
            {"id": order_id, "message": message or "rejected"}
            for order_id, message in sorted(messages.items())
        ]
    )
    return list(connection.execute(_MARK_RELEASE_REJECTED, {"rejections": items}).scalars())
