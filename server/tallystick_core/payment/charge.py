"""Charges: their ids, their next action, and the effect of an outcome on their orders."""

from __future__ import annotations

from collections.abc import Iterable

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.fingerprint import digest_text
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payment.checkout import ChargeMode, CheckoutRequest, Order
from tallystick_core.payment.state import OrderStatus, PaymentTrigger
from tallystick_core.provider.outcome import (
    ChargeOutcome,
    Declined,
    FailureReason,
    NotSent,
    Pending,
    Succeeded,
    Unknown,
)
from tallystick_core.validation import parse_id

TRIGGERS: dict[type, PaymentTrigger] = {
    Succeeded: PaymentTrigger.SUCCEEDED,
    Declined: PaymentTrigger.DECLINED,
    Pending: PaymentTrigger.PENDING,
    NotSent: PaymentTrigger.NOT_SENT,
    Unknown: PaymentTrigger.UNKNOWN,
}


def next_action(
    statuses: Iterable[OrderStatus],
    *,
    attempt_ended: bool,
    must_end: bool,
    maybe_sent: bool,
    lookup_only: bool,
    key_honored: bool,
) -> NextAction:
    """The next action of a charge whose orders have these statuses. The orders of one charge change
    together.

    `attempt_ended`: its attempt has ended. `must_end`: it was cancelled or has expired.
    `maybe_sent`: it may have reached the provider. `lookup_only`: the next provider call must be a
    lookup. `key_honored`: the provider certainly still honors the attempt's key.
    """
    distinct_statuses = set(statuses)
    if OrderStatus.SUCCESS in distinct_statuses:
        return NextAction.BOOK
    if OrderStatus.NOT_STARTED in distinct_statuses:
        never_sent = (
            distinct_statuses == {OrderStatus.NOT_STARTED} and not attempt_ended and not maybe_sent
        )
        return NextAction.GIVE_UP if must_end and never_sent else NextAction.RISK
    if attempt_ended:
        return NextAction.APPLY_RECORDED
    if must_end:
        return (
            NextAction.CANCEL
            if maybe_sent or OrderStatus.PENDING in distinct_statuses
            else NextAction.GIVE_UP
        )
    return (
        NextAction.SEND
        if distinct_statuses == {OrderStatus.EXECUTING} and key_honored and not lookup_only
        else NextAction.LOOK_UP
    )


def trigger_for(outcome: ChargeOutcome) -> PaymentTrigger:
    return TRIGGERS[type(outcome)]


def format_charge_id(checkout: CheckoutRequest, order: Order) -> str:
    """The id of the charge that covers an order: the order's own, or the checkout's."""
    return (
        f"c-{checkout.checkout_id}"
        if checkout.charge_mode is ChargeMode.COMBINED
        else f"o-{order.payment_order_id}"
    )


def parse_charge_id(text: str) -> str:
    """Checks the form of a caller's charge id, which is stored and compared whole. Raises
    FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REJECTED.
    """
    prefix, _, id_ = text.partition("-")
    if not text or prefix not in ("o", "c") or not id_:
        raise ApiError(
            ErrorReason.FIELD_INVALID if text else ErrorReason.FIELD_REQUIRED,
            "charge_id must be o-{payment_order_id} or c-{checkout_id}.",
            field="charge_id",
        )
    parse_id(id_, "charge_id")
    return text


def derive_unapplied_charge_id(provider: str, reference: str) -> str:
    """The id of an unapplied charge, derived from the provider's reference."""
    return f"u-{digest_text(provider, reference)}"


def decline_if_mismatched(outcome: ChargeOutcome, amount: int, currency: str) -> ChargeOutcome:
    """The effect of an outcome on the orders of a charge of this amount. A different amount or
    currency never makes an order a SUCCESS.
    """
    if isinstance(outcome, Succeeded) and (outcome.amount, outcome.currency) != (amount, currency):
        return Declined(FailureReason.PROVIDER_MISMATCH, reference=outcome.reference)
    return outcome
