"""The port of payment providers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tallystick_core.provider.outcome import ChargeLookupOutcome, ChargeOutcome, FinalNotFound


@dataclass(frozen=True, slots=True)
class ChargeRequest:
    """What a provider is asked to charge. `key` is the idempotency key; the same key is always sent
    with the same values.
    """

    key: str
    charge_id: str
    amount: int
    """Minor units."""
    currency: str
    payment_token: str
    method: str


class PaymentProvider(Protocol):
    """A payment service provider. Its methods are total: whatever happens is one of their outcomes,
    and they never raise but for a bug.

    Definite outcomes echo what they belong to, as far as the provider says it.
    """

    name: str
    key_window: float
    """Seconds for which it honours an idempotency key, from when it first came."""
    final_not_found: FinalNotFound | None
    """When a NotFound is conclusive; None: never."""

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        """Does what is demanded, or finds what was done before under the same key."""
        ...

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        """What became of a demand that may have been sent; charges nothing."""
        ...

    async def cancel(self, request: ChargeRequest) -> ChargeLookupOutcome:
        """Ends a demand that may have been sent; what became of it. Declined(CALLER_CANCELLED): it
        surely will not be charged any more.
        """
        ...
