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
from tallystick_core.refusal import Reason, Refused

R = TypeVar("R")
M = TypeVar("M", bound=Message)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_YEAR_1, _YEAR_10000 = -62_135_596_800, 253_402_300_800
PAGE_BYTES = 1024 * 1024


def to_timestamp(time: datetime) -> Timestamp:
    delta = time - _EPOCH
    return Timestamp(seconds=delta.days * 86_400 + delta.seconds, nanos=delta.microseconds * 1000)


def has_time(message: Message, field: str) -> bool:
    """Whether a time is set. Raises FIELD_INVALID."""
    if not message.HasField(field):
        return False
    stamp: Timestamp = getattr(message, field)
    if not (_YEAR_1 <= stamp.seconds < _YEAR_10000 and 0 <= stamp.nanos < 1_000_000_000):
        raise Refused(Reason.FIELD_INVALID, f"{field} must be a time between the years 1 and 9999.", field=field)
    return True


def parse_time(message: Message, field: str) -> datetime | None:
    """A time to the microsecond, or None if unset. Raises FIELD_INVALID."""
    if not has_time(message, field):
        return None
    stamp: Timestamp = getattr(message, field)
    return _EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)


def expected_version(message: Any) -> int | None:
    """The version that a change is to replace, or None if unset. Raises FIELD_INVALID."""
    if not message.HasField("expected_version"):
        return None
    version: int = message.expected_version
    if version < 0:
        raise Refused(Reason.FIELD_INVALID, "expected_version must not be negative; leave it unset to replace any version.", field="expected_version")
    return version


class EnumNames:
    """One enum's values and names, without the prefix that they have on the wire."""

    def __init__(self, descriptor: EnumDescriptor) -> None:
        prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in descriptor.name).lstrip("_") + "_"
        self._name = {value.number: value.name.removeprefix(prefix) for value in descriptor.values}
        self._number = {name: number for number, name in self._name.items()}
        self._known = ", ".join(name for name, number in self._number.items() if number)

    def parse(self, number: int, field: str, default: str | None = None) -> str:
        """The name of a value. Unset: the default, or FIELD_REQUIRED; unknown: FIELD_INVALID."""
        if number == 0:
            if default is None:
                raise Refused(Reason.FIELD_REQUIRED, f"{field} is required: one of {self._known}.", field=field)
            return default
        name = self._name.get(number)
        if name is None:
            raise Refused(Reason.FIELD_INVALID, f"{field} must be one of {self._known}.", field=field)
        return name

    def number(self, name: str) -> Any:
        """The value of a name, of the generated type; "" or None is the unset value. KeyError for a name that the contract does not have."""
        return self._number[name] if name else 0


def page_size(asked: int) -> int:
    """0 means 50, above 200 means 200. Raises FIELD_INVALID below 0."""
    if asked < 0:
        raise Refused(Reason.FIELD_INVALID, "page_size must not be negative.", field="page_size")
    return min(asked, 200) if asked else 50


class PageToken:
    """Tokens of one listing: where the page before ended, good for the same filters only."""

    def __init__(self, *filters: str | int) -> None:
        self._filters = fingerprint(*filters).hex()[:16]

    def make(self, *place: str | int) -> str:
        return urlsafe_b64encode(json.dumps([self._filters, *place]).encode()).decode()

    def page(self, rows: Sequence[R], size: int, encode: Callable[[R], M], place: Callable[[R], tuple[str | int, ...]]) -> tuple[list[M], str]:
        """The messages of a page, and the token of the next or "". It ends after `size` rows or at 1 MiB; `rows` holds one more if there is one."""
        shown: list[M] = []
        used = 0
        for row in rows[:size]:
            message = encode(row)
            used += message.ByteSize()
            if shown and used > PAGE_BYTES:
                break
            shown.append(message)
        return shown, self.make(*place(rows[len(shown) - 1])) if len(rows) > len(shown) else ""

    def below(self, low: tuple[datetime, str] | None) -> str:
        """The token of the page below the last (time, id) that was looked at; "" if all were."""
        return self.make(low[0].isoformat(), low[1]) if low else ""

    def before(self, token: str) -> tuple[datetime, str] | None:
        """The (time, id) that a page of rows, newest first, comes before, or None for the first page. Raises PAGE_TOKEN_INVALID."""
        place = self.parse(token, str, str)
        return (parse_token_time(place[0]), str(place[1])) if place else None

    def parse(self, token: str, *kinds: type) -> list[str | int] | None:
        """The place, as values of the given types, or None for the first page. Raises PAGE_TOKEN_INVALID."""
        if not token:
            return None
        try:
            filters, *place = json.loads(urlsafe_b64decode(token.encode("ascii")))
        except (ValueError, TypeError, RecursionError):
            raise bad_token() from None
        if filters != self._filters or [type(value) for value in place] != list(kinds):
            raise bad_token()
        if not all(value.isascii() and "\0" not in value if isinstance(value, str) else abs(value) < 1 << 63 for value in place):
            raise bad_token()
        return list(place)


def parse_token_time(text: str | int) -> datetime:
    """A time as a page token has it, in UTC. Raises PAGE_TOKEN_INVALID."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        raise bad_token() from None
    if time.utcoffset() != timedelta(0):
        raise bad_token()
    return time


def bad_token() -> Refused:
    """The refusal of a page token that this listing did not make."""
    return Refused(Reason.PAGE_TOKEN_INVALID, "page_token must be one that this call gave for the same filters.", field="page_token")
