"""The port to payment providers. A provider's answer is one of five outcomes, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


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
    """Surely nothing was charged. `reason` is a FailureReason's name."""

    reason: str
    code: str = ""
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Pending:
    """The provider will tell later. `reason` is a PendingReason's name."""

    reason: str
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
