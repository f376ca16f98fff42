"""A PaymentIntent: Stripe's object of one charge, and what its status means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tallystick_core.provider.outcome import (
    ChargeOutcome,
    Declined,
    FailureReason,
    Pending,
    PendingReason,
    ProviderFee,
    Succeeded,
)
from tallystick_server.providers.stripe.errors import decline_reason
from tallystick_server.providers.stripe.json_fields import (
    read_number,
    read_optional_table,
    read_optional_text,
    read_optional_url,
    read_text,
    require_kind,
)
from tallystick_server.providers.stripe.money import UnsupportedAmount, from_stripe_amount

AUTHENTICATION_REQUIRED = "authentication_required"
CANCELLED_BY_US: Final = "requested_by_customer"
"""The reason with which the platform cancels a charge."""
ABANDONED: Final = "abandoned"
"""The reason with which the platform ends a charge that has failed."""
FINAL_STATUSES = frozenset({"succeeded", "canceled"})
STATUSES = FINAL_STATUSES | {
    "requires_action",
    "requires_payment_method",
    "requires_confirmation",
    "processing",
    "requires_capture",
}


_REASONS = ("decline_code", "code", "type")
"""The fields that say why a payment has failed, the most precise first."""


@dataclass(frozen=True, slots=True)
class PaymentIntent:
    """What the platform uses of a PaymentIntent. Amounts are as Stripe writes them."""

    id: str
    status: str
    amount_received: int
    currency: str
    charge_id: str
    """The platform's id of the charge; "": it is not the platform's."""
    key: str
    """The idempotency key under which it was created."""
    error_code: str
    """Why the last payment failed, as precisely as Stripe says; "": it has not."""
    cancellation_reason: str
    next_action_url: str
    fee: ProviderFee | None
    """None: not known yet."""

    @property
    def has_failed(self) -> bool:
        """Whether its payment has failed, so that the platform must end it: it could be paid."""
        return self.status == "requires_payment_method" and self.error_code not in (
            "",
            AUTHENTICATION_REQUIRED,
        )


def parse_payment_intent(fields: Mapping[str, Any]) -> PaymentIntent:
    """Reads a PaymentIntent. Raises ValueError if it is none."""
    require_kind(fields, "payment_intent")
    status = read_text(fields, "status")
    if status not in STATUSES:
        raise ValueError("an unknown status")
    error = read_optional_table(fields, "last_payment_error")
    metadata = read_optional_table(fields, "metadata")
    redirect = read_optional_table(read_optional_table(fields, "next_action"), "redirect_to_url")
    return PaymentIntent(
        id=read_text(fields, "id"),
        status=status,
        amount_received=read_number(fields, "amount_received"),
        currency=read_text(fields, "currency").upper(),
        charge_id=read_optional_text(metadata, "charge_id"),
        key=read_optional_text(metadata, "key"),
        error_code=next(filter(None, (read_optional_text(error, name) for name in _REASONS)), ""),
        cancellation_reason=read_optional_text(fields, "cancellation_reason"),
        next_action_url=read_optional_url(redirect, "url"),
        fee=_read_fee(read_optional_table(fields, "latest_charge")),
    )


def _read_fee(charge: Mapping[str, Any]) -> ProviderFee | None:
    """What Stripe takes, in the currency of the platform's balance; None: not known yet."""
    transaction = read_optional_table(charge, "balance_transaction")
    if not transaction:
        return None
    currency = read_text(transaction, "currency").upper()
    try:
        return ProviderFee(from_stripe_amount(read_number(transaction, "fee"), currency), currency)
    except UnsupportedAmount:
        return None


def to_outcome(intent: PaymentIntent) -> ChargeOutcome | None:
    """The outcome of a charge. None: it has not ended, and does not continue by itself: its payment
    has failed, or a request has yet to confirm it. Raises ValueError if the money cannot be read.
    """
    match intent.status:
        case "succeeded":
            amount = from_stripe_amount(intent.amount_received, intent.currency)
            return Succeeded(intent.id, amount, intent.currency, intent.charge_id, intent.fee)
        case "canceled":
            return _declined(intent)
        case "requires_action":
            return _pending(intent, PendingReason.BUYER_ACTION)
        case "processing" | "requires_capture":
            return _pending(intent, PendingReason.PROVIDER_REVIEW)
        case _ if intent.error_code == AUTHENTICATION_REQUIRED:
            return _pending(intent, PendingReason.BUYER_ACTION)
        case _:
            return None


def _pending(intent: PaymentIntent, reason: PendingReason) -> Pending:
    return Pending(reason, intent.id, intent.next_action_url, intent.charge_id)


def _declined(intent: PaymentIntent) -> Declined:
    if intent.cancellation_reason == CANCELLED_BY_US:
        reason, code = FailureReason.CALLER_CANCELLED, intent.cancellation_reason
    elif intent.error_code:
        reason, code = decline_reason(intent.error_code), intent.error_code
    else:
        reason, code = FailureReason.PROVIDER_DECLINED, intent.cancellation_reason or "canceled"
    return Declined(reason, code, intent.id, intent.charge_id)
