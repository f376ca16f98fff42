"""Amounts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.currencies import EXPONENTS
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.money import (
    MAX_AMOUNT,
    apply_rate,
    format_amount,
    parse_amount,
    parse_currency,
)
from tallystick_core.payment.checkout import Order
from tallystick_core.payment.fees import FeeRates

CURRENCIES = st.sampled_from(sorted(EXPONENTS))


@given(st.integers(1, MAX_AMOUNT), CURRENCIES)
def test_every_amount_survives_the_wire(minor: int, currency: str) -> None:
    """A formatted amount parses to the same amount, in every currency."""
    assert parse_amount(format_amount(minor, currency), currency) == minor


@given(st.text(max_size=60), CURRENCIES)
def test_any_text_is_an_amount_or_a_named_error(text: str, currency: str) -> None:
    """For any text the parser raises only its own errors, and every accepted amount is in range."""
    try:
        assert 1 <= parse_amount(text, currency) <= MAX_AMOUNT
    except ApiError as error:
        assert error.reason in {
            ErrorReason.AMOUNT_INVALID,
            ErrorReason.AMOUNT_PRECISION,
            ErrorReason.AMOUNT_OUT_OF_RANGE,
        }
        assert error.field == "amount"


@pytest.mark.parametrize(
    ("text", "currency", "reason"),
    [
        *(
            (text, "EUR", ErrorReason.AMOUNT_INVALID)
            for text in (
                "",
                " 12",
                "12\n",
                "+5",
                "1e3",
                "NaN",
                "Infinity",
                "0x10",
                "1_000",
                "１２",
                "٣",
            )
        ),
        *(
            (text, "EUR", ErrorReason.AMOUNT_INVALID)
            for text in ("1,00", "1.", ".5", "00012", "--1", "1.2.3")
        ),
        *(
            (text, "EUR", ErrorReason.AMOUNT_OUT_OF_RANGE)
            for text in ("0", "-0", "-1", "0.00", "1" + "0" * 30, "9" * 5000, "10000000000000000")
        ),
        ("1.5", "JPY", ErrorReason.AMOUNT_PRECISION),
        ("1.005", "USD", ErrorReason.AMOUNT_PRECISION),
        ("1.2345", "KWD", ErrorReason.AMOUNT_PRECISION),
        ("0.000000001", "BTC", ErrorReason.AMOUNT_PRECISION),
    ],
)
def test_invalid_amounts_are_rejected_with_their_reason(
    text: str, currency: str, reason: ErrorReason
) -> None:
    """Each invalid amount has the one reason that says how to fix it."""
    with pytest.raises(ApiError) as error:
        parse_amount(text, currency)
    assert error.value.reason is reason


@pytest.mark.parametrize(
    ("text", "currency", "minor"),
    [
        ("10", "EUR", 1000),
        ("10.0", "EUR", 1000),
        ("10.00", "EUR", 1000),
        ("1000000000000000", "JPY", 10**15),
        ("0.00000001", "BTC", 1),
        ("1.234", "KWD", 1234),
    ],
)
def test_equal_amounts_written_otherwise_are_equal(text: str, currency: str, minor: int) -> None:
    """Very large and very small amounts are exact, and trailing zeros make no difference."""
    assert parse_amount(text, currency) == minor


@pytest.mark.parametrize("text", ["usd", "US", "XXX", "XAU", "EURO", "eur ", "12"])
def test_unknown_currencies_are_rejected(text: str) -> None:
    """Only ISO 4217 codes that have minor units, BTC and USDC are currencies."""
    with pytest.raises(ApiError) as error:
        parse_currency(text)
    assert error.value.reason is ErrorReason.CURRENCY_UNKNOWN


@given(st.integers(1, MAX_AMOUNT), st.integers(0, 999_999))
def test_fee_and_share_sum_to_the_amount(amount: int, rate: int) -> None:
    """P9: at any rate the fee is rounded once, half to even, and the seller gets the remainder,
    which is never zero.
    """
    fee = FeeRates(rate, {}).compute_fee(Order("o", "b", "s", amount, "EUR", None))
    assert 0 <= fee < amount
    assert fee == amount - 1 or abs(fee * 1_000_000 - amount * rate) <= 500_000


@pytest.mark.parametrize(
    ("amount", "rate", "fee"),
    [(25, 100_000, 2), (35, 100_000, 4), (100, 25_000, 2), (300, 25_000, 8), (1000, 25_000, 25)],
)
def test_rates_round_half_to_even(amount: int, rate: int, fee: int) -> None:
    """Halves are rounded to the even neighbour."""
    assert apply_rate(amount, rate) == fee
