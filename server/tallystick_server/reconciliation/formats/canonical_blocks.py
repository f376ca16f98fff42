"""The canonical CSV, many lines at once: what is true of whole columns is not checked line by line.

A block of rows in which anything is unusual is read row by row, which also finds the damage.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tallystick_core.money import format_amount
from tallystick_core.reconciliation.packed_lines import FIELDS, LineBlock, parse_amounts
from tallystick_core.reconciliation.statement import (
    MAX_REFERENCE_LENGTH,
    MAX_TEXT_LENGTH,
    LineType,
    StatementItem,
)
from tallystick_server.reconciliation.formats.canonical_csv import (
    ALLOWED,
    COLUMNS,
    ESCAPE,
    ESCAPES,
    LINE,
    TABLE,
    TIME,
    Statements,
)
from tallystick_server.reconciliation.formats.csv_table import DATE, CsvTable, RowBlock, parse_time
from tallystick_server.reconciliation.formats.text_file import TextFile

_REFERENCES = (
    "code",
    "reference",
    "charge_reference",
    "client_reference",
    "settlement_reference",
)
_UNUSUAL = (*(set(COLUMNS) - ALLOWED[LINE]), "original_amount", "original_currency")
"""The columns that are empty in nearly all LINE rows."""
_LINE_TYPES = frozenset(LineType)


def read_blocks(file: TextFile) -> Iterator[StatementItem | LineBlock]:
    """The statements of a file, in one pass: nothing of them may be used before all were read.
    Raises DamagedFile.
    """
    table = CsvTable(file, TABLE)
    statements = Statements()
    for rows in table.row_blocks():
        for part in _parts(rows):
            lines = _to_lines(part, statements.currency)
            if lines is not None:
                yield statements.add_lines(lines)
            else:
                yield from map(statements.read_row, part)
    statements.require_end(table)


def _parts(rows: RowBlock) -> Iterator[RowBlock]:
    """The rows, consecutive LINE rows together."""
    columns = rows.columns()
    if columns is None:
        yield rows
        return
    start = 0
    for place in [*(i for i, record in enumerate(columns["record"]) if record != LINE), len(rows)]:
        if place > start:
            yield rows.part(start, place)
        if place < len(rows):
            yield rows.part(place, place + 1)
        start = place + 1


def _to_lines(rows: RowBlock, currency: str) -> LineBlock | None:
    """The rows, if all are usual LINE rows of a statement in this currency."""
    columns = rows.columns()
    if (
        columns is None
        or set(columns["record"]) != {LINE}
        or set(columns["currency"]) != {currency}
        or any(any(columns[name]) for name in _UNUSUAL)
        or not _LINE_TYPES.issuperset(columns["line_type"])
        or not _are_dates(columns)
    ):
        return None
    no_fee = format_amount(0, currency)
    amounts = parse_amounts(columns["amount"], currency)
    fees = parse_amounts([fee or no_fee for fee in columns["fee"]], currency)
    texts = _unescape(columns)
    if amounts is None or fees is None or texts is None:
        return None
    fields = {
        **columns,
        **texts,
        "line_number": list(map(str, rows.line_numbers)),
        "amount": _without_zeros(columns["amount"], amounts, no_fee),
        "fee": _without_zeros(columns["fee"], fees, ""),
    }
    return LineBlock([fields[name] for name in FIELDS], sum(amounts))


def _without_zeros(texts: Sequence[str], amounts: Sequence[int], zero: str) -> Sequence[str]:
    """The texts of amounts, with the same text for each zero, such as -0.00."""
    if 0 not in amounts:
        return texts
    return [text if amount else zero for text, amount in zip(texts, amounts, strict=True)]


def _are_dates(columns: Mapping[str, Sequence[str]]) -> bool:
    return all(
        not text or parse_time(text, pattern) is not None
        for name, pattern in (("booking_date", DATE), ("value_date", DATE), ("booking_time", TIME))
        for text in set(columns[name])
    )


def _unescape(columns: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]] | None:
    """The texts of a block; None if a reference is too long, or an escape does not exist."""
    texts: dict[str, Sequence[str]] = {}
    for name in (*_REFERENCES, "text"):
        column = columns[name]
        if "\\" in "".join(column):
            if any(match not in ESCAPES for cell in column for match in ESCAPE.findall(cell)):
                return None
            column = [ESCAPE.sub(lambda match: ESCAPES[match[0]], cell) for cell in column]
        if name != "text" and max(map(len, column)) > MAX_REFERENCE_LENGTH:
            return None
        texts[name] = column
    texts["text"] = [text[:MAX_TEXT_LENGTH] for text in texts["text"]]
    return texts
