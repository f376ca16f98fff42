"""Prints the messages of operator commands: as tables and fields, or as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tallystick_server.cli.output import (
    Column,
    print_fields,
    print_heading,
    print_json,
    print_line,
    print_status,
    print_table,
)

if TYPE_CHECKING:
    from google.protobuf.message import Message

_ALIGNED_RIGHT = frozenset({"count", "fee", "number", "tries", "version"})
_WRAPPED = frozenset({"detail", "message", "reason", "acknowledge_reason"})


def print_listing(
    found: Iterable[Message], field_names: Sequence[str], none: str, *, as_json: bool
) -> None:
    """Prints messages as a table of some fields, or with `as_json` whole. `none` is printed on
    standard error if there are no messages.
    """
    from tallystick_server.cli.messages import to_json, to_row

    if as_json:
        for message in found:
            print_json(to_json(message))
        return
    columns = [column(name) for name in field_names]
    if not print_table(columns, (to_row(message, field_names) for message in found)):
        print_status(none)


def print_message(message: Message, *, as_json: bool) -> None:
    """Prints a message as fields and tables, or with `as_json` as one JSON object."""
    from tallystick_server.cli.messages import to_json, to_record

    if as_json:
        print_json(to_json(message))
        return
    record = to_record(message)
    print_fields(record.fields)
    for table in record.tables:
        print_line()
        print_heading(table.title)
        print_table([column(heading) for heading in table.headings], table.rows)


def column(field_name: str) -> Column:
    """The column of a field in a table."""
    is_amount = field_name.endswith(("amount", "_count")) or field_name in _ALIGNED_RIGHT
    return Column(field_name.upper(), align_right=is_amount, can_wrap=field_name in _WRAPPED)
