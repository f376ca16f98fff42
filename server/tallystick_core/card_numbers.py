"""Recognizes card numbers and bank account numbers, so that neither is ever stored.

An identifier is rejected if it is a card number as a whole. A text is rejected if it contains one
in a form in common use: one group of digits, or the usual groups. Digits next to a letter or
"+" belong to something else: a UUID, a phone number, a reference.
"""

from __future__ import annotations

import re
import unicodedata

# Issuers by first and last prefix, with the lengths that they issue today.
_ISSUERS = (
    ("4", "4", (16,)),  # Visa
    ("51", "55", (16,)),  # Mastercard
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),  # American Express
    ("37", "37", (15,)),
    ("6011", "6011", (16, 19)),  # Discover
    ("644", "659", (16, 19)),
    ("62", "62", (16, 17, 18, 19)),  # UnionPay
    ("3528", "3589", (16, 19)),  # JCB
    ("300", "305", (14, 16, 19)),  # Diners Club
    ("36", "36", (14, 16, 19)),
    ("38", "39", (14, 16, 19)),
    ("50", "50", (16, 19)),  # Maestro, Dankort
    ("56", "58", (16, 19)),
    ("63", "63", (16, 19)),
    ("67", "67", (16, 19)),
    ("2200", "2204", (16, 17, 18, 19)),  # Mir
    ("60", "60", (16,)),  # RuPay
    ("81", "82", (16,)),
    ("9792", "9792", (16,)),  # Troy
)
_LENGTHS = frozenset(length for _, _, lengths in _ISSUERS for length in lengths)
_MIN_LENGTH = min(_LENGTHS)

# How people group the digits of a card number, by the lengths of the groups.
_GROUPINGS = frozenset(
    [(length,) for length in _LENGTHS]
    + [(1,) * length for length in _LENGTHS]
    + [(4, 4, 4, 4), (8, 8), (4, 6, 5), (4, 4, 4, 3), (4, 6, 4), (4, 4, 4, 4, 3), (6, 13)]
)
_MAX_GROUPS = 19

_LETTER = re.compile(r"[A-Za-z]", re.ASCII)
_SEPARATORS = re.compile(r"[^0-9A-Za-z]", re.ASCII)
_DIGIT_RUN = re.compile(
    r"(?<![0-9A-Za-z+])[0-9](?:[^0-9A-Za-z+]*[0-9]){13,}(?![0-9A-Za-z])", re.ASCII
)
_DIGIT_GROUP = re.compile(r"[0-9]+", re.ASCII)
_IBAN = re.compile(
    r"\b[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?\b", re.ASCII
)


def is_card_number(text: str) -> bool:
    """Whether an identifier or token, without its separators, is a card number."""
    if len(text) < _MIN_LENGTH or _LETTER.search(text):  # nearly every id ends here
        return False
    digits = _SEPARATORS.sub("", text)
    return digits.isdigit() and _is_issued(digits)


def contains_card_number(text: str) -> bool:
    """Whether a text contains a card number. It may be spaced, dashed, split by other characters,
    or in digits of another script.
    """
    if len(text) < _MIN_LENGTH:
        return False
    plain = _IBAN.sub(_without_iban, text if text.isascii() else _ascii_digits(text))
    return any(
        _contains_issued_number(_DIGIT_GROUP.findall(run)) for run in _DIGIT_RUN.findall(plain)
    )


def mask_card_numbers(text: str) -> str:
    """The text with `[card number]` in the place of each run of digits that contains one. Digits of
    other scripts become those of ASCII in such a text.
    """
    if not contains_card_number(text):
        return text
    return _DIGIT_RUN.sub(_mask_run, text if text.isascii() else _ascii_digits(text))


def _mask_run(match: re.Match[str]) -> str:
    is_card = _contains_issued_number(_DIGIT_GROUP.findall(match[0]))
    return "[card number]" if is_card else match[0]


def is_bank_account_number(text: str) -> bool:
    """Whether a token is a bank account number: an IBAN, or only digits."""
    compact = _SEPARATORS.sub("", text)
    return compact.isdigit() or _is_iban(compact.upper())


def _contains_issued_number(groups: list[str]) -> bool:
    """Whether consecutive groups of digits form a card number in a usual grouping."""
    for first in range(len(groups)):
        for last in range(first + 1, min(len(groups), first + _MAX_GROUPS) + 1):
            window = groups[first:last]
            if tuple(map(len, window)) in _GROUPINGS and _is_issued("".join(window)):
                return True
    return False


def _is_issued(digits: str) -> bool:
    """Whether an issuer uses this prefix and length, and the check digit is correct."""
    if len(digits) not in _LENGTHS:
        return False
    issued = any(
        low <= digits[: len(low)] <= high and len(digits) in lengths
        for low, high, lengths in _ISSUERS
    )
    return issued and has_valid_check_digit(digits)


def has_valid_check_digit(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812, Luhn)."""
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + index % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _ascii_digits(text: str) -> str:
    """Converts the digits of every script, also circled or raised ones, to ASCII. Drops invisible
    characters.
    """
    return "".join(
        str(unicodedata.digit(c)) if c.isdigit() else c
        for c in text
        if unicodedata.category(c) not in ("Cf", "Mn")
    )


def _without_iban(match: re.Match[str]) -> str:
    """The text after the IBAN at the start of a match, or the whole match if there is no IBAN. The
    pattern may also match words that follow an IBAN.
    """
    end = len(match[0])
    while end > 0:
        if _is_iban(_SEPARATORS.sub("", match[0][:end])):
            return match[0][end:]
        end = max(match[0].rfind(" ", 0, end), match[0].rfind("-", 0, end))
    return match[0]


def _is_iban(compact: str) -> bool:
    """Whether a text without separators is an IBAN, by its form and its check digits (ISO
    13616).
    """
    if _IBAN.fullmatch(compact) is None:
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1
