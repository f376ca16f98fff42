"""What reconciliation posts: each movement balances, and leaves the account of the statement with
what the statement has.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.ledger.posting_rules import (
    ADJUSTMENTS,
    BANKS_TRANSIT,
    LOSSES,
    JournalLine,
    break_lines,
    settlement_lines,
    statement_fee_lines,
    statement_fees_account,
    statement_match_lines,
)
from tallystick_core.money import MAX_AMOUNT

ACCOUNT = "psp/p/clearing"
_amounts = st.integers(-MAX_AMOUNT, MAX_AMOUNT).filter(bool)
_entries = st.dictionaries(
    st.sampled_from([ACCOUNT, "payouts/p/clearing", BANKS_TRANSIT]), _amounts, max_size=3
)


def debits(lines: Iterable[JournalLine]) -> dict[str, int]:
    """By how much each account grows: debits less credits."""
    return {line.account: -line.amount for line in lines}


@given(_entries, st.integers(-MAX_AMOUNT, MAX_AMOUNT), st.integers(-MAX_AMOUNT, MAX_AMOUNT))
def test_a_resolved_break_leaves_what_the_statement_has(
    entries: dict[str, int], amount: int, fee: int
) -> None:
    """The entries are gone from their accounts, the amount is on the account of the statement, the
    fee is a cost, and the remainder is what lines and entries differ by. No line is zero.
    """
    lines = break_lines(ACCOUNT, "EUR", entries, amount, fee, LOSSES)
    assert sum(line.amount for line in lines) == 0
    assert all(line.amount and line.currency == "EUR" for line in lines)
    posted = debits(lines)
    assert len(posted) == len(lines)
    for account in {*entries, ACCOUNT}:
        has = entries.get(account, 0) + posted.get(account, 0)
        assert has == (amount if account == ACCOUNT else 0)
    assert posted.get("psp/p/fees", 0) == fee
    assert posted.get(LOSSES, 0) == sum(entries.values()) - amount - fee


def test_lines_and_entries_that_agree_post_no_remainder() -> None:
    """A charge of 10.00 of which 9.70 came; without a fee there is nothing to post."""
    lines = break_lines(ACCOUNT, "EUR", {ACCOUNT: 10_00}, 9_70, 30, ADJUSTMENTS)
    assert debits(lines) == {ACCOUNT: -30, "psp/p/fees": 30}
    assert break_lines(ACCOUNT, "EUR", {ACCOUNT: 10_00}, 10_00, 0, ADJUSTMENTS) == ()
    assert break_lines(ACCOUNT, "EUR", {}, 0, 0, ADJUSTMENTS) == ()


@given(_amounts)
def test_other_movements_balance(amount: int) -> None:
    """Each takes the amount from one account and gives it to another."""
    for lines, expected in (
        (statement_fee_lines(ACCOUNT, "EUR", amount), {ACCOUNT: -amount, "psp/p/fees": amount}),
        (settlement_lines(ACCOUNT, "EUR", amount), {ACCOUNT: -amount, BANKS_TRANSIT: amount}),
        (
            statement_match_lines("banks/b", BANKS_TRANSIT, "EUR", amount),
            {"banks/b": amount, BANKS_TRANSIT: -amount},
        ),
    ):
        assert sum(line.amount for line in lines) == 0
        assert debits(lines) == expected


@pytest.mark.parametrize(
    ("account", "fees"), [("psp/p/clearing", "psp/p/fees"), ("banks/b", "banks/b/fees")]
)
def test_each_statement_has_an_account_of_fees(account: str, fees: str) -> None:
    """Next to its own."""
    assert statement_fees_account(account) == fees
