"""The five outcomes of a provider call, and the reasons they carry."""

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
    """What an order waits for."""

    BUYER_ACTION = "BUYER_ACTION"
    PROVIDER_REVIEW = "PROVIDER_REVIEW"
    RISK_REVIEW = "RISK_REVIEW"


class RetryReason(StrEnum):
    """Why a charge or a payout does not come on. Each kind has a retry policy of its own."""

    NOT_SENT = "NOT_SENT"
    """Surely nothing reached the provider."""
    NO_ANSWER = "NO_ANSWER"
    """Whether money moved is not known."""
    SERVER_ERROR = "SERVER_ERROR"
    """The provider answered that it failed; it may give that answer to the key for ever, so it is
    soon asked what became of the demand as well.
    """
    THROTTLED = "THROTTLED"
    """The provider told to come back later."""
    UNAUTHORIZED = "UNAUTHORIZED"
    """The provider does not accept our credentials; nothing more is sent before it does."""
    CIRCUIT_OPEN = "CIRCUIT_OPEN"
    """The provider fails too often to be asked now, or is too slow for the calls that are allowed
    at a time. This is no try.
    """
    REJECTED = "REJECTED"
    """The provider finds fault with the call itself, which is a fault of ours."""
    PENDING = "PENDING"
    """The provider will tell in its own time; it is asked now and then."""
    POST_COMPLETION_POLL = "POST_COMPLETION_POLL"
    """It has come to its end, and may still come back; it is asked now and then, as often as the
    policy says.
    """
    NOT_FOUND = "NOT_FOUND"
    """The provider was asked what became of the demand, and does not know it. While it honours the
    key the demand is sent again.
    """
    LOOKUP_INCONCLUSIVE = "LOOKUP_INCONCLUSIVE"
    """The provider was asked what became of the demand while it honours the key, and did not say;
    next the demand is sent again.
    """
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    """The provider was asked what became of the demand when it may have forgotten the key, and did
    not say: the demand is never sent again.
    """
    MISMATCHED_OPERATION = "MISMATCHED_OPERATION"
    """The provider's answer belongs to another demand: nobody's money may be moved by it."""
    APPLYING_FAILED = "APPLYING_FAILED"
    """The provider's final answer is stored, and the service's own database refuses to apply it."""
    BOOKING_UNAVAILABLE = "BOOKING_UNAVAILABLE"
    """Wallet or ledger did not answer."""
    CALLER_REJECTED = "CALLER_REJECTED"
    """Wallet or ledger do not accept this service's calls, or do not know them: a fault of the
    configuration, not of the item.
    """
    BOOKING_FAILED = "BOOKING_FAILED"
    """Wallet or ledger, or the service's own database, fail on this item alone."""
    BOOKING_REJECTED = "BOOKING_REJECTED"
    """Wallet or ledger refused it, which is a fault of ours."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The money has moved, as much as the provider says: the buyer was charged, or the seller's
    bank has it.
    """

    reference: str
    amount: int
    """Minor units."""
    currency: str
    client_reference: str = field(default="", compare=False)
    """The demand's id, or its key, as the provider echoes it; "": it echoes nothing."""


@dataclass(frozen=True, slots=True)
class Declined:
    """Surely no money has moved, and none will."""

    reason: FailureReason | PayoutFailure
    code: str = ""
    reference: str = ""
    client_reference: str = field(default="", compare=False)
    """As in Succeeded."""


@dataclass(frozen=True, slots=True)
class Pending:
    """The provider will tell later."""

    reason: PendingReason
    reference: str = ""
    next_action_url: str = ""
    client_reference: str = field(default="", compare=False)
    """As in Succeeded."""


@dataclass(frozen=True, slots=True)
class NotSent:
    """Surely nothing was sent."""

    detail: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Whether money moved is not known: the same key is sent again later, not before `retry_after`
    seconds if the provider says so.
    """

    detail: str
    retry_reason: RetryReason = RetryReason.NO_ANSWER
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class NotFound:
    """The provider knows no such demand: it never reached the provider, or not yet."""

    detail: str = "the provider does not know it"


@dataclass(frozen=True, slots=True)
class FinalNotFound:
    """When a provider's "not found" proves that nothing was charged, and nothing will be, if
    nothing more is sent.
    """

    min_seconds_since_sent: float
    """Since the demand may last have been sent: longer than it can be on its way."""
    min_responses: int = 1
    """How often the provider has to say so since then."""

    def is_conclusive(self, responses: int, seconds_since_sent: float | None) -> bool:
        """Whether so many such answers, the last to a question asked so many seconds after the
        demand may last have been sent, are proof.
        """
        return (
            seconds_since_sent is not None
            and seconds_since_sent >= self.min_seconds_since_sent
            and responses >= self.min_responses
        )


ChargeOutcome = Succeeded | Declined | Pending | NotSent | Unknown
"""The answers to a demand for a charge."""
ChargeLookupOutcome = ChargeOutcome | NotFound
"""The answers to the question what became of a demand for a charge."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """The provider has taken the demand, and will tell later."""

    reference: str
    client_reference: str = field(default="", compare=False)
    """As in Succeeded."""


@dataclass(frozen=True, slots=True)
class InTransit:
    """The provider has sent the money."""

    reference: str
    client_reference: str = field(default="", compare=False)
    """As in Succeeded."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The seller's bank had the money and sent it back, as much as the provider says. `reference`
    names the transfer, not its return.
    """

    reference: str
    amount: int
    """Minor units."""
    currency: str
    code: str = ""
    account_rejected: bool = False
    """Whether the account is at fault, so that it cannot be paid to again."""
    client_reference: str = field(default="", compare=False)
    """As in Succeeded."""


PayoutOutcome = Submitted | InTransit | Succeeded | Returned | Declined | NotSent | Unknown
"""The answers to a demand for a payout."""
PayoutLookupOutcome = PayoutOutcome | NotFound
"""The answers to the question what became of a demand for a payout."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The provider can pay to the account."""


VerificationOutcome = Verified | Declined | Pending | NotSent | Unknown
"""The answers to the question whether a bank account can be paid to."""


ProviderOutcome = ChargeOutcome | PayoutOutcome | VerificationOutcome | NotFound
"""Whatever a provider answers."""


def is_outcome_of(outcome: ProviderOutcome, *references: str) -> bool:
    """Whether an answer belongs to the demand of these names, its id and its key, as far as the
    provider says.
    """
    match outcome:
        case Succeeded() | Declined() | Pending() | Submitted() | InTransit() | Returned():
            return outcome.client_reference in ("", *references)
        case _:
            return True


def has_valid_amounts(outcome: ProviderOutcome) -> bool:
    """Whether what an answer says of money, if it does, is money, under a reference: what is not
    must not become a fact.
    """
    match outcome:
        case Succeeded() | Returned():
            return (
                bool(outcome.reference)
                and 0 < outcome.amount <= MAX_AMOUNT
                and outcome.currency in EXPONENTS
            )
        case _:
            return True
