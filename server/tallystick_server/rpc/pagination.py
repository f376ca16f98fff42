"""The pages of list calls: sizes, tokens and rows as messages."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar, cast

from google.protobuf.message import Message

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.fingerprint import fingerprint
from tallystick_storage.database import Database
from tallystick_storage.pagination import Scan
from tallystick_storage.sql import Connection

CursorValue = str | int | datetime
F = TypeVar("F", bound=tuple[object, ...])
K = TypeVar("K", bound=tuple[CursorValue, ...])
R = TypeVar("R")
M = TypeVar("M", bound=Message)
NEWEST_FIRST: tuple[type[CursorValue], ...] = (datetime, str)
"""The types of a PageKey: the time and the id of a row."""
MAX_PAGE_BYTES = 1024 * 1024


class PageRequest(Protocol):
    """The fields that every list request has."""

    page_size: int
    page_token: str


@dataclass(frozen=True, slots=True)
class Listing(Generic[F, K, R, M]):
    """A list call: the rows that match a filter, in the order of a key, as messages."""

    name: str
    read: Callable[[Connection, F, K | None, int], Sequence[R] | Scan[R, K]]
    """The next rows after a key (None: from the first row), up to a limit."""
    key_types: tuple[type[CursorValue], ...]
    key_of: Callable[[R], K]
    to_message: Callable[[R], M]


async def list_page(
    database: Database, listing: Listing[F, K, R, M], request: PageRequest, filters: F
) -> tuple[list[M], str]:
    """A page of a list, and the next page token or "". Raises FIELD_INVALID, PAGE_TOKEN_INVALID."""
    size = parse_page_size(request.page_size)
    token = PageToken(listing.name, *filters)
    after = cast("K | None", token.parse(request.page_token, *listing.key_types))
    found = await database.read(
        # One more row than the page has, to know whether there is a next page.
        lambda connection: listing.read(connection, filters, after, size + 1)
    )
    scan = found if isinstance(found, Scan) else Scan(found, None)
    messages = _limit_bytes(listing.to_message(row) for row in scan.rows[:size])
    if len(messages) < len(scan.rows):
        return messages, token.make(*listing.key_of(scan.rows[len(messages) - 1]))
    return messages, "" if scan.last_key is None else token.make(*scan.last_key)


def _limit_bytes(messages: Iterable[M]) -> list[M]:
    """The first messages, up to 1 MiB; at least one, if there is one."""
    page: list[M] = []
    used_bytes = 0
    for message in messages:
        used_bytes += message.ByteSize()
        if page and used_bytes > MAX_PAGE_BYTES:
            break
        page.append(message)
    return page


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

    def parse(self, token: str, *types: type[CursorValue]) -> tuple[Any, ...] | None:
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
        return tuple(map(_parse_value, cursor, types))


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
