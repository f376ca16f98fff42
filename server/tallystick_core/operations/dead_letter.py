"""Dead letters of every kind of operation."""

from __future__ import annotations

from enum import StrEnum


class DeadLetterState(StrEnum):
    """The state of a dead letter."""

    OPEN = "OPEN"
    RETRIED = "RETRIED"
    CLOSED = "CLOSED"
    RESOLVED = "RESOLVED"
