"""Amounts as Stripe writes them: the currencies that it knows, and their rules."""

from __future__ import annotations

from tallystick_core.currencies import EXPONENTS
from tallystick_core.money import format_amount

_CURRENCIES = """
AED AFN ALL AMD AOA ARS AUD AWG AZN
BAM BBD BDT BHD BIF BMD BND BOB BRL BSD BWP BYN BZD
CAD CDF CHF CLP CNY COP CRC CVE CZK
DJF DKK DOP DZD
EGP ETB EUR
FJD FKP
GBP GEL GIP GMD GNF GTQ GYD
HKD HNL HTG HUF
IDR ILS INR ISK
JMD JOD JPY
KES KGS KHR KMF KRW KWD KYD KZT
LAK LBP LKR LRD LSL
MAD MDL MGA MKD MMK MNT MOP MUR MVR MWK MXN MYR MZN
NAD NGN NIO NOK NPR NZD
OMR
PAB PEN PGK PHP PKR PLN PYG
QAR
RON RSD RUB RWF
SAR SBD SCR SEK SGD SHP SLE SOS SRD SZL
THB TJS TND TOP TRY TTD TWD TZS
UAH UGX USD UYU UZS
VND VUV
WST
XAF XCD XOF XPF
YER
ZAR ZMW
"""
CURRENCIES = frozenset(_CURRENCIES.split())
"""The currencies that Stripe charges in."""
_ZERO_DECIMALS = """
BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF
"""
ZERO_DECIMALS = frozenset(_ZERO_DECIMALS.split())
THREE_DECIMALS = frozenset(["BHD", "JOD", "KWD", "OMR", "TND"])
WHOLE_UNITS = frozenset({"ISK", "UGX"})
"""Sent with two decimals, which must be 00."""
WHOLE_UNITS_IN_PAYOUTS = WHOLE_UNITS | {"HUF", "TWD"}
"""Paid out in whole units only."""
MIN_CHARGES = {
    "AED": 200,
    "AUD": 50,
    "BRL": 50,
    "CAD": 50,
    "CHF": 50,
    "CZK": 1500,
    "DKK": 250,
    "EUR": 50,
    "GBP": 30,
    "HKD": 400,
    "HUF": 17500,
    "INR": 50,
    "JPY": 50,
    "MXN": 1000,
    "MYR": 200,
    "NOK": 300,
    "NZD": 50,
    "PLN": 200,
    "RON": 200,
    "SEK": 300,
    "SGD": 50,
    "THB": 1000,
    "USD": 50,
}
"""The smallest charge by currency, as Stripe writes amounts."""
CARD_METHODS = frozenset({"CARD", "APPLE_PAY", "GOOGLE_PAY"})
MAX_CARD_DIGITS = 12
MAX_OTHER_DIGITS = 8


class UnsupportedAmount(ValueError):
    """Stripe cannot move the amount. The text is the rule, such as "must be at least 0.50 EUR"."""


def to_stripe_charge(amount: int, currency: str, method: str) -> int:
    """The amount of a charge as Stripe writes it. `amount`: minor units by ISO 4217. Raises
    UnsupportedAmount.
    """
    converted = to_stripe_amount(amount, currency)
    min_charge = MIN_CHARGES.get(currency, 1)
    if converted < min_charge:
        rule = format_amount(from_stripe_amount(min_charge, currency), currency)
        raise UnsupportedAmount(f"must be at least {rule} {currency} for Stripe")
    _check_digits(converted, MAX_CARD_DIGITS if method in CARD_METHODS else MAX_OTHER_DIGITS)
    return converted


def to_stripe_payout(amount: int, currency: str) -> int:
    """The amount of a payout as Stripe writes it, see `to_stripe_charge`."""
    converted = to_stripe_amount(amount, currency)
    if currency in WHOLE_UNITS_IN_PAYOUTS and converted % 100:
        raise UnsupportedAmount(f"must be whole units of {currency} in payouts by Stripe")
    _check_digits(converted, MAX_CARD_DIGITS)
    return converted


def to_stripe_amount(amount: int, currency: str) -> int:
    """Converts minor units by ISO 4217 to those of Stripe. Raises UnsupportedAmount."""
    _check_currency(currency)
    if currency in THREE_DECIMALS and amount % 10:
        raise UnsupportedAmount(f"must have 0 as its last decimal in {currency} for Stripe")
    return _rescale(amount, EXPONENTS[currency], _decimals(currency), currency)


def from_stripe_amount(amount: int, currency: str) -> int:
    """Converts minor units of Stripe to those of ISO 4217. Raises UnsupportedAmount."""
    _check_currency(currency)
    return _rescale(amount, _decimals(currency), EXPONENTS[currency], currency)


def _check_currency(currency: str) -> None:
    if currency not in CURRENCIES:
        raise UnsupportedAmount("must have a currency that Stripe knows")


def _decimals(currency: str) -> int:
    """The decimals with which Stripe writes the currency."""
    if currency in ZERO_DECIMALS:
        return 0
    return 3 if currency in THREE_DECIMALS else 2


def _rescale(amount: int, from_decimals: int, to_decimals: int, currency: str) -> int:
    if to_decimals >= from_decimals:
        factor: int = 10 ** (to_decimals - from_decimals)
        return amount * factor
    divisor: int = 10 ** (from_decimals - to_decimals)
    quotient, remainder = divmod(amount, divisor)
    if remainder:
        raise UnsupportedAmount(
            f"must have at most {to_decimals} decimals in {currency} for Stripe"
        )
    return quotient


def _check_digits(amount: int, max_digits: int) -> None:
    if len(str(amount)) > max_digits:
        raise UnsupportedAmount(f"must have at most {max_digits} digits for Stripe")
