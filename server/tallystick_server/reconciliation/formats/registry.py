"""The formats, how the format of a file is found, and what every format must keep."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from tallystick_core.money import MAX_BALANCE, format_amount
from tallystick_core.reconciliation.accounts import is_bank
from tallystick_core.reconciliation.packed_lines import LineBlock
from tallystick_core.reconciliation.statement import (
    DATE_RANGE,
    StatementEnd,
    StatementItem,
    StatementLine,
    StatementStart,
    UnbalancedStatement,
    is_statement_date,
)
from tallystick_server.reconciliation.formats import (
    adyen_settlement,
    bai2,
    camt053,
    canonical_blocks,
    canonical_csv,
    mt940,
    paypal_stl,
    stripe_report,
)
from tallystick_server.reconciliation.formats.line_blocks import in_blocks
from tallystick_server.reconciliation.formats.text_file import TextFile

HEAD_BYTES = 4096
_SEPARATOR_LINE = re.compile(rb"\A(?:\xef\xbb\xbf|\xff\xfe|\xfe\xff)?sep=.\r?\n", re.DOTALL)
"""With which a spreadsheet names what separates the cells."""


@dataclass(frozen=True, slots=True)
class Format:
    """A format of files."""

    name: str
    """As people name it, such as "mt940"."""
    matches: Callable[[bytes], bool]
    """Whether the first HEAD_BYTES of a file look like this format."""
    read: Callable[[TextFile], Iterator[StatementItem]]
    """Yields the statements of a file, in bounded memory. Raises DamagedFile."""
    read_blocks: Callable[[TextFile], Iterator[StatementItem | LineBlock]] | None = None
    """As `read`, with many lines at once where that is faster."""
    is_of_provider: bool = False
    """Whether only a provider of payments writes it, and no bank."""


FORMATS: Sequence[Format] = (
    Format("camt053", camt053.matches, camt053.read),
    Format("mt940", mt940.matches, mt940.read),
    Format("bai2", bai2.matches, bai2.read),
    Format("stripe_report", stripe_report.matches, stripe_report.read, is_of_provider=True),
    Format("paypal_stl", paypal_stl.matches, paypal_stl.read, is_of_provider=True),
    Format(
        "adyen_settlement", adyen_settlement.matches, adyen_settlement.read, is_of_provider=True
    ),
    Format(
        "canonical_csv", canonical_csv.matches, canonical_csv.read, canonical_blocks.read_blocks
    ),
)
"""Every format. The first that matches counts."""


def account_problem(format_: Format, account: str) -> str:
    """Why a file of a format cannot be about an account; "": it can."""
    if not (format_.is_of_provider and is_bank(account)):
        return ""
    return f"is a report of a provider ({format_.name}), and {account} is the account of a bank"


def find_format(file: TextFile, formats: Sequence[Format] = FORMATS) -> Format:
    """The format of a file. Raises DamagedFile if it has none of them."""
    with file.open() as content:
        head = content.read(HEAD_BYTES)
    if not head:
        file.fail(1, 1, "the file is empty")
    if _SEPARATOR_LINE.match(head.replace(b"\0", b"")):
        file.fail(1, 1, "the line sep= must be removed, and cells must be separated by commas")
    found = next((format_ for format_ in formats if format_.matches(head)), None)
    if found is None:
        names = ", ".join(format_.name for format_ in formats)
        file.fail(1, 1, f"the file must have one of these formats: {names}")
    return found


def read_statements(
    file: TextFile, format_: Format, *, accepts_difference: bool = False
) -> Iterator[StatementItem]:
    """The statements of a file. Raises DamagedFile, and UnbalancedStatement unless a person
    `accepts_difference`.
    """
    for item in _checked(format_.read(file), file, format_, accepts_difference=accepts_difference):
        if not isinstance(item, LineBlock):
            yield item


def read_blocks(
    file: TextFile, format_: Format, *, accepts_difference: bool = False
) -> Iterator[StatementStart | LineBlock | StatementEnd]:
    """As `read_statements`, with many lines at once. Damage may come after lines: read a file to
    its end before anything of it is used.
    """
    items = (format_.read_blocks or format_.read)(file)
    return in_blocks(_checked(items, file, format_, accepts_difference=accepts_difference))


def _checked(
    items: Iterable[StatementItem | LineBlock],
    file: TextFile,
    format_: Format,
    *,
    accepts_difference: bool,
) -> Iterator[StatementItem | LineBlock]:
    """The items of a format, if they are statements whose sums are right."""
    sums = _Sums(file, format_.name)
    for item in items:
        match item:
            case StatementStart():
                _require_dates(file, item.line_number, item.opening_date)
                sums.start(item)
            case LineBlock():
                sums.add(item.currency, len(item), item.total, item.line_number)
            case StatementLine():
                _require_dates(file, item.line_number, item.booking_date, item.value_date)
                sums.add(item.currency, 1, item.amount, item.line_number)
            case StatementEnd():
                _require_dates(file, item.line_number, item.closing_date)
                currency = sums.end(item)
                if item.difference and not accepts_difference:
                    difference = format_amount(item.difference, currency)
                    raise UnbalancedStatement(file.name, item, currency, difference)
        yield item
    sums.require_end()


def _require_dates(file: TextFile, line_number: int, *days: date | None) -> None:
    """Raises DamagedFile for a day that no statement has."""
    if not all(day is None or is_statement_date(day) for day in days):
        file.fail(line_number, 1, f"a date must be {DATE_RANGE}")


class _Sums:
    """Counts the lines of the present statement, and adds them up."""

    def __init__(self, file: TextFile, format_name: str) -> None:
        self._file = file
        self._format_name = format_name
        self._start: StatementStart | None = None
        self._line_count = self._total = 0

    def start(self, start: StatementStart) -> None:
        if self._start is not None:
            raise RuntimeError(f"{self._format_name} starts a statement inside another")
        self._start, self._line_count, self._total = start, 0, 0

    def add(self, currency: str, line_count: int, total: int, line_number: int) -> None:
        """Adds lines from a line of the file on. Raises DamagedFile if the sum is too large."""
        if self._start is None or currency != self._start.currency:
            raise RuntimeError(f"{self._format_name} has a line outside of its statement")
        self._line_count += line_count
        self._total += total
        if abs(self._total) > MAX_BALANCE:
            self._file.fail(line_number, 1, "the sum of the amounts must be smaller")

    def end(self, end: StatementEnd) -> str:
        """Returns the currency of the statement that ends."""
        if self._start is None or (end.line_count, end.total) != (self._line_count, self._total):
            raise RuntimeError(f"{self._format_name} ends a statement with another sum")
        currency, self._start = self._start.currency, None
        return currency

    def require_end(self) -> None:
        if self._start is not None:
            raise RuntimeError(f"{self._format_name} does not end its last statement")
