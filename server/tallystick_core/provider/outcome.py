"""The outcomes of provider calls, and the reasons they carry."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tallystick_core.currencies import EXPONENTS
from tallystick_core.money import MAX_AMOUNT


class FailureReason(StrEnum):
    """Why an order is FAILED."""

    PROVIDER_DECLINED = "PROVIDER_DECLINED"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    PAYMENT_METHOD_INVALID = "PAYMENT_METHOD_INVALID"
    AUTHENTICATION_FAILED = "AUTHENTICATION_FAILED"
    PAGE_EXPIRED = "PAGE_EXPIRED"
    EXPIRED = "EXPIRED"
    BUYER_CANCELLED = "BUYER_CANCELLED"
    CALLER_CANCELLED = "CALLER_CANCELLED"
    RISK_AMOUNT_LIMIT = "RISK_AMOUNT_LIMIT"
    RISK_VELOCITY = "RISK_VELOCITY"
    RISK_BLOCKED_ACCOUNT = "RISK_BLOCKED_ACCOUNT"
    RISK_BLOCKED_COUNTRY = "RISK_BLOCKED_COUNTRY"
    RISK_PROVIDER = "RISK_PROVIDER"
    PROVIDER_MISMATCH = "PROVIDER_MISMATCH"
    PROVIDER_REJECTED = "PROVIDER_REJECTED"
    PROVIDER_UNREACHABLE = "PROVIDER_UNREACHABLE"
    SIBLING_FAILED = "SIBLING_FAILED"
    CLOSED_BY_OPERATOR = "CLOSED_BY_OPERATOR"


class PayoutFailure(StrEnum):
    """Why a payout is FAILED; the same names as `tallystick.payout.v1.PayoutFailureReason`."""

    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    WALLET_FROZEN = "WALLET_FROZEN"
    DESTINATION_REJECTED = "DESTINATION_REJECTED"
    PROVIDER_DECLINED = "PROVIDER_DECLINED"
    PROVIDER_REJECTED = "PROVIDER_REJECTED"
    PROVIDER_MISMATCH = "PROVIDER_MISMATCH"
    PROVIDER_UNREACHABLE = "PROVIDER_UNREACHABLE"
    CLOSED_BY_OPERATOR = "CLOSED_BY_OPERATOR"


class PendingReason(StrEnum):
    """Why an order is PENDING."""

    BUYER_ACTION = "BUYER_ACTION"
    PROVIDER_REVIEW = "PROVIDER_REVIEW"
    RISK_REVIEW = "RISK_REVIEW"


class RetryReason(StrEnum):
    """Why an operation is tried again. Each reason has its own retry policy."""

    NOT_SENT = "NOT_SENT"
    """It is certain that nothing reached the provider."""
    NO_ANSWER = "NO_ANSWER"
    """It is unknown whether money moved."""
    SERVER_ERROR = "SERVER_ERROR"
    """The provider answered with a server error. It may replay that answer for the key
    indefinitely, so the outcome is soon looked up as well.
    """
    THROTTLED = "THROTTLED"
    """The provider asked to retry later."""
    UNAUTHORIZED = "UNAUTHORIZED"
    """The provider rejects the platform's credentials. Nothing more is sent until it accepts
    them.
    """
    CIRCUIT_OPEN = "CIRCUIT_OPEN"
    """The circuit breaker of the provider is open, or all its concurrent calls are in use. This
    does not count as a try.
    """
    CHANGED_BEFORE_CALL = "CHANGED_BEFORE_CALL"
    """The operation expired or changed, for example was cancelled, before it was sent. What to do
    now is decided at once. This does not count as a try.
    """
    REJECTED = "REJECTED"
    """The provider rejects the request as malformed, its answer cannot be stored, or the order has
    not passed the risk check: an error of the platform.
    """
    PENDING = "PENDING"
    """The provider reports the outcome later. It is polled until then."""
    POST_COMPLETION_POLL = "POST_COMPLETION_POLL"
    """The operation is final, but money may still be returned. The provider is polled as often as
    the policy says.
    """
    NOT_FOUND = "NOT_FOUND"
    """The lookup found no such operation. While the provider honors the idempotency key, the
    operation is sent again.
    """
    LOOKUP_INCONCLUSIVE = "LOOKUP_INCONCLUSIVE"
    """The lookup was inconclusive while the provider honors the idempotency key. Next, the
    operation is sent again.
    """
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    """The lookup was inconclusive after the provider may have forgotten the idempotency key. The
    operation is never sent again.
    """
    MISMATCHED_OPERATION = "MISMATCHED_OPERATION"
    """The provider's answer belongs to another operation. It must not move any money."""
    APPLYING_FAILED = "APPLYING_FAILED"
    """The provider's final outcome is stored, but the service's own database rejects applying
    it.
    """
    BOOKING_UNAVAILABLE = "BOOKING_UNAVAILABLE"
    """Wallet or ledger did not answer."""
    CALLER_REJECTED = "CALLER_REJECTED"
    """Wallet or ledger reject this service as a caller, or do not know the called method. The cause
    is the configuration, not the item.
    """
    BOOKING_FAILED = "BOOKING_FAILED"
    """Wallet, ledger or the service's own database fail on this item alone."""
    BOOKING_REJECTED = "BOOKING_REJECTED"
    """Wallet or ledger rejected the booking, which is an error of the platform."""


NOT_CALLED_REASONS = frozenset({RetryReason.CIRCUIT_OPEN, RetryReason.CHANGED_BEFORE_CALL})
"""Reasons why the provider was not called. They are no tries, and have no retry policy."""


@dataclass(frozen=True, slots=True)
class ProviderFee:
    """What the provider takes from the platform for one charge or payout."""

    amount: int
    """Minor units; 0: the provider says that it is free."""
    currency: str
    """May differ from the currency of the charge or payout."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The money has moved: the buyer was charged, or the seller's bank has received it. `amount` is
    what the provider reports.
    """

    reference: str
    amount: int
    """Minor units."""
    currency: str
    client_reference: str = field(default="", compare=False)
    """The operation id or idempotency key, as the provider echoes it; "": it echoes nothing."""
    fee: ProviderFee | None = field(default=None, compare=False)
    """None: the provider has not reported it. It does not change what happened to the money."""
    request_id: str = field(default="", compare=False)
    """The provider's id of the request that it answers; "": it has none."""


@dataclass(frozen=True, slots=True)
class Declined:
    """It is certain that no money has moved, and that none will. The exception is
    PROVIDER_MISMATCH, which `decline_if_mismatched` sets: money has moved, but not as the orders
    request.
    """

    reason: FailureReason | PayoutFailure
    code: str = ""
    reference: str = ""
    client_reference: str = field(default="", compare=False)
    """As in Succeeded."""
    request_id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Pending:
    """The provider reports the outcome later."""

    reason: PendingReason
    reference: str = ""
    next_action_url: str = ""
    client_reference: str = field(default="", compare=False)
    """As in Succeeded."""
    request_id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class NotSent:
    """It is certain that nothing was sent."""

    detail: str
    request_id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Unknown:
    """It is unknown whether money moved. The same key is sent again, at the earliest after
    `retry_after` seconds if the provider asks for it.
    """

    detail: str
    retry_reason: RetryReason = RetryReason.NO_ANSWER
    retry_after: float = 0.0
    reference: str = ""
    """The provider's id of what a first request has created, if a second one was not answered."""
    request_id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class NotFound:
    """The provider does not know the operation: the request never reached it, or has not reached it
    yet.
    """

    detail: str = "the provider does not know it"
    request_id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class FinalNotFound:
    """When a provider's "not found" proves that nothing was or will be charged. The proof holds
    only if nothing more is sent.
    """

    min_seconds_since_sent: float
    """Since the operation may last have been sent. Longer than a request can be in transit."""
    min_responses: int = 1
    """The number of NotFound answers required since the last possible send. Those before
    `min_seconds_since_sent` count too; only the last one must come after it.
    """

    def is_conclusive(self, responses: int, seconds_since_sent: float | None) -> bool:
        """Whether `responses` NotFound answers are proof. `seconds_since_sent`: the time between
        the last possible send and the last of these lookups.
        """
        return (
            seconds_since_sent is not None
            and seconds_since_sent >= self.min_seconds_since_sent
            and responses >= self.min_responses
        )


ChargeOutcome = Succeeded | Declined | Pending | NotSent | Unknown
"""The outcomes of a charge request."""
ChargeLookupOutcome = ChargeOutcome | NotFound
"""The outcomes of a charge lookup."""

RefundOutcome = Succeeded | Declined | Pending | NotSent | Unknown
"""The outcomes of a refund request. `Succeeded.reference` names the refund."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """The provider has accepted the request and reports the outcome later."""

    reference: str
    client_reference: str = field(default="", compare=False)
    """As in Succeeded."""
    request_id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class InTransit:
    """The provider has sent the money."""

    reference: str
    client_reference: str = field(default="", compare=False)
    """As in Succeeded."""
    request_id: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Returned:
    """The seller's bank received the money and returned it. `amount` is what the provider reports.
    `reference` names the transfer, not its return.
    """

    reference: str
    amount: int
    """Minor units."""
    currency: str
    code: str = ""
    account_rejected: bool = False
    """Whether the account caused the return and cannot be paid to again."""
    client_reference: str = field(default="", compare=False)
    """As in Succeeded."""
    request_id: str = field(default="", compare=False)


PayoutOutcome = Submitted | InTransit | Succeeded | Returned | Declined | NotSent | Unknown
"""The outcomes of a payout request."""
PayoutLookupOutcome = PayoutOutcome | NotFound
"""The outcomes of a payout lookup."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The provider can pay to the account."""


VerificationOutcome = Verified | Declined | Pending | NotSent | Unknown
"""The outcomes of a bank account verification."""


@dataclass(frozen=True, slots=True)
class Approved:
    """A risk provider approves the charge."""


RiskOutcome = Approved | Declined | NotSent | Unknown
"""The outcomes of a risk check."""


@dataclass(frozen=True, slots=True)
class LookedUp:
    """The answer to the lookup of the charge or payout that a webhook event is about."""

    outcome: ChargeOutcome | PayoutOutcome


EventOutcome = LookedUp | NotSent | Unknown
"""The outcomes of the lookup for a webhook event."""


ProviderOutcome = (
    ChargeOutcome | PayoutOutcome | VerificationOutcome | RiskOutcome | EventOutcome | NotFound
)
"""The outcomes of all provider calls."""


def is_outcome_of(outcome: ProviderOutcome, *references: str) -> bool:
    """Whether an outcome belongs to the operation with these references (its id and its idempotency
    key). An outcome without a client reference always matches.
    """
    match outcome:
        case Succeeded() | Declined() | Pending() | Submitted() | InTransit() | Returned():
            return outcome.client_reference in ("", *references)
        case _:
            return True


def has_valid_amounts(outcome: ProviderOutcome) -> bool:
    """Whether the money in an outcome is valid: it has a reference, a positive amount within range
    and a known currency, and so has its fee, which may be 0. Invalid money must not be booked.
    """
    match outcome:
        case Succeeded() | Returned():
            return (
                bool(outcome.reference)
                and 0 < outcome.amount <= MAX_AMOUNT
                and outcome.currency in EXPONENTS
                and (isinstance(outcome, Returned) or _is_valid_fee(outcome.fee))
            )
        case _:
            return True


def _is_valid_fee(fee: ProviderFee | None) -> bool:
    return fee is None or (0 <= fee.amount <= MAX_AMOUNT and fee.currency in EXPONENTS)
