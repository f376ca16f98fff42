"""Reads for the API: a payment with its orders, an order with its history, and lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_core.operations.kind import KindName
from tallystick_storage import operations as operation_store
from tallystick_storage.history import TransitionRow
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.pagination import PageKey, Scan, find_candidates
from tallystick_storage.payment.orders import OrderRow
from tallystick_storage.payment.status_links import IS_VALID
from tallystick_storage.sql import Connection, Query, columns


@dataclass(frozen=True, slots=True)
class ScheduledOrderRow(OrderRow):
    """An order, and when its operation is tried next; None: never."""

    next_try_time: datetime | None


@dataclass(frozen=True, slots=True)
class OwnedOrderRow(ScheduledOrderRow):
    owner: str


# Payments have no slots, because OrderWithPaymentRow has two bases.
@dataclass(frozen=True)
class _CheckoutRow:
    buyer_info: str
    seller_info: str
    buyer_country: str
    payment_method_type: str
    payment_state: str
    is_payment_done: bool
    caller: str
    owner: str
    traceparent: str
    expire_time: datetime | None
    done_time: datetime | None


@dataclass(frozen=True)
class PaymentRow(_CheckoutRow):
    """A payment, except its id."""

    checkout_version: int
    checkout_create_time: datetime
    page_success_url: str | None
    """None: it has no hosted page."""
    page_cancel_url: str | None
    page_locale: str | None
    takes_payment: bool
    """It is neither cancelled nor expired."""


@dataclass(frozen=True)
class OrderWithPaymentRow(ScheduledOrderRow, PaymentRow):
    """An order with the columns of its payment."""

    status_url: str | None


@dataclass(frozen=True)
class FinalCheckoutRow(PaymentRow):
    """A final payment without its orders."""

    done_time: datetime
    checkout_id: str
    order_count: int
    status_url: str | None


@dataclass(frozen=True)
class PaymentSummaryRow(PaymentRow):
    """A payment with the sum of its orders' versions and their last update."""

    checkout_id: str
    versions: int
    update_time: datetime


OrderDetails = tuple[OwnedOrderRow, Sequence[TransitionRow], Sequence[operation_store.AttemptRow]]
"""An order with its owner, its history and the attempts of its charge."""

_PAYMENT_COLUMNS = (
    f"{columns(_CheckoutRow, 'c')}, c.version as checkout_version, "
    "c.create_time as checkout_create_time, h.success_url as page_success_url, "
    "h.cancel_url as page_cancel_url, h.locale as page_locale, c.cancel_reason = '' and "
    "coalesce(c.expire_time > (select clock()), true) as takes_payment"
)
_JOIN_PAGE = "left join hosted_page h on h.checkout_id = c.checkout_id"
_JOIN_LINK = f"left join status_link l on l.checkout_id = c.checkout_id and {IS_VALID}"
_ORDER_COLUMNS = f"{columns(OrderRow, 'o')}, op.next_try_time"

# One statement, so that a payment and its orders come from one snapshot.
_LOAD_PAYMENTS = Query(
    OrderWithPaymentRow,
    f"""
    select {_PAYMENT_COLUMNS}, {_ORDER_COLUMNS}, l.status_url
    from checkout c join payment_order o on o.checkout_id = c.checkout_id left
        join operation op on op.kind = 'charge' and op.operation_id = o.charge_id
    {_JOIN_PAGE}
    {_JOIN_LINK}
    where c.checkout_id = any (cast(:ids as text[])) order by o.checkout_id, o.payment_order_id
    """,
)


def load_payments(
    connection: Connection, checkout_ids: list[str]
) -> dict[str, list[OrderWithPaymentRow]]:
    """The orders of the payments that exist, by checkout id."""
    by_checkout: dict[str, list[OrderWithPaymentRow]] = {}
    for row in _LOAD_PAYMENTS.all(connection, ids=checkout_ids):
        by_checkout.setdefault(row.checkout_id, []).append(row)
    return by_checkout


_LOAD_CHECKOUTS = Query(
    FinalCheckoutRow,
    f"""
    select {_PAYMENT_COLUMNS}, c.checkout_id, c.order_count, l.status_url
    from checkout c {_JOIN_PAGE} {_JOIN_LINK}
    where c.checkout_id = any (cast(:ids as text[]))
    """,
)


def load_checkouts(connection: Connection, checkout_ids: list[str]) -> list[FinalCheckoutRow]:
    """Payments that have become final, without their orders."""
    return _LOAD_CHECKOUTS.all(connection, ids=checkout_ids)


_LIST_CHARGE_ORDERS = Query(
    ScheduledOrderRow,
    f"""
    select {_ORDER_COLUMNS} from attempt a join payment_order o on o.checkout_id = a.checkout_id
        and o.charge_id = a.operation_id
    left join operation op on op.kind = 'charge' and op.operation_id = o.charge_id
    where a.kind = 'charge' and a.operation_id = :charge_id and a.attempt_number = 1
        order by o.payment_order_id
    """,
)


def list_charge_orders(connection: Connection, charge_id: str) -> list[ScheduledOrderRow]:
    """The orders of a charge."""
    return _LIST_CHARGE_ORDERS.all(connection, charge_id=charge_id)


_LOAD_ORDER = Query(
    OwnedOrderRow,
    f"""
    select {_ORDER_COLUMNS}, c.owner from payment_order o
        join checkout c on c.checkout_id = o.checkout_id
    left join operation op on op.kind = 'charge' and op.operation_id = o.charge_id
    where o.payment_order_id = :id
    """,
)
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
    row = _LOAD_ORDER.one_or_none(connection, id=payment_order_id)
    if row is None:
        return None
    return (
        row,
        _LOAD_HISTORY.all(connection, id=payment_order_id),
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
) -> Scan[PaymentSummaryRow, PageKey]:
    """Payments, newest first, before a given key."""
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
    query = Query(
        PaymentSummaryRow,
        f"""
        select {_PAYMENT_COLUMNS}, c.checkout_id, o.versions, o.update_time from (
            select c.* from ({keys.select}) k
            cross join lateral (select * from checkout c
                where c.checkout_id = k.checkout_id offset 0) c
            where {" and ".join(_FILTER_CONDITIONS[name] for name in other_filters) or "true"}
                order by k.create_time desc, k.checkout_id desc limit :limit) c
        cross join lateral (
            select sum(version) as versions, max(update_time) as update_time from payment_order o
                where o.checkout_id = c.checkout_id offset 0) o
        {_JOIN_PAGE}
        order by c.create_time desc, c.checkout_id desc
        """,
    )
    values = {name: getattr(filters, name) for name in other_filters}
    rows = query.all(connection, limit=limit, **keys.values, **values)
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
