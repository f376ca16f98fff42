"""Reads the fields of Stripe's answers and events. Every text that it returns can be stored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_TEXT_LENGTH = 255
MAX_URL_LENGTH = 8_192
_URL = re.compile(r"(https?)://[!-~]+", re.ASCII)


def is_storable(text: object) -> bool:
    """Whether it is printable ASCII of at most MAX_TEXT_LENGTH characters."""
    return (
        isinstance(text, str)
        and len(text) <= MAX_TEXT_LENGTH
        and text.isascii()
        and text.isprintable()
    )


def read_text(fields: Mapping[str, Any], name: str) -> str:
    """The text of a field. Raises ValueError if it is empty, missing or not storable."""
    text = read_optional_text(fields, name)
    if not text:
        raise ValueError(f"{name} is missing")
    return text


def read_optional_text(fields: Mapping[str, Any], name: str) -> str:
    """The text of a field; "" if it is null or missing. Raises ValueError if it is not storable."""
    text = fields.get(name)
    if text is None:
        return ""
    if not is_storable(text):
        raise ValueError(f"{name} is no storable text")
    return str(text)


def read_optional_url(fields: Mapping[str, Any], name: str, *, allow_http: bool = False) -> str:
    """The address of a field; "": it is missing, malformed, longer than MAX_URL_LENGTH, or without
    TLS unless that is allowed.
    """
    url = fields.get(name)
    match = _URL.fullmatch(url) if isinstance(url, str) else None
    if match is None or len(match[0]) > MAX_URL_LENGTH or (match[1] == "http" and not allow_http):
        return ""
    return match[0]


def read_number(fields: Mapping[str, Any], name: str) -> int:
    """The whole number of a field. Raises ValueError."""
    number = fields.get(name)
    if type(number) is not int:
        raise ValueError(f"{name} is no whole number")
    return number


def read_flag(fields: Mapping[str, Any], name: str) -> bool:
    """The boolean of a field. Raises ValueError."""
    flag = fields.get(name)
    if type(flag) is not bool:
        raise ValueError(f"{name} is no boolean")
    return flag


def read_optional_table(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The object of a field; empty if it is null, missing, or only its id."""
    table = fields.get(name)
    return table if isinstance(table, dict) else {}


def read_objects(page: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The objects of a list, or of a page of one. Raises ValueError."""
    if page.get("object") not in ("list", "search_result"):
        raise ValueError("it is no list")
    objects = page.get("data")
    if not isinstance(objects, list) or not all(isinstance(item, dict) for item in objects):
        raise ValueError("data is no list of objects")
    return objects


def require_last_page(page: Mapping[str, Any]) -> None:
    """Raises ValueError if the list has more pages."""
    if read_flag(page, "has_more"):
        raise ValueError("there are more pages")


def read_id(fields: Mapping[str, Any], name: str) -> str:
    """The id of the object of a field, which may be expanded; "": null or missing. Raises
    ValueError.
    """
    value = fields.get(name)
    return read_text(value, "id") if isinstance(value, dict) else read_optional_text(fields, name)


def require_kind(fields: Mapping[str, Any], kind: str) -> None:
    """Raises ValueError if it is another kind of object."""
    if fields.get("object") != kind:
        raise ValueError(f"it is no {kind}")
