"""The formats, how the format of a file is found, and what every format must keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tallystick_core.money import MAX_BALANCE, format_amount
from tallystick_core.reconciliation.statement import (
    StatementEnd,
    StatementItem,
    StatementLine,
    StatementStart,
    UnbalancedStatement,
)
from tallystick_server.reconciliation.formats import (
    adyen_settlement,
    bai2,
    camt053,
    canonical_csv,
    mt940,
    paypal_stl,
    stripe_report,
)
from tallystick_server.reconciliation.formats.text_file import TextFile

HEAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Format:
    """A format of files."""

    name: str
    """As people name it, such as "mt940"."""
    matches: Callable[[bytes], bool]
    """Whether the first HEAD_BYTES of a file look like this format."""
    read: Callable[[TextFile], Iterator[StatementItem]]
    """Yields the statements of a file, in bounded memory. Raises DamagedFile."""


FORMATS: Sequence[Format] = (
    Format("camt053", camt053.matches, camt053.read),
    Format("mt940", mt940.matches, mt940.read),
    Format("bai2", bai2.matches, bai2.read),
    Format("stripe_report", stripe_report.matches, stripe_report.read),
    Format("paypal_stl", paypal_stl.matches, paypal_stl.read),
    Format("adyen_settlement", adyen_settlement.matches, adyen_settlement.read),
    Format("canonical_csv", canonical_csv.matches, canonical_csv.read),
)
"""Every format. The first that matches counts."""


def find_format(file: TextFile, formats: Sequence[Format] = FORMATS) -> Format:
    """The format of a file. Raises DamagedFile if it has none of them."""
    with file.open() as content:
        head = content.read(HEAD_BYTES)
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
    start: StatementStart | None = None
    line_count = total = 0
    for item in format_.read(file):
        match item:
            case StatementStart():
                if start is not None:
                    raise RuntimeError(f"{format_.name} starts a statement inside another")
                start, line_count, total = item, 0, 0
            case StatementLine():
                if start is None or item.currency != start.currency:
                    raise RuntimeError(f"{format_.name} has a line outside of its statement")
                line_count += 1
                total = _add(file, total, item)
            case StatementEnd():
                if start is None or (item.line_count, item.total) != (line_count, total):
                    raise RuntimeError(f"{format_.name} ends a statement with another sum")
                if item.difference and not accepts_difference:
                    difference = format_amount(item.difference, start.currency)
                    raise UnbalancedStatement(file.name, item, start.currency, difference)
                start = None
        yield item
    if start is not None:
        raise RuntimeError(f"{format_.name} does not end its last statement")


def _add(file: TextFile, total: int, line: StatementLine) -> int:
    total += line.amount
    if abs(total) > MAX_BALANCE:
        file.fail(line.line_number, 1, "the sum of the amounts must be smaller")
    return total
