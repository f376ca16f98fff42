"""The sandbox as a risk provider, in this process. The payment token selects its answer."""

from __future__ import annotations

from collections import Counter

from tallystick_core.provider.outcome import (
    Approved,
    Declined,
    FailureReason,
    RiskOutcome,
    Unknown,
)
from tallystick_core.provider.risk_provider import RiskProvider, RiskRequest
from tallystick_server.providers.provider_type import BuiltProvider, OpenDatabase, ProviderTerms
from tallystick_server.providers.sandbox.settings import SandboxSettings

_DECLINE = "tok_risk_decline"
_UNAVAILABLE = "tok_risk_unavailable"


class SandboxRisk:
    """Declines "tok_risk_decline:{code}"; does not answer "tok_risk_unavailable:{N}" the first N
    times (default: once); approves every other token. The payment sandbox charges all of them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._unanswered: Counter[str] = Counter()
        """How many times a charge was not answered."""

    async def check(self, request: RiskRequest) -> RiskOutcome:
        token, _, argument = request.payment_token.partition(":")
        if token == _DECLINE:
            return Declined(FailureReason.RISK_PROVIDER, argument)
        times = int(argument) if argument.isdecimal() else 1
        if token == _UNAVAILABLE and self._unanswered[request.charge_id] < times:
            self._unanswered[request.charge_id] += 1
            return Unknown("no answer")
        return Approved()


def build(
    terms: ProviderTerms, _settings: SandboxSettings, _open_database: OpenDatabase
) -> BuiltProvider[RiskProvider]:
    """The adapter; it runs in this process, and stores nothing."""
    return BuiltProvider(SandboxRisk(terms.name))
