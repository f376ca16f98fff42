"""Posting rules: the accounts that each money movement debits and credits. Every movement balances
in each currency.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple
from zlib import crc32


class PostingKind(StrEnum):
    """The kind of a transaction. The names are those of `tallystick.ledger.v1.TransactionKind`."""

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


# not a dataclass: each payment creates about twenty, and creating a tuple takes a third of the time
class JournalLine(NamedTuple):
    """One entry to post, in minor units: a credit above zero, a debit below."""

    account: str
    currency: str
    amount: int


_BUYER_SHARDS = 16


def buyer_shard(buyer: str) -> str:
    """The account that holds both lines of a buyer's transactions, always the same one. The balance
    of a buyer is always zero, so several buyers share an account; the transaction names the buyer.
    """
    return f"buyers/{crc32(buyer.encode()) % _BUYER_SHARDS}"


def pay_in_lines(
    provider: str, buyer: str, seller: str, currency: str, amount: int, fee: int
) -> tuple[JournalLine, ...]:
    """An order was paid. The provider owes the platform the buyer's payment, which belongs to the
    seller and the platform.
    """
    buyers = buyer_shard(buyer)
    lines = (
        JournalLine(f"psp/{provider}/clearing", currency, -amount),
        JournalLine(buyers, currency, amount),
        JournalLine(buyers, currency, -amount),
        JournalLine(f"sellers/{seller}", currency, amount - fee),
    )
    return (*lines, JournalLine("platform/fees", currency, fee)) if fee else lines


def unapplied_lines(provider: str, currency: str, amount: int) -> tuple[JournalLine, ...]:
    """A provider charged money that fits no order. The provider owes it to the platform, and it has
    no owner yet.
    """
    return (
        JournalLine(f"psp/{provider}/clearing", currency, -amount),
        JournalLine(f"unapplied/{provider}", currency, amount),
    )


def payout_lines(
    provider: str, seller: str, currency: str, amount: int, fee: int
) -> tuple[JournalLine, ...]:
    """A seller was paid. `amount` leaves the seller's account, and the platform keeps the fee. The
    platform owes the provider the amount sent to the bank.
    """
    lines = (
        JournalLine(f"sellers/{seller}", currency, -amount),
        JournalLine(f"payouts/{provider}/clearing", currency, amount - fee),
    )
    return (*lines, JournalLine("platform/fees", currency, fee)) if fee else lines


def payout_return_lines(
    provider: str, seller: str, currency: str, amount: int
) -> tuple[JournalLine, ...]:
    """A payout was returned, in the amount of `amount`. The provider holds it again, and the seller
    owns it. The platform keeps the fee, because the transfer was made.
    """
    return (
        JournalLine(f"payouts/{provider}/clearing", currency, -amount),
        JournalLine(f"sellers/{seller}", currency, amount),
    )


def unapplied_payout_lines(provider: str, currency: str, amount: int) -> tuple[JournalLine, ...]:
    """A provider paid money that cannot be debited to the seller. A negative `amount` is a return
    that cannot be credited to the seller. The platform is out of the money until it is recovered.
    """
    return (
        JournalLine(f"unapplied/{provider}", currency, -amount),
        JournalLine(f"payouts/{provider}/clearing", currency, amount),
    )
