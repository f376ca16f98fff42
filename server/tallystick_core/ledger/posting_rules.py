"""Posting rules: the accounts that each money movement debits and credits. Every movement balances
in each currency.
"""

from __future__ import annotations

from collections.abc import Mapping
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


BANKS_TRANSIT = "banks/transit"
"""What providers have paid to banks, and no bank statement has yet."""
ADJUSTMENTS, LOSSES = "platform/adjustments", "platform/losses"


def statement_fees_account(account: str) -> str:
    """The account of the fees that a provider or bank takes, from that of its statements."""
    return f"{account.removesuffix('/clearing')}/fees"


def statement_fee_lines(account: str, currency: str, fee: int) -> tuple[JournalLine, ...]:
    """A provider or bank took fees out of what it holds for the platform; below zero: it gave them
    back. `account`: that of its statements.
    """
    return (
        JournalLine(statement_fees_account(account), currency, -fee),
        JournalLine(account, currency, fee),
    )


def settlement_lines(account: str, currency: str, amount: int) -> tuple[JournalLine, ...]:
    """A provider paid `amount` of its balance to the platform's bank, which has not reported it
    yet.
    """
    return (
        JournalLine(BANKS_TRANSIT, currency, -amount),
        JournalLine(account, currency, amount),
    )


def statement_match_lines(
    account: str, matched_account: str, currency: str, amount: int
) -> tuple[JournalLine, ...]:
    """A statement of `account` has what the ledger has on `matched_account`: debits less credits of
    `amount`, which move to the account.
    """
    return (
        JournalLine(matched_account, currency, amount),
        JournalLine(account, currency, -amount),
    )


def break_lines(
    account: str,
    currency: str,
    entries: Mapping[str, int],
    amount: int,
    fee: int,
    remainder_account: str,
) -> tuple[JournalLine, ...]:
    """A break in one currency is resolved. The ledger had `entries`, by account, debits less
    credits. The statement of `account` has the sum `amount`, of which it has taken `fee`. What they
    differ by goes to `remainder_account`.
    """
    debits: dict[str, int] = {}

    def add(name: str, debit: int) -> None:
        debits[name] = debits.get(name, 0) + debit

    for name, debit in entries.items():
        add(name, -debit)
    add(account, amount)
    add(statement_fees_account(account), fee)
    add(remainder_account, sum(entries.values()) - amount - fee)
    return tuple(
        JournalLine(name, currency, -debit) for name, debit in sorted(debits.items()) if debit
    )
