"""SWIFT MT940, customer statement."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date

from tallystick_core.reconciliation.statement import (
    LineType,
    OpenStatement,
    StatementItem,
    StatementLine,
    StatementStart,
)
from tallystick_server.reconciliation.formats.text_file import TextFile, UnexpectedValue
from tallystick_server.reconciliation.formats.values import (
    read_currency,
    read_decimal,
    read_short_date,
    short_reference,
    short_text,
)

MAX_FIELD_LENGTH = 10_000
"""Of a field with its continuation lines. The rest of a longer text is left out."""

_TAG = re.compile(r":(20|21|25P?|28C?|60[FM]|61|86|62[FM]|64|65|NS|13D|34F|90[CD]):")
_INTERIM_TAGS = {"13D", "34F", "90C", "90D"}
_END = re.compile(r"-(\}.*|XXX)?\Z")
_BALANCE = re.compile(r"([CD])(\d{6})([A-Z]{3})(\d{1,30}[,.]\d*)\Z", re.ASCII)
_ENTRY = re.compile(
    r"(?P<value_date>\d{6})(?P<booking_day>\d{4}|\s{4})?"
    r"(?P<mark>R?[CD])[A-Z]?"  # the letter after the mark is the third of the currency
    r"(?P<amount>\d{1,30}[,.]\d*) ?"
    r"(?P<code>(?!NONREF)[A-Z][A-Z0-9 ]{3})?"
    r"(?P<client_reference>.*?)(?://(?P<reference>.*))?\Z",
    re.ASCII,
)
_STRUCTURED = re.compile(r"\d{3}\?\d\d", re.ASCII)
_SUBFIELD = re.compile(r"\?(\d\d)", re.ASCII)
_PURPOSE_SUBFIELDS = {str(number) for number in (*range(20, 30), *range(60, 64))}
_LABEL = re.compile(r"(?:^|[\0 ])([A-Z]{4})[+:]")
_SLASH_LABEL = re.compile(r"/(EREF|PREF)/+([^/]+)")
_INTERIM = "this is MT942, a report of a day that has not ended; an MT940 statement is expected"
_LABELS_ALONE = {"EREF", "KREF", "KREF+", "MARF", "PREF"}
"""As a reference of an entry: the reference is in the text, under this label."""


@dataclass(slots=True)
class _Field:
    """A field with its tag. `column`: where its value begins."""

    tag: str
    line: int
    column: int
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Balance:
    amount: int
    currency: str
    day: date


_FIRST_TAG = re.compile(rb"(?<![0-9A-Za-z]):20:")  # not a part of a time, such as 17:20:31


def matches(head: bytes) -> bool:
    """Whether a file that begins so is MT940, or MT942, which is rejected with its name."""
    text = head.replace(b"\0", b"")
    return _FIRST_TAG.search(text) is not None and any(
        tag in text for tag in (b":25", b":28", b":60")
    )


def read(file: TextFile) -> Iterator[StatementItem]:
    """The statements of a file. The pages of a statement are one statement."""
    reader = _Reader(file)
    last_line = 1
    for item in _fields(file):
        last_line = item.line
        yield from reader.read_field(item)
    yield from reader.end_file(last_line)


def _fields(file: TextFile) -> Iterator[_Field]:
    """The fields of a file, and one with the tag "-" for the end of each message. Lines before the
    first field of a message are the bank's own headers.
    """
    current: _Field | None = None
    for line in file.lines():
        text = line.text.strip("\x01\x03\x1a")
        if "{2:O942" in text or "{2:I942" in text:
            file.fail(line.number, 1, _INTERIM)
        tag = _TAG.match(text)
        if tag is None and not _END.match(text.rstrip()):
            if current is not None and len(current.value) < MAX_FIELD_LENGTH:
                current.value += f"\n{text}"
            continue
        if current is not None:
            yield current
        if tag is None:
            yield _Field("-", line.number, 1, "")
            current = None
        else:
            current = _Field(tag[1], line.number, tag.end() + 1, text[tag.end() :])
    if current is not None:
        yield current


class _Reader:
    """Makes statements of fields."""

    def __init__(self, file: TextFile) -> None:
        self._file = file
        self._step = "before the first message"
        self._statement_id = self._account = self._sequence = ""
        self._statement = OpenStatement(StatementStart(0, "", ""))
        self._page_end: tuple[int, _Balance] | None = None
        """The line and the closing balance of the last page, which may have a next one."""
        self._entry: StatementLine | None = None

    def read_field(self, item: _Field) -> Iterator[StatementItem]:
        """What the field completes."""
        match item.tag:
            case "20":
                self._end_message(item.line)
                self._step = "head"
                self._statement_id = short_reference(item.value)
                self._account = self._sequence = ""
            case "-":
                self._end_message(item.line)
            case "25" | "25P" | "28" | "28C" | "60F" | "60M":
                yield from self._read_head(item)
            case "61" | "86":
                yield from self._read_entry(item)
            case "62F" | "62M":
                yield from self._read_closing_balance(item)
            case tag if tag in _INTERIM_TAGS:
                self._file.fail(item.line, 1, _INTERIM)
            case _:
                pass  # :21:, :NS:, :64: and :65: change no balance

    def end_file(self, last_line: int) -> Iterator[StatementItem]:
        """The end of a statement whose last page has come."""
        if self._step == "before the first message":
            self._file.fail(1, 1, "the file must be MT940, whose statements begin with :20:")
        self._end_message(last_line)
        yield from self._end_pages()

    def _read_head(self, item: _Field) -> Iterator[StatementItem]:
        self._expect("head", item, "before the opening balance of a message that begins with :20:")
        if item.tag.startswith("25"):
            self._account = short_reference(item.value)
        elif item.tag.startswith("28"):
            self._sequence = short_reference(item.value)
        else:
            yield from self._open(item, self._balance(item))

    def _open(self, item: _Field, balance: _Balance) -> Iterator[StatementItem]:
        """Starts a statement, or continues it on its next page."""
        self._step = "entries"
        if not self._account:
            self._file.fail(item.line, 1, "a statement must name its account (:25:)")
        if self._page_end is not None:
            _, page = self._page_end
            if item.tag == "60M" and self._statement.start.account == self._account:
                if (page.amount, page.currency) != (balance.amount, balance.currency):
                    expected = "a page must open (:60M:) with the balance that closed the last one"
                    self._file.fail(
                        item.line, item.column, f"{expected} (:62M:); a page is missing"
                    )
                self._page_end = None
                return
            yield from self._end_pages()
        start = StatementStart(
            item.line,
            self._account,
            balance.currency,
            self._statement_id,
            self._sequence,
            balance.amount,
            balance.day,
        )
        self._statement = OpenStatement(start)
        yield start

    def _read_entry(self, item: _Field) -> Iterator[StatementItem]:
        if item.tag == "61":
            self._expect("entries", item, "between the opening and the closing balance")
            yield from self._end_entry()
            with self._file.position(item.line, item.column):
                self._entry = _entry(item, self._statement.start.currency)
        elif self._entry is not None:
            text, client_reference = _details(item.value)
            self._entry = replace(
                self._entry,
                text=short_text(text, self._entry.text),
                client_reference=client_reference or self._entry.client_reference,
            )
            yield from self._end_entry()

    def _end_entry(self) -> Iterator[StatementItem]:
        if self._entry is not None:
            yield self._statement.add(self._entry)
            self._entry = None

    def _read_closing_balance(self, item: _Field) -> Iterator[StatementItem]:
        self._expect("entries", item, "after an opening balance")
        self._step = "closed"
        yield from self._end_entry()
        balance = self._balance(item)
        currency = self._statement.start.currency
        if balance.currency != currency:
            expected = f"the closing balance must be in {currency}, as the opening one"
            self._file.fail(item.line, item.column, expected)
        self._page_end = (item.line, balance)
        if item.tag == "62F":
            yield from self._end_pages()

    def _end_pages(self) -> Iterator[StatementItem]:
        if self._page_end is not None:
            line, balance = self._page_end
            self._page_end = None
            yield self._statement.end(line, balance.amount, balance.day)

    def _end_message(self, line: int) -> None:
        if self._step in {"head", "entries"}:
            balance = "an opening balance (:60F:)" if self._step == "head" else "a closing balance"
            suffix = "" if self._step == "head" else " (:62F:)"
            self._file.fail(line, 1, f"the statement that ends here must have {balance}{suffix}")
        if self._step == "closed":
            self._step = "between messages"

    def _expect(self, step: str, item: _Field, place: str) -> None:
        if self._step != step:
            self._file.fail(item.line, 1, f":{item.tag}: must come {place}")

    def _balance(self, item: _Field) -> _Balance:
        with self._file.position(item.line, item.column):
            match = _BALANCE.match(item.value.partition("\n")[0].strip())
            if match is None:
                raise UnexpectedValue(
                    "a balance must be C or D, a date (YYMMDD), a currency and an amount, such as "
                    "C261130EUR1234,56"
                )
            currency = read_currency(match[3])
            amount = read_decimal(match[4], currency)
            return _Balance(
                -amount if match[1] == "D" else amount, currency, read_short_date(match[2])
            )


def _entry(item: _Field, currency: str) -> StatementLine:
    """An entry (:61:). RC takes back a credit, RD a debit."""
    first_line, _, more = item.value.partition("\n")
    match = _ENTRY.match(first_line)
    if match is None:
        raise UnexpectedValue(
            "an entry must be a date (YYMMDD), C, D, RC or RD, an amount and a type, such as "
            "261130D12,50NTRF"
        )
    amount, mark = read_decimal(match["amount"], currency), match["mark"]
    value_date = read_short_date(match["value_date"])
    # old statements have a name after the reference
    client_reference, *name = re.split(r"\s{2,}", match["client_reference"].strip(), maxsplit=1)
    return StatementLine(
        item.line,
        LineType.BANK_ENTRY,
        (f"{mark} " if mark.startswith("R") else "") + (match["code"] or "").strip(),
        amount if mark in {"C", "RD"} else -amount,
        currency,
        booking_date=_booking_date(match["booking_day"], value_date),
        value_date=value_date,
        reference=short_reference(match["reference"] or ""),
        client_reference=(
            "" if client_reference in _LABELS_ALONE else short_reference(client_reference)
        ),
        text=short_text(*name, more),
    )


def _booking_date(month_and_day: str | None, value_date: date) -> date:
    """The day of that month that is nearest to the value date, which it is without one."""
    if not month_and_day or not month_and_day.strip():
        return value_date
    days = [
        read_short_date(f"{year % 100:02}{month_and_day}")
        for year in range(value_date.year - 1, value_date.year + 2)
    ]
    return min(days, key=lambda day: abs(day - value_date))


def _details(value: str) -> tuple[str, str]:
    """The text of a :86: for a person, and the platform's reference in it."""
    if not _STRUCTURED.match(value):
        labels = dict(_SLASH_LABEL.findall(value.replace("\n", "")))
        return value, short_reference(labels.get("EREF") or labels.get("PREF") or "")
    subfields = _SUBFIELD.split(value.replace("\n", ""))
    pairs = list(zip(subfields[1::2], subfields[2::2], strict=True))
    names = [text for number, text in pairs if number in {"00", "32", "33"}]
    # a label begins a subfield or follows a space; the rest of a text may continue in the next one
    purpose = "\0".join(text for number, text in pairs if number in _PURPOSE_SUBFIELDS)
    unlabeled, *labeled = _LABEL.split(purpose)
    labels = dict(zip(labeled[0::2], labeled[1::2], strict=True))
    reference = labels.get("EREF") or labels.get("KREF") or ""
    texts = [*names, unlabeled, *labels.values()]
    return " ".join(texts).replace("\0", ""), short_reference(reference.replace("\0", ""))
