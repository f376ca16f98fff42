"""The messages of a payout's transitions."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from tallystick.payout.v1 import payout_pb2
from tallystick_core.payout.state import PayoutTransitionReason
from tallystick_server.payout import convert


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


@pytest.mark.parametrize("reason", PayoutTransitionReason)
def test_each_stored_reason_has_its_value(reason: PayoutTransitionReason) -> None:
    """A stored transition reason becomes the enum value of the same name."""
    (message,) = convert.transitions([history_row(str(reason))])
    name = payout_pb2.PayoutTransitionReason.Name(message.transition_reason)
    assert name == f"PAYOUT_TRANSITION_REASON_{reason}"


@pytest.mark.parametrize("stored", ["", "NO_SUCH_REASON"])
def test_an_unknown_stored_reason_is_an_error(stored: str) -> None:
    """A stored reason that the contract does not have is an error, and never UNSPECIFIED."""
    with pytest.raises(ValueError, match="PayoutTransitionReason"):
        convert.transitions([history_row(stored)])
