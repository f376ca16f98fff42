"""The states of a payment order, and the transitions between them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from tallystick_core.state_machine import Verb, next_state


class OrderStatus(StrEnum):
    """`payment_order_status`: the state of one order's charge."""

    NOT_STARTED = "NOT_STARTED"
    EXECUTING = "EXECUTING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    PENDING = "PENDING"


class PaymentTrigger(StrEnum):
    """The triggers of an order: risk results, provider outcomes, operator decisions, booking and
    delivery.
    """

    RISK_PASSED = "RISK_PASSED"
    RISK_REJECTED = "RISK_REJECTED"
    SUCCEEDED = "SUCCEEDED"
    DECLINED = "DECLINED"
    PENDING = "PENDING"
    NOT_SENT = "NOT_SENT"
    UNKNOWN = "UNKNOWN"
    FALLBACK = "FALLBACK"
    """Certainly nothing was sent to its provider; the next attempt goes to the fallback."""
    GIVEN_UP = "GIVEN_UP"
    """It is no longer sent, and it is certain that nothing was charged. Either it was never sent,
    or the provider has proved not to know it.
    """
    CLOSED = "CLOSED"
    """An operator closed it with evidence that nothing was charged."""
    BOOKED = "BOOKED"
    DELIVERED = "DELIVERED"
    """The caller has confirmed delivery of the goods."""


class PaymentTransitionReason(StrEnum):
    """Why an order has a new version, as shown in its history."""

    CREATED = "CREATED"
    RISK_PASSED = "RISK_PASSED"
    RISK_REJECTED = "RISK_REJECTED"
    PROVIDER_OUTCOME = "PROVIDER_OUTCOME"
    FALLBACK = "FALLBACK"
    GIVEN_UP = "GIVEN_UP"
    CLOSED_BY_OPERATOR = "CLOSED_BY_OPERATOR"
    BOOKED = "BOOKED"
    DELIVERY_CONFIRMED = "DELIVERY_CONFIRMED"


TRANSITIONS: dict[tuple[OrderStatus, PaymentTrigger], OrderStatus] = {
    # triggered by CreatePayment, in the transaction that stores the order
    (OrderStatus.NOT_STARTED, PaymentTrigger.RISK_PASSED): OrderStatus.EXECUTING,
    (OrderStatus.NOT_STARTED, PaymentTrigger.RISK_REJECTED): OrderStatus.FAILED,
    (OrderStatus.NOT_STARTED, PaymentTrigger.GIVEN_UP): OrderStatus.FAILED,
    (OrderStatus.NOT_STARTED, PaymentTrigger.CLOSED): OrderStatus.FAILED,
    # triggered by the provider's outcome; if it is indefinite, the worker sends the same key again
    (OrderStatus.EXECUTING, PaymentTrigger.SUCCEEDED): OrderStatus.SUCCESS,
    (OrderStatus.EXECUTING, PaymentTrigger.DECLINED): OrderStatus.FAILED,
    (OrderStatus.EXECUTING, PaymentTrigger.PENDING): OrderStatus.PENDING,
    (OrderStatus.EXECUTING, PaymentTrigger.NOT_SENT): OrderStatus.EXECUTING,
    (OrderStatus.EXECUTING, PaymentTrigger.UNKNOWN): OrderStatus.EXECUTING,
    (OrderStatus.EXECUTING, PaymentTrigger.FALLBACK): OrderStatus.EXECUTING,
    (OrderStatus.EXECUTING, PaymentTrigger.GIVEN_UP): OrderStatus.FAILED,
    (OrderStatus.EXECUTING, PaymentTrigger.CLOSED): OrderStatus.FAILED,
    # triggered by booking, which sets the two flags
    (OrderStatus.SUCCESS, PaymentTrigger.BOOKED): OrderStatus.SUCCESS,
    # triggered by the caller, once the order is booked
    (OrderStatus.SUCCESS, PaymentTrigger.DELIVERED): OrderStatus.SUCCESS,
    # triggered by the provider, in its own time
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
    PaymentTrigger.RISK_REJECTED: Verb("REJECT", "rejected"),
    PaymentTrigger.SUCCEEDED: Verb("CHARGE", "charged"),
    PaymentTrigger.DECLINED: Verb("DECLINE", "declined"),
    PaymentTrigger.PENDING: Verb("LEAVE_PENDING", "left pending"),
    PaymentTrigger.NOT_SENT: Verb("SEND", "sent"),
    PaymentTrigger.UNKNOWN: Verb("SEND", "sent"),
    PaymentTrigger.FALLBACK: Verb("FALL_BACK", "sent to another provider"),
    PaymentTrigger.GIVEN_UP: Verb("GIVE_UP", "given up"),
    PaymentTrigger.CLOSED: Verb("CLOSE", "closed"),
    PaymentTrigger.BOOKED: Verb("BOOK", "booked"),
    PaymentTrigger.DELIVERED: Verb("CONFIRM_DELIVERY", "confirmed as delivered"),
}
"""What each trigger does to an order, as errors name it."""

TERMINAL_STATUSES = frozenset({OrderStatus.SUCCESS, OrderStatus.FAILED})

ALERT_AFTER_SECONDS: Mapping[str, float] = {
    OrderStatus.EXECUTING: 600.0,
    OrderStatus.PENDING: 259_200.0,
    OrderStatus.SUCCESS: 600.0,
}
"""Seconds that an order may remain in a status before an alert is raised; SUCCESS: until it is
booked.
"""


def transition(status: OrderStatus, trigger: PaymentTrigger) -> OrderStatus:
    """The next status. Raises INVALID_STATE if the status does not allow the trigger."""
    return next_state(TRANSITIONS, VERBS, status, trigger, "order")
