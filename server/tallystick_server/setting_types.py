"""The types of settings. Each describes its valid values, and parses them from TOML or from an
environment variable.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A section of settings. Each field has a type of this module, a default, and a docstring that
    describes it.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


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
    write: Callable[[Any], str] | None = None
    """Writes a value as it may be set, such as 0.025; None: it is written as it is."""


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
OptionalFile: TypeAlias = Annotated[str, Kind("path", expected="a path")]


def parse_text(value: Any) -> str:
    """Returns the text. Raises InvalidSetting if the value is none."""
    if not isinstance(value, str):
        raise invalid("must be text")
    return value


def matching(pattern: str, description: str) -> Callable[[Any], str]:
    """A parser of text that matches the pattern as a whole."""

    def parse(value: Any) -> str:
        if not re.fullmatch(pattern, parse_text(value), re.ASCII):
            raise invalid(f"must be {description}")
        return str(value)

    return parse


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


def _parse_url(value: Any) -> str:
    """An HTTP URL to which a path can be added, or empty."""
    url = parse_text(value)
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if url and not (
        is_valid
        and re.fullmatch(r"[!-~]+", url)
        and url.count("@") < 2
        and not parts.query
        and not parts.fragment
    ):
        raise invalid(
            "must be a URL that begins with http:// or https://, without a query; in a password "
            "write @ : / ? # as %40 and so on"
        )
    return url


Url: TypeAlias = Annotated[
    str, PlainValidator(_parse_url), Kind("URL", expected="an http:// or https:// URL")
]


def parse_rate(value: Any) -> int:
    """Parses a fraction to parts per million. Raises InvalidSetting."""
    if not re.fullmatch(r"0(\.[0-9]{1,6})?", str(value), re.ASCII):
        raise invalid('must be a decimal from 0 to 0.999999, such as "0.025"')
    return int((str(value).partition(".")[2] + "000000")[:6])


def write_rate(parts_per_million: int) -> str:
    """The fraction that `parse_rate` parses: 25000 as 0.025."""
    return f"0.{parts_per_million:06d}".rstrip("0").removesuffix(".")


FeeRate: TypeAlias = Annotated[
    int,
    PlainValidator(parse_rate),
    Kind("decimal text", "fraction of the amount", "a decimal from 0 to 0.999999", write_rate),
]
"""In parts per million."""
