"""Values of bank formats: amounts, dates and texts. None raises with a part of the value."""

from __future__ import annotations

import calendar
import re
from datetime import date

from tallystick_core.currencies import EXPONENTS
from tallystick_core.money import MAX_AMOUNT
from tallystick_core.reconciliation.statement import MAX_REFERENCE_LENGTH, MAX_TEXT_LENGTH
from tallystick_server.reconciliation.formats.text_file import UnexpectedValue

_DECIMAL = re.compile(r"\A([0-9]{1,30})(?:[.,]([0-9]{0,30}))?\Z", re.ASCII)
_DIGITS = re.compile(r"\A[0-9]+\Z", re.ASCII)


def read_currency(text: str) -> str:
    """An ISO 4217 code."""
    if text not in EXPONENTS:
        raise UnexpectedValue("a currency must be an ISO 4217 code such as EUR")
    return text


def read_decimal(text: str, currency: str) -> int:
    """A decimal amount without sign, with a point or a comma, in minor units."""
    match = _DECIMAL.match(text)
    if match is None:
        raise UnexpectedValue("an amount must be a number such as 1234.56, without a sign")
    whole, fraction = match[1], (match[2] or "").rstrip("0")
    exponent = EXPONENTS[currency]
    if len(fraction) > exponent:
        raise UnexpectedValue(f"an amount in {currency} must have at most {exponent} decimals")
    return _checked(int(whole + fraction.ljust(exponent, "0")))


def read_minor_units(text: str, max_amount: int = MAX_AMOUNT) -> int:
    """An amount of digits only, in minor units, with or without a sign."""
    digits = text[1:] if text.startswith(("+", "-")) else text
    if not _DIGITS.match(digits) or len(digits) > 40:
        raise UnexpectedValue("an amount must be a whole number of the currency's smallest unit")
    return _checked(int(text), max_amount)


def _checked(amount: int, max_amount: int = MAX_AMOUNT) -> int:
    if abs(amount) > max_amount:
        raise UnexpectedValue(f"an amount must have at most {len(str(max_amount))} digits")
    return amount


def read_count(text: str) -> int:
    """A number of records or entries."""
    if not _DIGITS.match(text) or len(text) > 15:
        raise UnexpectedValue("a count must be a whole number")
    return int(text)


def read_short_date(text: str) -> date:
    """A date as YYMMDD, from 1980 to 2079. Banks that count 30 days for each month also write 29
    and 30 February, which are its last day.
    """
    if not _DIGITS.match(text) or len(text) != 6:
        raise UnexpectedValue("a date must have 6 digits: year, month and day (YYMMDD)")
    year, month, day = int(text[:2]), int(text[2:4]), int(text[4:])
    year += 1900 if year >= 80 else 2000
    if month == 2 and day in {29, 30}:
        day = calendar.monthrange(year, 2)[1]
    try:
        return date(year, month, day)
    except ValueError:
        raise UnexpectedValue("a date must be a day of the calendar (YYMMDD)") from None


def short_text(*parts: str) -> str:
    """The parts in one line, cut to MAX_TEXT_LENGTH."""
    return " ".join(" ".join(parts).split())[:MAX_TEXT_LENGTH]


def short_reference(text: str) -> str:
    """A reference, cut to MAX_REFERENCE_LENGTH; empty for a word that means there is none."""
    text = " ".join(text.split())
    return "" if text in {"NONREF", "NOTPROVIDED"} else text[:MAX_REFERENCE_LENGTH]
