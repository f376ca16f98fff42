"""The messages of a payment's transitions."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from tallystick.payment.v1 import payment_pb2
from tallystick_core.payment.state import PaymentTransitionReason
from tallystick_server.payment import convert


def history_row(transition_reason: str) -> Any:
    return SimpleNamespace(
        version=1,
        from_status="",
        to_status="NOT_STARTED",
        transition_reason=transition_reason,
        create_time=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize("reason", PaymentTransitionReason)
def test_each_stored_reason_has_its_value(reason: PaymentTransitionReason) -> None:
    """A stored transition reason becomes the enum value of the same name."""
    (message,) = convert.transitions([history_row(str(reason))])
    name = payment_pb2.PaymentTransitionReason.Name(message.transition_reason)
    assert name == f"PAYMENT_TRANSITION_REASON_{reason}"


@pytest.mark.parametrize("stored", ["", "NO_SUCH_REASON"])
def test_an_unknown_stored_reason_is_an_error(stored: str) -> None:
    """A stored reason that the contract does not have is an error, and never UNSPECIFIED."""
    with pytest.raises(ValueError, match="PaymentTransitionReason"):
        convert.transitions([history_row(stored)])
