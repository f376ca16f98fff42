"""PayPal's settlement report, `STL-….CSV`.

A file has a report header (RH) and a file header (FH); for each account a section, with its header
(SH), the names of its columns (CH), its rows (SB), its totals for each currency (SF) and the number
of its rows (SC); then the totals of the report (RF) and the numbers of the rows of the report (RC)
and of the file (FF). Amounts are in minor units without sign; another column has CR or DR.

There is one statement for each account and each currency of its totals, with both balances. The
whole file is checked, with all totals and counts, before anything of it is used. So a report in
several files must be joined first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NoReturn

from tallystick_core.currencies import EXPONENTS
from tallystick_core.reconciliation.statement import (
    DATE_RANGE,
    MAX_REFERENCE_LENGTH,
    LineType,
    StatementItem,
    StatementLine,
    StatementStart,
    is_statement_date,
)
from tallystick_server.reconciliation.formats.csv_file import CsvFile
from tallystick_server.reconciliation.formats.csv_table import (
    MAX_STATEMENTS,
    Closing,
    Columns,
    Row,
    yield_statement,
)
from tallystick_server.reconciliation.formats.paypal_event_codes import line_type_of
from tallystick_server.reconciliation.formats.text_file import TextFile

DIRECTION = "Transaction Debit or Credit"
AMOUNT = "Gross Transaction Amount"
CURRENCY = "Gross Transaction Currency"
FEE_DIRECTION = "Fee Debit or Credit"
FEE_AMOUNT = "Fee Amount"
FEE_CURRENCY = "Fee Currency"
COMPLETION = "Transaction Completion Date"
EVENT_CODE = "Transaction Event Code"
REQUIRED_COLUMNS = (
    "CH",
    "Transaction ID",
    "Invoice ID",
    "PayPal Reference ID",
    "PayPal Reference ID Type",
    EVENT_CODE,
    "Transaction Initiation Date",
    COMPLETION,
    DIRECTION,
    AMOUNT,
    CURRENCY,
    FEE_DIRECTION,
    FEE_AMOUNT,
    FEE_CURRENCY,
)
_COLUMNS = Columns(
    REQUIRED_COLUMNS,
    frozenset(
        (
            "Bank Reference ID",
            "Consumer ID",
            "Credit Promotional Fee",
            "Credit Term",
            "Credit Transactional Fee",
            "Custom Field",
            "Payment Tracking ID",
            "Store ID",
        )
    ),
)
_NEXT_RECORDS = {
    "": ("RH",),
    "RH": ("FH",),
    "FH": ("SH", "RF", "RC"),
    "SH": ("CH",),
    "CH": ("SB", "SF", "SC"),
    "SB": ("SB", "SF", "SC"),
    "SF": ("SF", "SC"),
    "SC": ("SH", "RF", "RC"),
    "RF": ("RF", "RC"),
    "RC": ("FF",),
    "FF": (),
}
_TOTALS = (
    "Total gross amount credits",
    "Total gross amount debits",
    "Total transaction fee credits",
    "Total transaction fee debits",
)
"""Columns 3 to 6 of SF and RF. Then follow CR or DR and the amount of the opening balance, and of
the closing balance.
"""
_FOOTER_CELLS = 10
_SIGNS = {"CR": 1, "DR": -1}
_HEAD = re.compile(rb'(\xef\xbb\xbf|\xff\xfe|\xfe\xff)?"?RH"?,')
_MINOR_UNITS = re.compile(r"\d{1,18}", re.ASCII)
_TIME = re.compile(r"(\d{4})/(\d\d)/(\d\d) (\d\d:\d\d:\d\d) ([+-]\d\d)(\d\d)", re.ASCII)


@dataclass(slots=True)
class _Footer:
    """The totals of a currency, in the order of `_TOTALS`, and its balances."""

    line_number: int
    totals: list[int]
    opening: int
    closing: int


@dataclass(slots=True)
class _Section:
    line_number: int
    account: str
    opening_time: datetime
    closing_time: datetime
    columns: dict[str, int] = field(default_factory=dict)
    row_count: int = 0
    sums: dict[str, list[int]] = field(default_factory=dict)
    footers: dict[str, _Footer] = field(default_factory=dict)


def matches(head: bytes) -> bool:
    """Whether a file with this head looks like this format."""
    return _HEAD.match(head.replace(b"\0", b"")) is not None


def read(file: TextFile) -> Iterator[StatementItem]:
    """The statements of a report. Raises DamagedFile, before anything is yielded."""
    report = CsvFile(file)
    for section in _Checker(report).check():
        for currency, footer in section.footers.items():
            start = StatementStart(
                section.line_number,
                section.account,
                currency,
                opening_balance=footer.opening,
                opening_date=section.opening_time.date(),
            )
            closing = Closing(footer.line_number, footer.closing, section.closing_time.date())
            yield from yield_statement(start, _lines(report, section, currency), closing)


def _lines(report: CsvFile, section: _Section, currency: str) -> Iterator[StatementLine]:
    for number, cells in report.rows():
        if number > section.line_number:
            if cells[0] == "SB":
                row = Row(report, number, section.columns, cells)
                if row.raw(CURRENCY) == currency:
                    yield _line(row)
            elif cells[0] != "CH":
                return


class _Checker:
    """Reads a report once, and finds its sections with their totals."""

    def __init__(self, report: CsvFile) -> None:
        self._report = report
        self._sections: list[_Section] = []
        self._footers: dict[str, _Footer] = {}
        self._number = 1
        self._cells: list[str] = []

    def check(self) -> list[_Section]:
        """Raises DamagedFile."""
        checks = {
            "SH": self._start_section,
            "CH": self._name_columns,
            "SB": self._add_row,
            "SF": self._add_section_footer,
            "SC": self._end_section,
            "RF": self._add_report_footer,
            "RC": self._end_report,
            "FF": self._check_row_count,
        }
        previous = ""
        for number, cells in self._report.rows():
            self._number, self._cells = number, cells
            record = cells[0]
            if record not in _NEXT_RECORDS[previous]:
                self._fail(1, self._expected_after(previous))
            if record in checks:
                checks[record]()
            previous = record
        if previous != "FF":
            self._fail(1, f"the file ends too early; {self._expected_after(previous)}")
        return self._sections

    @staticmethod
    def _expected_after(record: str) -> str:
        expected = " or ".join(_NEXT_RECORDS[record])
        if not record:
            return f"the first row must be {expected}"
        return f"after {record} must come {expected or 'nothing'}"

    def _start_section(self) -> None:
        self._require_cells(4)
        opening, closing = self._time(2), self._time(3)
        account = self._cells[3] or (self._cells[4] if len(self._cells) > 4 else "")
        if len(account) > MAX_REFERENCE_LENGTH:
            self._fail(4, f"Account ID must have at most {MAX_REFERENCE_LENGTH} characters")
        self._sections.append(_Section(self._number, account, opening, closing))

    def _name_columns(self) -> None:
        names = [" ".join(name.split()) for name in self._cells]  # some have two spaces
        self._sections[-1].columns = _COLUMNS.index(self._report, self._number, names)

    def _add_row(self) -> None:
        section = self._sections[-1]
        row = Row(self._report, self._number, section.columns, self._cells)
        line = _line(row)
        sums = section.sums.setdefault(line.currency, [0, 0, 0, 0])
        sums[line.gross_amount < 0] += abs(line.gross_amount)
        sums[2 + (line.fee > 0)] += abs(line.fee)
        section.row_count += 1

    def _add_section_footer(self) -> None:
        section = self._sections[-1]
        currency = self._footer_currency(section.footers)
        footer = self._footer()
        self._compare(footer, section.sums.get(currency, [0, 0, 0, 0]), "rows of the section")
        section.footers[currency] = footer
        if sum(len(item.footers) for item in self._sections) > MAX_STATEMENTS:
            self._fail(1, f"a file must have at most {MAX_STATEMENTS} accounts and currencies")

    def _end_section(self) -> None:
        section = self._sections[-1]
        self._compare_count(section.row_count, "section")
        if section.sums.keys() - section.footers.keys():
            self._fail(1, "each currency of the section must have a row SF")

    def _add_report_footer(self) -> None:
        currency = self._footer_currency(self._footers)
        footer = self._footer()
        totals = [
            section.footers[currency].totals
            for section in self._sections
            if currency in section.footers
        ]
        sums = [sum(column) for column in zip(*totals, strict=True)] or [0, 0, 0, 0]
        self._compare(footer, sums, "sections")
        self._footers[currency] = footer

    def _end_report(self) -> None:
        self._check_row_count()
        if {name for item in self._sections for name in item.footers} - self._footers.keys():
            self._fail(1, "each currency of the report must have a row RF")

    def _check_row_count(self) -> None:
        self._compare_count(sum(section.row_count for section in self._sections), "file")

    def _footer_currency(self, footers: dict[str, _Footer]) -> str:
        self._require_cells(_FOOTER_CELLS)
        currency = self._cells[1]
        if currency not in EXPONENTS:
            self._fail(2, "Currency of balance must be a currency code such as EUR")
        if currency in footers:
            self._fail(2, "a currency must have its totals only once")
        return currency

    def _footer(self) -> _Footer:
        totals = [self._amount(3 + place, name) for place, name in enumerate(_TOTALS)]
        return _Footer(
            self._number,
            totals,
            self._balance(7, "Beginning available balance"),
            self._balance(9, "Ending available balance"),
        )

    def _balance(self, column: int, name: str) -> int:
        direction = self._cells[column - 1]
        if direction not in _SIGNS:
            self._fail(column, f"{name} must be CR or DR")
        return _SIGNS[direction] * self._amount(column + 1, name)

    def _amount(self, column: int, name: str) -> int:
        text = self._cells[column - 1]
        if not _MINOR_UNITS.fullmatch(text):
            self._fail(column, f"{name} must be an amount in minor units without sign")
        return int(text)

    def _time(self, column: int) -> datetime:
        time = _parse_time(self._cells[column - 1])
        if time is None:
            self._fail(column, _TIME_EXPECTED)
        return time

    def _compare(self, footer: _Footer, sums: list[int], of: str) -> None:
        for place, name in enumerate(_TOTALS):
            if footer.totals[place] != sums[place]:
                self._fail(3 + place, f"{name} must be the sum of the {of}")

    def _compare_count(self, count: int, of: str) -> None:
        self._require_cells(2)
        text = self._cells[1]
        if not _MINOR_UNITS.fullmatch(text) or int(text) != count:
            self._fail(2, f"the count must be the number of rows SB of the {of}")

    def _require_cells(self, count: int) -> None:
        if len(self._cells) < count:
            self._fail(len(self._cells) + 1, f"the row must have at least {count} columns")

    def _fail(self, column: int, expected: str) -> NoReturn:
        self._report.fail(self._number, column, expected)


def _line(row: Row) -> StatementLine:
    code = row.required_text(EVENT_CODE)
    currency = row.raw(CURRENCY)
    if currency not in EXPONENTS:
        row.fail(CURRENCY, "must be a currency code such as EUR")
    gross = _signed_amount(row, DIRECTION, AMOUNT)
    fee = 0
    if row.has(FEE_AMOUNT) and row.raw(FEE_AMOUNT).strip("0"):
        fee = -_signed_amount(row, FEE_DIRECTION, FEE_AMOUNT)
        if row.raw(FEE_CURRENCY) != currency:
            row.fail(FEE_CURRENCY, f"must be that of {AMOUNT}")
    line_type = line_type_of(code, gross)
    completed = _parse_time(row.raw(COMPLETION))
    if completed is None:
        row.fail(COMPLETION, _TIME_EXPECTED)
    reference = row.text("Transaction ID")
    charge_reference = reference if line_type is LineType.CHARGE else ""
    if row.raw("PayPal Reference ID Type") == "TXN" and not charge_reference:
        charge_reference = row.text("PayPal Reference ID")
    return StatementLine(
        line_number=row.line_number,
        line_type=line_type,
        code=code,
        amount=gross - fee,
        currency=currency,
        fee=fee,
        booking_date=completed.date(),
        booking_time=completed.astimezone(UTC),
        reference=reference,
        charge_reference=charge_reference,
        client_reference=row.text("Invoice ID") or row.text("Custom Field"),
        settlement_reference=row.text("Bank Reference ID"),
    )


def _signed_amount(row: Row, direction_column: str, amount_column: str) -> int:
    text, direction = row.raw(amount_column), row.raw(direction_column)
    if not _MINOR_UNITS.fullmatch(text):
        row.fail(amount_column, "must be an amount in minor units without sign")
    if direction not in _SIGNS:
        row.fail(direction_column, "must be CR or DR")
    return _SIGNS[direction] * int(text)


_TIME_EXPECTED = f"must be a time such as 2026/01/31 23:59:59 -0700, {DATE_RANGE}"


def _parse_time(text: str) -> datetime | None:
    """A time in its own zone, of a day that a statement may have."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    year, month, day, time, hours, minutes = match.groups()
    try:
        parsed = datetime.fromisoformat(f"{year}-{month}-{day}T{time}{hours}:{minutes}")
        parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return parsed if is_statement_date(parsed) else None
