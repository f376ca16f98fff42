"""Checkouts: the stored requests of payments, with their orders and first attempts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_core.payment.state import OrderStatus, PaymentTransitionReason
from tallystick_storage.database import encode_rows
from tallystick_storage.outbox import insert_into_outbox
from tallystick_storage.sql import Connection, Query, text


@dataclass(slots=True)
class NewCheckout:
    """A checkout to store. `fingerprint` is in hex; `open_orders` counts the orders that passed the
    risk check. `events`: a serialized BatchPublishRequest with the events of the checkout and its
    orders, in hex.
    """

    checkout_id: str
    caller: str
    owner: str
    fingerprint: str
    buyer_info: str
    seller_info: str
    buyer_country: str
    payment_token: str
    payment_method_type: str
    charge_mode: str
    partial_failure_policy: str
    traceparent: str
    expire_time: datetime | None
    order_count: int
    open_orders: int
    events: str = ""

    @property
    def is_rejected(self) -> bool:
        """Whether the risk rules rejected all its orders."""
        return self.open_orders == 0


@dataclass(slots=True)
class NewOrder:
    """An order to store after the risk rules: EXECUTING, FAILED with its reason, or NOT_STARTED if
    the risk provider decides. Amounts in minor units.
    """

    payment_order_id: str
    checkout_id: str
    charge_id: str
    buyer_account: str
    seller_account: str
    amount: int
    currency: str
    requested_fee: int | None
    platform_fee: int
    status: str
    transition_reason: str
    failure_reason: str
    provider: str
    attempt_count: int


@dataclass(slots=True)
class NewAttempt:
    """An attempt that will be sent once the transaction is committed."""

    charge_id: str
    checkout_id: str
    provider: str
    provider_key: str
    amount: int
    currency: str
    routing_rule: str
    routing_reason: str
    fallback_provider: str


class ExistingIdRow(NamedTuple):
    """An id that exists: of a "checkout", or of an "order", which has no fingerprint."""

    resource_type: str
    id: str
    owner: str
    fingerprint: bytes | None


_FIND_EXISTING = Query(
    ExistingIdRow,
    """
    select 'checkout' as resource_type, checkout_id as id, owner, fingerprint
    from checkout where checkout_id = any (cast(:checkouts as text[]))
    union all
    select 'order', o.payment_order_id, c.owner, null
    from payment_order o join checkout c on c.checkout_id = o.checkout_id
    where o.payment_order_id = any (cast(:orders as text[]))
    """,
)


def find_existing(
    connection: Connection, checkout_ids: list[str], order_ids: list[str]
) -> list[ExistingIdRow]:
    """Which of the ids exist."""
    return _FIND_EXISTING.all(connection, checkouts=checkout_ids, orders=order_ids)


class _RecentOrders(NamedTuple):
    buyer: str
    order_count: int


_COUNT_RECENT_ORDERS = Query(
    _RecentOrders,
    """
    select b.buyer, (
        select count(*) from payment_order o where o.buyer_account = b.buyer
            and o.create_time > (select clock()) - cast(:window as interval)) as order_count
    from unnest(cast(:buyers as text[])) as b (buyer)
    """,
)


def count_recent_orders(
    connection: Connection, buyers: list[str], window_seconds: float
) -> dict[str, int]:
    """Each buyer's number of orders within the last `window_seconds` seconds."""
    rows = _COUNT_RECENT_ORDERS.all(connection, buyers=buyers, window=f"{window_seconds} seconds")
    return {row.buyer: row.order_count for row in rows}


_NEW_EVENTS = """(
            select string_agg(decode(r.events, 'hex'), '') from requested_checkout r
                join new_checkout c on c.checkout_id = r.checkout_id)"""
# Only rows that the first insert returns are stored. If another process stored a checkout
# meanwhile, nothing else of it is inserted.
_INSERT = text(f"""
    with t as materialized (select cast(:now as timestamptz) as now),
    requested_checkout as materialized (
        select * from json_to_recordset(cast(:checkouts as json))
            as r (checkout_id text collate "C", caller text, owner text, fingerprint text,
            buyer_info text, seller_info text,
            buyer_country text, payment_token text, payment_method_type text, charge_mode text,
            partial_failure_policy text, traceparent text,
            expire_time timestamptz, order_count int, open_orders int, events text)),
    new_checkout as (
        insert into checkout (checkout_id, caller, owner, fingerprint, buyer_info, seller_info,
            buyer_country, payment_token, payment_method_type, charge_mode,
            partial_failure_policy, traceparent, expire_time, cancel_reason, order_count,
                open_orders,
                unpaid_orders, version, create_time, done_time)
        select checkout_id, caller, owner, decode(fingerprint, 'hex'), buyer_info, seller_info,
            buyer_country, payment_token, payment_method_type, charge_mode,
            partial_failure_policy, traceparent, expire_time, '', order_count,
                open_orders,
                order_count,
            case when open_orders = 0 then 2 else 1 end, now, case when open_orders = 0 then now end
        from requested_checkout, t order by checkout_id
        on conflict do nothing returning checkout_id, version),
    requested as materialized (
        select r.* from json_to_recordset(cast(:orders as json))
            as r (payment_order_id text collate "C", checkout_id text collate "C",
            charge_id text collate "C", buyer_account text,
            seller_account text, amount bigint, currency text, requested_fee bigint,
                platform_fee bigint, status text, transition_reason text, failure_reason text,
            provider text, attempt_count int)
        join new_checkout c on c.checkout_id = r.checkout_id),
    new_order as (
        insert into payment_order (payment_order_id, checkout_id, charge_id, buyer_account,
            seller_account, amount, currency, requested_fee, platform_fee,
            seller_amount, status, wallet_updated, ledger_updated, pending_reason, next_action_url,
                failure_reason, decline_code, provider,
            provider_reference, attempt_count, version, create_time, update_time)
        select payment_order_id, checkout_id, charge_id, buyer_account, seller_account, amount,
            currency, requested_fee, platform_fee,
            amount - platform_fee, status, false, false, '', '', failure_reason, '', provider, '',
                attempt_count, case when status = :first_status then 1 else 2 end, now, now
        from requested, t order by payment_order_id),
    history as (
        insert into order_history (payment_order_id, version, from_status, to_status,
            transition_reason,
            wallet_updated, ledger_updated, delivered, pending_reason,
            next_action_url, failure_reason, decline_code, provider_reference, attempt_count,
                create_time)
        select payment_order_id, 1, null, :first_status, :first_transition_reason, false, false,
            false, '', '',
            '', '', '', case when status = :first_status then attempt_count else 0 end, now
        from requested, t
        union all
        select payment_order_id, 2, :first_status, status, transition_reason, false, false, false,
            '', '',
            failure_reason, '', '', attempt_count, now from requested, t
        where status <> :first_status),
    new_attempt as (
        insert into attempt (kind, operation_id, attempt_number, checkout_id, provider,
            provider_key, amount, currency, outcome, provider_reference, failure_reason,
            decline_code, routing_rule, routing_reason, fallback_provider, start_time)
        select 'charge', charge_id, 1, r.checkout_id, provider, provider_key, amount, currency, '',
            '', '', '', routing_rule, routing_reason, fallback_provider, now
        from json_to_recordset(cast(:attempts as json))
            as r (charge_id text collate "C", checkout_id text collate "C", provider text,
            provider_key text, amount bigint, currency text, routing_rule text,
            routing_reason text, fallback_provider text)
        join new_checkout c on c.checkout_id = r.checkout_id, t
        returning operation_id, provider),
    new_operation as (
        insert into operation (kind, operation_id, provider, next_try_time, lease_until,
            lease_token, is_leased,
            maybe_sent, lookup_only, retry_reason, detail, phase_start_time)
        select 'charge', operation_id, provider, now, now + cast(:lease as interval), 1, true,
            false, false, '', '', now from new_attempt, t),
    changed_resource as (
        select 'payments/' || checkout_id as aggregate_id, v as version
            from new_checkout c, generate_series(1, c.version) as v
        union all
        select 'paymentOrders/' || payment_order_id, v from requested,
            generate_series(1, case when status = :first_status then 1 else 2 end) as v),
    {insert_into_outbox("changed_resource", "aggregate_id", request=_NEW_EVENTS)}
    select checkout_id from new_checkout
""")


def insert(
    connection: Connection,
    checkouts: Sequence[NewCheckout],
    orders: Sequence[NewOrder],
    attempts: Sequence[NewAttempt],
    lease_seconds: float,
) -> set[str]:
    """Stores checkouts with everything that belongs to them, at the time of the transaction. Their
    charges are leased for `lease_seconds` seconds under lease token 1. Returns the new checkouts.
    """
    parameters = {
        "now": connection.begin_time,
        "checkouts": encode_rows(checkouts),
        "orders": encode_rows(orders),
        "attempts": encode_rows(attempts),
        "lease": f"{lease_seconds} seconds",
        "first_status": OrderStatus.NOT_STARTED,
        "first_transition_reason": PaymentTransitionReason.CREATED,
    }
    return set(connection.execute(_INSERT, parameters).scalars())


class RequestedOrderRow(NamedTuple):
    """An order as its caller requested it, with the fields of its checkout."""

    caller: str
    owner: str
    buyer_info: str
    seller_info: str
    buyer_country: str
    payment_token: str
    payment_method_type: str
    charge_mode: str
    partial_failure_policy: str
    expire_time: datetime | None
    page_success_url: str | None
    """None: the buyer pays by token."""
    page_cancel_url: str | None
    page_expire_time: datetime | None
    page_locale: str | None
    payment_order_id: str
    buyer_account: str
    seller_account: str
    amount: int
    currency: str
    requested_fee: int | None


_LOAD_REQUEST = Query(
    RequestedOrderRow,
    """
    select {columns}
    from (
        select c.*, h.success_url as page_success_url, h.cancel_url as page_cancel_url,
            h.requested_expire_time as page_expire_time, h.locale as page_locale
        from checkout c left join hosted_page h on h.checkout_id = c.checkout_id) c
    join payment_order o on o.checkout_id = c.checkout_id
    where c.checkout_id = :checkout_id order by o.payment_order_id
    """,
)


def load_request(connection: Connection, checkout_id: str) -> list[RequestedOrderRow]:
    """The stored request of a checkout, one row per order."""
    return _LOAD_REQUEST.all(connection, checkout_id=checkout_id)
