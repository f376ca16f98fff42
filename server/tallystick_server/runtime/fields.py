"""Fields that every service has: enums, times, pages. Each parser returns a core value or refuses the field by name."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick_core.canonical import fingerprint
from tallystick_core.refusal import ApiError, ErrorReason

R = TypeVar("R")
M = TypeVar("M", bound=Message)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MIN_SECONDS, _END_SECONDS = -62_135_596_800, 253_402_300_800
MAX_PAGE_BYTES = 1024 * 1024


def to_timestamp(time: datetime) -> Timestamp:
    delta = time - _EPOCH
    return Timestamp(seconds=delta.days * 86_400 + delta.seconds, nanos=delta.microseconds * 1000)


def has_time(message: Message, field: str) -> bool:
    """Whether a time is set. Raises FIELD_INVALID."""
    if not message.HasField(field):
        return False
    timestamp: Timestamp = getattr(message, field)
    if not (_MIN_SECONDS <= timestamp.seconds < _END_SECONDS and 0 <= timestamp.nanos < 1_000_000_000):
        raise ApiError(ErrorReason.FIELD_INVALID, f"{field} must be a time between the years 1 and 9999.", field=field)
    return True


def parse_time(message: Message, field: str) -> datetime | None:
    """A time to the microsecond, or None if unset. Raises FIELD_INVALID."""
    if not has_time(message, field):
        return None
    timestamp: Timestamp = getattr(message, field)
    return _EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)


def parse_expected_version(message: Any) -> int | None:
    """The version that a change is to replace, or None if unset. Raises FIELD_INVALID."""
    if not message.HasField("expected_version"):
        return None
    version: int = message.expected_version
    if version < 0:
        raise ApiError(
            ErrorReason.FIELD_INVALID, "expected_version must not be negative; leave it unset to replace any version.", field="expected_version"
        )
    return version


class EnumNames:
    """One enum's values and names, without the prefix that they have on the wire."""

    def __init__(self, descriptor: EnumDescriptor) -> None:
        prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in descriptor.name).lstrip("_") + "_"
        self._name_by_number = {value.number: value.name.removeprefix(prefix) for value in descriptor.values}
        self._number_by_name = {name: number for number, name in self._name_by_number.items()}
        self._allowed_names = ", ".join(name for name, number in self._number_by_name.items() if number)

    def parse(self, number: int, field: str, default: str | None = None) -> str:
        """The name of a value. Unset: the default, or FIELD_REQUIRED; unknown: FIELD_INVALID."""
        if number == 0:
            if default is None:
                raise ApiError(ErrorReason.FIELD_REQUIRED, f"{field} is required: one of {self._allowed_names}.", field=field)
            return default
        name = self._name_by_number.get(number)
        if name is None:
            raise ApiError(ErrorReason.FIELD_INVALID, f"{field} must be one of {self._allowed_names}.", field=field)
        return name

    def number(self, name: str) -> Any:
        """The value of a name, of the generated type; "" or None is the unset value. KeyError for a name that the contract does not have."""
        return self._number_by_name[name] if name else 0


def parse_page_size(requested: int) -> int:
    """0 means 50, above 200 means 200. Raises FIELD_INVALID below 0."""
    if requested < 0:
        raise ApiError(ErrorReason.FIELD_INVALID, "page_size must not be negative.", field="page_size")
    return min(requested, 200) if requested else 50


class PageToken:
    """Tokens of one listing: where the page before ended, good for the same filters only."""

    def __init__(self, *filters: str | int) -> None:
        self._filters_digest = fingerprint(*filters).hex()[:16]

    def make(self, *cursor: str | int) -> str:
        return urlsafe_b64encode(json.dumps([self._filters_digest, *cursor]).encode()).decode()

    def build_page(
        self, rows: Sequence[R], size: int, to_message: Callable[[R], M], cursor_of: Callable[[R], tuple[str | int, ...]]
    ) -> tuple[list[M], str]:
        """The messages of a page, and the token of the next or "". It ends after `size` rows or at 1 MiB; `rows` holds one more if there is one."""
        messages: list[M] = []
        used_bytes = 0
        for row in rows[:size]:
            message = to_message(row)
            used_bytes += message.ByteSize()
            if messages and used_bytes > MAX_PAGE_BYTES:
                break
            messages.append(message)
        return messages, self.make(*cursor_of(rows[len(messages) - 1])) if len(rows) > len(messages) else ""

    def next_token(self, last_cursor: tuple[datetime, str] | None) -> str:
        """The token of the page below the last (time, id) that was looked at; "" if all were."""
        return self.make(last_cursor[0].isoformat(), last_cursor[1]) if last_cursor else ""

    def parse_time_cursor(self, token: str) -> tuple[datetime, str] | None:
        """The (time, id) that a page of rows, newest first, comes before, or None for the first page. Raises PAGE_TOKEN_INVALID."""
        cursor = self.parse(token, str, str)
        return (parse_token_time(cursor[0]), str(cursor[1])) if cursor else None

    def parse(self, token: str, *types: type) -> list[str | int] | None:
        """The place, as values of the given types, or None for the first page. Raises PAGE_TOKEN_INVALID."""
        if not token:
            return None
        try:
            filters_digest, *cursor = json.loads(urlsafe_b64decode(token.encode("ascii")))
        except (ValueError, TypeError, RecursionError):
            raise invalid_page_token() from None
        if filters_digest != self._filters_digest or [type(value) for value in cursor] != list(types):
            raise invalid_page_token()
        if not all(value.isascii() and "\0" not in value if isinstance(value, str) else abs(value) < 1 << 63 for value in cursor):
            raise invalid_page_token()
        return list(cursor)


def parse_token_time(text: str | int) -> datetime:
    """A time as a page token has it, in UTC. Raises PAGE_TOKEN_INVALID."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        raise invalid_page_token() from None
    if time.utcoffset() != timedelta(0):
        raise invalid_page_token()
    return time


def invalid_page_token() -> ApiError:
    """The refusal of a page token that this listing did not make."""
    return ApiError(ErrorReason.PAGE_TOKEN_INVALID, "page_token must be one that this call gave for the same filters.", field="page_token")
