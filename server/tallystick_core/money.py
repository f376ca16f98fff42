"""Amounts: decimal text in the API, integer minor units inside. Money is never a float or a
Decimal.
"""

from __future__ import annotations

import re
from functools import lru_cache

from tallystick_core.currencies import EXPONENTS
from tallystick_core.errors import ApiError, ErrorReason

MAX_AMOUNT = 10**18 - 1
"""The largest amount of one order or entry, in minor units. It fits a bigint with a wide margin."""
MAX_BALANCE = 10**37
"""The largest balance; it fits numeric(38,0)."""

_AMOUNT = re.compile(r"\A(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?\Z", re.ASCII)
_PARTS_PER_MILLION = 1_000_000


def parse_currency(text: str) -> str:
    """Returns the currency code unchanged. Raises FIELD_REQUIRED, CURRENCY_UNKNOWN."""
    if text in EXPONENTS:
        return text
    if not text:
        raise ApiError(
            ErrorReason.FIELD_REQUIRED,
            "currency is required: an ISO 4217 code such as EUR.",
            field="currency",
        )
    raise ApiError(
        ErrorReason.CURRENCY_UNKNOWN,
        "currency must be an ISO 4217 code in capitals, BTC or USDC.",
        field="currency",
    )


@lru_cache(maxsize=10_000)  # each amount of an order is parsed several times
def parse_amount(
    text: str,
    currency: str,
    field: str = "amount",
    min_amount: int = 1,
    max_amount: int = MAX_AMOUNT,
) -> int:
    """Parses decimal text in major units into minor units: "12.3" in EUR is 1230.

    `currency` must have been parsed.

    Raises AMOUNT_INVALID, AMOUNT_PRECISION, AMOUNT_OUT_OF_RANGE. The range is `min_amount` to
    `max_amount` minor units; the default maximum is 10^18 - 1.
    """
    if len(text) > 40:  # before any conversion: a hostile number may have a million digits
        raise ApiError(
            ErrorReason.AMOUNT_OUT_OF_RANGE,
            f"{field} must have at most 40 characters.",
            field=field,
        )
    match = _AMOUNT.match(text)
    if match is None:
        if not text:
            raise ApiError(
                ErrorReason.AMOUNT_INVALID,
                f"{field} is required: decimal text such as 12.34.",
                field=field,
            )
        raise ApiError(
            ErrorReason.AMOUNT_INVALID,
            f"{field} must be plain decimal text such as 12.34.",
            field=field,
        )
    sign, whole, fraction = match.groups()
    fraction = fraction or ""
    exponent = EXPONENTS[currency]
    if len(fraction) > exponent:
        raise ApiError(
            ErrorReason.AMOUNT_PRECISION,
            f"{field} must have at most {exponent} decimals in {currency}.",
            field=field,
        )
    amount_minor = int(whole + fraction.ljust(exponent, "0"))
    if sign or not min_amount <= amount_minor <= max_amount:
        limits = (
            f"at least {format_amount(min_amount, currency)} and at most "
            f"{format_amount(max_amount, currency)} {currency}"
        )
        raise ApiError(ErrorReason.AMOUNT_OUT_OF_RANGE, f"{field} must be {limits}.", field=field)
    return amount_minor


def parse_signed_amount(
    text: str, currency: str, field: str = "amount", max_amount: int = MAX_AMOUNT
) -> int:
    """Parses decimal text in major units that may begin with "-". Raises as `parse_amount`."""
    sign = -1 if text.startswith("-") else 1
    return sign * parse_amount(text.removeprefix("-"), currency, field, 0, max_amount)


@lru_cache(maxsize=10_000)
def format_amount(amount_minor: int, currency: str) -> str:
    """Formats minor units as decimal text in major units, with all decimals of the currency: 1230
    in EUR is "12.30".
    """
    exponent = EXPONENTS[currency]
    if exponent == 0:
        return str(amount_minor)
    digits = str(abs(amount_minor)).rjust(exponent + 1, "0")
    return f"{'-' if amount_minor < 0 else ''}{digits[:-exponent]}.{digits[-exponent:]}"


def apply_rate(amount_minor: int, parts_per_million: int) -> int:
    """The amount multiplied by the rate, rounded once, half to even."""
    quotient, remainder = divmod(amount_minor * parts_per_million, _PARTS_PER_MILLION)
    if remainder * 2 > _PARTS_PER_MILLION or (
        remainder * 2 == _PARTS_PER_MILLION and quotient % 2 == 1
    ):
        return quotient + 1
    return quotient
