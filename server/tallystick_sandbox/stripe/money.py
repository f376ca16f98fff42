"""Stripe's rules of amounts and currencies. Amounts are integers in Stripe's minor units."""

from __future__ import annotations

from tallystick_sandbox.stripe.errors import invalid


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


ZERO_DECIMAL = _codes(
    """
    bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf
    """
)
_ENDS_IN_00 = frozenset({"isk", "ugx"})
"""Currencies without decimals that are sent times 100."""
_THREE_DECIMALS_END_IN_0 = frozenset({"bhd", "jod", "kwd", "omr", "tnd"})
_PAYOUTS_IN_WHOLE_UNITS = frozenset({"huf", "twd"})
_TWO_DECIMALS = _codes(
    """
    aed afn all amd ang aoa ars aud awg azn bam bbd bdt bmd bnd bob brl bsd bwp byn bzd cad cdf
    chf cny cop crc cve czk dkk dop dzd egp etb eur fjd fkp gbp gel gip gmd gtq gyd hkd hnl htg
    huf idr ils inr jmd kes kgs khr kyd kzt lak lbp lkr lrd lsl mad mdl mkd mmk mnt mop mur mvr
    mwk mxn myr mzn nad ngn nio nok npr nzd pab pen pgk php pkr pln qar ron rsd rub sar sbd scr
    sek sgd shp sle sos srd std szl thb tjs top try ttd twd tzs uah usd uyu uzs wst xcd xcg yer
    zar zmw
    """
)
CURRENCIES = ZERO_DECIMAL | _ENDS_IN_00 | _THREE_DECIMALS_END_IN_0 | _TWO_DECIMALS
_MINIMUMS = {
    "aed": 200,
    "aud": 50,
    "brl": 50,
    "cad": 50,
    "chf": 50,
    "czk": 1500,
    "dkk": 250,
    "eur": 50,
    "gbp": 30,
    "hkd": 400,
    "huf": 17500,
    "inr": 50,
    "jpy": 50,
    "mxn": 1000,
    "myr": 200,
    "nok": 300,
    "nzd": 50,
    "pln": 200,
    "ron": 200,
    "sek": 300,
    "sgd": 50,
    "thb": 1000,
    "usd": 50,
}
"""The smallest charge of each currency. Other currencies have no minimum here."""
_MAX_DIGITS = 12


def check_currency(currency: str) -> str:
    """The currency in lower case. Raises StripeFailure."""
    if currency.lower() not in CURRENCIES:
        raise invalid(f"Invalid currency: {currency[:20].lower()}.", "currency")
    return currency.lower()


def check_amount(amount: int, currency: str) -> int:
    """The amount, if Stripe can move it. Raises StripeFailure."""
    if amount < 1:
        raise invalid(
            "This value must be greater than or equal to 1.", "amount", "parameter_invalid_integer"
        )
    if amount >= 10**_MAX_DIGITS:
        raise invalid(
            f"Amount must have at most {_MAX_DIGITS} digits.", "amount", "amount_too_large"
        )
    step = 100 if currency in _ENDS_IN_00 else 10 if currency in _THREE_DECIMALS_END_IN_0 else 1
    if amount % step:
        raise invalid(f"Invalid amount: in {currency} it must be divisible by {step}.", "amount")
    return amount


def check_charge_amount(amount: int, currency: str) -> int:
    """The amount, if Stripe can charge it. Raises StripeFailure."""
    check_amount(amount, currency)
    if amount < _MINIMUMS.get(currency, 1):
        raise invalid(
            f"Amount must be at least {_MINIMUMS[currency]} {currency}.",
            "amount",
            "amount_too_small",
        )
    return amount


def check_payout_amount(amount: int, currency: str) -> int:
    """The amount, if Stripe can pay it out. Raises StripeFailure."""
    check_amount(amount, currency)
    if currency in _PAYOUTS_IN_WHOLE_UNITS and amount % 100:
        raise invalid(f"Invalid amount: payouts in {currency} must be divisible by 100.", "amount")
    return amount


def to_major_units(amount: int, currency: str) -> str:
    """An amount as reports show it, such as "-12.34"."""
    if currency in ZERO_DECIMAL:
        return str(amount)
    decimals = 3 if currency in _THREE_DECIMALS_END_IN_0 else 2
    sign = "-" if amount < 0 else ""
    units, rest = divmod(abs(amount), 10**decimals)
    return f"{sign}{units}.{rest:0{decimals}d}"
