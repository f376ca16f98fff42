"""Whether statements continue each other: the pure function, against the same rule as a search of
all statements for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tallystick_core.reconciliation.balances import (
    NewStatement,
    StatementBalances,
    compare_balances,
)

DAY = date(2026, 3, 1)
_Values = tuple[str, int | None, date | None, int | None, date | None]
_days = st.none() | st.integers(0, 3).map(lambda days: DAY + timedelta(days))
_balances = st.none() | st.integers(-1, 1)
_values = st.lists(
    st.tuples(st.sampled_from(["EUR", "USD"]), _balances, _days, _balances, _days), max_size=6
)


def statements_of(file_number: int, values: Sequence[_Values]) -> list[StatementBalances]:
    """The statements of a file, numbered."""
    return [
        StatementBalances(file_number, number, *row, None) for number, row in enumerate(values, 1)
    ]


def gaps_of(
    earlier: Sequence[StatementBalances], statements: Sequence[StatementBalances]
) -> dict[int, int]:
    """The gaps by the number of their statement."""
    found = compare_balances(earlier, [NewStatement(item, 0, 0) for item in statements])
    return {number: differences.gap for number, differences in found.items() if differences.gap}


def searched_gap(statement: StatementBalances, others: Sequence[StatementBalances]) -> int:
    """The gap of one statement: what compare_balances computes, without its indexes."""
    day, balance = statement.opening_date, statement.opening_balance
    if day is None or balance is None:
        return 0
    earlier = [
        other
        for other in others
        if other.currency == statement.currency and other.closing_balance is not None
    ]
    closed = sorted(
        (other.closing_date, other.file_number, other.statement_number, other.closing_balance)
        for other in earlier
        if other.closing_date is not None and other.closing_date <= day
    )
    if not closed:
        return 0
    last_days = {day, *[found[0] for found in closed if found[0] != day][-1:]}
    for other in earlier:
        is_near = other.closing_date in last_days or other.opening_date == day
        if is_near and other.closing_balance == balance:
            return 0
        if (other.opening_date, other.opening_balance) == (day, balance):
            return 0
    return balance - (closed[-1][3] or 0)


@given(_values, _values, st.booleans())
def test_gaps_are_those_of_a_search(
    earlier: list[_Values], values: list[_Values], is_older: bool
) -> None:
    """For any balances and days, and whichever file was created first."""
    others = statements_of(1 if is_older else 3, earlier)
    statements = statements_of(2, values)
    expected = {
        statement.statement_number: gap
        for place, statement in enumerate(statements)
        if (gap := searched_gap(statement, [*others, *statements[:place]]))
    }
    assert gaps_of(others, statements) == expected


def test_a_file_of_many_statements_takes_a_moment() -> None:
    """20,000 statements of one day are compared in far less time than each with each."""
    values = [("EUR", number, DAY, number + 1, DAY) for number in range(20_000)]
    statements = statements_of(1, values)
    assert gaps_of((), statements) == {}
    assert gaps_of((), statements[1::2]) == dict.fromkeys(range(4, 20001, 2), 1)
