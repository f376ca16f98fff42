"""Pay-in: what a payment is made of, and the table of its orders' states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from tallystick_core.canonical import digest_text, fingerprint, to_microseconds
from tallystick_core.identifier import parse_id
from tallystick_core.money import apply_rate
from tallystick_core.provider import ChargeOutcome, Declined, FailureReason, NotSent, Pending, Succeeded, Unknown
from tallystick_core.recovery import NextAction
from tallystick_core.refusal import ApiError, ErrorReason
from tallystick_core.table import Verb, next_state

MAX_ORDERS = 200


class OrderStatus(StrEnum):
    """`payment_order_status`: how far the demand for one order has come."""

    NOT_STARTED = "NOT_STARTED"
    EXECUTING = "EXECUTING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    PENDING = "PENDING"


class PaymentTrigger(StrEnum):
    """What can happen to an order: the risk check's verdicts, the provider's five answers, what a person decides, and that it is settled."""

    RISK_PASSED = "RISK_PASSED"
    RISK_REFUSED = "RISK_REFUSED"
    SUCCEEDED = "SUCCEEDED"
    DECLINED = "DECLINED"
    PENDING = "PENDING"
    NOT_SENT = "NOT_SENT"
    UNKNOWN = "UNKNOWN"
    GIVEN_UP = "GIVEN_UP"
    """It is not sent any more, and surely nothing was charged: it was never sent, or its provider has proved not to know it."""
    CLOSED = "CLOSED"
    """An operator has closed it, with evidence that nothing was charged."""
    SETTLED = "SETTLED"
    DELIVERED = "DELIVERED"
    """Its caller has confirmed that the goods were delivered."""


class PaymentTransitionReason(StrEnum):
    """Why an order has a new version, as its history tells it."""

    ACCEPTED = "ACCEPTED"
    RISK_PASSED = "RISK_PASSED"
    RISK_REFUSED = "RISK_REFUSED"
    PROVIDER_ANSWER = "PROVIDER_ANSWER"
    GIVEN_UP = "GIVEN_UP"
    CLOSED_BY_OPERATOR = "CLOSED_BY_OPERATOR"
    SETTLED = "SETTLED"
    DELIVERY_CONFIRMED = "DELIVERY_CONFIRMED"


class MethodType(StrEnum):
    """What the buyer pays with."""

    CARD = "CARD"
    APPLE_PAY = "APPLE_PAY"
    GOOGLE_PAY = "GOOGLE_PAY"
    BANK_TRANSFER = "BANK_TRANSFER"
    CASH = "CASH"


class ChargeMode(StrEnum):
    """How many demands a checkout makes on the provider: one for each order, or one for all."""

    PER_ORDER = "PER_ORDER"
    TOGETHER = "TOGETHER"


class PartialFailurePolicy(StrEnum):
    """What becomes of the orders that could go on when one of their checkout cannot."""

    KEEP = "KEEP"
    ALL_OR_NOTHING = "ALL_OR_NOTHING"


TRANSITIONS: dict[tuple[OrderStatus, PaymentTrigger], OrderStatus] = {
    # moved on by accept, in the transaction that stores the order
    (OrderStatus.NOT_STARTED, PaymentTrigger.RISK_PASSED): OrderStatus.EXECUTING,
    (OrderStatus.NOT_STARTED, PaymentTrigger.RISK_REFUSED): OrderStatus.FAILED,
    (OrderStatus.NOT_STARTED, PaymentTrigger.GIVEN_UP): OrderStatus.FAILED,
    (OrderStatus.NOT_STARTED, PaymentTrigger.CLOSED): OrderStatus.FAILED,
    # moved on by the provider's answer; without a definite one the sweep sends the same key again
    (OrderStatus.EXECUTING, PaymentTrigger.SUCCEEDED): OrderStatus.SUCCESS,
    (OrderStatus.EXECUTING, PaymentTrigger.DECLINED): OrderStatus.FAILED,
    (OrderStatus.EXECUTING, PaymentTrigger.PENDING): OrderStatus.PENDING,
    (OrderStatus.EXECUTING, PaymentTrigger.NOT_SENT): OrderStatus.EXECUTING,
    (OrderStatus.EXECUTING, PaymentTrigger.UNKNOWN): OrderStatus.EXECUTING,
    (OrderStatus.EXECUTING, PaymentTrigger.GIVEN_UP): OrderStatus.FAILED,
    (OrderStatus.EXECUTING, PaymentTrigger.CLOSED): OrderStatus.FAILED,
    # its two flags set, by settle
    (OrderStatus.SUCCESS, PaymentTrigger.SETTLED): OrderStatus.SUCCESS,
    # by its caller, once it is settled
    (OrderStatus.SUCCESS, PaymentTrigger.DELIVERED): OrderStatus.SUCCESS,
    # moved on by the provider, in its own time
    (OrderStatus.PENDING, PaymentTrigger.SUCCEEDED): OrderStatus.SUCCESS,
    (OrderStatus.PENDING, PaymentTrigger.DECLINED): OrderStatus.FAILED,
    (OrderStatus.PENDING, PaymentTrigger.PENDING): OrderStatus.PENDING,
    (OrderStatus.PENDING, PaymentTrigger.NOT_SENT): OrderStatus.PENDING,
    (OrderStatus.PENDING, PaymentTrigger.UNKNOWN): OrderStatus.PENDING,
    (OrderStatus.PENDING, PaymentTrigger.GIVEN_UP): OrderStatus.FAILED,
    (OrderStatus.PENDING, PaymentTrigger.CLOSED): OrderStatus.FAILED,
}

VERBS: dict[PaymentTrigger, Verb] = {
    PaymentTrigger.RISK_PASSED: Verb("CHARGE", "charged"),
    PaymentTrigger.RISK_REFUSED: Verb("REFUSE", "refused"),
    PaymentTrigger.SUCCEEDED: Verb("CHARGE", "charged"),
    PaymentTrigger.DECLINED: Verb("DECLINE", "declined"),
    PaymentTrigger.PENDING: Verb("POSTPONE", "left pending"),
    PaymentTrigger.NOT_SENT: Verb("SEND", "sent"),
    PaymentTrigger.UNKNOWN: Verb("SEND", "sent"),
    PaymentTrigger.GIVEN_UP: Verb("GIVE_UP", "given up"),
    PaymentTrigger.CLOSED: Verb("CLOSE", "closed"),
    PaymentTrigger.SETTLED: Verb("SETTLE", "settled"),
    PaymentTrigger.DELIVERED: Verb("CONFIRM_DELIVERY", "confirmed as delivered"),
}
"""What each happening does to an order, as refusals name it."""

TERMINAL_STATUSES = frozenset({OrderStatus.SUCCESS, OrderStatus.FAILED})

ALERT_AFTER_SECONDS: Mapping[str, float] = {OrderStatus.EXECUTING: 600.0, OrderStatus.PENDING: 259_200.0, OrderStatus.SUCCESS: 600.0}
"""Seconds that an order may rest in a status before a person should know; SUCCESS: until it is settled."""

TRIGGERS: dict[type, PaymentTrigger] = {
    Succeeded: PaymentTrigger.SUCCEEDED,
    Declined: PaymentTrigger.DECLINED,
    Pending: PaymentTrigger.PENDING,
    NotSent: PaymentTrigger.NOT_SENT,
    Unknown: PaymentTrigger.UNKNOWN,
}


def transition(status: OrderStatus, trigger: PaymentTrigger) -> OrderStatus:
    """The status after. Raises STATE_FORBIDS for what cannot happen to an order in that status."""
    return next_state(TRANSITIONS, VERBS, status, trigger, "order")


def next_action(
    statuses: Iterable[OrderStatus], *, attempt_ended: bool, must_end: bool, maybe_sent: bool, lookup_only: bool, key_honored: bool
) -> NextAction:
    """What comes next for a charge whose orders have these statuses; those of one charge move together.

    `attempt_ended`: its attempt has ended; `must_end`: it was cancelled, or its time is up; `maybe_sent`: it may have reached the provider;
    `lookup_only`: it is the provider's turn to say what became of it; `key_honored`: the provider surely still knows the attempt's key.
    """
    distinct_statuses = set(statuses)
    if OrderStatus.SUCCESS in distinct_statuses:
        return NextAction.SETTLE
    if OrderStatus.NOT_STARTED in distinct_statuses:
        never_sent = distinct_statuses == {OrderStatus.NOT_STARTED} and not attempt_ended and not maybe_sent
        return NextAction.GIVE_UP if must_end and never_sent else NextAction.RISK
    if attempt_ended:
        return NextAction.JUDGE
    if must_end:
        return NextAction.CANCEL if maybe_sent or OrderStatus.PENDING in distinct_statuses else NextAction.GIVE_UP
    return NextAction.SEND if distinct_statuses == {OrderStatus.EXECUTING} and key_honored and not lookup_only else NextAction.LOOK_UP


def trigger_for(outcome: ChargeOutcome) -> PaymentTrigger:
    return TRIGGERS[type(outcome)]


@dataclass(frozen=True, slots=True)
class Order:
    """One seller's share of a payment, as the caller asked for it. Amounts in minor units; `platform_fee` None: as configured."""

    payment_order_id: str
    buyer_account: str
    seller_account: str
    amount: int
    currency: str
    platform_fee: int | None
    index: int = field(default=0, compare=False)
    """Where it stood in the request; no part of its values."""

    def values(self) -> tuple[str | int, ...]:
        """What makes two orders the same."""
        fee = "" if self.platform_fee is None else self.platform_fee
        return (self.payment_order_id, self.buyer_account, self.seller_account, self.amount, self.currency, fee)


@dataclass(frozen=True, slots=True)
class CheckoutRequest:
    """What the caller sent, parsed. `orders` are sorted by id, so that the order in which they came makes no difference."""

    checkout_id: str
    caller: str
    owner: str
    buyer_info: str
    seller_info: str
    buyer_country: str
    payment_token: str
    payment_method_type: MethodType
    charging: ChargeMode
    on_partial: PartialFailurePolicy
    orders: tuple[Order, ...]
    expire_time: datetime | None = None

    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal values, however they were written."""
        identity = (self.checkout_id, self.owner, self.buyer_info, self.seller_info, self.buyer_country)
        options = (self.payment_token, self.payment_method_type, self.charging, self.on_partial, to_microseconds(self.expire_time))
        return fingerprint(*identity, *options, *(value for order in self.orders for value in order.values()))


def first_difference(sent: CheckoutRequest, stored: CheckoutRequest) -> str:
    """The contract's name of the first field in which two events differ, in the order of the request."""
    names = ("buyer_info", "seller_info", "buyer_country", "payment_token", "payment_method_type", "charging", "on_partial", "expire_time")
    for name in names:
        if getattr(sent, name) != getattr(stored, name):
            return "credit_card_info" if name == "payment_token" else name
    if len(sent.orders) != len(stored.orders):
        return "payment_orders"
    order_fields = ("payment_order_id", "buyer_account", "seller_account", "amount", "currency", "platform_fee")
    for sent_order, stored_order in zip(sent.orders, stored.orders, strict=True):
        for name, sent_value, stored_value in zip(order_fields, sent_order.values(), stored_order.values(), strict=True):
            if sent_value != stored_value:
                return f"payment_orders[{sent_order.index}].{name}"
    return "checkout_id"


@dataclass(frozen=True, slots=True)
class FeeRates:
    """What the platform keeps of a sale, in parts per million, where the order does not say."""

    default: int
    by_seller: dict[str, int]

    def compute_fee(self, order: Order) -> int:
        """The order's own fee, or the configured rate of its amount; the seller always gets at least one minor unit."""
        if order.platform_fee is not None:
            return order.platform_fee
        return min(apply_rate(order.amount, self.by_seller.get(order.seller_account, self.default)), order.amount - 1)


def format_charge_id(checkout: CheckoutRequest, order: Order) -> str:
    """The demand that covers an order: its own, or the checkout's."""
    return f"c-{checkout.checkout_id}" if checkout.charging is ChargeMode.TOGETHER else f"o-{order.payment_order_id}"


def parse_charge_id(text: str, field: str = "charge_id") -> str:
    """A charge's id, o- or c- and the id of its order or checkout. Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REFUSED."""
    kind, _, id_ = text.partition("-")
    if not text or kind not in ("o", "c") or not id_:
        raise ApiError(
            ErrorReason.FIELD_INVALID if text else ErrorReason.FIELD_REQUIRED,
            f"{field} must be o-{{payment_order_id}} or c-{{checkout_id}}.",
            field=field,
        )
    parse_id(id_, field)
    return text


def derive_unapplied_charge_id(provider: str, reference: str) -> str:
    """The id of money that fits no order, by the provider's name for it."""
    return f"u-{digest_text(provider, reference)}"


def check_amount(outcome: ChargeOutcome, amount: int, currency: str) -> ChargeOutcome:
    """What an answer means for the orders of a charge of this amount: money that fits no order never makes one a SUCCESS."""
    if isinstance(outcome, Succeeded) and (outcome.amount, outcome.currency) != (amount, currency):
        return Declined(FailureReason.PROVIDER_MISMATCH, reference=outcome.reference)
    return outcome


def reject_siblings(checkout: CheckoutRequest, rejections: dict[str, FailureReason]) -> dict[str, FailureReason]:
    """Risk verdicts by order id, with all or nothing applied: orders that passed fail with those that did not."""
    if checkout.on_partial is not PartialFailurePolicy.ALL_OR_NOTHING or not rejections:
        return rejections
    return {order.payment_order_id: rejections.get(order.payment_order_id, FailureReason.SIBLING_FAILED) for order in checkout.orders}


def normalize(checkout: CheckoutRequest) -> CheckoutRequest:
    """The event with its orders sorted by id."""
    return replace(checkout, orders=tuple(sorted(checkout.orders, key=lambda order: order.payment_order_id)))
