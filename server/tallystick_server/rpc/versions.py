"""Expected versions of changes."""

from __future__ import annotations

from typing import Any

from tallystick_core.errors import ApiError, ErrorReason


def parse_expected_version(message: Any) -> int | None:
    """The version that a change replaces, or None if unset. Raises FIELD_INVALID."""
    if not message.HasField("expected_version"):
        return None
    version: int = message.expected_version
    if version < 0:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "expected_version must not be negative; leave it unset to replace any version.",
            field="expected_version",
        )
    return version
