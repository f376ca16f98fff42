"""What Stripe's errors mean: one table from the answer to the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import stripe

from tallystick_core.provider.outcome import FailureReason, NotSent, RetryReason, Unknown
from tallystick_server.providers.http_answer import parse_retry_after, retry_reason_of
from tallystick_server.providers.stripe.json_fields import is_storable


class NotConnected(stripe.APIConnectionError):
    """No connection to Stripe: nothing was sent."""

    def __init__(self, text: str) -> None:
        super().__init__(text)  # type: ignore[no-untyped-call]


class NoAnswer(stripe.APIConnectionError):
    """The request may have been sent, and no whole answer has come."""

    def __init__(self, text: str) -> None:
        super().__init__(text)  # type: ignore[no-untyped-call]


class ForeignAnswer(stripe.APIConnectionError):
    """An answer that is not Stripe's own, such as the error page of a proxy, or is too long."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            f"status {status}", http_status=status, headers=dict(headers)
        )


class Effect(StrEnum):
    """What an error means for the request."""

    DECLINED = "DECLINED"
    """The buyer's bank, or Stripe's check of the buyer, declined it."""
    REJECTED = "REJECTED"
    """Stripe definitely rejects it: nothing was moved, and a repeat changes nothing."""
    NOT_FOUND = "NOT_FOUND"
    """Stripe does not know the object that the request names."""
    NO_ACCESS = "NO_ACCESS"
    """The connected account does not exist, or the key has no access to it any more. An earlier
    request may have been accepted.
    """
    WRONG_STATE = "WRONG_STATE"
    """The payment is in a state that does not allow it. Nothing was changed."""
    OUR_ERROR = "OUR_ERROR"
    """Stripe rejects the request as malformed: an error of the platform."""
    UNAUTHORIZED = "UNAUTHORIZED"
    """Stripe rejects the key, or its permissions."""
    THROTTLED = "THROTTLED"
    """Stripe asks to repeat it later, under the same key."""
    SERVER_ERROR = "SERVER_ERROR"
    """Stripe failed. It replays this answer for the key, whatever has happened."""


_RETRY_REASONS = {
    Effect.OUR_ERROR: RetryReason.REJECTED,
    Effect.UNAUTHORIZED: RetryReason.UNAUTHORIZED,
    Effect.THROTTLED: RetryReason.THROTTLED,
    Effect.SERVER_ERROR: RetryReason.SERVER_ERROR,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of the table. It matches an error with one of its statuses, its type if it has one, one
    of its codes if it has any, and one of its parameters if it has any.
    """

    effect: Effect
    statuses: range
    type: str = ""
    codes: frozenset[str] = frozenset()
    params: frozenset[str] = frozenset()

    def matches(self, status: int, type_: str, code: str, param: str) -> bool:
        return (
            status in self.statuses
            and self.type in ("", type_)
            and (not self.codes or code in self.codes)
            and (not self.params or param in self.params)
        )


CHARGE_REJECTIONS = frozenset(
    {
        "amount_too_large",
        "amount_too_small",
        "charge_exceeds_source_limit",
        "charge_exceeds_transaction_limit",
        "country_unsupported",
        "invalid_card_type",
        "invalid_charge_amount",
        "invalid_source_usage",
        "payment_intent_incompatible_payment_method",
        "payment_method_bank_account_blocked",
        "payment_method_currency_mismatch",
        "payment_method_not_available",
        "payment_method_restricted",
        "payment_method_unactivated",
        "payment_method_unexpected_state",
        "payment_method_unsupported_type",
        "request_blocked",
        "token_already_used",
    }
)
ACCOUNT_REJECTIONS = frozenset(
    {
        "account_closed",
        "account_invalid",
        "account_number_invalid",
        "bank_account_bad_routing_numbers",
        "bank_account_declined",
        "bank_account_restricted",
        "bank_account_unusable",
        "bank_account_verification_failed",
        "insufficient_capabilities_for_transfer",
        "no_account",
        "payouts_not_allowed",
        "routing_number_invalid",
        "transfers_not_allowed",
    }
)
"""The connected account, or its bank account, cannot be paid to."""
PAYOUT_REJECTIONS = frozenset(
    {
        "balance_insufficient",
        "capability_not_active",
        "insufficient_funds",
        "instant_payouts_unsupported",
        "payouts_limit_exceeded",
    }
)
REFUND_REJECTIONS = frozenset(
    {
        "charge_already_refunded",
        "charge_disputed",
        "charge_not_refundable",
        "refund_disputed_payment",
    }
)
STATE_CODES = frozenset({"intent_invalid_state", "payment_intent_unexpected_state"})
KEY_CODES = frozenset(
    {
        "api_key_expired",
        "livemode_mismatch",
        "platform_account_required",
        "platform_api_key_expired",
        "secret_key_required",
        "testmode_charges_only",
    }
)
BUSY_CODES = frozenset(
    {
        "idempotency_key_in_use",
        "lock_timeout",
        "payment_intent_rate_limit_exceeded",
        "rate_limit",
    }
)
_REQUEST_ERRORS = range(400, 405)
_ANY_ERROR = range(400, 500)

RULES: tuple[Rule, ...] = (
    Rule(Effect.THROTTLED, _ANY_ERROR, codes=BUSY_CODES),
    Rule(Effect.OUR_ERROR, _ANY_ERROR, type="idempotency_error"),
    Rule(Effect.UNAUTHORIZED, _ANY_ERROR, codes=KEY_CODES),
    Rule(Effect.NO_ACCESS, range(403, 404), codes=frozenset({"account_invalid"})),
    Rule(Effect.UNAUTHORIZED, range(403, 404)),
    Rule(
        Effect.REJECTED,
        _REQUEST_ERRORS,
        codes=CHARGE_REJECTIONS | ACCOUNT_REJECTIONS | PAYOUT_REJECTIONS | REFUND_REJECTIONS,
        type="invalid_request_error",
    ),
    Rule(
        Effect.REJECTED,
        _REQUEST_ERRORS,
        codes=frozenset({"resource_missing"}),
        params=frozenset({"payment_method", "destination"}),
    ),
    # a page that would expire too soon
    Rule(
        Effect.REJECTED,
        _REQUEST_ERRORS,
        type="invalid_request_error",
        params=frozenset({"expires_at"}),
    ),
    Rule(Effect.NOT_FOUND, range(404, 405), codes=frozenset({"resource_missing"})),
    Rule(Effect.WRONG_STATE, _REQUEST_ERRORS, codes=STATE_CODES),
    Rule(Effect.UNAUTHORIZED, range(401, 402)),
    Rule(Effect.DECLINED, range(402, 403)),
    Rule(Effect.THROTTLED, range(409, 410)),
    Rule(Effect.THROTTLED, range(429, 430)),
    Rule(Effect.OUR_ERROR, _ANY_ERROR),
    Rule(Effect.SERVER_ERROR, range(500, 600)),
)
"""The first row that matches counts. An answer that no row matches is Unknown."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Stripe declines or rejects the request. `code` says most precisely why."""

    effect: Effect
    """DECLINED, REJECTED, NOT_FOUND, NO_ACCESS or WRONG_STATE."""
    code: str
    param: str = ""
    payment_intent: Mapping[str, Any] = field(default_factory=dict)
    """What the request has created or used nevertheless; empty: nothing."""
    is_replayed: bool = False
    """As in `Answer`."""

    @property
    def is_definite(self) -> bool:
        """Whether it is certain that this request has moved nothing, and never will."""
        return self.effect in (Effect.DECLINED, Effect.REJECTED)

    @property
    def rejects_account(self) -> bool:
        """Whether the connected account, or its bank account, is to blame."""
        return self.code in ACCOUNT_REJECTIONS or self.param == "destination"


def to_unknown(rejection: Rejection) -> Unknown:
    """A rejection that the request should never get: an error of the platform. NO_ACCESS is about
    one account, so it is not UNAUTHORIZED, which stops the calls for all of them.
    """
    return Unknown(f"{rejection.effect} {rejection.code}", RetryReason.REJECTED)


Problem = Rejection | NotSent | Unknown
"""What a call returns that is not answered with its object."""


def unknown_of(problem: Problem, reference: str) -> Unknown:
    """The outcome of what Stripe knows under a reference, when a later request has no usable
    answer.
    """
    match problem:
        case Unknown():
            return replace(problem, reference=reference)
        case NotSent():
            return Unknown(problem.detail, reference=reference)
        case Rejection():
            return replace(to_unknown(problem), reference=reference)


def to_result(error: stripe.StripeError) -> Problem:
    """What an error of Stripe's library means."""
    if isinstance(error, NotConnected):
        return NotSent("no connection to Stripe")
    headers = error.headers or {}
    retry_after = parse_retry_after(headers.get("retry-after", ""), headers.get("date", ""))
    status, details = error.http_status or 0, _details(error)
    if details is None:
        text = f"status {status} without a usable answer" if status else "no answer from Stripe"
        return Unknown(text, retry_reason_of(status), retry_after)
    code = _text(details, "code")
    type_, param = _text(details, "type"), _text(details, "param")
    rule = next((rule for rule in RULES if rule.matches(status, type_, code, param)), None)
    if rule is None:
        return Unknown(_describe(error, type_, code), retry_after=retry_after)
    if rule.effect in _RETRY_REASONS:
        reason = _RETRY_REASONS[rule.effect]
        return Unknown(_describe(error, type_, code), reason, retry_after)
    precise_code = details.get("decline_code") or details.get("code") or ""
    if not is_storable(precise_code):
        return Unknown(f"status {status} with a code that cannot be stored")
    intent = details.get("payment_intent")
    return Rejection(
        rule.effect,
        precise_code,
        param,
        intent if isinstance(intent, dict) else {},
        headers.get("idempotent-replayed", "") == "true",
    )


def _details(error: stripe.StripeError) -> Mapping[str, Any] | None:
    """The error as Stripe describes it; None: it is not Stripe's own."""
    body = error.json_body
    details = body.get("error") if isinstance(body, dict) else None
    return details if isinstance(details, dict) and details.get("type") else None


def _text(details: Mapping[str, Any], name: str) -> str:
    text = details.get(name)
    return text if isinstance(text, str) and is_storable(text) else ""


def _describe(error: stripe.StripeError, type_: str, code: str) -> str:
    """The error for an operator, with Stripe's id of the request."""
    request_id = error.request_id or ""
    parts = (f"status {error.http_status}", type_, code, request_id)
    return " ".join(part for part in parts if part and is_storable(part))


_DECLINE_CODES: Mapping[FailureReason, tuple[str, ...]] = {
    FailureReason.INSUFFICIENT_FUNDS: ("insufficient_funds",),
    FailureReason.PAYMENT_METHOD_INVALID: (
        "account_closed",
        "bank_account_unusable",
        "card_not_supported",
        "currency_not_supported",
        "expired_card",
        "expired_payment_method",
        "incorrect_address",
        "incorrect_cvc",
        "incorrect_number",
        "incorrect_pin",
        "incorrect_zip",
        "invalid_account",
        "invalid_card_type",
        "invalid_cvc",
        "invalid_expiry_month",
        "invalid_expiry_year",
        "invalid_number",
        "invalid_pin",
        "no_account",
        "pin_try_exceeded",
        "resource_missing",
        "token_already_used",
    ),
    FailureReason.AUTHENTICATION_FAILED: (
        "authentication_failure",
        "authentication_not_handled",
        "authentication_required",
        "mobile_device_authentication_required",
        "offline_pin_required",
        "online_or_offline_pin_required",
        "payment_intent_authentication_failure",
    ),
    FailureReason.BUYER_CANCELLED: ("payment_method_customer_decline",),
}
DECLINE_REASONS: Mapping[str, FailureReason] = {
    code: reason for reason, codes in _DECLINE_CODES.items() for code in codes
}
"""The reason of each code of a declined card. Every other code is PROVIDER_DECLINED."""


def decline_reason(code: str) -> FailureReason:
    """Why a charge with this code has failed."""
    return DECLINE_REASONS.get(code, FailureReason.PROVIDER_DECLINED)
