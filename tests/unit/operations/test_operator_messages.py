"""The messages of dead letters and alerts."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from tallystick.operator.v1 import operator_pb2
from tallystick_core.operations.alert import AlertKind
from tallystick_core.operations.dead_letter import DeadLetterCause
from tallystick_server.operations import alerts, dead_letters

_TIME = datetime(2026, 1, 1, tzinfo=UTC)


def alert_row(kind: str) -> Any:
    return SimpleNamespace(
        alert_id="a-1",
        kind=kind,
        resource_name="payouts/p-1",
        detail="",
        create_time=_TIME,
        end_time=None,
    )


def dead_letter_row(cause: str) -> Any:
    return SimpleNamespace(
        dead_letter_id="payouts-p-1-1",
        resource_name="payouts/p-1",
        state="OPEN",
        cause=cause,
        detail="",
        retry_count=1,
        operator="",
        reason="",
        evidence="",
        create_time=_TIME,
        end_time=None,
        provider="sandbox",
    )


@pytest.mark.parametrize("kind", AlertKind)
def test_each_stored_kind_has_its_value(kind: AlertKind) -> None:
    """A stored alert kind becomes the enum value of the same name."""
    message = alerts.to_message(alert_row(str(kind)))
    assert operator_pb2.AlertKind.Name(message.kind) == f"ALERT_KIND_{kind}"
    assert message.resource_name == "payouts/p-1"


@pytest.mark.parametrize("cause", DeadLetterCause)
def test_each_stored_cause_has_its_value(cause: DeadLetterCause) -> None:
    """A stored cause of a dead letter becomes the enum value of the same name."""
    message = dead_letters.to_message(dead_letter_row(str(cause)))
    assert operator_pb2.DeadLetterCause.Name(message.cause) == f"DEAD_LETTER_CAUSE_{cause}"
    assert message.resource_name == "payouts/p-1"


@pytest.mark.parametrize("stored", ["", "NO_SUCH_VALUE"])
def test_an_unknown_stored_value_is_an_error(stored: str) -> None:
    """A stored kind or cause that the contract does not have is an error, and never UNSPECIFIED."""
    with pytest.raises(ValueError, match="AlertKind"):
        alerts.to_message(alert_row(stored))
    with pytest.raises(ValueError, match="DeadLetterCause"):
        dead_letters.to_message(dead_letter_row(stored))
