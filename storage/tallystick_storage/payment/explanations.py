"""Reads for ExplainPayment: finds a payment by any id, and lists what is stored about it.

Each read is bounded. A read of `limit` rows reads one more, so that its caller can tell whether
some are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from tallystick_storage.payment.unapplied_charges import UnappliedChargeRow
from tallystick_storage.sql import Connection, Query


class FoundPayment(NamedTuple):
    """The payment that an id names, and the charge if it names one; None: the whole payment."""

    checkout_id: str
    charge_id: str | None


class CheckoutRow(NamedTuple):
    checkout_id: str
    caller: str
    payment_state: str
    charge_mode: str
    order_count: int
    create_time: datetime
    has_page: bool
    expire_time: datetime | None
    cancel_reason: str
    done_time: datetime | None
    traceparent: str
    now: datetime
    """The database's time of this read."""


@dataclass(frozen=True, slots=True)
class ExplainedOrderRow:
    """An order with its pending release. Amounts in minor units."""

    payment_order_id: str
    charge_id: str
    seller_account: str
    amount: int
    currency: str
    platform_fee: int
    status: str
    ledger_updated: bool
    pending_reason: str
    resolve_by_time: datetime | None
    failure_reason: str
    decline_code: str
    delivery_confirmed_time: datetime | None
    version: int
    release_time: datetime | None
    release_rejection: str | None


class OrderTransitionRow(NamedTuple):
    payment_order_id: str
    version: int
    to_status: str
    transition_reason: str
    pending_reason: str
    failure_reason: str
    decline_code: str
    provider_reference: str
    resolve_by_time: datetime | None
    create_time: datetime


class ReportRow(NamedTuple):
    charge_id: str
    number: int
    report: str
    create_time: datetime
    acknowledged_by: str
    acknowledge_reason: str
    acknowledge_time: datetime | None


class PollRow(NamedTuple):
    charge_id: str
    provider: str
    next_poll_time: datetime
    poll_count: int


# The platform's own ids come first. A provider's id is searched at each provider, because the
# indexes begin with it: one probe for each provider, however many rows it has.
_FIND = Query(
    FoundPayment,
    """
    with recursive money_provider (provider) as (
        select min(provider) from provider_money
        union all
        select (select min(m.provider) from provider_money m where m.provider > p.provider)
            from money_provider p where p.provider is not null),
    attempt_provider (provider) as (
        select min(provider) from attempt where indexed_reference is not null
        union all
        select (select min(a.provider) from attempt a
                where a.provider > p.provider and a.indexed_reference is not null)
            from attempt_provider p where p.provider is not null),
    found (priority, checkout_id, charge_id) as (
        select 1, checkout_id, null from checkout where checkout_id = :id
        union all
        select 2, checkout_id, charge_id from payment_order where payment_order_id = :id
        union all
        select 3, checkout_id, operation_id from attempt
            where kind = 'charge' and operation_id = :id and attempt_number = 1
        union all
        select 4, checkout_id, charge_id from unapplied_charge where unapplied_charge_id = :id
        union all
        select 5, a.checkout_id, a.operation_id
            from money_provider p
            join provider_money m on m.provider = p.provider and m.provider_reference = :id
            join attempt a on a.kind = 'charge' and a.operation_id = m.charge_id
                and a.attempt_number = 1
        union all
        select 6, a.checkout_id, a.operation_id
            from attempt_provider p
            join attempt a on a.provider = p.provider and a.indexed_reference = :id
                and a.kind = 'charge')
    select f.checkout_id, f.charge_id
    from found f join checkout c on c.checkout_id = f.checkout_id
    where cast(:owner as text) is null or c.owner = :owner
    order by f.priority, f.checkout_id, f.charge_id limit 1
    """,
)
_LOAD_CHECKOUT = Query(
    CheckoutRow,
    """
    select c.checkout_id, c.caller, c.payment_state, c.charge_mode, c.order_count, c.create_time,
        h.checkout_id is not null, c.expire_time, c.cancel_reason, c.done_time, c.traceparent,
        clock()
    from checkout c left join hosted_page h on h.checkout_id = c.checkout_id
    where c.checkout_id = :checkout_id
    """,
)
_LIST_ORDERS = Query(
    ExplainedOrderRow,
    """
    select o.payment_order_id, o.charge_id, o.seller_account, o.amount, o.currency,
        o.platform_fee, o.status, o.ledger_updated, o.pending_reason, o.resolve_by_time,
        o.failure_reason, o.decline_code, o.delivery_confirmed_time, o.version,
        case when r.payment_order_id is not null
            then greatest(r.next_try_time, r.create_time) end, r.rejection_message
    from payment_order o left join pending_release r on r.payment_order_id = o.payment_order_id
    where o.checkout_id = :checkout_id
        and (cast(:charge_id as text) is null or o.charge_id = :charge_id)
    order by case when o.status in ('NOT_STARTED', 'EXECUTING', 'PENDING') then 0
        when o.status = 'SUCCESS' and not o.ledger_updated then 1
        when r.payment_order_id is not null then 2 when o.status = 'FAILED' then 3 else 4 end,
        o.payment_order_id
    limit :limit
    """,
)
_LIST_TRANSITIONS = Query(
    OrderTransitionRow,
    """
    select {columns} from order_history
    where payment_order_id = any (cast(:ids as text[]))
    order by create_time desc, payment_order_id, version desc limit :limit + 1
    """,
)
_LIST_REPORTS = Query(
    ReportRow,
    """
    select {columns} from conflicting_report where charge_id = any (cast(:ids as text[]))
    order by create_time desc, charge_id, number desc limit :limit + 1
    """,
)
_LIST_POLLS = Query(
    PollRow,
    """
    select {columns} from failed_charge_poll where charge_id = any (cast(:ids as text[]))
    order by charge_id, attempt_number
    """,
)
_LIST_UNAPPLIED = Query(
    UnappliedChargeRow,
    """
    select {columns} from unapplied_charge where checkout_id = :checkout_id
        and (cast(:charge_id as text) is null or charge_id = :charge_id)
    order by create_time desc, unapplied_charge_id limit :limit + 1
    """,
)


def find_payment(connection: Connection, id_: str, owner: str | None) -> FoundPayment | None:
    """The payment that has an id, among those of an owner (None: of all): the id of the payment, of
    an order, a charge or an unapplied charge, or a provider's id of a charge, in this order.
    """
    return _FIND.one_or_none(connection, id=id_, owner=owner)


def load_checkout(connection: Connection, checkout_id: str) -> CheckoutRow:
    """A payment that exists, without its orders."""
    return _LOAD_CHECKOUT.one(connection, checkout_id=checkout_id)


def list_orders(connection: Connection, found: FoundPayment, limit: int) -> list[ExplainedOrderRow]:
    """Up to `limit` orders of the payment, or of the charge: those that need attention first."""
    return _LIST_ORDERS.all(connection, **found._asdict(), limit=limit)


def list_transitions(
    connection: Connection, payment_order_ids: Sequence[str], limit: int
) -> list[OrderTransitionRow]:
    """The versions of orders, newest first."""
    return _LIST_TRANSITIONS.all(connection, ids=list(payment_order_ids), limit=limit)


def list_reports(connection: Connection, charge_ids: Sequence[str], limit: int) -> list[ReportRow]:
    """The conflicting reports of charges, newest first."""
    return _LIST_REPORTS.all(connection, ids=list(charge_ids), limit=limit)


def list_polls(connection: Connection, charge_ids: Sequence[str]) -> list[PollRow]:
    """The scheduled polls of failed or replaced attempts of charges."""
    return _LIST_POLLS.all(connection, ids=list(charge_ids))


def list_unapplied(
    connection: Connection, found: FoundPayment, limit: int
) -> list[UnappliedChargeRow]:
    """The unapplied charges of the payment, or of the charge, newest first."""
    return _LIST_UNAPPLIED.all(connection, **found._asdict(), limit=limit)
