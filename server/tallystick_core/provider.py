"""The port to payment providers. A provider's answer is one of five outcomes, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


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
    PROVIDER_REFUSED = "PROVIDER_REFUSED"
    PROVIDER_UNREACHABLE = "PROVIDER_UNREACHABLE"
    SIBLING_FAILED = "SIBLING_FAILED"
    CLOSED_BY_OPERATOR = "CLOSED_BY_OPERATOR"


class PendingReason(StrEnum):
    """What an order waits for."""

    BUYER_ACTION = "BUYER_ACTION"
    PROVIDER_REVIEW = "PROVIDER_REVIEW"
    RISK_REVIEW = "RISK_REVIEW"


@dataclass(frozen=True, slots=True)
class Demand:
    """What a provider is asked to charge. `key` is the idempotency key; the same key is always sent with the same values."""

    key: str
    charge_id: str
    amount: int
    """Minor units."""
    currency: str
    payment_token: str
    method: str


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The buyer was charged, as much as the provider says."""

    reference: str
    amount: int
    currency: str


@dataclass(frozen=True, slots=True)
class Declined:
    """Surely nothing was charged."""

    reason: FailureReason
    code: str = ""
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Pending:
    """The provider will tell later."""

    reason: PendingReason
    reference: str = ""
    next_action_url: str = ""


@dataclass(frozen=True, slots=True)
class NotSent:
    """Surely nothing was sent."""

    detail: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Whether the buyer was charged is not known: the same key is sent again later."""

    detail: str


Outcome = Succeeded | Declined | Pending | NotSent | Unknown


class PaymentProvider(Protocol):
    """A payment service provider. One method, total: whatever happens is one of the five outcomes, and it never raises but for a bug."""

    name: str

    async def charge(self, demand: Demand) -> Outcome:
        """Charges the buyer, or finds the charge made before under the same key."""
        ...
