"""Which payouts need a second person's approval."""

from __future__ import annotations

from collections.abc import Mapping

from tallystick_core.errors import ApiError, ErrorReason


def needs_approval(amount: int, currency: str, thresholds: Mapping[str, int]) -> bool:
    """Whether a second person has to approve: the amount that leaves the wallet is above its
    currency's threshold; without one, none has to.
    """
    return currency in thresholds and amount > thresholds[currency]


def require_second_approver(approver: str, creator: str) -> None:
    """Raises SECOND_APPROVER_REQUIRED where the approver is the creator."""
    if approver == creator:
        raise ApiError(
            ErrorReason.SECOND_APPROVER_REQUIRED,
            "Somebody else than its creator has to approve it.",
        )
