"""What is set aside for a person, whatever it is about."""

from __future__ import annotations

from enum import StrEnum


class DeadLetterState(StrEnum):
    """Where something is that was set aside."""

    OPEN = "OPEN"
    RETRIED = "RETRIED"
    CLOSED = "CLOSED"
    RESOLVED = "RESOLVED"
