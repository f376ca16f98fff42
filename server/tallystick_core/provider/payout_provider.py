"""The port of payout providers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tallystick_core.provider.outcome import PayoutLookupOutcome, PayoutOutcome, VerificationOutcome


@dataclass(frozen=True, slots=True)
class PayoutRequest:
    """What a provider is asked to pay. `key` is the idempotency key; the same key is always sent
    with the same values.
    """

    key: str
    payout_id: str
    amount: int
    """Minor units: what the seller's bank is to get, so without our fee."""
    currency: str
    bank_account_token: str


class PayoutProvider(Protocol):
    """A payout service provider. Its methods are total: whatever happens is one of their outcomes,
    and they never raise but for a bug.
    """

    name: str
    key_window: float
    """Seconds for which it honours an idempotency key, from when it first came."""
    max_batch_size: int
    """The most demands that one submission takes; 1: it has no batches."""

    async def submit(self, requests: Sequence[PayoutRequest]) -> Sequence[PayoutOutcome]:
        """Pays, or finds what was paid before under the same keys: one outcome for each demand, in
        order, each under its own key.

        A submission whose answer is lost, or is not told apart, is Unknown for every demand in it.
        """
        ...

    async def look_up(self, request: PayoutRequest) -> PayoutLookupOutcome:
        """What became of a demand that may have been sent, returns included; pays nothing."""
        ...

    async def verify(self, bank_account_token: str, currency: str) -> VerificationOutcome:
        """Whether it can pay to the account in the currency; asking again is harmless."""
        ...
