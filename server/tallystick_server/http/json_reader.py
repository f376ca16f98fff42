"""Reads a JSON object strictly: UTF-8, no field twice, no NaN, bounded depth and size."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from tallystick_core.card_numbers import contains_card_number
from tallystick_core.errors import ApiError, ErrorReason

MAX_VALUES = 50_000
"""Maximum commas and opening brackets of a body, which bounds the values that it can have."""
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)


class _RepeatedField(ValueError):
    pass


def read_object(body: bytes) -> dict[str, Any]:
    """Parses a body; an empty one is an empty object. Raises MESSAGE_MALFORMED, TOO_MANY_ITEMS. No
    error shows a part of the body.
    """
    if not body:
        return {}
    if body.count(b",") + body.count(b"{") + body.count(b"[") > MAX_VALUES:
        raise ApiError(
            ErrorReason.TOO_MANY_ITEMS,
            "The body has too many fields and items; split it into several calls.",
        )
    try:
        value = _DECODER.decode(body.decode())
    except UnicodeDecodeError:
        raise _malformed("The body must be UTF-8.") from None
    except RecursionError:
        raise _malformed("The body must not be nested so deeply.") from None
    except _RepeatedField:
        raise _malformed("No object of the body may have a field twice.") from None
    except json.JSONDecodeError as error:
        raise _malformed(
            f"The body must be JSON: the first error is at line {error.lineno}, column "
            f"{error.colno}."
        ) from None
    except ValueError:  # NaN, or a number of thousands of digits
        raise _malformed("The body must have only numbers that JSON has, and short ones.") from None
    if not isinstance(value, dict):
        raise _malformed("The body must be a JSON object.")
    return value


def is_shown(name: str) -> bool:
    """Whether the name of an unknown field may be part of an error."""
    return _FIELD_NAME.fullmatch(name) is not None and not contains_card_number(name)


def _malformed(message: str) -> ApiError:
    return ApiError(ErrorReason.MESSAGE_MALFORMED, message)


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _RepeatedField
    return fields


def _reject_constant(_name: str) -> NoReturn:
    raise ValueError


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_fields, parse_constant=_reject_constant)
