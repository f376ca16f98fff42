"""What is booked for each fact: the accounts, and which side. Every fact balances in each currency."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What kind of fact a transaction books; the same names as `tallystick.ledger.v1.TransactionKind`."""

    PAY_IN = "PAY_IN"
    PROVIDER_FEE = "PROVIDER_FEE"
    UNAPPLIED = "UNAPPLIED"
    REFUND = "REFUND"
    CHARGEBACK = "CHARGEBACK"
    SETTLEMENT = "SETTLEMENT"
    BANK_LINE = "BANK_LINE"
    PAYOUT = "PAYOUT"
    PAYOUT_RETURN = "PAYOUT_RETURN"
    ADJUSTMENT = "ADJUSTMENT"
    REVERSAL = "REVERSAL"
    EXCHANGE = "EXCHANGE"
    WRITE_OFF = "WRITE_OFF"


@dataclass(frozen=True, slots=True)
class Line:
    """One entry to post: minor units, a credit above zero, a debit below."""

    account: str
    currency: str
    amount: int


def pay_in(provider: str, buyer: str, seller: str, currency: str, amount: int, fee: int) -> tuple[Line, ...]:
    """An order was paid: the provider owes us what the buyer gave, and the seller and the platform own it."""
    lines = (
        Line(f"psp/{provider}/clearing", currency, -amount),
        Line(f"buyers/{buyer}", currency, amount),
        Line(f"buyers/{buyer}", currency, -amount),
        Line(f"sellers/{seller}", currency, amount - fee),
    )
    return (*lines, Line("platform/fees", currency, fee)) if fee else lines


def unapplied(provider: str, currency: str, amount: int) -> tuple[Line, ...]:
    """A provider charged what fits no order: it owes us the money, and nobody owns it yet."""
    return (Line(f"psp/{provider}/clearing", currency, -amount), Line(f"unapplied/{provider}", currency, amount))
