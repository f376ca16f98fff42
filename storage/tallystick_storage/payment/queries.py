"""Reads for the API: a payment with its orders, an order with its history, and lists."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from tallystick_core.operations.kind import KindName
from tallystick_storage import operations as operation_store
from tallystick_storage.history import TransitionRow
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.pagination import PageKey, Scan, find_candidates
from tallystick_storage.sql import Connection, Query, Row, text

PaymentRow = Row[Any]
OrderRow = Row[Any]
OrderDetails = tuple[OrderRow, Sequence[TransitionRow], Sequence[operation_store.AttemptRow]]
"""An order with its owner, its history and the attempts of its charge."""

_PAYMENT_COLUMNS = """c.buyer_info, c.seller_info, c.buyer_country, c.payment_method_type,
    c.payment_state, c.is_payment_done, c.caller, c.owner, c.traceparent, c.expire_time,
    c.version as checkout_version, c.create_time as checkout_create_time, c.done_time"""
_ORDER_COLUMNS = """o.payment_order_id, o.checkout_id, o.charge_id, o.buyer_account,
    o.seller_account, o.amount, o.currency, o.platform_fee, o.captured_amount,
    o.refunded_amount, o.disputed_amount, o.status,
    o.wallet_updated, o.ledger_updated, o.pending_reason, o.next_action_url, o.failure_reason,
        o.decline_code, o.provider, o.provider_reference,
    o.attempt_count, op.next_try_time, o.resolve_by_time, o.delivery_confirmed_time, o.version,
        o.create_time, o.update_time"""

# One statement, so that a payment and its orders come from one snapshot.
_LOAD_PAYMENTS = text(f"""
    select {_ORDER_COLUMNS}, {_PAYMENT_COLUMNS}
    from checkout c join payment_order o on o.checkout_id = c.checkout_id left
        join operation op on op.kind = 'charge' and op.operation_id = o.charge_id
    where c.checkout_id = any (cast(:ids as text[])) order by o.checkout_id, o.payment_order_id
""")


def load_payments(connection: Connection, checkout_ids: list[str]) -> dict[str, list[OrderRow]]:
    """The orders of the payments that exist, by checkout id. Each row also has the columns of its
    payment.
    """
    by_checkout: dict[str, list[OrderRow]] = {}
    for row in connection.execute(_LOAD_PAYMENTS, {"ids": checkout_ids}):
        by_checkout.setdefault(row.checkout_id, []).append(row)
    return by_checkout


_LOAD_CHECKOUTS = text(
    f"select c.checkout_id, c.order_count, {_PAYMENT_COLUMNS} from checkout c where c.checkout_id "
    "= any (cast(:ids as text[]))"
)


def load_checkouts(connection: Connection, checkout_ids: list[str]) -> Sequence[PaymentRow]:
    """Payments without their orders."""
    return connection.execute(_LOAD_CHECKOUTS, {"ids": checkout_ids}).all()


_LIST_CHARGE_ORDERS = text(f"""
    select {_ORDER_COLUMNS} from attempt a join payment_order o on o.checkout_id = a.checkout_id
        and o.charge_id = a.operation_id
    left join operation op on op.kind = 'charge' and op.operation_id = o.charge_id
    where a.kind = 'charge' and a.operation_id = :charge_id and a.attempt_number = 1
        order by o.payment_order_id
""")


def list_charge_orders(connection: Connection, charge_id: str) -> Sequence[OrderRow]:
    """The orders of a charge."""
    return connection.execute(_LIST_CHARGE_ORDERS, {"charge_id": charge_id}).all()


_LOAD_ORDER = text(f"""
    select {_ORDER_COLUMNS}, c.owner from payment_order o
        join checkout c on c.checkout_id = o.checkout_id
    left join operation op on op.kind = 'charge' and op.operation_id = o.charge_id
    where o.payment_order_id = :id
""")
_LOAD_HISTORY = Query(
    TransitionRow,
    """
    select version, from_status as from_state, to_status as to_state, transition_reason,
        '' as actor, '' as reason, create_time
    from order_history where payment_order_id = :id order by version
    """,
)


def load_order(connection: Connection, payment_order_id: str) -> OrderDetails | None:
    """An order with its owner, its history and the attempts of its charge."""
    row = connection.execute(_LOAD_ORDER, {"id": payment_order_id}).one_or_none()
    if row is None:
        return None
    history = _LOAD_HISTORY.all(connection, id=payment_order_id)
    return (
        row,
        history,
        operation_store.list_attempts(connection, OperationKey(KindName.CHARGE, row.charge_id)),
    )


class PaymentFilter(NamedTuple):
    """Which payments to list; None does not filter."""

    owner: str | None
    buyer_account: str | None
    seller_account: str | None
    payment_state: str | None
    create_time_from: datetime | None
    create_time_until: datetime | None


_FILTER_CONDITIONS = {
    "owner": "c.owner = :owner",
    "buyer_account": (
        "exists (select from payment_order o where o.checkout_id = c.checkout_id and "
        "o.buyer_account = :buyer_account offset 0)"
    ),
    "seller_account": (
        "exists (select from payment_order o where o.checkout_id = c.checkout_id and "
        "o.seller_account = :seller_account offset 0)"
    ),
    "payment_state": "c.payment_state = :payment_state",
}
_TIME_CONDITIONS = {
    "create_time_from": "k.create_time >= :create_time_from",
    "create_time_until": "k.create_time < :create_time_until",
}


def list_payments(
    connection: Connection, filters: PaymentFilter, before: PageKey | None, limit: int
) -> Scan[Row[Any], PageKey]:
    """Payments with the sum of their orders' versions, newest first, before a given key."""
    table, index_columns = _choose_table(filters)
    other_filters = [
        name
        for name in _FILTER_CONDITIONS
        if name not in index_columns and getattr(filters, name) is not None
    ]
    key_conditions = {name: f"k.{name} = :{name}" for name in index_columns} | _TIME_CONDITIONS
    keys = find_candidates(
        connection,
        table,
        "checkout_id",
        key_conditions,
        filters,
        before,
        has_other_filters=bool(other_filters),
    )
    statement = text(f"""
        select c.checkout_id, {_PAYMENT_COLUMNS}, o.versions, o.update_time from (
            select c.* from ({keys.select}) k
            cross join lateral (select * from checkout c
                where c.checkout_id = k.checkout_id offset 0) c
            where {" and ".join(_FILTER_CONDITIONS[name] for name in other_filters) or "true"}
                order by k.create_time desc, k.checkout_id desc limit :limit) c
        cross join lateral (
            select sum(version) as versions, max(update_time) as update_time from payment_order o
                where o.checkout_id = c.checkout_id offset 0) o
        order by c.create_time desc, c.checkout_id desc
    """)
    values = {name: getattr(filters, name) for name in other_filters}
    rows = connection.execute(statement, {**keys.values, **values, "limit": limit}).all()
    return Scan(rows, keys.last_key)


def _choose_table(filters: PaymentFilter) -> tuple[str, Sequence[str]]:
    """The table whose index returns the wanted rows together and in order, and the filters that
    this index covers.
    """
    for account in ("buyer_account", "seller_account"):  # a buyer has fewer
        if getattr(filters, account) is not None:
            return "payment_order", [account]
    if filters.payment_state is not None and filters.payment_state != "PAID":
        return "checkout_unpaid", ["owner", "payment_state"]
    return "checkout", ["owner"]
