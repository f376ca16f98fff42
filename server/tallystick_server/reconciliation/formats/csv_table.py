"""CSV files whose first row names the columns: their rows, and the values of their cells.

A cell is always text. One that begins with =, +, - or @ is a formula only to a spreadsheet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import NoReturn

from tallystick_core.currencies import EXPONENTS
from tallystick_core.errors import ApiError
from tallystick_core.money import MAX_AMOUNT, parse_amount
from tallystick_core.reconciliation.statement import (
    DATE_RANGE,
    MAX_REFERENCE_LENGTH,
    OpenStatement,
    StatementItem,
    StatementLine,
    StatementStart,
    is_statement_date,
)
from tallystick_server.reconciliation.formats.csv_file import CsvFile
from tallystick_server.reconciliation.formats.text_file import TextFile

MAX_STATEMENTS = 50
"""Accounts and currencies of one file: the file is read once for each."""

DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", re.ASCII)
_OTHER_SEPARATORS = ";\t"
_COUNT = re.compile(r"\d{1,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that a file may have, in any order."""

    required: tuple[str, ...]
    optional: frozenset[str] = frozenset()
    pattern: re.Pattern[str] | None = None
    """Of further optional columns."""

    def index(self, file: CsvFile, line: int, names: list[str]) -> dict[str, int]:
        """The place of each column. Raises DamagedFile for one that is unknown, missing or
        duplicate, and for a file whose cells are not separated by commas.
        """
        if len(names) == 1 and any(separator in names[0] for separator in _OTHER_SEPARATORS):
            file.fail(line, 1, "cells must be separated by commas")
        found: dict[str, int] = {}
        for place, name in enumerate(names):
            if not self._has(name):
                file.fail(line, place + 1, f"the column must be one of {self._list()}")
            if name in found:
                file.fail(line, place + 1, f"the column {name} must be unique")
            found[name] = place
        for name in self.required:
            if name not in found:
                file.fail(line, len(names) + 1, f"the column {name} is missing")
        return found

    def _has(self, name: str) -> bool:
        return (
            name in self.required
            or name in self.optional
            or (self.pattern is not None and self.pattern.fullmatch(name) is not None)
        )

    def _list(self) -> str:
        return ", ".join((*self.required, "or an optional one of the format"))


class Row:
    """A row, and its cells by the name of their column. A value that cannot be read is a
    DamagedFile with line and column.
    """

    __slots__ = ("_cells", "_columns", "_file", "line_number")

    def __init__(
        self, file: CsvFile, line_number: int, columns: dict[str, int], cells: list[str]
    ) -> None:
        if len(cells) != len(columns):
            file.fail(
                line_number,
                min(len(cells), len(columns)) + 1,
                f"the row must have {len(columns)} columns",
            )
        self._file = file
        self.line_number = line_number
        self._columns = columns
        self._cells = cells

    def fail(self, column: str, expected: str) -> NoReturn:
        """Raises DamagedFile."""
        self._file.fail(self.line_number, self._columns.get(column, 0) + 1, f"{column} {expected}")

    def has(self, column: str) -> bool:
        """Whether there is a value."""
        place = self._columns.get(column)
        return place is not None and self._cells[place] != ""

    def raw(self, column: str) -> str:
        """The cell; "" if the file has no such column."""
        place = self._columns.get(column)
        return "" if place is None else self._cells[place]

    def text(self, column: str) -> str:
        """A text of at most MAX_REFERENCE_LENGTH characters. "" if the file has no such column."""
        text = self.raw(column)
        if len(text) > MAX_REFERENCE_LENGTH:
            self.fail(column, f"must have at most {MAX_REFERENCE_LENGTH} characters")
        return text

    def required_text(self, column: str) -> str:
        """A text that is not empty."""
        text = self.text(column)
        if not text:
            self.fail(column, "must not be empty")
        return text

    def currency(self, column: str) -> str:
        """A currency code, in capitals or small letters."""
        code = self.raw(column).upper()
        if code not in EXPONENTS:
            self.fail(column, "must be a currency code such as EUR")
        return code

    def amount(self, column: str, currency: str, max_amount: int = MAX_AMOUNT) -> int:
        """An amount in major units, with a minus if it is negative, in minor units."""
        text = self.raw(column)
        digits = text.removeprefix("-")
        if not EXPONENTS[currency] and digits.endswith(".00"):
            digits = digits.removesuffix(".00")  # some files have decimals for every currency
        try:
            amount = parse_amount(digits, currency, min_amount=0, max_amount=max_amount)
        except ApiError:
            self.fail(column, f"must be an amount in {currency} such as {_example(currency)}")
        return -amount if text.startswith("-") else amount

    def unsigned_amount(self, column: str, currency: str) -> int:
        """An amount in major units that is not negative. Empty is 0."""
        if not self.has(column):
            return 0
        amount = self.amount(column, currency)
        if amount < 0:
            self.fail(column, "must have no sign")
        return amount

    def count(self, column: str) -> int:
        """A whole number without sign."""
        text = self.raw(column)
        if not _COUNT.fullmatch(text):
            self.fail(column, "must be a whole number")
        return int(text)

    def date(self, column: str) -> date:
        """A day."""
        day = parse_time(self.raw(column), DATE)
        if day is None:
            self.fail(column, f"must be a date such as 2026-01-31, {DATE_RANGE}")
        return day.date()

    def time(self, column: str) -> datetime:
        """A time without its zone, which is UTC."""
        time = parse_time(self.raw(column), _TIME)
        if time is None:
            self.fail(column, f"must be a time such as 2026-01-31 23:59:59, {DATE_RANGE}")
        return time.replace(tzinfo=UTC)


class RowBlock:
    """Some rows of a file."""

    def __init__(
        self,
        file: CsvFile,
        line_numbers: Sequence[int],
        columns: dict[str, int],
        rows: list[list[str]],
    ) -> None:
        self._file = file
        self.line_numbers = line_numbers
        self._columns = columns
        self._rows = rows

    def __iter__(self) -> Iterator[Row]:
        for number, cells in zip(self.line_numbers, self._rows, strict=True):
            yield Row(self._file, number, self._columns, cells)

    def __len__(self) -> int:
        return len(self._rows)

    def part(self, start: int, end: int) -> RowBlock:
        """The rows from one place until another."""
        return RowBlock(
            self._file, self.line_numbers[start:end], self._columns, self._rows[start:end]
        )

    def columns(self) -> dict[str, Sequence[str]] | None:
        """The cells by the names of their columns; None if a row has too many or too few."""
        if set(map(len, self._rows)) != {len(self._columns)}:
            return None
        columns = list(zip(*self._rows, strict=True))
        return {name: columns[place] for name, place in self._columns.items()}


def parse_time(text: str, pattern: re.Pattern[str]) -> datetime | None:
    """A time of ISO 8601 in one of its forms, of a day that a statement may have; None if the text
    is no such time.
    """
    if not pattern.fullmatch(text):
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if is_statement_date(time) else None


def _example(currency: str) -> str:
    exponent = EXPONENTS[currency]
    return "-12." + "3456789012"[:exponent] if exponent else "-12"


def names_columns(head: bytes, *names: str) -> bool:
    """Whether a file with this head has a first row with these columns, whatever its encoding."""
    first_line = head.replace(b"\0", b"").splitlines()[:1]
    return bool(first_line) and all(name.encode() in first_line[0] for name in names)


class CsvTable:
    """A CSV file whose first row names the columns."""

    def __init__(self, file: TextFile, columns: Columns) -> None:
        self._file = CsvFile(file)
        self._columns = columns

    def rows(self) -> Iterator[Row]:
        """The rows below the first. It can be called again."""
        index: dict[str, int] | None = None
        for number, cells in self._file.rows():
            if index is None:
                index = self._columns.index(self._file, number, cells)
            else:
                yield Row(self._file, number, index, cells)
        if index is None:
            self._fail_without_rows()

    def row_blocks(self) -> Iterator[RowBlock]:
        """The rows of `rows`, many at once."""
        index: dict[str, int] | None = None
        for numbers, rows in self._file.row_blocks():
            first = 0
            if index is None:
                index = self._columns.index(self._file, numbers[0], rows[0])
                first = 1
            if len(rows) > first:
                yield RowBlock(self._file, numbers[first:], index, rows[first:])
        if index is None:
            self._fail_without_rows()

    def _fail_without_rows(self) -> NoReturn:
        self._file.fail(1, 1, "the first row must name the columns")

    def fail(self, line: int, column: int, expected: str) -> NoReturn:
        """Raises DamagedFile."""
        self._file.fail(line, column, expected)


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of a file that make one statement."""

    account: str
    currency: str


def read_groups(
    table: CsvTable, group_of: Callable[[Row], Group], line_of: Callable[[Row], StatementLine]
) -> Iterator[StatementItem]:
    """One statement for each account and currency, in the order of their first rows. Rows of
    several may be mixed. The groups are counted before anything is yielded.
    """
    first_lines: dict[Group, int] = {}
    for row in table.rows():
        group = group_of(row)
        if group not in first_lines:
            if len(first_lines) == MAX_STATEMENTS:
                table.fail(
                    row.line_number,
                    1,
                    f"a file must have at most {MAX_STATEMENTS} accounts and currencies",
                )
            first_lines[group] = row.line_number
    for group, first_line in first_lines.items():
        lines = (line_of(row) for row in table.rows() if group_of(row) == group)
        yield from yield_statement(StatementStart(first_line, group.account, group.currency), lines)


@dataclass(frozen=True, slots=True)
class Closing:
    """What a file has at the end of a statement."""

    line_number: int
    balance: int
    day: date


def yield_statement(
    start: StatementStart, lines: Iterator[StatementLine], closing: Closing | None = None
) -> Iterator[StatementItem]:
    """A statement, whose end counts and adds up its lines."""
    yield start
    statement = OpenStatement(start)
    last_line = start.line_number
    for line in lines:
        last_line = line.line_number
        yield statement.add(line)
    if closing is None:
        yield statement.end(last_line, None, None)
    else:
        yield statement.end(closing.line_number, closing.balance, closing.day)
