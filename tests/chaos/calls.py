"""What callers are answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from tallystick import TallystickError
from tallystick.payment.v1 import payment_pb2
from tallystick.payout.v1 import payout_pb2


@dataclass
class PayoutCalls:
    """The answers to the calls for one payout."""

    payouts: list[payout_pb2.Payout] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@dataclass
class PaymentCalls:
    """The answers to the calls for one checkout: the latest answer, and the number of calls that
    were answered.
    """

    token: str
    order_count: int
    payments: list[payment_pb2.Payment] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    unknown_count: int = 0


def is_outcome_unknown(error: TallystickError) -> bool:
    """Whether the call may have had an effect, or may be retried."""
    return (
        error.retry_after is not None
        or not error.reason
        or error.reason in ("INTERNAL", "DEADLINE_EXCEEDED")
    )
