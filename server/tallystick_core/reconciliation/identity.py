"""What makes a line the same line in another file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import repeat


def line_identity(
    account: str,
    line_type: str,
    currency: str,
    amount: int,
    fee: int,
    booking_date: str,
    reference: str,
    charge_reference: str,
    settlement_reference: str,
    value_date: str,
    code: str,
    text: str,
) -> str:
    """A digest of what identifies a line of an account, 32 hexadecimal digits. Amounts in minor
    units, dates as YYYY-MM-DD or "", no U+0000. A line without a reference is recognized by all
    that it has.
    """
    parts = (
        account,
        line_type,
        currency,
        str(amount),
        str(fee),
        booking_date,
        reference,
        charge_reference,
        settlement_reference,
        "" if reference else f"{value_date} {code} {text}",
    )
    return _digest("\0".join(parts))


def line_identities(account: str, columns: Sequence[Iterable[str]]) -> list[str]:
    """The identities of lines. `columns`: their parts, in the order of `line_identity`."""
    return [_digest(content) for content in map("\0".join, zip(repeat(account), *columns))]


def _digest(content: str) -> str:
    return sha256(content.encode()).hexdigest()[:32]
