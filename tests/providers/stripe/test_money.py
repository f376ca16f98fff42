"""Amounts as Stripe writes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.currencies import EXPONENTS
from tallystick_core.money import MAX_AMOUNT
from tallystick_server.providers.stripe.money import (
    CURRENCIES,
    MIN_CHARGES,
    THREE_DECIMALS,
    WHOLE_UNITS,
    ZERO_DECIMALS,
    UnsupportedAmount,
    from_stripe_amount,
    to_stripe_amount,
    to_stripe_charge,
    to_stripe_payout,
)

AMOUNTS = st.one_of(st.integers(1, 10_000), st.integers(1, MAX_AMOUNT))


@given(AMOUNTS, st.sampled_from(sorted(EXPONENTS)), st.sampled_from(["CARD", "BANK_TRANSFER"]))
def test_an_amount_is_converted_there_and_back_or_rejected_by_a_rule(
    amount: int, currency: str, method: str
) -> None:
    """Every amount of every currency that the platform knows: what is sent is the same money, or
    the rule of its currency rejects it.
    """
    conversions: tuple[Callable[[], int], ...] = (
        lambda: to_stripe_charge(amount, currency, method),
        lambda: to_stripe_payout(amount, currency),
    )
    for convert in conversions:
        try:
            converted = convert()
        except UnsupportedAmount as error:
            rule = str(error)
            assert rule.startswith("must ")
            assert currency in rule or "digits" in rule or currency not in CURRENCIES
        else:
            assert from_stripe_amount(converted, currency) == amount


@given(AMOUNTS, st.sampled_from(sorted(CURRENCIES)))
def test_stripes_amount_is_read_and_written_again_or_rejected(amount: int, currency: str) -> None:
    """Every amount that Stripe may answer is the same money here, or cannot be read."""
    try:
        minor_units = from_stripe_amount(amount, currency)
        assert to_stripe_amount(minor_units, currency) == amount
    except UnsupportedAmount:
        assert currency in WHOLE_UNITS | THREE_DECIMALS


@pytest.mark.parametrize(
    ("amount", "currency", "expected"),
    [
        (1234, "EUR", 1234),
        (500, "JPY", 500),
        (5, "ISK", 500),
        (5, "UGX", 500),
        (700, "UGX", 70_000),
        (1200, "MGA", 12),
        (5120, "KWD", 5120),
        (17_550, "HUF", 17_550),
        (99_999, "TWD", 99_999),
    ],
)
def test_amounts_of_special_currencies(amount: int, currency: str, expected: int) -> None:
    """ISK and UGX are sent with two decimals, MGA without any."""
    assert to_stripe_amount(amount, currency) == expected
    assert from_stripe_amount(expected, currency) == amount


@pytest.mark.parametrize(
    ("amount", "currency", "rule"),
    [
        (1234, "MGA", "must have at most 0 decimals in MGA for Stripe"),
        (5124, "KWD", "must have 0 as its last decimal in KWD for Stripe"),
        (49, "EUR", "must be at least 0.50 EUR for Stripe"),
        (49, "JPY", "must be at least 50 JPY for Stripe"),
        (29, "GBP", "must be at least 0.30 GBP for Stripe"),
        (10**12, "IDR", "must have at most 12 digits for Stripe"),
        (1000, "BTC", "must have a currency that Stripe knows"),
        (1000, "XAU", "must have a currency that Stripe knows"),
    ],
)
def test_a_charge_is_rejected_by_the_rule_of_its_currency(
    amount: int, currency: str, rule: str
) -> None:
    """The rule names what would be right."""
    with pytest.raises(UnsupportedAmount) as error:
        to_stripe_charge(amount, currency, "CARD")
    assert str(error.value) == rule


@pytest.mark.parametrize("currency", ["HUF", "TWD"])
def test_a_payout_has_whole_units(currency: str) -> None:
    """HUF and TWD are charged with decimals, and paid out without."""
    assert to_stripe_charge(1_234_567, currency, "CARD") == 1_234_567
    assert to_stripe_payout(1_234_500, currency) == 1_234_500
    with pytest.raises(UnsupportedAmount, match=f"must be whole units of {currency}"):
        to_stripe_payout(1_234_567, currency)


def test_the_number_of_digits_depends_on_the_method() -> None:
    """Cards, and wallets of cards, take 12 digits; other methods 8."""
    for method in ("CARD", "APPLE_PAY", "GOOGLE_PAY"):
        assert to_stripe_charge(10**12 - 1, "IDR", method) == 10**12 - 1
    assert to_stripe_charge(10**8 - 1, "EUR", "BANK_TRANSFER") == 10**8 - 1
    with pytest.raises(UnsupportedAmount, match="must have at most 8 digits"):
        to_stripe_charge(10**8, "EUR", "BANK_TRANSFER")


def test_the_tables_agree() -> None:
    """Every currency of a rule is one that Stripe and the platform know, and has one rule."""
    assert set(EXPONENTS) >= CURRENCIES
    assert ZERO_DECIMALS | THREE_DECIMALS | WHOLE_UNITS | set(MIN_CHARGES) <= CURRENCIES
    assert not ZERO_DECIMALS & THREE_DECIMALS
    assert {currency for currency in CURRENCIES if EXPONENTS[currency] == 3} == THREE_DECIMALS
    assert {currency for currency in CURRENCIES if EXPONENTS[currency] == 0} == (
        ZERO_DECIMALS - {"MGA"} | WHOLE_UNITS
    )
