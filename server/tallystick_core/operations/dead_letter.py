"""Dead letters of every kind of operation."""

from __future__ import annotations

from enum import StrEnum


class DeadLetterState(StrEnum):
    """The state of a dead letter."""

    OPEN = "OPEN"
    RETRIED = "RETRIED"
    CLOSED = "CLOSED"
    RESOLVED = "RESOLVED"


class DeadLetterCause(StrEnum):
    """Why an operation became a dead letter: the retry reasons whose exhausted policy creates a
    dead letter.
    """

    REJECTED = "REJECTED"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    MISMATCHED_OPERATION = "MISMATCHED_OPERATION"
    APPLYING_FAILED = "APPLYING_FAILED"
    BOOKING_FAILED = "BOOKING_FAILED"
    BOOKING_REJECTED = "BOOKING_REJECTED"
    PENDING = "PENDING"
    """Only if a configured policy limits the polls."""
