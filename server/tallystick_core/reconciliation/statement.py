"""Statements: what a provider or a bank reports to have moved, in one form for all file formats."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum

MAX_TEXT_LENGTH = 500
"""Of a text of a line. A longer one is cut: it only helps a person to recognize the line."""
MAX_REFERENCE_LENGTH = 255
_YEARS = range(1970, 2200)
DATE_RANGE = f"from {_YEARS[0]} to {_YEARS[-1]}"
"""The days that a statement may have, for errors: another century is an error of the file."""


def is_statement_date(day: date) -> bool:
    """Whether a statement may have the day."""
    return day.year in _YEARS


class LineType(StrEnum):
    """What a line of a statement is about."""

    CHARGE = "CHARGE"
    REFUND = "REFUND"
    REFUND_FAILURE = "REFUND_FAILURE"
    DISPUTE = "DISPUTE"
    DISPUTE_REVERSAL = "DISPUTE_REVERSAL"
    FEE = "FEE"
    ADJUSTMENT = "ADJUSTMENT"
    RESERVE = "RESERVE"
    """Withheld by the provider, or given back."""
    TRANSFER = "TRANSFER"
    """Between accounts at the provider."""
    CONVERSION = "CONVERSION"
    SETTLEMENT = "SETTLEMENT"
    """The provider pays its balance to the platform's bank."""
    SETTLEMENT_FAILURE = "SETTLEMENT_FAILURE"
    PAYOUT = "PAYOUT"
    """To a seller."""
    PAYOUT_RETURN = "PAYOUT_RETURN"
    BANK_ENTRY = "BANK_ENTRY"
    """A booking of a bank account."""
    OTHER = "OTHER"
    """The file has a word for it that is not known. It is a break, and no damage of the file."""


@dataclass(frozen=True, slots=True)
class StatementLine:
    """One line. Amounts are in minor units, from the view of the account: what comes in is
    positive.
    """

    line_number: int
    """Where it begins in the file, from 1."""
    line_type: LineType
    code: str
    """The file's own word for it."""
    amount: int
    """By which the account's balance changes: after the fee."""
    currency: str
    fee: int = 0
    """What was taken out of the amount: positive if the account pays it."""
    booking_date: date | None = None
    value_date: date | None = None
    booking_time: datetime | None = None
    """In UTC, if the file knows it so precisely."""
    reference: str = ""
    """The provider's or the bank's id of the movement."""
    charge_reference: str = ""
    """The provider's id of the charge that it belongs to."""
    client_reference: str = ""
    """The platform's id, as the file echoes it."""
    settlement_reference: str = ""
    """The provider's id of the settlement, or the bank's of the batch, that it belongs to."""
    original_amount: int | None = None
    """Before a conversion, in `original_currency`."""
    original_currency: str = ""
    text: str = field(default="", repr=False)
    """For a person, at most MAX_TEXT_LENGTH characters."""

    @property
    def gross_amount(self) -> int:
        """Before the fee."""
        return self.amount + self.fee


@dataclass(frozen=True, slots=True)
class StatementStart:
    """The lines that follow belong to this account, currency and period."""

    line_number: int
    account: str = field(repr=False)
    """As the file names it. It is never logged; people see `masked_account`."""
    currency: str
    statement_id: str = ""
    sequence: str = ""
    opening_balance: int | None = None
    """None: the file does not have it."""
    opening_date: date | None = None


@dataclass(frozen=True, slots=True)
class StatementEnd:
    """The last line of an account, currency and period has come."""

    line_number: int
    line_count: int
    total: int
    """The sum of the amounts of its lines."""
    closing_balance: int | None = None
    closing_date: date | None = None
    difference: int | None = None
    """closing − opening − total, which must be 0. None: the file has not both balances."""


class OpenStatement:
    """A statement whose lines are being read, with their number and their sum."""

    def __init__(self, start: StatementStart) -> None:
        self.start = start
        self._line_count = self._total = 0

    def add(self, line: StatementLine) -> StatementLine:
        """Counts the line and returns it."""
        self._line_count += 1
        self._total += line.amount
        return line

    def add_lines(self, line_count: int, total: int) -> None:
        """Counts lines with the sum of their amounts."""
        self._line_count += line_count
        self._total += total

    def end(
        self, line_number: int, closing_balance: int | None, closing_date: date | None
    ) -> StatementEnd:
        """The end of the statement, with its difference."""
        difference = None
        if self.start.opening_balance is not None and closing_balance is not None:
            difference = closing_balance - self.start.opening_balance - self._total
        return StatementEnd(
            line_number, self._line_count, self._total, closing_balance, closing_date, difference
        )


StatementItem = StatementStart | StatementLine | StatementEnd
"""What a format yields: for each statement a start, its lines in the order of the file, its end."""


class DamagedFile(Exception):
    """A file that cannot be read as a whole: nothing of it may be used. The text shows no content
    of the file, which may be personal.
    """

    def __init__(self, file: str, line: int, column: int, expected: str) -> None:
        super().__init__(f"{file}, line {line}, column {column}: {expected}")
        self.file = file
        self.line = line
        self.column = column
        self.expected = expected


class UnbalancedStatement(DamagedFile):
    """Opening balance and lines do not make the closing balance. A person may accept the difference
    with a reason.
    """

    def __init__(self, file: str, end: StatementEnd, currency: str, difference: str) -> None:
        lines = "1 line" if end.line_count == 1 else f"{end.line_count} lines"
        text = (
            f"the opening balance and {lines} must make the closing balance; they differ by "
            f"{difference} {currency}"
        )
        super().__init__(file, end.line_number, 1, text)
        self.difference = end.difference


def masked_account(account: str) -> str:
    """The last four characters of an account, as people see it."""
    return f"…{account[-4:]}" if len(account) > 4 else account
