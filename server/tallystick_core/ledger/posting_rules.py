"""What is booked for each fact: the accounts, and which side. Every fact balances in each
currency.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class PostingKind(StrEnum):
    """What kind of fact a transaction books; the same names as
    `tallystick.ledger.v1.TransactionKind`.
    """

    PAY_IN = "PAY_IN"
    PROVIDER_FEE = "PROVIDER_FEE"
    UNAPPLIED = "UNAPPLIED"
    REFUND = "REFUND"
    CHARGEBACK = "CHARGEBACK"
    SETTLEMENT = "SETTLEMENT"
    BANK_STATEMENT_LINE = "BANK_STATEMENT_LINE"
    PAYOUT = "PAYOUT"
    PAYOUT_RETURN = "PAYOUT_RETURN"
    ADJUSTMENT = "ADJUSTMENT"
    REVERSAL = "REVERSAL"
    EXCHANGE = "EXCHANGE"
    WRITE_OFF = "WRITE_OFF"


# and no dataclass: each payment makes some twenty, and a tuple is made in a third of the time
class JournalLine(NamedTuple):
    """One entry to post: minor units, a credit above zero, a debit below."""

    account: str
    currency: str
    amount: int


def pay_in_lines(
    provider: str, buyer: str, seller: str, currency: str, amount: int, fee: int
) -> tuple[JournalLine, ...]:
    """An order was paid: the provider owes us what the buyer gave, and the seller and the platform
    own it.
    """
    lines = (
        JournalLine(f"psp/{provider}/clearing", currency, -amount),
        JournalLine(f"buyers/{buyer}", currency, amount),
        JournalLine(f"buyers/{buyer}", currency, -amount),
        JournalLine(f"sellers/{seller}", currency, amount - fee),
    )
    return (*lines, JournalLine("platform/fees", currency, fee)) if fee else lines


def unapplied_lines(provider: str, currency: str, amount: int) -> tuple[JournalLine, ...]:
    """A provider charged what fits no order: it owes us the money, and nobody owns it yet."""
    return (
        JournalLine(f"psp/{provider}/clearing", currency, -amount),
        JournalLine(f"unapplied/{provider}", currency, amount),
    )


def payout_lines(
    provider: str, seller: str, currency: str, amount: int, fee: int
) -> tuple[JournalLine, ...]:
    """A seller was paid: `amount` leaves the seller, the platform keeps the fee, and we owe the
    provider what it gave to the bank.
    """
    lines = (
        JournalLine(f"sellers/{seller}", currency, -amount),
        JournalLine(f"payouts/{provider}/clearing", currency, amount - fee),
    )
    return (*lines, JournalLine("platform/fees", currency, fee)) if fee else lines


def payout_return_lines(
    provider: str, seller: str, currency: str, amount: int
) -> tuple[JournalLine, ...]:
    """A payout came back, as much as `amount`: the provider has it again, and the seller owns it.
    The fee stays: the transfer was made.
    """
    return (
        JournalLine(f"payouts/{provider}/clearing", currency, -amount),
        JournalLine(f"sellers/{seller}", currency, amount),
    )


def unapplied_payout_lines(provider: str, currency: str, amount: int) -> tuple[JournalLine, ...]:
    """A provider paid what cannot be taken from the seller, or, below zero, got back what cannot be
    given to him; nobody owns it yet.
    """
    return (
        JournalLine(f"unapplied/{provider}", currency, -amount),
        JournalLine(f"payouts/{provider}/clearing", currency, amount),
    )
