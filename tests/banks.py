"""A payout provider that answers as it is told: for what no sandbox does by itself."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from tallystick_core.provider import NotFound, PayoutDemand, PayoutFound, PayoutOutcome, Succeeded, Trouble, Unknown, Verification, Verified


class Bank:
    """Pays everything at once, unless its script says otherwise; under one key it pays once."""

    name = "sandbox"
    key_window = 86_400.0
    most_at_once = 100

    def __init__(self) -> None:
        self.script: dict[str, deque[PayoutFound]] = defaultdict(deque)
        """Bank account token, or payout id, to its next answers, to whatever is asked."""
        self.verifications: dict[str, deque[Verification]] = defaultdict(deque)
        self.submitted: list[PayoutDemand] = []
        self.silent: set[str] = set()
        """Payout ids whose look-ups it does not answer."""
        self.paid: dict[str, PayoutOutcome] = {}
        """Key to what was paid."""

    async def submit(self, demands: Sequence[PayoutDemand]) -> Sequence[PayoutOutcome]:
        self.submitted += demands
        answers = [self._answer(demand) or self._pay(demand) for demand in demands]
        return [Unknown(answer.detail) if isinstance(answer, NotFound) else answer for answer in answers]

    async def look_up(self, demand: PayoutDemand) -> PayoutFound:
        if demand.payout_id in self.silent:
            return Unknown("busy", Trouble.BUSY)
        return self._answer(demand) or self.paid.get(demand.key) or NotFound()

    async def verify(self, bank_account_token: str, currency: str) -> Verification:
        answers = self.verifications[bank_account_token]
        return answers.popleft() if answers else Verified()

    def _answer(self, demand: PayoutDemand) -> PayoutFound | None:
        answers = self.script[demand.payout_id] or self.script[demand.bank_account_token]
        return answers.popleft() if answers else None

    def _pay(self, demand: PayoutDemand) -> PayoutOutcome:
        return self.paid.setdefault(demand.key, Succeeded(f"tr_{demand.payout_id}", demand.amount, demand.currency))
