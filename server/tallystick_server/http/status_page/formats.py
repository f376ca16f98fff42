"""Amounts and times as a reader of a language writes them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from babel import Locale
from babel.dates import format_datetime
from babel.numbers import format_currency
from markupsafe import Markup

_NO_BREAK_SPACE = "\u00a0"


def format_money(amount: str, currency: str, locale: Locale) -> str:
    """Decimal text as an amount of money, with as many decimals as it has. The number of decimals
    that Babel assumes is wrong for some currencies.
    """
    decimals = len(amount.partition(".")[2])
    fraction = "." + "0" * decimals if decimals else ""
    pattern = re.sub(r"\.0+", fraction, locale.currency_formats["standard"].pattern)
    text = format_currency(amount, currency, pattern, locale, currency_digits=False)
    # Babel writes a code that is in front of the digits without a space
    return re.sub(r"(?<=[A-Za-z])(?=[0-9])", _NO_BREAK_SPACE, text)


def format_time(time: datetime, pattern: str, locale: Locale) -> Markup:
    """A time in UTC as an HTML element. `pattern`: of CLDR."""
    time = time.astimezone(UTC).replace(microsecond=0)
    return Markup('<time datetime="{}">{}</time>').format(
        time.isoformat().replace("+00:00", "Z"), format_datetime(time, pattern, locale=locale)
    )
