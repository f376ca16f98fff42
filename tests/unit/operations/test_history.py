"""The messages of transitions."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from tallystick.history.v1 import history_pb2
from tallystick_core.payment.state import PaymentTransitionReason
from tallystick_core.payout.state import PayoutTransitionReason
from tallystick_server.operations import history


def history_row(transition_reason: str) -> Any:
    return SimpleNamespace(
        version=1,
        from_state="",
        to_state="CREATED",
        transition_reason=transition_reason,
        actor="",
        reason="",
        create_time=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize("reason", [*PaymentTransitionReason, *PayoutTransitionReason])
def test_each_stored_reason_has_its_value(
    reason: PaymentTransitionReason | PayoutTransitionReason,
) -> None:
    """A stored transition reason becomes the enum value of the same name."""
    (message,) = history.transitions([history_row(str(reason))])
    name = history_pb2.TransitionReason.Name(message.transition_reason)
    assert name == f"TRANSITION_REASON_{reason}"


@pytest.mark.parametrize("stored", ["", "NO_SUCH_REASON"])
def test_an_unknown_stored_reason_is_an_error(stored: str) -> None:
    """A stored reason that the contract does not have is an error, and never UNSPECIFIED."""
    with pytest.raises(ValueError, match="TransitionReason"):
        history.transitions([history_row(stored)])
