"""Whether the balances of statements follow each other, and fit the lines that are new."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class StatementBalances:
    """What a statement begins and ends with, in minor units; None: the file does not have it.
    `statement_balance`: of all lines of the account, with those of this statement.
    """

    file_number: int
    statement_number: int
    currency: str
    opening_balance: int | None
    opening_date: date | None
    closing_balance: int | None
    closing_date: date | None
    statement_balance: int | None


class NewStatement(NamedTuple):
    """A statement to compare. `new_amount`: the sum of its lines that are not repeated;
    `difference`: by how much its own balances and lines differ, if a person has accepted that.
    """

    balances: StatementBalances
    new_amount: int
    difference: int


class BalanceDifferences(NamedTuple):
    """`gap`: what the opening balance has more than the closing balance before it. `drift`: by how
    much more the closing balance has changed than by the lines that are new. 0: it agrees, or the
    file does not have it.
    """

    gap: int
    drift: int


@dataclass(slots=True)
class _Day:
    """The statements that close on a day. `last`: file, statement and closing balance."""

    balances: set[int] = field(default_factory=set)
    other_lines: set[int] = field(default_factory=set)
    """Of each, its closing balance less the lines of the account until then."""
    last: tuple[int, int, int] = (0, 0, 0)


@dataclass(slots=True)
class _Earlier:
    """The statements of a currency that came before, by what is looked for in them."""

    days: list[date] = field(default_factory=list)
    """Those on which a statement closes, in order."""
    by_day: dict[date, _Day] = field(default_factory=dict)
    closings_by_opening_day: dict[date, set[int]] = field(default_factory=dict)
    openings: set[tuple[date, int | None]] = field(default_factory=set)

    def add(self, statement: StatementBalances) -> None:
        closing, opening_day = statement.closing_balance, statement.opening_date
        if closing is None:
            return
        if statement.closing_date is not None:
            if statement.closing_date not in self.by_day:
                insort(self.days, statement.closing_date)
            day = self.by_day.setdefault(statement.closing_date, _Day())
            day.balances.add(closing)
            if statement.statement_balance is not None:
                day.other_lines.add(closing - statement.statement_balance)
            number = (statement.file_number, statement.statement_number, closing)
            day.last = max(day.last, number)
        if opening_day is not None:
            self.closings_by_opening_day.setdefault(opening_day, set()).add(closing)
            self.openings.add((opening_day, statement.opening_balance))

    def gap(self, statement: StatementBalances) -> int:
        """What its opening balance has more than the last closing balance; 0: there is none, or it
        fits another one of that day or of the last day before it. A statement that begins where
        another of its day begins is another version of it.
        """
        balance, day = statement.opening_balance, statement.opening_date
        if balance is None or day is None:
            return 0
        last = bisect_right(self.days, day) - 1
        if last < 0:
            return 0
        before = bisect_left(self.days, day) - 1
        near = {self.days[last], self.days[max(before, 0)]}
        fits = (
            (day, balance) in self.openings
            or balance in self.closings_by_opening_day.get(day, ())
            or any(balance in self.by_day[found].balances for found in near)
        )
        return 0 if fits else balance - self.by_day[self.days[last]].last[2]

    def drift(self, new: NewStatement, gap: int) -> int:
        """By how much more its closing balance has changed than by its new lines, since one of the
        statements of the last day up to its own.
        """
        statement = new.balances
        closing, day = statement.closing_balance, statement.closing_date
        if closing is None or day is None or statement.statement_balance is None:
            return 0
        opening = (statement.opening_date, statement.opening_balance)
        if new.new_amount == 0 and None not in opening and opening in self.openings:
            return 0  # a copy, or a part of what an earlier statement has
        last = bisect_right(self.days, day) - 1
        if last < 0:
            return 0
        nearest = self.by_day[self.days[last]]
        explained = closing - gap - new.difference
        if (
            explained - new.new_amount in nearest.balances
            # lines that came with statements without balances, or with a statement that was late
            or explained - statement.statement_balance in nearest.other_lines
        ):
            return 0
        return explained - new.new_amount - nearest.last[2]


def compare_balances(
    earlier: Iterable[StatementBalances], statements: Iterable[NewStatement]
) -> Mapping[int, BalanceDifferences]:
    """The differences of each statement, by its number. `earlier`: of other files, in any order;
    `statements`: of one file, in their order, each of which comes after those before it.
    """
    by_currency: dict[str, _Earlier] = {}
    for balances in earlier:
        by_currency.setdefault(balances.currency, _Earlier()).add(balances)
    differences: dict[int, BalanceDifferences] = {}
    for new in statements:
        found = by_currency.setdefault(new.balances.currency, _Earlier())
        gap = found.gap(new.balances)
        differences[new.balances.statement_number] = BalanceDifferences(gap, found.drift(new, gap))
        found.add(new.balances)
    return differences
