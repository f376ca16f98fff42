"""Pay-in: what a payment is made of, and the table of its orders' states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from tallystick_core.canonical import fingerprint, letters, micros
from tallystick_core.identifier import parse_id
from tallystick_core.money import share
from tallystick_core.provider import Declined, FailureReason, NotSent, Outcome, Pending, Succeeded, Unknown
from tallystick_core.recovery import Step
from tallystick_core.refusal import Reason, Refused
from tallystick_core.table import Verb, moved

MOST_ORDERS = 200


class Status(StrEnum):
    """`payment_order_status`: how far the demand for one order has come."""

    NOT_STARTED = "NOT_STARTED"
    EXECUTING = "EXECUTING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    PENDING = "PENDING"


class Happening(StrEnum):
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


class Cause(StrEnum):
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


class Charging(StrEnum):
    """How many demands a checkout makes on the provider: one for each order, or one for all."""

    PER_ORDER = "PER_ORDER"
    TOGETHER = "TOGETHER"


class OnPartial(StrEnum):
    """What becomes of the orders that could go on when one of their checkout cannot."""

    KEEP = "KEEP"
    ALL_OR_NOTHING = "ALL_OR_NOTHING"


MOVES: dict[tuple[Status, Happening], Status] = {
    # moved on by accept, in the transaction that stores the order
    (Status.NOT_STARTED, Happening.RISK_PASSED): Status.EXECUTING,
    (Status.NOT_STARTED, Happening.RISK_REFUSED): Status.FAILED,
    (Status.NOT_STARTED, Happening.GIVEN_UP): Status.FAILED,
    (Status.NOT_STARTED, Happening.CLOSED): Status.FAILED,
    # moved on by the provider's answer; without a definite one the sweep sends the same key again
    (Status.EXECUTING, Happening.SUCCEEDED): Status.SUCCESS,
    (Status.EXECUTING, Happening.DECLINED): Status.FAILED,
    (Status.EXECUTING, Happening.PENDING): Status.PENDING,
    (Status.EXECUTING, Happening.NOT_SENT): Status.EXECUTING,
    (Status.EXECUTING, Happening.UNKNOWN): Status.EXECUTING,
    (Status.EXECUTING, Happening.GIVEN_UP): Status.FAILED,
    (Status.EXECUTING, Happening.CLOSED): Status.FAILED,
    # its two flags set, by settle
    (Status.SUCCESS, Happening.SETTLED): Status.SUCCESS,
    # by its caller, once it is settled
    (Status.SUCCESS, Happening.DELIVERED): Status.SUCCESS,
    # moved on by the provider, in its own time
    (Status.PENDING, Happening.SUCCEEDED): Status.SUCCESS,
    (Status.PENDING, Happening.DECLINED): Status.FAILED,
    (Status.PENDING, Happening.PENDING): Status.PENDING,
    (Status.PENDING, Happening.NOT_SENT): Status.PENDING,
    (Status.PENDING, Happening.UNKNOWN): Status.PENDING,
    (Status.PENDING, Happening.GIVEN_UP): Status.FAILED,
    (Status.PENDING, Happening.CLOSED): Status.FAILED,
}

VERBS: dict[Happening, Verb] = {
    Happening.RISK_PASSED: Verb("CHARGE", "charged"),
    Happening.RISK_REFUSED: Verb("REFUSE", "refused"),
    Happening.SUCCEEDED: Verb("CHARGE", "charged"),
    Happening.DECLINED: Verb("DECLINE", "declined"),
    Happening.PENDING: Verb("POSTPONE", "left pending"),
    Happening.NOT_SENT: Verb("SEND", "sent"),
    Happening.UNKNOWN: Verb("SEND", "sent"),
    Happening.GIVEN_UP: Verb("GIVE_UP", "given up"),
    Happening.CLOSED: Verb("CLOSE", "closed"),
    Happening.SETTLED: Verb("SETTLE", "settled"),
    Happening.DELIVERED: Verb("CONFIRM_DELIVERY", "confirmed as delivered"),
}
"""What each happening does to an order, as refusals name it."""

FINAL = frozenset({Status.SUCCESS, Status.FAILED})

ALERT_AFTER: Mapping[str, float] = {Status.EXECUTING: 600.0, Status.PENDING: 259_200.0, Status.SUCCESS: 600.0}
"""Seconds that an order may rest in a status before a person should know; SUCCESS: until it is settled."""

HAPPENINGS: dict[type, Happening] = {
    Succeeded: Happening.SUCCEEDED,
    Declined: Happening.DECLINED,
    Pending: Happening.PENDING,
    NotSent: Happening.NOT_SENT,
    Unknown: Happening.UNKNOWN,
}


def move(status: Status, happening: Happening) -> Status:
    """The status after. Raises STATE_FORBIDS for what cannot happen to an order in that status."""
    return moved(MOVES, VERBS, status, happening, "order")


def next_step(statuses: Iterable[Status], *, answered: bool, ending: bool, maybe_sent: bool, looking: bool, key_honoured: bool) -> Step:
    """What comes next for a charge whose orders have these statuses; those of one charge move together.

    `answered`: its attempt has ended; `ending`: it was cancelled, or its time is up; `maybe_sent`: it may have reached the provider;
    `looking`: it is the provider's turn to say what became of it; `key_honoured`: the provider surely still knows the attempt's key.
    """
    known = set(statuses)
    if Status.SUCCESS in known:
        return Step.SETTLE
    if Status.NOT_STARTED in known:
        never_sent = known == {Status.NOT_STARTED} and not answered and not maybe_sent
        return Step.GIVE_UP if ending and never_sent else Step.RISK
    if answered:
        return Step.JUDGE
    if ending:
        return Step.CANCEL if maybe_sent or Status.PENDING in known else Step.GIVE_UP
    return Step.SEND if known == {Status.EXECUTING} and key_honoured and not looking else Step.LOOK_UP


def happening(outcome: Outcome) -> Happening:
    return HAPPENINGS[type(outcome)]


@dataclass(frozen=True, slots=True)
class Order:
    """One seller's share of a payment, as the caller asked for it. Amounts in minor units; `platform_fee` None: as configured."""

    payment_order_id: str
    buyer_account: str
    seller_account: str
    amount: int
    currency: str
    platform_fee: int | None
    place: int = field(default=0, compare=False)
    """Where it stood in the request; no part of its values."""

    def values(self) -> tuple[str | int, ...]:
        """What makes two orders the same."""
        fee = "" if self.platform_fee is None else self.platform_fee
        return (self.payment_order_id, self.buyer_account, self.seller_account, self.amount, self.currency, fee)


@dataclass(frozen=True, slots=True)
class PaymentEvent:
    """What the caller sent, parsed. `orders` are sorted by id, so that the order in which they came makes no difference."""

    checkout_id: str
    caller: str
    owner: str
    buyer_info: str
    seller_info: str
    buyer_country: str
    payment_token: str
    payment_method_type: MethodType
    charging: Charging
    on_partial: OnPartial
    orders: tuple[Order, ...]
    expire_time: datetime | None = None

    def fingerprint(self) -> bytes:
        """32 bytes that are equal for equal values, however they were written."""
        head = (self.checkout_id, self.owner, self.buyer_info, self.seller_info, self.buyer_country)
        how = (self.payment_token, self.payment_method_type, self.charging, self.on_partial, micros(self.expire_time))
        return fingerprint(*head, *how, *(value for order in self.orders for value in order.values()))


def first_difference(sent: PaymentEvent, stored: PaymentEvent) -> str:
    """The contract's name of the first field in which two events differ, in the order of the request."""
    names = ("buyer_info", "seller_info", "buyer_country", "payment_token", "payment_method_type", "charging", "on_partial", "expire_time")
    for name in names:
        if getattr(sent, name) != getattr(stored, name):
            return "credit_card_info" if name == "payment_token" else name
    if len(sent.orders) != len(stored.orders):
        return "payment_orders"
    order_fields = ("payment_order_id", "buyer_account", "seller_account", "amount", "currency", "platform_fee")
    for ours, theirs in zip(sent.orders, stored.orders, strict=True):
        for name, here, there in zip(order_fields, ours.values(), theirs.values(), strict=True):
            if here != there:
                return f"payment_orders[{ours.place}].{name}"
    return "checkout_id"


@dataclass(frozen=True, slots=True)
class FeeRates:
    """What the platform keeps of a sale, in parts per million, where the order does not say."""

    default: int
    by_seller: dict[str, int]

    def fee(self, order: Order) -> int:
        """The order's own fee, or the configured rate of its amount; the seller always gets at least one minor unit."""
        if order.platform_fee is not None:
            return order.platform_fee
        return min(share(order.amount, self.by_seller.get(order.seller_account, self.default)), order.amount - 1)


def charge_id(event: PaymentEvent, order: Order) -> str:
    """The demand that covers an order: its own, or the checkout's."""
    return f"c-{event.checkout_id}" if event.charging is Charging.TOGETHER else f"o-{order.payment_order_id}"


def parse_charge_id(text: str, field: str = "charge_id") -> str:
    """A charge's id, o- or c- and the id of its order or checkout. Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REFUSED."""
    kind, _, id_ = text.partition("-")
    if not text or kind not in ("o", "c") or not id_:
        raise Refused(
            Reason.FIELD_INVALID if text else Reason.FIELD_REQUIRED, f"{field} must be o-{{payment_order_id}} or c-{{checkout_id}}.", field=field
        )
    parse_id(id_, field)
    return text


def unapplied_charge_id(provider: str, reference: str) -> str:
    """The id of money that fits no order, by the provider's name for it."""
    return f"u-{letters(provider, reference)}"


def judge(outcome: Outcome, amount: int, currency: str) -> Outcome:
    """What an answer means for the orders of a charge of this amount: money that fits no order never makes one a SUCCESS."""
    if isinstance(outcome, Succeeded) and (outcome.amount, outcome.currency) != (amount, currency):
        return Declined(FailureReason.PROVIDER_MISMATCH, reference=outcome.reference)
    return outcome


def refuse_siblings(event: PaymentEvent, verdicts: dict[str, FailureReason]) -> dict[str, FailureReason]:
    """Risk verdicts by order id, with all or nothing applied: orders that passed fail with those that did not."""
    if event.on_partial is not OnPartial.ALL_OR_NOTHING or not verdicts:
        return verdicts
    return {order.payment_order_id: verdicts.get(order.payment_order_id, FailureReason.SIBLING_FAILED) for order in event.orders}


def normalised(event: PaymentEvent) -> PaymentEvent:
    """The event with its orders sorted by id."""
    return replace(event, orders=tuple(sorted(event.orders, key=lambda order: order.payment_order_id)))
