"""What is booked for an order or a payout, and what should be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class WalletKey(NamedTuple):
    """A seller and a currency."""

    seller_account: str
    currency: str


Amounts = Mapping[WalletKey, int]
"""Amounts in minor units, none of them zero."""


@dataclass(frozen=True, slots=True)
class Booking:
    """An order, with what its seller was credited; or a payout, with what is held for it.

    `expected`: by its own state. `in_ledger`: None: the ledger has nothing of it, as of a hold.
    """

    expected: Amounts = field(default_factory=dict)
    in_wallet: Amounts = field(default_factory=dict)
    in_ledger: Amounts | None = None


class BookingDifference(NamedTuple):
    """Amounts of a seller that should be equal. `in_ledger`: as in Booking."""

    key: WalletKey
    expected: int
    in_wallet: int
    in_ledger: int | None

    @property
    def amount(self) -> int:
        """By how much more is booked than expected: in the wallet, or else in the ledger."""
        difference = self.in_wallet - self.expected
        if difference or self.in_ledger is None:
            return difference
        return self.in_ledger - self.expected


def find_differences(booking: Booking) -> Iterator[BookingDifference]:
    """The sellers and currencies of which not all amounts are equal, in their order."""
    in_ledger = booking.in_ledger
    keys = {*booking.expected, *booking.in_wallet, *(in_ledger or {})}
    for key in sorted(keys):
        difference = BookingDifference(
            key,
            booking.expected.get(key, 0),
            booking.in_wallet.get(key, 0),
            None if in_ledger is None else in_ledger.get(key, 0),
        )
        if {difference.in_wallet, difference.in_ledger} - {difference.expected, None}:
            yield difference
