"""A scripted payout provider, for answers that no sandbox gives."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from tallystick_core.provider.outcome import (
    NotFound,
    PayoutLookupOutcome,
    PayoutOutcome,
    RetryReason,
    Succeeded,
    Unknown,
    VerificationOutcome,
    Verified,
)
from tallystick_core.provider.payout_provider import PayoutRequest


class ScriptedPayoutProvider:
    """Pays every payout immediately unless its script says otherwise; pays once per idempotency
    key.
    """

    name = "sandbox"
    key_window = 86_400.0
    max_batch_size = 100

    def __init__(self) -> None:
        self.script: dict[str, deque[PayoutLookupOutcome]] = defaultdict(deque)
        """The next answers to any request, by bank account token or payout id."""
        self.verifications: dict[str, deque[VerificationOutcome]] = defaultdict(deque)
        self.submitted_requests: list[PayoutRequest] = []
        self.lookup_requests: list[PayoutRequest] = []
        self.silent_payout_ids: set[str] = set()
        """Payout ids whose lookups are not answered."""
        self.outcomes_by_key: dict[str, PayoutOutcome] = {}
        """The payouts that were made, by idempotency key."""

    def reject_amount(self, amount: int, currency: str) -> str | None:
        return None

    async def submit(self, requests: Sequence[PayoutRequest]) -> Sequence[PayoutOutcome]:
        self.submitted_requests += requests
        outcomes = [self._scripted_outcome(request) or self._pay(request) for request in requests]
        return [
            Unknown(outcome.detail) if isinstance(outcome, NotFound) else outcome
            for outcome in outcomes
        ]

    async def look_up(self, request: PayoutRequest) -> PayoutLookupOutcome:
        self.lookup_requests.append(request)
        if request.payout_id in self.silent_payout_ids:
            return Unknown("busy", RetryReason.THROTTLED)
        return (
            self._scripted_outcome(request) or self.outcomes_by_key.get(request.key) or NotFound()
        )

    async def verify(self, bank_account_token: str, currency: str) -> VerificationOutcome:
        verifications = self.verifications[bank_account_token]
        return verifications.popleft() if verifications else Verified()

    def _scripted_outcome(self, request: PayoutRequest) -> PayoutLookupOutcome | None:
        outcomes = self.script[request.payout_id] or self.script[request.bank_account_token]
        return outcomes.popleft() if outcomes else None

    def _pay(self, request: PayoutRequest) -> PayoutOutcome:
        return self.outcomes_by_key.setdefault(
            request.key, Succeeded(f"tr_{request.payout_id}", request.amount, request.currency)
        )
