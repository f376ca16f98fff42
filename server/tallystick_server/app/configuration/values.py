"""The types of settings. Each describes its valid values, and parses them from TOML or from an
environment variable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias
from urllib.parse import urlsplit

from pydantic import BeforeValidator, PlainValidator
from pydantic_core import PydanticCustomError

from tallystick_core.access import Caller, Role
from tallystick_core.errors import ApiError
from tallystick_core.money import parse_amount, parse_currency
from tallystick_core.validation import parse_country, parse_id
from tallystick_server.app.services import migration_folders

PROVIDERS = ("sandbox",)

_MIN_TOKEN_LENGTH = 16
_PORT = "6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}"


class InvalidSetting(ValueError):
    """A value that is not allowed. Each problem is a path below the setting, empty for the setting
    itself, and a text such as "must be a table".

    No text shows a value that may be a secret.
    """

    def __init__(self, *problems: tuple[str, str]) -> None:
        super().__init__("; ".join(text for _, text in problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Kind:
    """The description of a setting's type, for errors and the documentation."""

    name: str
    unit: str = ""
    expected: str = ""
    """What a value must be; empty: derived from name, unit and bounds."""


def invalid(text: str, path: str = "") -> InvalidSetting:
    """One problem with a value."""
    return InvalidSetting((path, text))


def expected_number(kind: str, unit: str, min_value: float, max_value: float) -> str:
    """What a number must be, such as "a number of seconds from 1 to 3,600"."""
    name = f"a {kind} of {unit}" if unit else f"a {kind}"
    return f"{name} from {min_value:,.10g} to {max_value:,.10g}"


def _reject_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "must be a number")
    return value


def _reject_fraction(value: Any) -> Any:
    if isinstance(value, bool | float):
        raise PydanticCustomError("whole_number_type", "must be a whole number")
    return value


Seconds: TypeAlias = Annotated[float, BeforeValidator(_reject_boolean), Kind("number", "seconds")]
WholeSeconds: TypeAlias = Annotated[
    int, BeforeValidator(_reject_fraction), Kind("whole number", "seconds")
]
Count: TypeAlias = Annotated[int, BeforeValidator(_reject_fraction), Kind("whole number")]
ByteCount: TypeAlias = Annotated[
    int, BeforeValidator(_reject_fraction), Kind("whole number", "bytes")
]
Share: TypeAlias = Annotated[float, BeforeValidator(_reject_boolean), Kind("number")]
Flag: TypeAlias = Annotated[bool, Kind("boolean", expected="true or false")]
Text: TypeAlias = Annotated[str, Kind("text", expected="text")]
Folder: TypeAlias = Annotated[Path, Kind("path", expected="a path")]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise invalid("must be text")
    return value


def _matching(pattern: str, description: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if not re.fullmatch(pattern, _text(value), re.ASCII):
            raise invalid(f"must be {description}")
        return str(value)

    return parse


_HOST_AND_PORT = rf"[A-Za-z0-9.\-\[\]:]+:({_PORT})"
_parse_address = _matching(rf"{_HOST_AND_PORT}|unix:.+", "host:port or unix:path")
_parse_optional_port = _matching(rf"({_HOST_AND_PORT})?", "host:port or empty")


def one_of(*choices: str) -> Callable[[Any], str]:
    """A parser that accepts one of the texts."""

    def parse(value: Any) -> str:
        if value not in choices:
            raise invalid(f"must be one of {', '.join(choices)}")
        return str(value)

    return parse


def number(
    min_value: float, max_value: float, kind: type[int | float] = float, unit: str = ""
) -> Callable[[Any], Any]:
    """A parser of a number in a table."""
    name = "whole number" if kind is int else "number"

    def parse(value: Any) -> Any:
        try:
            parsed = None if isinstance(value, bool) else kind(value)
        except (TypeError, ValueError):
            parsed = None
        if (
            parsed is None
            or not min_value <= parsed <= max_value
            or (kind is int and isinstance(value, float))
        ):
            raise invalid(f"must be {expected_number(name, unit, min_value, max_value)}")
        return parsed

    return parse


def split_pairs(value: Any) -> dict[str, Any]:
    """A table; in the environment "key=value,key=value"."""
    if isinstance(value, str):
        pairs = [pair.split("=", 1) for pair in value.split(",") if pair]
        if any(len(pair) != 2 for pair in pairs):
            raise invalid("must look like key=value,key=value")
        value = dict(pairs)
    if not isinstance(value, dict):
        raise invalid("must be a table")
    return value


def table(
    parse_item: Callable[[Any], Any], *keys: str, show_keys: bool = True
) -> Callable[[Any], dict[str, Any]]:
    """A parser of a table. Its keys must be among `keys` if any are given.

    Without `show_keys` no error shows a key, which may be a part of a URL.
    """

    def parse(value: Any) -> dict[str, Any]:
        parsed, problems = {}, []
        for key, item in split_pairs(value).items():
            if keys and key not in keys:
                text = f"must have only the keys {', '.join(keys)}"
                problems.append(("", f"{text}, not {key}" if show_keys else text))
                continue
            try:
                parsed[key] = parse_item(item)
            except InvalidSetting as error:
                problems += [(key, text) for _, text in error.problems]
        if problems:
            raise InvalidSetting(*dict.fromkeys(problems))
        return parsed

    return parse


def _service_table(parse_item: Callable[[Any], Any]) -> PlainValidator:
    return PlainValidator(table(parse_item, *migration_folders(), show_keys=False))


def _parse_url(value: Any) -> str:
    """An HTTP URL to which a path can be added, or empty."""
    text = _text(value)
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if text and not (
        is_valid
        and re.fullmatch(r"[!-~]+", text)
        and text.count("@") < 2
        and not parts.query
        and not parts.fragment
    ):
        raise invalid(
            "must be a URL that begins with http:// or https://, without a query; in a password "
            "write @ : / ? # as %40 and so on"
        )
    return text


def _parse_rate(value: Any) -> int:
    if not re.fullmatch(r"0(\.[0-9]{1,6})?", str(value), re.ASCII):
        raise invalid('must be a decimal from 0 to 0.999999, such as "0.025"')
    return int((str(value).partition(".")[2] + "000000")[:6])


def _parse_amounts(value: Any) -> dict[str, int]:
    amounts, problems = {}, []
    for currency, amount in split_pairs(value).items():
        try:
            amounts[parse_currency(currency)] = parse_amount(amount, currency)
        except ApiError as error:
            text = f"must be an amount of that currency: {error.message.rstrip('.')}"
            problems.append((currency, text))
    if problems:
        raise InvalidSetting(*problems)
    return amounts


def _set(parse_item: Callable[[str, str], str]) -> Callable[[Any], frozenset[str]]:
    def parse(value: Any) -> frozenset[str]:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise invalid("must be a list of texts")
        try:
            return frozenset(parse_item(item.strip(), "each") for item in items if item.strip())
        except ApiError as error:
            raise invalid(f"must have only valid items: {error.message.rstrip('.')}") from None

    return parse


def _parse_callers(value: Any) -> dict[str, Caller]:
    """Token to caller."""
    if isinstance(value, str):
        parts = [entry.split(":", 2) for entry in value.split(",") if entry]
        if any(len(part) != 3 for part in parts):
            raise invalid("must look like name:role+role:token,name@owner:role+role:token")
        caller_fields = [(*name.partition("@")[::2], roles, token) for name, roles, token in parts]
        value = [
            {"name": name, "roles": roles.split("+"), "tokens": [token], "owner": owner or name}
            for name, owner, roles, token in caller_fields
        ]
    if not isinstance(value, list):
        raise invalid("must be a list of tables")
    callers: dict[str, Caller] = {}
    problems: list[tuple[str, str]] = []
    for number_, entry in enumerate(value, 1):
        try:
            caller, tokens = _parse_caller(entry)
        except InvalidSetting as error:
            problems += [(f"[{number_}]", text) for _, text in error.problems]
            continue
        for token in tokens:
            if not isinstance(token, str) or len(token) < _MIN_TOKEN_LENGTH or token in callers:
                text = f"must have tokens of at least {_MIN_TOKEN_LENGTH} characters, each once"
                problems.append((f"[{number_}]", text))
                break
            callers[token] = caller
    if problems:
        raise InvalidSetting(*problems)
    return callers


def _parse_caller(entry: Any) -> tuple[Caller, list[Any]]:
    """A caller with its tokens. No error shows a value, which may be a token in the wrong place."""
    if not isinstance(entry, dict) or set(entry) - {"owner"} != {"name", "roles", "tokens"}:
        raise invalid("must be a table with name, roles and tokens, and optionally owner")
    try:
        name = parse_id(entry["name"], "name")
        caller = Caller(
            name,
            frozenset(Role(role) for role in entry["roles"]),
            parse_id(entry.get("owner", name), "owner"),
        )
    except (ApiError, ValueError, TypeError):
        raise invalid(
            "must have a name and an owner that are ids, and roles among " + ", ".join(Role)
        ) from None
    if not isinstance(entry["tokens"], list):
        raise invalid("must have a list of tokens")
    return caller, entry["tokens"]


Environment: TypeAlias = Annotated[
    str,
    PlainValidator(_matching(r"[a-z0-9]{1,16}", "1 to 16 of a-z 0-9")),
    Kind("text", expected="1 to 16 of a-z 0-9"),
]
Address: TypeAlias = Annotated[
    str, PlainValidator(_parse_address), Kind("address", expected="host:port or unix:path")
]
OptionalPort: TypeAlias = Annotated[
    str, PlainValidator(_parse_optional_port), Kind("address", expected="host:port or empty")
]
Url: TypeAlias = Annotated[
    str, PlainValidator(_parse_url), Kind("URL", expected="an http:// or https:// URL")
]
Authentication: TypeAlias = Annotated[
    str, PlainValidator(one_of("none", "tokens")), Kind("text", expected="one of none, tokens")
]
ProviderName: TypeAlias = Annotated[
    str,
    PlainValidator(one_of(*PROVIDERS)),
    Kind("text", expected=f"one of {', '.join(PROVIDERS)}"),
]
FeeRate: TypeAlias = Annotated[
    int,
    PlainValidator(_parse_rate),
    Kind("decimal text", "fraction of the amount", "a decimal from 0 to 0.999999"),
]
"""In parts per million."""
FeeRateBySeller: TypeAlias = Annotated[
    Mapping[str, int],
    PlainValidator(table(_parse_rate)),
    Kind("table: seller to decimal text", "fraction of the amount"),
]
AmountByCurrency: TypeAlias = Annotated[
    Mapping[str, int], PlainValidator(_parse_amounts), Kind("table: currency to decimal text")
]
"""In minor units."""
AddressByService: TypeAlias = Annotated[
    Mapping[str, str], _service_table(_parse_address), Kind("table: service to address")
]
UrlByService: TypeAlias = Annotated[
    Mapping[str, str], _service_table(_text), Kind("table: service to URL")
]
ConnectionsByService: TypeAlias = Annotated[
    Mapping[str, int], _service_table(number(1, 100, int)), Kind("table: service to whole number")
]
IdSet: TypeAlias = Annotated[frozenset[str], PlainValidator(_set(parse_id)), Kind("list of ids")]
CountrySet: TypeAlias = Annotated[
    frozenset[str], PlainValidator(_set(parse_country)), Kind("list of country codes")
]
CallerByToken: TypeAlias = Annotated[
    Mapping[str, Caller], PlainValidator(_parse_callers), Kind("list of tables")
]
