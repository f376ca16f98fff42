"""BAI2, the cash management balance reporting format of US banks, version 2."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import NoReturn

from tallystick_core.money import MAX_BALANCE
from tallystick_core.reconciliation.statement import (
    LineType,
    OpenStatement,
    StatementItem,
    StatementLine,
    StatementStart,
)
from tallystick_server.reconciliation.formats.text_file import TextFile, TextLine, UnexpectedValue
from tallystick_server.reconciliation.formats.values import (
    read_count,
    read_currency,
    read_minor_units,
    read_short_date,
    short_reference,
    short_text,
)

MAX_RECORD_LENGTH = 100_000
"""Of a record with its continuation records (88)."""

_RECORD = re.compile(r"(01|02|03|16|49|88|98|99),")
_SECOND_RECORD = re.compile(r"/ +(01|02|03|16|49|88|98|99),")
_FOLLOWED_BY = {
    "": {"01"},
    "01": {"02"},
    "02": {"03", "98"},
    "03": {"16", "49"},
    "16": {"16", "49"},
    "49": {"03", "98"},
    "98": {"02", "99"},
    "99": set(),
}
_OPENING_LEDGER, _CLOSING_LEDGER = "010", "015"
_NON_MONETARY = "890"
_GROUP_STATUSES = {"2": "a deletion", "3": "a correction", "4": "a test"}
_INTERIM_MODIFIERS = {"1", "3"}
_MAX_DISTRIBUTIONS = 1_000


@dataclass(slots=True)
class _Record:
    """A record with its continuation records, which is consumed field by field."""

    file: TextFile
    code: str
    lines: list[TextLine] = field(repr=False)
    index: int = 0
    at: int | None = 3
    """Where the next field of the line begins. None: the line has no more."""

    @property
    def line(self) -> int:
        """The number of its first line."""
        return self.lines[0].number

    def next(self) -> str:
        """The next field; empty if there is none."""
        if self.at is None and self.index + 1 < len(self.lines):
            self.index, self.at = self.index + 1, 3
        if self.at is None:
            return ""
        text = self.lines[self.index].text.removesuffix("/")
        begin, end = self.at, text.find(",", self.at)
        self.at = None if end < 0 else end + 1
        return text[begin : None if end < 0 else end].strip()

    def is_empty(self) -> bool:
        """Whether all fields are consumed."""
        return self.at is None and self.index + 1 >= len(self.lines)

    def rest(self) -> str:
        """The text that ends a record. It may hold commas and slashes."""
        first = "" if self.at is None else self.lines[self.index].text[self.at :]
        texts = [first, *(line.text[3:] for line in self.lines[self.index + 1 :])]
        return " ".join(text.removesuffix("/") for text in texts)

    @contextmanager
    def position(self) -> Iterator[None]:
        """An UnexpectedValue in the block is damage of the next field."""
        index, at = self.index, self.at
        if at is None:
            index, at = min(index + 1, len(self.lines) - 1), 3
        with self.file.position(self.lines[index].number, at + 1):
            yield

    def fail(self, expected: str) -> NoReturn:
        """Raises DamagedFile for the record."""
        self.file.fail(self.line, 1, expected)


def matches(head: bytes) -> bool:
    """Whether a file that begins so is BAI2."""
    return head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \r\n").startswith(b"01,")


def read(file: TextFile) -> Iterator[StatementItem]:
    """The statements of a file, one for each account record. Checks all control totals first."""
    deque(_Reader(file).read(), maxlen=0)
    yield from _Reader(file).read()


def _physical_records(file: TextFile) -> Iterator[TextLine]:
    """The records: each in a line, or several in a line in blocks of the length in the header."""
    length = 0
    for line in file.lines():
        text = line.text.rstrip(" \x1a")
        if line.number == 1:
            fields = text.split(",", maxsplit=8)
            size = fields[6].strip() if len(fields) > 6 else ""
            length = int(size) if size.isascii() and size.isdigit() and len(size) < 5 else 0
        blocks = (
            [text[begin : begin + length] for begin in range(0, len(text), length)]
            if length
            else []
        )
        if len(blocks) > 1 and all(_RECORD.match(block) for block in blocks):
            yield from (TextLine(line.number, block.rstrip()) for block in blocks)
        elif text:
            yield TextLine(line.number, text)


def _records(file: TextFile) -> Iterator[_Record]:
    """The records with their continuations."""
    current: _Record | None = None
    length = 0
    for line in _physical_records(file):
        match = _RECORD.match(line.text)
        if match is None:
            file.fail(line.number, 1, "a record must begin with 01, 02, 03, 16, 49, 88, 98 or 99")
        if match[1] not in {"16", "88"} and _SECOND_RECORD.search(line.text):
            file.fail(line.number, 1, "each record must be in a line of its own")
        if match[1] != "88":
            if current is not None:
                yield current
            current, length = _Record(file, match[1], [line]), 0
        elif current is None:
            file.fail(line.number, 1, "a continuation (88) must follow another record")
        else:
            current.lines.append(line)
        length += len(line.text)
        if length > MAX_RECORD_LENGTH:
            file.fail(line.number, 1, f"a record must have at most {MAX_RECORD_LENGTH} characters")
    if current is not None:
        yield current


@dataclass(slots=True)
class _Sums:
    """What a trailer must agree with: of an account, of a group or of the file."""

    name: str
    part_name: str = ""
    total: int = 0
    part_count: int = 0
    record_count: int = 0

    def add(self, part: _Sums) -> None:
        """Adds an account to a group, or a group to the file."""
        self.total += part.total
        self.record_count += part.record_count
        self.part_count += 1

    def check(self, trailer: _Record) -> None:
        """Compares the trailer. A total that it leaves out is not checked."""
        with trailer.position():
            total = trailer.next()
            if total and read_minor_units(total, MAX_BALANCE) != self.total:
                raise UnexpectedValue(
                    f"the control total ({trailer.code}) must be the sum of all amounts of the "
                    f"{self.name}, {self.total}"
                )
        if self.part_name:
            self._check_count(trailer, self.part_name, self.part_count)
        self._check_count(trailer, "records", self.record_count)

    def _check_count(self, trailer: _Record, name: str, count: int) -> None:
        with trailer.position():
            if read_count(trailer.next()) != count:
                expected = f"the number of {name} ({trailer.code}) must be that of the {self.name}"
                raise UnexpectedValue(f"{expected}, {count}")


class _Reader:
    """Makes statements of records, and checks their order and their trailers."""

    def __init__(self, file: TextFile) -> None:
        self._file = file
        self._last_code = ""
        self._file_id = self._group_currency = ""
        self._group_date: date | None = None
        self._file_sums = _Sums("file", "groups")
        self._group_sums = _Sums("group", "accounts")
        self._account_sums = _Sums("account")
        self._statement = OpenStatement(StatementStart(0, "", ""))
        self._closing_balance: int | None = None

    def read(self) -> Iterator[StatementItem]:
        """The items of the file."""
        last_line = 1
        for record in _records(self._file):
            last_line = record.line
            codes = _FOLLOWED_BY[self._last_code]
            if record.code not in codes:
                places = " or ".join(sorted(codes)) or "the end of the file"
                record.fail(f"the next record must be {places}")
            self._last_code = record.code
            yield from self._read_record(record)
        if self._last_code != "99":
            self._file.fail(last_line, 1, "the file must end with a file trailer (99)")

    def _read_record(self, record: _Record) -> Iterator[StatementItem]:
        count = len(record.lines)
        match record.code:
            case "01":
                self._file_sums.record_count = count
                self._read_file_header(record)
            case "02":
                self._group_sums = _Sums("group", "accounts", record_count=count)
                self._read_group_header(record)
            case "03":
                self._account_sums = _Sums("account", record_count=count)
                yield self._read_account(record)
            case "16":
                self._account_sums.record_count += count
                yield from self._read_transaction(record)
            case "49":
                self._account_sums.record_count += count
                self._account_sums.check(record)
                self._group_sums.add(self._account_sums)
                yield self._statement.end(record.line, self._closing_balance, self._group_date)
            case "98":
                self._group_sums.record_count += count
                self._group_sums.check(record)
                self._file_sums.add(self._group_sums)
            case _:
                self._file_sums.record_count += count
                self._file_sums.check(record)

    def _read_file_header(self, record: _Record) -> None:
        fields = [record.next() for _ in range(8)]
        self._file_id = short_reference(fields[4])
        if fields[7] == "3":
            record.fail(
                "this is BTRS (BAI version 3), another format; BAI2 (version 2) is expected"
            )
        if fields[7] != "2":
            record.fail("the eighth field of the file header (01) must be the version, 2")

    def _read_group_header(self, record: _Record) -> None:
        fields = [record.next() for _ in range(3)]
        if fields[2] in _GROUP_STATUSES:
            kind = _GROUP_STATUSES[fields[2]]
            record.fail(f"the group is {kind}; only updates (status 1 of record 02) can be loaded")
        with record.position():
            self._group_date = read_short_date(record.next())
        record.next()  # the time
        self._group_currency = record.next() or "USD"
        if record.next() in _INTERIM_MODIFIERS:
            record.fail(
                "the group is a report of a day that has not ended; a final one is expected"
            )

    def _read_account(self, record: _Record) -> StatementStart:
        account = record.next()
        if not account:
            record.fail("an account (03) must have a number")
        with record.position():
            currency = read_currency(record.next() or self._group_currency)
        balances: dict[str, int] = {}
        while not record.is_empty():
            code = record.next()
            if not code:
                continue
            with record.position():
                text = record.next()
                amount = read_minor_units(text) if text else 0
            record.next()  # the number of items
            self._read_funds_type(record)
            self._account_sums.total += amount
            if text:
                balances.setdefault(code, amount)
        self._closing_balance = balances.get(_CLOSING_LEDGER)
        start = StatementStart(
            record.line,
            account,
            currency,
            statement_id=self._file_id,
            opening_balance=balances.get(_OPENING_LEDGER),
            opening_date=self._group_date,
        )
        self._statement = OpenStatement(start)
        return start

    def _read_transaction(self, record: _Record) -> Iterator[StatementLine]:
        with record.position():
            code = record.next()
            sign = _sign(code)
        with record.position():
            text = record.next()
            amount = read_minor_units(text) if text or sign else 0
        self._account_sums.total += amount
        if not sign:
            return
        value_date = self._read_funds_type(record)
        line = StatementLine(
            record.line,
            LineType.BANK_ENTRY,
            code,
            sign * amount,
            self._statement.start.currency,
            booking_date=self._group_date,
            value_date=value_date,
            reference=short_reference(record.next()),
            client_reference=short_reference(record.next()),
            text=short_text(record.rest()),
        )
        yield self._statement.add(line)

    def _read_funds_type(self, record: _Record) -> date | None:
        """Consumes a funds type with its fields, and returns the value date if it has one."""
        with record.position():
            kind = record.next()
            if kind not in {"", "Z", "0", "1", "2", "S", "V", "D"}:
                raise UnexpectedValue("a funds type must be 0, 1, 2, D, S, V or Z")
        if kind == "V":
            with record.position():
                value_date = read_short_date(record.next())
            record.next()  # the time
            return value_date
        count = 3 if kind == "S" else 0
        if kind == "D":
            with record.position():
                count = 2 * read_count(record.next())
                if count > _MAX_DISTRIBUTIONS:
                    raise UnexpectedValue("an amount must have at most 500 availability dates")
        for _ in range(count):
            record.next()
        return None


def _sign(code: str) -> int:
    """1 for a credit, -1 for a debit, 0 for a record without an amount."""
    if len(code) == 3 and code.isascii() and code.isdigit():
        if "100" <= code <= "399":
            return 1
        if "400" <= code <= "699":
            return -1
        if code == _NON_MONETARY:
            return 0
    raise UnexpectedValue(
        "the type of a transaction must be 100 to 399 (credit) or 400 to 699 (debit)"
    )
