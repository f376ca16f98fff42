"""Parses the fields of requests about breaks and the entries that they can have."""

from __future__ import annotations

from collections.abc import Sequence

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.validation import parse_id, require_item_count

MAX_BREAKS = 200
_MAX_AGE_DAYS = 36_500


def parse_entry_number(number: int) -> int:
    """The position of an entry; 0: not given. Raises FIELD_INVALID."""
    if number < 0:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "entry_number must be the position of an entry in its transaction, from 1, or 0.",
            field="entry_number",
        )
    return number


def parse_age(days: int) -> int:
    """The smallest age of entries. Raises FIELD_INVALID."""
    if not 0 <= days <= _MAX_AGE_DAYS:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"min_age_days must be from 0 to {_MAX_AGE_DAYS}.",
            field="min_age_days",
        )
    return days


def parse_break_ids(texts: Sequence[str]) -> list[str]:
    """The breaks of a request. Raises FIELD_REQUIRED, TOO_MANY_ITEMS, DUPLICATE_ITEM."""
    require_item_count(texts, "break_ids", MAX_BREAKS, "break")
    ids = [parse_id(text, f"break_ids[{index}]") for index, text in enumerate(texts)]
    for index, break_id in enumerate(ids):
        if break_id in ids[:index]:
            field = f"break_ids[{index}]"
            raise ApiError(
                ErrorReason.DUPLICATE_ITEM, f"{field} must be unique in the request.", field=field
            )
    return ids
