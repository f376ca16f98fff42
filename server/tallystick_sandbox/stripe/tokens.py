"""What a payment method or an account does: Stripe's test payment methods, and the tokens of the
sandbox with the prefixes `pm_` and `tok_` for payment methods, and `acct_` for accounts.
"""

from __future__ import annotations

from dataclasses import dataclass

from tallystick_sandbox.rules import Behavior, Fault, behavior_for, is_fault_token

_PENDING_ACTION = Behavior(Fault.PENDING, code="action")
_STRIPE_DECLINES = {
    "chargeDeclined": "generic_decline",
    "chargeDeclinedInsufficientFunds": "insufficient_funds",
    "chargeDeclinedLostCard": "lost_card",
    "chargeDeclinedStolenCard": "stolen_card",
    "chargeDeclinedExpiredCard": "expired_card",
    "chargeDeclinedIncorrectCvc": "incorrect_cvc",
    "chargeDeclinedProcessingError": "processing_error",
    "chargeDeclinedVelocityLimitExceeded": "card_velocity_exceeded",
    "chargeDeclinedFraudulent": "fraudulent",
    "radarBlock": "highest_risk_level",
}
_SUCCEEDING = ("visa", "visa_debit", "mastercard", "amex", "us", "gb", "de", "fr", "bypassPending")
_REFUNDS = ("pendingRefund", "refundFail")
STRIPE_METHODS = {
    **{f"pm_card_{name}": Behavior(Fault.NONE) for name in (*_SUCCEEDING, *_REFUNDS)},
    **{
        f"pm_card_{prefix}{name}": Behavior(Fault.DECLINE, code=code)
        for name, code in _STRIPE_DECLINES.items()
        for prefix in ("", "visa_")
    },
    "pm_card_authenticationRequired": _PENDING_ACTION,
    "pm_card_authenticationRequiredOnSetup": _PENDING_ACTION,
    "pm_card_threeDSecureRequired": _PENDING_ACTION,
    "pm_card_threeDSecure2Required": _PENDING_ACTION,
    "pm_card_threeDSecure": _PENDING_ACTION,
}
"""Stripe's own test payment methods."""

_OWN_CODES = frozenset(
    {"expired_card", "incorrect_cvc", "incorrect_number", "processing_error", "invalid_cvc"}
)
"""Decline codes that are error codes too. All others have the error code card_declined."""
_PAYMENT_METHOD_PREFIXES = ("pm_", "tok_")


@dataclass(frozen=True, slots=True)
class CardDecline:
    """A decline as Stripe's card errors show it."""

    code: str
    decline_code: str
    message: str


def payment_method_behavior(token: str) -> Behavior | None:
    """What a payment method does; None: there is no such payment method."""
    if token in STRIPE_METHODS:
        return STRIPE_METHODS[token]
    if token.startswith(_PAYMENT_METHOD_PREFIXES) and not token.startswith("pm_card_"):
        return behavior_for(token)
    return None


def account_behavior(account: str) -> Behavior | None:
    """What a connected account does; None: there is no such account. `acct_ok` has no fault.
    Different accounts with one behavior have a suffix after a second colon, as in `acct_ok::a` and
    `acct_slow:60:b`.
    """
    token = ":".join(account.split(":")[:2])
    if not account.startswith("acct_"):
        return None
    if token.partition(":")[0] == "acct_ok":
        return Behavior(Fault.NONE)
    return behavior_for(token) if is_fault_token(token) else None


def card_decline(code: str) -> CardDecline:
    decline_code = code or "generic_decline"
    error_code = decline_code if decline_code in _OWN_CODES else "card_declined"
    message = {
        "insufficient_funds": "Your card has insufficient funds.",
        "expired_card": "Your card has expired.",
        "incorrect_cvc": "Your card's security code is incorrect.",
        "processing_error": "An error occurred while processing your card. Try again later.",
        "authentication_required": "Your card was declined. This transaction requires "
        "authentication.",
    }.get(decline_code, "Your card was declined.")
    if decline_code == "authentication_required":
        error_code = "authentication_required"
    return CardDecline(error_code, decline_code, message)
