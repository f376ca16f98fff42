"""The interface of risk providers: third parties that are asked before a charge is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tallystick_core.provider.outcome import RiskOutcome


@dataclass(frozen=True, slots=True)
class RiskRequest:
    """A charge that a risk provider is asked about."""

    charge_id: str
    checkout_id: str
    buyer_accounts: tuple[str, ...]
    buyer_country: str
    amount: int
    """Minor units."""
    currency: str
    payment_token: str
    method: str


class RiskProvider(Protocol):
    """A third party that approves or declines charges. Its methods never raise, except for a bug:
    every result is one of their outcomes.
    """

    name: str

    async def check(self, request: RiskRequest) -> RiskOutcome:
        """Whether the charge may be sent. Safe to repeat: a charge is asked about again until it is
        approved or declined.
        """
        ...
