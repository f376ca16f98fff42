"""The types of the platform's own settings: callers, amounts, fees and tables by service."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import PlainValidator

from tallystick_core.access import Caller, Role
from tallystick_core.errors import ApiError
from tallystick_core.money import format_amount, parse_amount, parse_currency
from tallystick_core.payment.return_url import parse_origin
from tallystick_core.validation import parse_country, parse_id
from tallystick_server.app.services import migration_folders
from tallystick_server.setting_types import (
    InvalidSetting,
    Kind,
    invalid,
    matching,
    number,
    one_of,
    parse_rate,
    parse_text,
    split_pairs,
    table,
    write_rate,
)

_MIN_TOKEN_LENGTH = 16
_MIN_KEY_LENGTH = 32
_PORT = "6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}"

_HOST_AND_PORT = rf"[A-Za-z0-9.\-\[\]:]+:({_PORT})"
_parse_address = matching(rf"{_HOST_AND_PORT}|unix:.+", "host:port or unix:path")
_parse_service_address = matching(
    rf"(https://)?{_HOST_AND_PORT}|unix:.+", "host:port, https://host:port or unix:path"
)
_parse_optional_port = matching(rf"({_HOST_AND_PORT})?", "host:port or empty")


def _service_table(parse_item: Callable[[Any], Any]) -> PlainValidator:
    return PlainValidator(table(parse_item, *migration_folders(), show_keys=False))


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


def _write_amounts(amounts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{currency} = {format_amount(amount, currency)}" for currency, amount in amounts.items()
    )


def _write_rates(rates: Mapping[str, int]) -> str:
    return ", ".join(f"{seller} = {write_rate(rate)}" for seller, rate in rates.items())


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


def _parse_public_url(value: Any) -> str:
    origin = parse_origin(parse_text(value).removesuffix("/")) if value else ""
    if origin is None:
        raise invalid(
            "must be a URL such as https://pay.example, without a path; http:// only for this "
            "machine"
        )
    return origin


def _parse_session_key(value: Any) -> str:
    key = parse_text(value)
    if key and len(key) < _MIN_KEY_LENGTH:
        raise invalid(f"must have at least {_MIN_KEY_LENGTH} characters, or be empty")
    return key


def _parse_origins_by_caller(value: Any) -> dict[str, frozenset[str]]:
    origins: dict[str, frozenset[str]] = table(_parse_origins)(value)
    for caller in origins:
        try:
            parse_id(caller, "caller")
        except ApiError:
            raise invalid("must have the names of callers as keys") from None
    return origins


def _parse_origins(value: Any) -> frozenset[str]:
    items = value.split("+") if isinstance(value, str) else value
    if not isinstance(items, list):
        raise invalid("must be a list of origins")
    origins = frozenset(parse_origin(item) or "" for item in items if isinstance(item, str))
    if not origins or "" in origins or len(origins) < len(items):
        raise invalid(
            "must be a list of different origins such as https://shop.example, without a path; "
            "http:// only for this machine"
        )
    return origins


Environment: TypeAlias = Annotated[
    str,
    PlainValidator(matching(r"[a-z0-9]{1,16}", "1 to 16 of a-z 0-9")),
    Kind("text", expected="1 to 16 of a-z 0-9"),
]
Address: TypeAlias = Annotated[
    str, PlainValidator(_parse_address), Kind("address", expected="host:port or unix:path")
]
OptionalPort: TypeAlias = Annotated[
    str, PlainValidator(_parse_optional_port), Kind("address", expected="host:port or empty")
]
LogLevel: TypeAlias = Annotated[
    str,
    PlainValidator(one_of("INFO", "WARNING", "ERROR")),
    Kind("text", expected="one of INFO, WARNING, ERROR"),
]
LogFormat: TypeAlias = Annotated[
    str,
    PlainValidator(one_of("auto", "json", "text")),
    Kind("text", expected="one of auto, json, text"),
]
Authentication: TypeAlias = Annotated[
    str, PlainValidator(one_of("none", "tokens")), Kind("text", expected="one of none, tokens")
]
FeeRateBySeller: TypeAlias = Annotated[
    Mapping[str, int],
    PlainValidator(table(parse_rate)),
    Kind("table: seller to decimal text", "fraction of the amount", write=_write_rates),
]
AmountByCurrency: TypeAlias = Annotated[
    Mapping[str, int],
    PlainValidator(_parse_amounts),
    Kind("table: currency to decimal text", write=_write_amounts),
]
"""In minor units."""
AddressByService: TypeAlias = Annotated[
    Mapping[str, str], _service_table(_parse_service_address), Kind("table: service to address")
]
UrlByService: TypeAlias = Annotated[
    Mapping[str, str], _service_table(parse_text), Kind("table: service to URL")
]
ConnectionsByService: TypeAlias = Annotated[
    Mapping[str, int], _service_table(number(1, 100, int)), Kind("table: service to whole number")
]
IdSet: TypeAlias = Annotated[frozenset[str], PlainValidator(_set(parse_id)), Kind("list of ids")]
CountrySet: TypeAlias = Annotated[
    frozenset[str], PlainValidator(_set(parse_country)), Kind("list of country codes")
]
PublicUrl: TypeAlias = Annotated[
    str, PlainValidator(_parse_public_url), Kind("URL", expected="a URL without a path")
]
SessionKey: TypeAlias = Annotated[
    str, PlainValidator(_parse_session_key), Kind("text", expected="at least 32 characters")
]
OriginsByCaller: TypeAlias = Annotated[
    Mapping[str, frozenset[str]],
    PlainValidator(_parse_origins_by_caller),
    Kind("table: caller to list of origins"),
]
CallerByToken: TypeAlias = Annotated[
    Mapping[str, Caller], PlainValidator(_parse_callers), Kind("list of tables")
]
