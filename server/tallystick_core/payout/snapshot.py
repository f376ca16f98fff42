"""The payout snapshot: all mutable values of a payout at one version. Each transition creates a
version.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tallystick_core.payout.state import (
    PayoutState,
    PayoutTransitionReason,
    PayoutTrigger,
    transition,
)


@dataclass(frozen=True, slots=True)
class PayoutSnapshot:
    """A payout at a version. Amounts in minor units."""

    version: int = 1
    state: PayoutState = PayoutState.CREATED
    booked: bool = False
    failure_reason: str = ""
    decline_code: str = ""
    provider_reference: str = ""
    attempt_count: int = 0
    paid_amount: int = 0
    returned_amount: int = 0

    def apply(self, trigger: PayoutTrigger, **changes: Any) -> PayoutSnapshot:
        """The snapshot after a trigger. Raises INVALID_STATE."""
        state = transition(self.state, trigger)
        return replace(
            self,
            version=self.version + 1,
            state=state,
            booked=trigger is PayoutTrigger.BOOKED,
            **changes,
        )


@dataclass(frozen=True, slots=True)
class PayoutTransition:
    """One transition: the snapshot after it and its transition reason.

    `actor` and `reason` are set if a caller decided it.
    """

    snapshot: PayoutSnapshot
    transition_reason: PayoutTransitionReason
    actor: str = ""
    reason: str = ""
