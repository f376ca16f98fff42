"""Amounts: decimal text on the wire, whole minor units inside. No float and no Decimal ever holds money."""

from __future__ import annotations

import re
from functools import lru_cache

from tallystick_core.currencies import EXPONENTS
from tallystick_core.refusal import Reason, Refused

MAX_AMOUNT = 10**18 - 1
"""The largest amount of one order or entry, in minor units; it fits a bigint with room to spare."""
MAX_BALANCE = 10**37
"""The largest balance; it fits numeric(38,0)."""

_AMOUNT = re.compile(r"\A(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?\Z", re.ASCII)
_MILLION = 1_000_000


def parse_currency(text: str, field: str = "currency") -> str:
    """A currency code as it is. Raises FIELD_REQUIRED, CURRENCY_UNKNOWN."""
    if text in EXPONENTS:
        return text
    if not text:
        raise Refused(Reason.FIELD_REQUIRED, f"{field} is required: an ISO 4217 code such as EUR.", field=field)
    raise Refused(Reason.CURRENCY_UNKNOWN, f"{field} must be an ISO 4217 code in capitals, BTC or USDC.", field=field)


@lru_cache(maxsize=10_000)  # an order's amounts come several times on its way
def parse_amount(text: str, currency: str, field: str = "amount", least: int = 1, most: int = MAX_AMOUNT) -> int:
    """Decimal text in major units, as minor units: "12.3" in EUR is 1230. `currency` is a parsed one.

    Raises AMOUNT_INVALID, AMOUNT_PRECISION, AMOUNT_OUT_OF_RANGE (below `least`, or above `most` minor units, 10^18 - 1 unless said otherwise).
    """
    if len(text) > 40:  # before anything is converted: a hostile number may have a million digits
        raise Refused(Reason.AMOUNT_OUT_OF_RANGE, f"{field} is too long.", field=field)
    found = _AMOUNT.match(text)
    if found is None:
        if not text:
            raise Refused(Reason.AMOUNT_INVALID, f"{field} is required: decimal text such as 12.34.", field=field)
        raise Refused(Reason.AMOUNT_INVALID, f"{field} must be plain decimal text such as 12.34.", field=field)
    sign, whole, fraction = found.groups()
    fraction = fraction or ""
    exponent = EXPONENTS[currency]
    if len(fraction) > exponent:
        raise Refused(Reason.AMOUNT_PRECISION, f"{field} must have at most {exponent} decimals in {currency}.", field=field)
    minor = int(whole + fraction.ljust(exponent, "0"))
    if sign or not least <= minor <= most:
        limits = f"at least {format_amount(least, currency)} and at most {format_amount(most, currency)} {currency}"
        raise Refused(Reason.AMOUNT_OUT_OF_RANGE, f"{field} must be {limits}.", field=field)
    return minor


@lru_cache(maxsize=10_000)
def format_amount(minor: int, currency: str) -> str:
    """Minor units as decimal text in major units, with all decimals of the currency: 1230 in EUR is "12.30"."""
    exponent = EXPONENTS[currency]
    if exponent == 0:
        return str(minor)
    digits = str(abs(minor)).rjust(exponent + 1, "0")
    return f"{'-' if minor < 0 else ''}{digits[:-exponent]}.{digits[-exponent:]}"


def share(minor: int, parts_per_million: int) -> int:
    """A rate's part of an amount, rounded once, half to even."""
    whole, rest = divmod(minor * parts_per_million, _MILLION)
    if rest * 2 > _MILLION or (rest * 2 == _MILLION and whole % 2 == 1):
        return whole + 1
    return whole
