"""Transitions of orders, and the cancellation of payments.

Lock order: attempts, operations, checkouts, orders, dead letters, each by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.sql import Connection, Query, text


@dataclass(frozen=True, slots=True)
class OrderRow:
    """An order; amounts in minor units."""

    payment_order_id: str
    checkout_id: str
    charge_id: str
    buyer_account: str
    seller_account: str
    amount: int
    currency: str
    platform_fee: int
    captured_amount: int
    refunded_amount: int
    disputed_amount: int
    status: str
    wallet_updated: bool
    ledger_updated: bool
    pending_reason: str
    next_action_url: str
    failure_reason: str
    decline_code: str
    provider: str
    provider_reference: str
    attempt_count: int
    resolve_by_time: datetime | None
    delivery_confirmed_time: datetime | None
    version: int
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class OrderTransitionRow:
    """A transition of an order from `version`, at which it has `from_status`. It happens only from
    that version: this protects an order from every concurrent change, under any lease.
    """

    payment_order_id: str
    charge_id: str
    checkout_id: str
    version: int
    from_status: str
    status: str
    transition_reason: str
    booked: bool
    pending_reason: str
    next_action_url: str
    failure_reason: str
    decline_code: str
    provider_reference: str
    provider: str | None
    """The provider of the charge's next attempt; None: there is no new attempt."""


@dataclass(frozen=True, slots=True)
class TimedTransitionRow(OrderTransitionRow):
    """A transition at a time, with a serialized BatchPublishRequest of its event, in hex."""

    resolve_by_time: datetime | None
    update_time: datetime
    event: str


class ChangedOrderRow(NamedTuple):
    """An order that changed, and the current lease token of its operation; None: it has none."""

    payment_order_id: str
    lease_token: int | None


class FinishedRow(NamedTuple):
    """An order that became final, and the lease token of its deleted operation. Or a payment that
    became final: then only `checkout_id` is set. `outbox_sequence`: the outbox row of their events.
    """

    payment_order_id: str | None
    checkout_id: str
    update_time: datetime | None
    lease_token: int | None
    outbox_sequence: int


_TRANSITIONS = """(
            select * from json_to_recordset(cast(:transitions as json)) as r (
                payment_order_id text collate "C", charge_id text collate "C",
                checkout_id text collate "C", version int, from_status text, status text,
                transition_reason text, booked boolean, pending_reason text, next_action_url text,
                failure_reason text, decline_code text, provider_reference text, provider text,
                resolve_by_time timestamptz, update_time timestamptz, event text)"""
_CHANGED = """changed as (
        update payment_order o set
            status = r.status, wallet_updated = r.booked, ledger_updated = r.booked,
            captured_amount = case when r.status = 'SUCCESS' then o.amount else 0 end,
            pending_reason = r.pending_reason, next_action_url = r.next_action_url,
            failure_reason = r.failure_reason, decline_code = r.decline_code,
            provider_reference = case when r.provider_reference = '' then o.provider_reference
                else r.provider_reference end,
            provider = coalesce(r.provider, o.provider),
            attempt_count = o.attempt_count + (r.provider is not null)::int,
            resolve_by_time = r.resolve_by_time, version = o.version + 1,
            update_time = greatest(o.update_time, {time})
        from {requested} r where o.payment_order_id = r.payment_order_id and o.version = r.version
        returning o.*, r.from_status, r.transition_reason, r.booked, r.event),
    -- One row for each new version.
    history as (
        insert into order_history (
            payment_order_id, version, from_status, to_status, transition_reason, wallet_updated,
            ledger_updated, delivered, captured_amount, refunded_amount, disputed_amount,
            pending_reason, next_action_url, failure_reason,
            decline_code, provider_reference, attempt_count, resolve_by_time, create_time)
        select
            payment_order_id, version, from_status, status, transition_reason, wallet_updated,
            ledger_updated, false, captured_amount, refunded_amount, disputed_amount,
            pending_reason, next_action_url, failure_reason,
            decline_code, provider_reference, attempt_count, resolve_by_time, update_time
        from changed)"""
_ORDER_PATH = "'paymentOrders/' || payment_order_id"
_ORDER_EVENTS = "string_agg(decode(event, 'hex'), '')"
_IN_LOCK_ORDER = f"{_TRANSITIONS} order by payment_order_id)"
# The usual answer of a provider costs this statement. It has few parts, because each costs
# executor time even if it is empty.
_CHANGE_ORDERS = Query(
    ChangedOrderRow,
    f"""
    with {_CHANGED.format(requested=_IN_LOCK_ORDER, time="r.update_time")},
    {insert_into_outbox("changed", _ORDER_PATH, request=_ORDER_EVENTS)}
    select payment_order_id, (select op.lease_token from operation op
        where op.kind = 'charge' and op.operation_id = c.charge_id) as lease_token
    from changed c
    """,
)
# Lookups by key in a lateral "limit 1" stay lookups. `operation` is small and its statistics are
# always outdated, so a join read the whole table once per transition.
_FINISH_ORDERS = Query(
    FinishedRow,
    f"""
    with requested as materialized {_TRANSITIONS}),
    locked_operation as materialized (
        select op.operation_id
        from (select distinct charge_id from requested order by charge_id) r
        cross join lateral (select op.operation_id from operation op
            where op.kind = 'charge' and op.operation_id = r.charge_id limit 1 for update) op),
    -- The counts are always true: they make the statement lock operations, then checkouts, then
    -- orders, as everywhere.
    locked_checkout as materialized (
        select c.checkout_id from checkout c
        where c.checkout_id = any (array(select checkout_id from requested))
            and (select count(*) from locked_operation) >= 0
        order by c.checkout_id for update),
    ordered as materialized (
        select * from requested where (select count(*) from locked_checkout) >= 0
        order by payment_order_id),
    -- This time comes after the locks, so the payment is not final before its last order is.
    {_CHANGED.format(requested="ordered", time="clock()")},
    -- A checkout is at version 1 while an order is open, and at 2 once all are final.
    counted as (
        update checkout c set
            open_orders = c.open_orders - n.final_orders,
            unpaid_orders = c.unpaid_orders - n.booked_orders,
            version = case when c.open_orders = n.final_orders then 2 else 1 end,
            done_time = case when c.open_orders = n.final_orders then n.last_time end
        from (
            select checkout_id, count(*) as final_orders,
                count(*) filter (where booked) as booked_orders, max(update_time) as last_time
            from changed group by checkout_id) n
        where c.checkout_id = n.checkout_id
        returning c.checkout_id, c.version),
    -- A final charge needs no operation.
    done as (
        delete from operation op
        where op.kind = 'charge' and op.operation_id = any (array(select charge_id from changed))
        returning op.operation_id, op.lease_token),
    -- The resources with a new version, for their events.
    changed_resource as (
        select {_ORDER_PATH} as aggregate_id, version from changed
        union all
        select 'payments/' || checkout_id, 2 from counted where version = 2),
    {insert_into_outbox("changed_resource", "aggregate_id")}
    select payment_order_id, checkout_id, update_time,
        (select d.lease_token from done d where d.operation_id = c.charge_id) as lease_token,
        sequence as outbox_sequence
    from changed c, outbox_sequence
    union all
    select null, checkout_id, null, null, sequence from counted, outbox_sequence where version = 2
    """,
)


def change_orders(
    connection: Connection, transitions: Sequence[TimedTransitionRow]
) -> Sequence[ChangedOrderRow]:
    """Applies transitions after which an order is still open, and stores their events. Returns the
    orders that changed; a missing one had changed before.
    """
    return _CHANGE_ORDERS.all(connection, transitions=encode_rows(transitions))


def finish_orders(
    connection: Connection, transitions: Sequence[OrderTransitionRow]
) -> Sequence[FinishedRow]:
    """Applies transitions after which an order is final. A checkout without open orders becomes
    final; the operation of a final charge is deleted.

    Returns the orders that changed and the payments that became final, all with the same outbox
    row. A missing order had changed before.
    """
    return _FINISH_ORDERS.all(connection, transitions=encode_rows(transitions))


_CANCEL = text(
    "update checkout set cancel_reason = :reason where checkout_id = :checkout_id and open_orders "
    "> 0 and cancel_reason = ''"
)
_CANCEL_DUE = text("""
    with l as materialized (
        select operation_id from operation
        where kind = 'charge' and operation_id in (
            select charge_id from payment_order where checkout_id = :checkout_id
            and status in ('NOT_STARTED', 'EXECUTING', 'PENDING'))
        order by operation_id for update)
    update operation op set next_try_time = clock(), has_changed = true from l
        where op.kind = 'charge' and op.operation_id = l.operation_id
            and op.next_try_time is not null
""")
_LIST_OPEN_CHARGES = text(
    "select distinct charge_id from payment_order where checkout_id = :checkout_id and status in "
    "('NOT_STARTED', 'EXECUTING', 'PENDING') order by charge_id"
)
_CANCEL_REASON = text("select cancel_reason from checkout where checkout_id = :checkout_id")


def cancel(connection: Connection, checkout_id: str, reason: str) -> tuple[str, bool]:
    """Records the cancellation of a payment that is open and not yet cancelled. Its charges become
    due, except dead-lettered ones, which are only locked.

    Returns the reason that is stored now ("" if the payment had already ended), and whether this
    call stored it.
    """
    connection.execute(_CANCEL_DUE, {"checkout_id": checkout_id})
    updated = connection.execute(_CANCEL, {"checkout_id": checkout_id, "reason": reason}).rowcount
    return str(connection.execute(_CANCEL_REASON, {"checkout_id": checkout_id}).scalar_one()), bool(
        updated
    )


def list_open_charges(connection: Connection, checkout_id: str) -> list[str]:
    """The charges of a payment that are not final."""
    return list(connection.execute(_LIST_OPEN_CHARGES, {"checkout_id": checkout_id}).scalars())
