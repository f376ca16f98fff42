"""What is booked for each fact: the accounts, and which side. Every fact balances in each currency."""

from __future__ import annotations

from dataclasses import dataclass


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
