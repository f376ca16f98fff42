"""Where a payout stands, as a value: all of it that changes. Each turn is one version."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Row

from tallystick_core.payout import Cause, Happening, PayoutState, move
from tallystick_core.transfer import Fit, Transfer


@dataclass(frozen=True, slots=True)
class Standing:
    """A payout at a version. Amounts in minor units."""

    version: int = 1
    state: PayoutState = PayoutState.CREATED
    settled: bool = False
    failure_reason: str = ""
    decline_code: str = ""
    provider_reference: str = ""
    attempt_count: int = 0
    paid_amount: int = 0
    returned_amount: int = 0

    def after(self, happening: Happening, **changes: Any) -> Standing:
        """Where it stands after what happened. Raises STATE_FORBIDS."""
        state = move(self.state, happening)
        return replace(self, version=self.version + 1, state=state, settled=happening is Happening.SETTLED, **changes)


@dataclass(frozen=True, slots=True)
class Turn:
    """One step of a move: where the payout stands after it, what caused it, and who decided it and why, where somebody did."""

    standing: Standing
    cause: Cause
    actor: str = ""
    reason: str = ""


def stands(row: Row[Any]) -> Standing:
    """Where a stored payout stands."""
    return Standing(
        version=row.version,
        state=PayoutState(row.state),
        settled=row.settled,
        failure_reason=row.failure_reason,
        decline_code=row.decline_code,
        provider_reference=row.provider_reference,
        attempt_count=row.attempt_count,
        paid_amount=row.paid_amount,
        returned_amount=row.returned_amount,
    )


def transfer_of(row: Row[Any]) -> Transfer:
    """A stored transfer."""
    return Transfer(row.provider_reference, row.amount, row.currency, Fit(row.fit), row.returned_amount, row.returned_currency)
