"""Prints breaks as tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tallystick_server.cli.operator.break_texts import age_in_days
from tallystick_server.cli.operator.printing import column
from tallystick_server.cli.output import (
    Column,
    can_format,
    escape,
    print_fields,
    print_heading,
    print_line,
    print_table,
)

if TYPE_CHECKING:
    from tallystick.reconciliation.v1 import reconciliation_pb2

_LIST_COLUMNS = (
    Column("BREAK_ID"),
    Column("KIND"),
    Column("CLASS"),
    Column("DIFFERENCE", align_right=True),
    Column("DAYS", align_right=True),
    Column("STATE"),
    Column("ACCOUNT"),
    Column("ASSIGNEE"),
)
_SHARED_COLUMNS = ("CLASS", "STATE", "ACCOUNT", "ASSIGNEE")
"""Columns of which a terminal shows a value once, if all breaks have the same."""
_LINE_FIELDS = (
    *("line_number", "line_type", "code", "amount", "fee", "currency", "booking_date"),
    *("reference", "charge_reference", "client_reference", "settlement_reference", "text"),
)
_ITEM_FIELDS = (
    *("transaction_id", "kind", "amount", "currency", "account", "effective_time"),
    *("external_reference", "source_id"),
)
_CHANGE_FIELDS = ("create_time", "action", "caller", "reason")


def print_break_table(found: Iterable[reconciliation_pb2.Break]) -> int:
    """Prints a row for each break, and returns their number. On a terminal, what all of them have
    in common is printed above, so that the rest fits.
    """
    from tallystick_server.cli.messages import to_row

    time = datetime.now(UTC)
    rows: Iterable[Sequence[str]] = (
        [
            *to_row(item, ["break_id", "kind", "break_class"]),
            f"{item.difference} {item.currency}",
            str(age_in_days(item, time)),
            *to_row(item, ["state", "account", "assignee"]),
        ]
        for item in found
    )
    columns: Sequence[Column] = _LIST_COLUMNS
    if can_format(sys.stdout):
        rows = list(rows)
        columns, rows = _print_shared_values(columns, rows)
    return print_table(columns, rows)


def _print_shared_values(
    columns: Sequence[Column], rows: Sequence[Sequence[str]]
) -> tuple[Sequence[Column], Sequence[Sequence[str]]]:
    """Prints the values that all rows share, and returns the other columns."""
    shared = {
        index: {row[index] for row in rows}
        for index, item in enumerate(columns)
        if item.heading in _SHARED_COLUMNS and len({row[index] for row in rows}) == 1
    }
    values = [value for (value,) in shared.values() if value]
    if values:
        print_heading(", ".join(map(escape, values)))
    kept = [index for index in range(len(columns)) if index not in shared]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def print_break(found: reconciliation_pb2.Break, file_names: dict[str, str]) -> None:
    """Prints a break with its lines, ledger entries and history. `file_names`: by id."""
    from tallystick_server.cli.messages import to_record, to_row

    print_fields(to_record(found).fields)
    lines = [
        [file_names.get(line.statement_file_id, ""), *to_row(line.line, _LINE_FIELDS)]
        for line in found.lines
    ]
    items = [to_row(item, _ITEM_FIELDS) for item in found.ledger_items]
    changes = [to_row(change, _CHANGE_FIELDS) for change in found.changes]
    _print_part("Lines of statements", ("file", *_LINE_FIELDS), lines)
    _print_part("Ledger entries", _ITEM_FIELDS, items)
    _print_part("History", _CHANGE_FIELDS, changes)


def _print_part(title: str, field_names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table without its empty columns; nothing if it has no rows."""
    if not rows:
        return
    print_line()
    print_heading(title)
    filled = [index for index in range(len(field_names)) if any(row[index] for row in rows)]
    columns = [column(field_names[index]) for index in filled]
    print_table(columns, [[row[index] for index in filled] for row in rows])
