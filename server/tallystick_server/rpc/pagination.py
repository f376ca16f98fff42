"""Page sizes and page tokens."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from google.protobuf.message import Message

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.fingerprint import fingerprint

R = TypeVar("R")
M = TypeVar("M", bound=Message)
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

    def __init__(self, *filters: str | int) -> None:
        self._filters_digest = fingerprint(*filters).hex()[:16]

    def make(self, *cursor: str | int) -> str:
        return urlsafe_b64encode(json.dumps([self._filters_digest, *cursor]).encode()).decode()

    def build_page(
        self,
        rows: Sequence[R],
        size: int,
        to_message: Callable[[R], M],
        cursor_of: Callable[[R], tuple[str | int, ...]],
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

    def next_token(self, last_cursor: tuple[datetime, str] | None) -> str:
        """The token of the page after the last scanned (time, id); "" if all were scanned."""
        return self.make(last_cursor[0].isoformat(), last_cursor[1]) if last_cursor else ""

    def parse_time_cursor(self, token: str) -> tuple[datetime, str] | None:
        """The (time, id) before which a page starts, newest first; None for the first page. Raises
        PAGE_TOKEN_INVALID.
        """
        cursor = self.parse(token, str, str)
        return (parse_token_time(cursor[0]), str(cursor[1])) if cursor else None

    def parse(self, token: str, *types: type) -> list[str | int] | None:
        """The cursor as values of the given types, or None for the first page. Raises
        PAGE_TOKEN_INVALID.
        """
        if not token:
            return None
        try:
            filters_digest, *cursor = json.loads(urlsafe_b64decode(token.encode("ascii")))
        except (ValueError, TypeError, RecursionError):
            raise invalid_page_token() from None
        if filters_digest != self._filters_digest or [type(value) for value in cursor] != list(
            types
        ):
            raise invalid_page_token()
        if not all(
            value.isascii() and "\0" not in value
            if isinstance(value, str)
            else abs(value) < 1 << 63
            for value in cursor
        ):
            raise invalid_page_token()
        return list(cursor)


def parse_token_time(text: str | int) -> datetime:
    """Parses a UTC time of a page token. Raises PAGE_TOKEN_INVALID."""
    try:
        time = datetime.fromisoformat(str(text))
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
