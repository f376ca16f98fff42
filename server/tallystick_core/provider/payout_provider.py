"""The interface of payout providers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tallystick_core.provider.outcome import PayoutLookupOutcome, PayoutOutcome, VerificationOutcome


@dataclass(frozen=True, slots=True)
class PayoutRequest:
    """A payout that a provider is asked to make. `key` is the idempotency key. The same key is
    always sent with the same values, except for `reference`.
    """

    key: str
    payout_id: str
    amount: int
    """Minor units: what the seller's bank receives, without the platform's fee."""
    currency: str
    bank_account_token: str
    reference: str = ""
    """The provider's id of the payout, as an earlier outcome has reported it; "": none has."""


class PayoutProvider(Protocol):
    """A payout service provider. Its methods never raise, except for a bug: every result is one of
    their outcomes.
    """

    name: str
    key_window: float
    """Seconds for which the provider honors an idempotency key, counted from its first use."""
    max_batch_size: int
    """The maximum number of requests in one submission; 1: the provider has no batches."""

    def reject_amount(self, amount: int, currency: str) -> str | None:
        """The rule that makes the provider reject every such payout, such as "must be whole units
        of HUF"; None: it knows none. `amount`: minor units that the seller's bank would receive.
        """
        ...

    async def submit(self, requests: Sequence[PayoutRequest]) -> Sequence[PayoutOutcome]:
        """Pays, or returns the outcomes of earlier requests with the same keys. Returns one outcome
        per request, in order. Each request has its own key.

        If the answer to a submission is lost or cannot be assigned to its requests, all of them are
        Unknown.
        """
        ...

    async def look_up(self, request: PayoutRequest) -> PayoutLookupOutcome:
        """Returns the outcome of a request that may have been sent, including returns. Pays
        nothing; it may take back what a failed payout has moved before it failed.
        """
        ...

    async def verify(self, bank_account_token: str, currency: str) -> VerificationOutcome:
        """Whether the provider can pay to the account in the currency. Safe to repeat."""
        ...
