"""A charge leased by this process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from math import inf
from typing import NamedTuple

from tallystick.payment.v1 import payment_pb2
from tallystick_core.operations.idempotency_key import format_provider_key
from tallystick_core.operations.kind import KindName
from tallystick_core.payment.checkout import CheckoutRequest
from tallystick_core.payment.routing import RoutingDecision
from tallystick_core.payment.state import OrderStatus, PaymentTrigger
from tallystick_core.provider.outcome import (
    ChargeOutcome,
    Declined,
    FailureReason,
    PendingReason,
    ProviderFee,
    Succeeded,
)
from tallystick_core.provider.payment_provider import ChargePage
from tallystick_server.observability.tracing import SpanContext, parse_traceparent
from tallystick_server.operations.operation import FIRST_LEASE_TOKEN, LeasedOperation, parse_tries
from tallystick_server.payment import convert
from tallystick_storage import operations as operation_store
from tallystick_storage.payment import checkouts as checkout_store
from tallystick_storage.payment import orders as order_store
from tallystick_storage.payment.charges import ChargeOrderRow

FIRST_ATTEMPT = 1
"""The attempt number that a charge is created with, so that it need not be read back."""


class OrderInCharge(NamedTuple):
    """One order of a charge, at a version; `message` is the order in its latest event."""

    payment_order_id: str
    version: int
    status: OrderStatus
    buyer_account: str
    seller_account: str
    amount: int
    platform_fee: int
    message: payment_pb2.PaymentOrder

    def buyer_action_seconds(self) -> float:
        """Seconds from the last transition until the buyer's time is up; inf if no buyer action is
        pending.
        """
        if self.message.pending_reason != payment_pb2.PENDING_REASON_BUYER_ACTION:
            return inf
        return (
            self.message.resolve_by_time.ToNanoseconds() - self.message.update_time.ToNanoseconds()
        ) / 1e9

    def apply_transition(
        self,
        transition: order_store.OrderTransitionRow,
        update_time: datetime,
        resolve_by_time: datetime | None,
    ) -> OrderInCharge:
        """The order after a transition."""
        message = payment_pb2.PaymentOrder()
        message.CopyFrom(self.message)
        convert.apply_transition(message, transition, update_time, resolve_by_time)
        return self._replace(
            version=message.version, status=OrderStatus(transition.status), message=message
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge(LeasedOperation):
    """One operation of a provider, for one or several orders. Its orders change state together."""

    kind: KindName = KindName.CHARGE
    checkout_id: str
    owner: str
    currency: str
    payment_token: str
    payment_method_type: str
    orders: tuple[OrderInCharge, ...]
    buyer_country: str = ""
    routing_rule: str = ""
    """The rule that chose the provider; "": none."""
    fallback_provider: str = ""
    """The provider of the next attempt, if certainly nothing was sent by this one; "": none."""
    cancelled: bool = False
    page: ChargePage | None = None
    """The provider's page on which the buyer pays; None: by `payment_token`."""
    buyer_timed_out: bool = False
    """The buyer has not completed the required action in time."""

    final_payment: payment_pb2.Payment | None = None
    """Its payment, if the last change of this charge made it final."""

    @property
    def charge_id(self) -> str:
        return self.operation_id

    @property
    def amount(self) -> int:
        """Sum of the orders' amounts in minor units."""
        return sum(order.amount for order in self.orders)


def build_charges(
    request: CheckoutRequest,
    orders: Iterable[tuple[checkout_store.NewOrder, payment_pb2.PaymentOrder]],
    decisions: Mapping[str, RoutingDecision],
    environment: str,
    lease_deadline: float,
    traceparent: str,
    context: SpanContext,
    page: ChargePage | None = None,
) -> list[Charge]:
    """The charges of a new payment, for the orders that no risk rule rejected. `decisions`: the
    provider of each charge, by charge id. `page`: on which the buyer pays.
    """
    groups: dict[str, list[tuple[checkout_store.NewOrder, payment_pb2.PaymentOrder]]] = {}
    for order, message in orders:
        if order.status != OrderStatus.FAILED:
            groups.setdefault(order.charge_id, []).append((order, message))
    return [
        Charge(
            operation_id=charge_id,
            checkout_id=request.checkout_id,
            caller=request.caller,
            owner=request.owner,
            attempt_number=FIRST_ATTEMPT,
            provider=decisions[charge_id].provider,
            routing_rule=decisions[charge_id].rule,
            fallback_provider=decisions[charge_id].fallback,
            provider_key=format_provider_key(
                environment, KindName.CHARGE, charge_id, FIRST_ATTEMPT
            ),
            currency=members[0][0].currency,
            payment_token=request.payment_token,
            payment_method_type=request.payment_method_type,
            buyer_country=request.buyer_country,
            page=page,
            orders=tuple(_order_from_new(order, message) for order, message in members),
            lease_token=FIRST_LEASE_TOKEN,
            lease_deadline=lease_deadline,
            traceparent=traceparent,
            context=context,
            weight=len(members),
        )
        for charge_id, members in groups.items()
    ]


def _order_from_new(
    order: checkout_store.NewOrder, message: payment_pb2.PaymentOrder
) -> OrderInCharge:
    """A new order as it is stored."""
    return OrderInCharge(
        payment_order_id=order.payment_order_id,
        version=convert.created_version(order),
        status=OrderStatus(order.status),
        buyer_account=order.buyer_account,
        seller_account=order.seller_account,
        amount=order.amount,
        platform_fee=order.platform_fee,
        message=message,
    )


def charges_from_rows(
    rows: Iterable[ChargeOrderRow], tokens: Mapping[str, int], now: float, lease_seconds: float
) -> list[Charge]:
    """Converts stored rows to charges, claimed under `tokens` at `now` (loop time) for
    `lease_seconds`.
    """
    charges = []
    for (charge_id, _), group in groupby(rows, key=lambda row: (row.charge_id, row.attempt_number)):
        members = list(group)
        first = members[0]
        charges.append(
            Charge(
                operation_id=charge_id,
                checkout_id=first.checkout_id,
                caller=first.caller,
                owner=first.owner,
                attempt_number=first.attempt_number,
                provider=first.attempt_provider,
                routing_rule=first.routing_rule,
                fallback_provider=first.fallback_provider,
                provider_key=first.provider_key,
                provider_reference=first.attempt_reference,
                currency=first.currency,
                payment_token=first.payment_token,
                payment_method_type=first.payment_method_type,
                buyer_country=first.buyer_country,
                orders=tuple(_order_from_row(row) for row in members),
                lease_token=tokens[charge_id],
                lease_deadline=now + lease_seconds,
                traceparent=first.traceparent,
                context=parse_traceparent(first.traceparent),
                age_seconds=float(first.age),
                expires_at=inf if first.expires_in is None else now + float(first.expires_in),
                page=_page_of(first),
                cancelled=first.cancel_reason != "",
                buyer_timed_out=_has_buyer_timed_out(first),
                end_deadline=now + _seconds_left(first),
                recorded_outcome=outcome_from_attempt(_attempt_result(first)),
                # before the risk check has passed, no holder of its lease may send it
                maybe_sent=first.maybe_sent and first.status != OrderStatus.NOT_STARTED,
                lookup_only=first.lookup_only,
                tries=parse_tries(first.retry_counts),
                seconds_since_sent=None if first.since_sent is None else float(first.since_sent),
                not_found_count=first.not_found_count,
                weight=len(members),
            )
        )
    return charges


def build_page(
    checkout_id: str,
    return_url: str,
    create_time: datetime,
    expire_time: datetime,
    locale: str,
) -> ChargePage:
    """The page of a checkout, as its provider is asked for it."""
    return ChargePage(f"Order {checkout_id}", return_url, create_time, expire_time, locale)


def _page_of(row: ChargeOrderRow) -> ChargePage | None:
    if row.page_return_url is None:
        return None
    if row.page_expire_time is None:
        raise ValueError("a payment with a hosted page expires")
    return build_page(
        row.checkout_id,
        row.page_return_url,
        row.page_create_time,
        row.page_expire_time,
        row.page_locale or "",
    )


def _has_buyer_timed_out(row: ChargeOrderRow) -> bool:
    """Whether the buyer has not acted in time."""
    return (
        row.pending_reason == PendingReason.BUYER_ACTION
        and row.resolves_in is not None
        and row.resolves_in <= 0
    )


def _seconds_left(row: ChargeOrderRow) -> float:
    """Seconds until the charge must be ended; inf if it has no deadline.

    The deadline of a buyer action applies while one is pending, otherwise the payment's expiry
    applies until the outcome is known.
    """
    # A recorded final outcome decides, even if it has not been applied yet.
    if row.outcome in (PaymentTrigger.SUCCEEDED, PaymentTrigger.DECLINED):
        return inf
    is_undecided = row.status in (OrderStatus.NOT_STARTED, OrderStatus.EXECUTING)
    seconds = (
        row.resolves_in
        if row.pending_reason == PendingReason.BUYER_ACTION
        else row.expires_in
        if is_undecided
        else None
    )
    return inf if seconds is None or seconds <= 0 else float(seconds)


def outcome_from_attempt(attempt: operation_store.AttemptResult) -> ChargeOutcome | None:
    """The recorded final outcome of an attempt; None if there is none."""
    match attempt:
        case operation_store.AttemptResult(
            outcome=PaymentTrigger.SUCCEEDED, moved_amount=int(amount), moved_currency=str(currency)
        ):
            fee = (
                None
                if attempt.provider_fee is None
                else ProviderFee(attempt.provider_fee, attempt.provider_fee_currency or "")
            )
            return Succeeded(attempt.provider_reference, amount, currency, fee=fee)
        case operation_store.AttemptResult(outcome=PaymentTrigger.DECLINED):
            return Declined(
                FailureReason(attempt.failure_reason),
                attempt.decline_code,
                attempt.provider_reference,
            )
        case _:
            return None


def _attempt_result(row: ChargeOrderRow) -> operation_store.AttemptResult:
    """The result of the charge's last attempt."""
    return operation_store.AttemptResult(
        KindName.CHARGE,
        row.charge_id,
        row.attempt_number,
        row.outcome,
        row.attempt_reference,
        row.moved_amount,
        row.moved_currency,
        row.attempt_reason,
        row.attempt_code,
        row.attempt_fee,
        row.attempt_fee_currency,
    )


def _order_from_row(row: order_store.OrderRow) -> OrderInCharge:
    return OrderInCharge(
        payment_order_id=row.payment_order_id,
        version=row.version,
        status=OrderStatus(row.status),
        buyer_account=row.buyer_account,
        seller_account=row.seller_account,
        amount=row.amount,
        platform_fee=row.platform_fee,
        message=convert.stored_order(row),
    )
