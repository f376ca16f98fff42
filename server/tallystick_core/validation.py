"""Parses the ids, texts and lists that callers send, and rejects card numbers in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from tallystick_core.card_numbers import (
    contains_card_number,
    is_bank_account_number,
    is_card_number,
)
from tallystick_core.errors import ApiError, ErrorReason

M = TypeVar("M")
T = TypeVar("T")

_ID = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z", re.ASCII)
_TOKEN = re.compile(r"\A[!-~]{1,255}\Z", re.ASCII)
_COUNTRY = re.compile(r"\A[A-Z]{2}\Z", re.ASCII)


def parse_id(text: str, field: str) -> str:
    """Parses an id of the API. Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REJECTED."""
    if _ID.match(text) is None:
        if not text:
            raise ApiError(ErrorReason.FIELD_REQUIRED, f"{field} is required.", field=field)
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"{field} must be 1 to 64 of A-Z a-z 0-9 _ -, beginning with a letter or digit.",
            field=field,
        )
    reject_card_id(text, field)
    return text


def parse_optional_id(text: str, field: str) -> str:
    """Parses an id or "". Raises FIELD_INVALID, CARD_NUMBER_REJECTED."""
    return parse_id(text, field) if text else ""


def require_item_count(
    items: Sequence[object], field: str, max_items: int, item_name: str = "item"
) -> None:
    """Requires 1 to `max_items` items. Raises FIELD_REQUIRED, TOO_MANY_ITEMS."""
    if not items:
        raise ApiError(
            ErrorReason.FIELD_REQUIRED, f"{field} must have at least one {item_name}.", field=field
        )
    if len(items) > max_items:
        raise ApiError(
            ErrorReason.TOO_MANY_ITEMS,
            f"{field} must have at most {max_items} {item_name}s.",
            field=field,
        )


def parse_items(
    messages: Sequence[M],
    parse: Callable[[M, int], T],
    *,
    field: str,
    item_name: str,
    id_field: str,
    max_items: int,
) -> list[T]:
    """Parses the items of `field`, each with its index. `item_name`: its word in errors.

    Raises FIELD_REQUIRED, TOO_MANY_ITEMS, DUPLICATE_ITEM if two have the same `id_field`, or the
    error of an item with its path.
    """
    require_item_count(messages, field, max_items, item_name)
    items, seen_ids = [], set()
    for index, message in enumerate(messages):
        try:
            items.append(parse(message, index))
        except ApiError as error:
            raise error.with_field_prefix(f"{field}[{index}]") from None
        id_ = getattr(message, id_field)
        if id_ in seen_ids:
            path = f"{field}[{index}].{id_field}"
            raise ApiError(
                ErrorReason.DUPLICATE_ITEM, f"{path} must be unique in the request.", field=path
            )
        seen_ids.add(id_)
    return items


def is_id(text: str) -> bool:
    """Whether `text` has the form of an id."""
    return _ID.match(text) is not None


def parse_text(text: str, field: str, max_length: int) -> str:
    """Parses free text without NUL, of at most `max_length` characters. Raises FIELD_INVALID,
    CARD_NUMBER_REJECTED.
    """
    if len(text) > max_length:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"{field} must have at most {max_length} characters.",
            field=field,
        )
    if "\0" in text:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"{field} must not contain the character U+0000.",
            field=field,
        )
    reject_card_number(text, field)
    return text


def parse_reason_text(text: str, field: str) -> str:
    """Parses a non-blank reason that is kept in a history. Raises FIELD_REQUIRED, FIELD_INVALID,
    CARD_NUMBER_REJECTED.
    """
    if not text.strip():
        raise ApiError(
            ErrorReason.FIELD_REQUIRED,
            f"{field} is required: it is kept in the history.",
            field=field,
        )
    return parse_text(text, field, 255)


def parse_token(text: str, field: str) -> str:
    """Parses a provider's token: visible ASCII. Raises FIELD_REQUIRED, FIELD_INVALID,
    CARD_NUMBER_REJECTED.
    """
    if not text:
        raise ApiError(
            ErrorReason.FIELD_REQUIRED, f"{field} is required: the provider's token.", field=field
        )
    if _TOKEN.match(text) is None:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"{field} must be 1 to 255 visible ASCII characters.",
            field=field,
        )
    reject_card_id(text, field)
    return text


def parse_lookup_id(text: str, field: str) -> str:
    """Parses an id to search for: one of the platform, or a provider's reference. Raises
    FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REJECTED.
    """
    if not text:
        raise ApiError(
            ErrorReason.FIELD_REQUIRED,
            f"{field} is required: an id of the platform, or a provider's id.",
            field=field,
        )
    return parse_token(text, field)


def parse_bank_account_token(text: str, field: str) -> str:
    """Parses a provider's token for a bank account. Raises FIELD_REQUIRED, FIELD_INVALID,
    CARD_NUMBER_REJECTED.
    """
    parse_token(text, field)
    if is_bank_account_number(text):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"{field} must be the provider's token for the account, not an account number.",
            field=field,
        )
    return text


def parse_country(text: str, field: str) -> str:
    """Parses an ISO 3166-1 alpha-2 code, or empty text. Raises FIELD_INVALID."""
    if text and _COUNTRY.match(text) is None:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"{field} must be two capital letters (ISO 3166-1), or empty.",
            field=field,
        )
    return text


def reject_card_id(text: str, field: str) -> None:
    """Raises CARD_NUMBER_REJECTED if an identifier is a card number as a whole."""
    if is_card_number(text):
        raise _card_number_error(field)


def reject_card_number(text: str, field: str) -> None:
    """Raises CARD_NUMBER_REJECTED if a text contains a card number."""
    if contains_card_number(text):
        raise _card_number_error(field)


def _card_number_error(field: str) -> ApiError:
    message = (
        f"{field} contains what looks like a card number, which is never stored: send the "
        "provider's token, or another value where no token belongs."
    )
    return ApiError(ErrorReason.CARD_NUMBER_REJECTED, message, field=field)
