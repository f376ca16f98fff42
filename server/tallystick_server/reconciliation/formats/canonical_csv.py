"""The platform's own CSV: any statement, for banks and providers without a format of their own.

docs/reference/csv-statements.md is its specification. The whole file is checked, with its counts
and totals, before anything of it is used.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from typing import TextIO

from tallystick_core.money import MAX_BALANCE, format_amount
from tallystick_core.reconciliation.packed_lines import LineBlock
from tallystick_core.reconciliation.statement import (
    DATE_RANGE,
    MAX_REFERENCE_LENGTH,
    MAX_TEXT_LENGTH,
    LineType,
    OpenStatement,
    StatementEnd,
    StatementItem,
    StatementLine,
    StatementStart,
)
from tallystick_server.reconciliation.formats.csv_table import (
    Columns,
    CsvTable,
    Row,
    names_columns,
    parse_time,
)
from tallystick_server.reconciliation.formats.text_file import TextFile

START, LINE, END = "START", "LINE", "END"
COLUMNS = (
    "record",
    "currency",
    "account",
    "statement_id",
    "sequence",
    "balance",
    "balance_date",
    "line_count",
    "line_type",
    "code",
    "amount",
    "fee",
    "booking_date",
    "value_date",
    "booking_time",
    "reference",
    "charge_reference",
    "client_reference",
    "settlement_reference",
    "original_amount",
    "original_currency",
    "text",
)
ALLOWED = {
    START: frozenset(
        ("record", "currency", "account", "statement_id", "sequence", "balance", "balance_date")
    ),
    LINE: frozenset(("record", "currency", *COLUMNS[COLUMNS.index("line_type") :])),
    END: frozenset(("record", "currency", "balance", "balance_date", "line_count", "amount")),
}
TABLE = Columns(COLUMNS)
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", re.ASCII)
ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r", "\\=": "=", "\\+": "+", "\\-": "-", "\\@": "@"}
ESCAPE = re.compile(r"\\.?", re.DOTALL)


def matches(head: bytes) -> bool:
    """Whether a file with this head looks like this format."""
    return names_columns(head, "record", "line_count", "settlement_reference")


def read(file: TextFile) -> Iterator[StatementItem]:
    """The statements of a file. Raises DamagedFile, before anything is yielded."""
    for _ in _items(file):
        pass
    yield from _items(file)


def _items(file: TextFile) -> Iterator[StatementItem]:
    table = CsvTable(file, TABLE)
    statements = Statements()
    for row in table.rows():
        yield statements.read_row(row)
    statements.require_end(table)


class Statements:
    """The statements of the rows so far."""

    def __init__(self) -> None:
        self._open: OpenStatement | None = None
        self._last_line = 1

    def read_row(self, row: Row) -> StatementItem:
        """The next row. Raises DamagedFile."""
        record = _record(row)
        self._last_line = row.line_number
        if self._open is None:
            if record != START:
                row.fail("record", f"must be {START}")
            self._open = OpenStatement(_start(row))
            return self._open.start
        if record == START:
            row.fail("record", f"must be {LINE} or {END}")
        if row.currency("currency") != self._open.start.currency:
            row.fail("currency", f"must be that of the {START}")
        if record == LINE:
            return self._open.add(_line(row))
        end = _end(row, self._open)
        self._open = None
        return end

    @property
    def currency(self) -> str:
        """That of the statement that is open; "": none is."""
        return "" if self._open is None else self._open.start.currency

    def add_lines(self, lines: LineBlock) -> LineBlock:
        """Counts the next lines and returns them."""
        if self._open is None:
            raise ValueError("no statement is open")
        self._open.add_lines(len(lines), lines.total)
        self._last_line = lines.last_line_number
        return lines

    def require_end(self, table: CsvTable) -> None:
        """Raises DamagedFile if a statement has not ended."""
        if self._open is not None:
            table.fail(self._last_line, 1, f"the last row must be an {END}")


def _record(row: Row) -> str:
    record = row.raw("record")
    allowed = ALLOWED.get(record)
    if allowed is None:
        row.fail("record", f"must be {START}, {LINE} or {END}")
    for column in COLUMNS:
        if column not in allowed and row.has(column):
            row.fail(column, f"must be empty in a {record}")
    return record


def _start(row: Row) -> StatementStart:
    currency = row.currency("currency")
    balance, balance_date = _balance(row, currency)
    return StatementStart(
        line_number=row.line_number,
        account=_text(row, "account"),
        currency=currency,
        statement_id=_text(row, "statement_id"),
        sequence=_text(row, "sequence"),
        opening_balance=balance,
        opening_date=balance_date,
    )


def _line(row: Row) -> StatementLine:
    currency = row.currency("currency")
    line_type = row.raw("line_type")
    if line_type not in LineType.__members__:
        row.fail("line_type", "must be one of " + ", ".join(LineType))
    original_currency = ""
    original_amount = None
    if row.has("original_currency") or row.has("original_amount"):
        original_currency = row.currency("original_currency")
        original_amount = row.amount("original_amount", original_currency)
    return StatementLine(
        line_number=row.line_number,
        line_type=LineType(line_type),
        code=_text(row, "code"),
        amount=row.amount("amount", currency),
        currency=currency,
        fee=row.amount("fee", currency) if row.has("fee") else 0,
        booking_date=_optional_date(row, "booking_date"),
        value_date=_optional_date(row, "value_date"),
        booking_time=_time(row, "booking_time"),
        reference=_text(row, "reference"),
        charge_reference=_text(row, "charge_reference"),
        client_reference=_text(row, "client_reference"),
        settlement_reference=_text(row, "settlement_reference"),
        original_amount=original_amount,
        original_currency=original_currency,
        text=_unescape(row, "text")[:MAX_TEXT_LENGTH],
    )


def _end(row: Row, statement: OpenStatement) -> StatementEnd:
    currency = statement.start.currency
    end = statement.end(row.line_number, *_balance(row, currency))
    if row.count("line_count") != end.line_count:
        row.fail("line_count", f"must be the number of {LINE} rows of the statement")
    if row.amount("amount", currency, MAX_BALANCE) != end.total:
        row.fail("amount", f"must be the sum of the {LINE} rows of the statement")
    return end


def _balance(row: Row, currency: str) -> tuple[int | None, date | None]:
    balance = row.amount("balance", currency, MAX_BALANCE) if row.has("balance") else None
    return balance, _optional_date(row, "balance_date")


def _optional_date(row: Row, column: str) -> date | None:
    return row.date(column) if row.has(column) else None


def _time(row: Row, column: str) -> datetime | None:
    if not row.has(column):
        return None
    time = parse_time(row.raw(column), TIME)
    if time is None:
        row.fail(column, f"must be a time in UTC such as 2026-01-31T23:59:59Z, {DATE_RANGE}")
    return time


def _text(row: Row, column: str) -> str:
    text = _unescape(row, column)
    if len(text) > MAX_REFERENCE_LENGTH:
        row.fail(column, f"must have at most {MAX_REFERENCE_LENGTH} characters")
    return text


def _unescape(row: Row, column: str) -> str:
    text = row.raw(column)
    if "\\" not in text:
        return text

    def replace(match: re.Match[str]) -> str:
        if match[0] not in ESCAPES:
            row.fail(column, "must have only the escapes " + " ".join(ESCAPES))
        return ESCAPES[match[0]]

    return ESCAPE.sub(replace, text)


def write_canonical(items: Iterable[StatementItem], file: TextIO) -> None:
    """Writes statements as `read` reads them. `file`: UTF-8, opened with newline="". Numbers of
    lines are not written: those of the new file count.
    """
    writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    currency = ""
    for item in items:
        if isinstance(item, StatementStart):
            currency = item.currency
            writer.writerow(_start_cells(item))
        elif isinstance(item, StatementLine):
            writer.writerow(_line_cells(item))
        else:
            writer.writerow(_end_cells(item, currency))


def _start_cells(start: StatementStart) -> dict[str, str]:
    return {
        "record": START,
        "currency": start.currency,
        "account": _escape(start.account),
        "statement_id": _escape(start.statement_id),
        "sequence": _escape(start.sequence),
        "balance": _amount_cell(start.opening_balance, start.currency),
        "balance_date": _date_cell(start.opening_date),
    }


def _line_cells(line: StatementLine) -> dict[str, str]:
    return {
        "record": LINE,
        "currency": line.currency,
        "line_type": line.line_type,
        "code": _escape(line.code),
        "amount": format_amount(line.amount, line.currency),
        "fee": format_amount(line.fee, line.currency),
        "booking_date": _date_cell(line.booking_date),
        "value_date": _date_cell(line.value_date),
        "booking_time": _time_cell(line.booking_time),
        "reference": _escape(line.reference),
        "charge_reference": _escape(line.charge_reference),
        "client_reference": _escape(line.client_reference),
        "settlement_reference": _escape(line.settlement_reference),
        "original_amount": _amount_cell(line.original_amount, line.original_currency),
        "original_currency": line.original_currency,
        "text": _escape(line.text),
    }


def _end_cells(end: StatementEnd, currency: str) -> dict[str, str]:
    return {
        "record": END,
        "currency": currency,
        "balance": _amount_cell(end.closing_balance, currency),
        "balance_date": _date_cell(end.closing_date),
        "line_count": str(end.line_count),
        "amount": format_amount(end.total, currency),
    }


def _amount_cell(amount: int | None, currency: str) -> str:
    return "" if amount is None else format_amount(amount, currency)


def _date_cell(day: date | None) -> str:
    return "" if day is None else day.isoformat()


def _time_cell(time: datetime | None) -> str:
    return "" if time is None else time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _escape(text: str) -> str:
    """A text on one line, which no spreadsheet takes for a formula."""
    text = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return "\\" + text if text.startswith(("=", "+", "-", "@")) else text
