"""Ids and texts that callers send: what they may be made of, and that no card number hides in them."""

from __future__ import annotations

import re
import unicodedata

from tallystick_core.refusal import Reason, Refused

_ID = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z", re.ASCII)
_TOKEN = re.compile(r"\A[!-~]{1,255}\Z", re.ASCII)
_COUNTRY = re.compile(r"\A[A-Z]{2}\Z", re.ASCII)
_MANY_DIGITS = re.compile(r"[0-9](?:[^0-9A-Za-z]*[0-9]){12,}", re.ASCII)
_DIGITS = re.compile(r"[0-9]+", re.ASCII)

# Who issues cards: first and last prefix, and the lengths their numbers have.
_ISSUERS = (
    ("4", "4", (13, 16, 19)),
    ("51", "55", (16,)),
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),
    ("37", "37", (15,)),
    ("6011", "6011", (16, 19)),
    ("644", "659", (16, 19)),
    ("62", "62", (16, 17, 18, 19)),
    ("3528", "3589", (16, 19)),
    ("300", "305", (14, 16, 19)),
    ("36", "36", (14, 16, 19)),
    ("38", "39", (14, 16, 19)),
    ("50", "50", (13, 16, 19)),
    ("56", "58", (13, 16, 19)),
    ("63", "63", (13, 16, 19)),
    ("67", "67", (13, 16, 19)),
    ("2200", "2204", (16, 17, 18, 19)),
    ("60", "60", (16,)),
    ("81", "82", (16,)),
    ("9792", "9792", (16,)),
)


def parse_id(text: str, field: str) -> str:
    """An id of the contract's form. Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REFUSED."""
    if _ID.match(text) is None:
        if not text:
            raise Refused(Reason.FIELD_REQUIRED, f"{field} is required.", field=field)
        raise Refused(Reason.FIELD_INVALID, f"{field} must be 1 to 64 of A-Z a-z 0-9 _ -, beginning with a letter or digit.", field=field)
    if len(text) > 12:
        refuse_card_number(text, field)
    return text


def is_id(text: str) -> bool:
    """Whether `text` has the form of an id."""
    return _ID.match(text) is not None


def parse_text(text: str, field: str, most: int) -> str:
    """Free text without NUL, of at most `most` characters. Raises FIELD_INVALID, CARD_NUMBER_REFUSED."""
    if len(text) > most:
        raise Refused(Reason.FIELD_INVALID, f"{field} must have at most {most} characters.", field=field)
    if "\0" in text:
        raise Refused(Reason.FIELD_INVALID, f"{field} must not contain the character U+0000.", field=field)
    refuse_card_number(text, field)
    return text


def parse_words(text: str, field: str, most: int = 255) -> str:
    """Free text that must say something, kept in a history. Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REFUSED."""
    if not text.strip():
        raise Refused(Reason.FIELD_REQUIRED, f"{field} is required: it is kept in the history.", field=field)
    return parse_text(text, field, most)


def parse_token(text: str, field: str) -> str:
    """A provider's token: visible ASCII. Raises FIELD_REQUIRED, FIELD_INVALID, CARD_NUMBER_REFUSED."""
    if not text:
        raise Refused(Reason.FIELD_REQUIRED, f"{field} is required: the provider's token.", field=field)
    if _TOKEN.match(text) is None:
        raise Refused(Reason.FIELD_INVALID, f"{field} must be 1 to 255 visible ASCII characters.", field=field)
    refuse_card_number(text, field)
    return text


def parse_country(text: str, field: str) -> str:
    """An ISO 3166-1 alpha-2 code, or empty. Raises FIELD_INVALID."""
    if text and _COUNTRY.match(text) is None:
        raise Refused(Reason.FIELD_INVALID, f"{field} must be two capital letters (ISO 3166-1), or empty.", field=field)
    return text


def refuse_card_number(text: str, field: str) -> None:
    """Raises CARD_NUMBER_REFUSED if `text` holds a card number, also spaced, dashed, full-width or split by other signs."""
    if len(text) < 13 or (text.isascii() and text.isalpha()):
        return
    for cluster in _MANY_DIGITS.findall(text if text.isascii() else _plain_digits(text)):
        if _holds_card_number(_DIGITS.findall(cluster)):
            raise Refused(Reason.CARD_NUMBER_REFUSED, f"{field} holds what looks like a card number; send the provider's token.", field=field)


def _plain_digits(text: str) -> str:
    """Every digit of any script, also circled or raised, as an ASCII one; invisible characters dropped."""
    return "".join(str(unicodedata.digit(c)) if c.isdigit() else c for c in text if unicodedata.category(c) not in ("Cf", "Mn"))


def _holds_card_number(groups: list[str]) -> bool:
    """Whether consecutive groups of digits make up a card number; groups are not cut, or every tenth order number would be one."""
    for first in range(len(groups)):
        number = ""
        for group in groups[first:]:
            number += group
            if len(number) > 19:
                break
            if len(number) >= 13 and _is_card_number(number):
                return True
    return False


def _is_card_number(number: str) -> bool:
    if number[0] not in "2345689":  # no issuer's first digit
        return False
    issued = any(low <= number[: len(low)] <= high and len(number) in lengths for low, high, lengths in _ISSUERS)
    return issued and _luhn(number)


def _luhn(number: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0
