"""Timestamps in messages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick_core.errors import ApiError, ErrorReason

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MIN_SECONDS, _END_SECONDS = -62_135_596_800, 253_402_300_800


def to_timestamp(time: datetime) -> Timestamp:
    delta = time - _EPOCH
    return Timestamp(seconds=delta.days * 86_400 + delta.seconds, nanos=delta.microseconds * 1000)


def to_optional_timestamp(time: datetime | None) -> Timestamp | None:
    """The timestamp of a message; None: the field is unset."""
    return None if time is None else to_timestamp(time)


def has_time(message: Message, field: str) -> bool:
    """Whether a time is set. Raises FIELD_INVALID."""
    if not message.HasField(field):
        return False
    timestamp: Timestamp = getattr(message, field)
    if not (
        _MIN_SECONDS <= timestamp.seconds < _END_SECONDS and 0 <= timestamp.nanos < 1_000_000_000
    ):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"{field} must be a time between the years 1 and 9999.",
            field=field,
        )
    return True


def parse_time(message: Message, field: str) -> datetime | None:
    """The time, to the microsecond, or None if unset. Raises FIELD_INVALID."""
    if not has_time(message, field):
        return None
    timestamp: Timestamp = getattr(message, field)
    return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)
