"""What needs a second person's approval."""

from __future__ import annotations

from collections.abc import Mapping

from tallystick_core.errors import ApiError, ErrorReason


def needs_approval(amount: int, currency: str, thresholds: Mapping[str, int]) -> bool:
    """Whether a second person must approve it: `amount` exceeds its currency's threshold, both in
    minor units. A currency without a threshold needs no approval.
    """
    return currency in thresholds and amount > thresholds[currency]


def require_second_approver(approver: str, creator: str) -> None:
    """Raises SECOND_APPROVER_REQUIRED if the approver is the creator."""
    if approver == creator:
        raise ApiError(
            ErrorReason.SECOND_APPROVER_REQUIRED,
            "A second person must approve it; its creator cannot.",
        )
