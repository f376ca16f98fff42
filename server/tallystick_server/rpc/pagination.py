"""Page sizes and page tokens."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.fingerprint import fingerprint
from tallystick_storage.pagination import PageKey

R = TypeVar("R")
M = TypeVar("M", bound=Message)
CursorValue = str | int | datetime
MAX_PAGE_BYTES = 1024 * 1024


def parse_page_size(requested: int) -> int:
    """0 means 50, above 200 means 200. Raises FIELD_INVALID below 0."""
    if requested < 0:
        raise ApiError(
            ErrorReason.FIELD_INVALID, "page_size must not be negative.", field="page_size"
        )
    return min(requested, 200) if requested else 50


class PageToken:
    """Page tokens of one listing. A token holds the cursor and requires the same filters."""

    def __init__(self, *filters: object) -> None:
        texts = ("" if value is None else str(value) for value in filters)
        self._filters_digest = fingerprint(*texts).hex()[:16]

    def make(self, *cursor: CursorValue) -> str:
        values = [self._filters_digest, *cursor]
        return urlsafe_b64encode(json.dumps(values, default=_format_time).encode()).decode()

    def build_page(
        self,
        rows: Sequence[R],
        size: int,
        to_message: Callable[[R], M],
        cursor_of: Callable[[R], tuple[CursorValue, ...]],
    ) -> tuple[list[M], str]:
        """The messages of a page, and the next page token or "".

        The page ends after `size` rows or at 1 MiB. `rows` holds one more row if there is one.
        """
        messages: list[M] = []
        used_bytes = 0
        for row in rows[:size]:
            message = to_message(row)
            used_bytes += message.ByteSize()
            if messages and used_bytes > MAX_PAGE_BYTES:
                break
            messages.append(message)
        return messages, self.make(*cursor_of(rows[len(messages) - 1])) if len(rows) > len(
            messages
        ) else ""

    def next_token(self, last_key: PageKey | None) -> str:
        """The token of the page after the last scanned key; "" if all were scanned."""
        return self.make(*last_key) if last_key else ""

    def parse_key(self, token: str) -> PageKey | None:
        """The key before which a page starts, newest first; None for the first page. Raises
        PAGE_TOKEN_INVALID.
        """
        cursor = self.parse(token, datetime, str)
        return (cursor[0], cursor[1]) if cursor else None

    def parse(self, token: str, *types: type[CursorValue]) -> list[Any] | None:
        """The cursor as values of the given types, or None for the first page. Raises
        PAGE_TOKEN_INVALID.
        """
        if not token:
            return None
        try:
            filters_digest, *cursor = json.loads(urlsafe_b64decode(token.encode("ascii")))
        except (ValueError, TypeError, RecursionError):
            raise invalid_page_token() from None
        if filters_digest != self._filters_digest or len(cursor) != len(types):
            raise invalid_page_token()
        return [_parse_value(value, type_) for value, type_ in zip(cursor, types, strict=True)]


def _parse_value(value: object, type_: type[CursorValue]) -> CursorValue:
    """Raises PAGE_TOKEN_INVALID."""
    match value:
        case str() if type_ is datetime:
            return _parse_time(value)
        case str() if type_ is str and value.isascii() and "\0" not in value:
            return value
        case int() if type_ is type(value) and abs(value) < 1 << 63:  # no bool
            return value
    raise invalid_page_token()


def _format_time(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()


def _parse_time(text: str) -> datetime:
    """Raises PAGE_TOKEN_INVALID for a time that is not in UTC."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise invalid_page_token() from None
    if time.utcoffset() != timedelta(0):
        raise invalid_page_token()
    return time


def invalid_page_token() -> ApiError:
    """The error for a page token that this listing did not issue."""
    return ApiError(
        ErrorReason.PAGE_TOKEN_INVALID,
        "page_token must be a token of this call with the same filters.",
        field="page_token",
    )
