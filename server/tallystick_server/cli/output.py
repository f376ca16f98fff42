"""Prints results: tables, records, JSON and progress. Rich formats them on a terminal; elsewhere
they are plain text.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

_WIDTH_SAMPLE = 200
_GAP = "  "
_MIN_WRAP_WIDTH = 20
_TEXT_WIDTH = 100
_PADDING = 3

ProgressUpdate = Callable[[int, str], None]
"""Called with the number of completed steps and a note."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    heading: str
    align_right: bool = False
    can_wrap: bool = False
    """Whether a terminal may wrap the text. Identifiers stay in one piece, to be copied."""


def can_format(stream: TextIO) -> bool:
    """Whether rich formats the stream: a terminal that understands escape sequences."""
    return stream.isatty() and os.environ.get("TERM", "") not in {"dumb", "unknown"}


def print_line(line: str = "") -> None:
    print(line, flush=True)


def print_status(line: str) -> None:
    """Prints a line on standard error, separate from the result."""
    print(line, file=sys.stderr, flush=True)


def print_json(value: Mapping[str, Any]) -> None:
    """Prints one JSON object on one line."""
    print_line(json.dumps(value))


def print_heading(line: str) -> None:
    if can_format(sys.stdout):
        from rich.text import Text

        _console(sys.stdout).print(Text(line, style="bold"))
    else:
        print_line(line)


def print_paragraph(text: str, *, indent: int = 0) -> None:
    """Prints text, wrapped between words: at the width of the terminal, else at 100 columns."""
    import textwrap

    width = _console(sys.stdout).width if can_format(sys.stdout) else _TEXT_WIDTH
    prefix = " " * indent
    for line in textwrap.wrap(
        escape(text),
        max(width, _MIN_WRAP_WIDTH + indent),
        initial_indent=prefix,
        subsequent_indent=prefix,
        break_long_words=False,
        break_on_hyphens=False,
    ):
        print_line(line)


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> int:
    """Prints rows under headings and returns their number; prints nothing if there are none.

    Plain text takes the widths of the columns from the first 200 rows and then streams.
    """
    escaped_rows = ([escape(cell) for cell in row] for row in rows)
    first_rows = list(islice(escaped_rows, _WIDTH_SAMPLE))
    if not first_rows:
        return 0
    all_rows = chain(first_rows, escaped_rows)
    if can_format(sys.stdout):
        table_rows = list(all_rows)
        _print_rich_table(columns, table_rows)
        return len(table_rows)
    headings = [column.heading for column in columns]
    widths = [max(map(len, cells)) for cells in zip(headings, *first_rows, strict=True)]
    row_count = -1  # the headings are not counted
    for row in chain([headings], all_rows):
        cells = [
            cell.rjust(width) if column.align_right else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        ]
        print_line(_GAP.join(cells).rstrip())
        row_count += 1
    return row_count


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Prints names and values, one pair a line."""
    width = max((len(name) for name, _ in fields), default=0)
    if can_format(sys.stdout):
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in fields:
            grid.add_row(Text(name), Text(escape(value)))
        _console(sys.stdout).print(grid)
        return
    for name, value in fields:
        print_line(f"{name:<{width}}{_GAP}{escape(value)}".rstrip())


def escape(text: str) -> str:
    """The text with control characters and line breaks escaped, so that data cannot steer the
    terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


@contextmanager
def show_progress(
    description: str, total: int | None, *, lines: bool = True
) -> Iterator[ProgressUpdate]:
    """Shows the progress of long work on standard error: a bar on a terminal; elsewhere one line
    per update, if `lines`. `total` None: it is not known yet.
    """
    if can_format(sys.stderr):
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=_console(sys.stderr),
            transient=True,
        )
        with bar:
            task = bar.add_task(description, total=total, note="")
            yield lambda completed, note: bar.update(task, completed=completed, note=escape(note))
        return

    def print_progress(completed: int, note: str) -> None:
        if lines:
            print_status(f"{description}: {completed} of {total}: {note}")

    yield print_progress


def _print_rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; if it is wider than the terminal, the names and values of each row."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = _console(sys.stdout)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    required_width = 0
    for column, cells in zip(columns, zip(*rows, strict=True), strict=True):
        width = max(len(column.heading), *map(len, cells))
        required_width += (min(width, _MIN_WRAP_WIDTH) if column.can_wrap else width) + _PADDING
        table.add_column(
            Text(column.heading),
            justify="right" if column.align_right else "left",
            overflow="fold",
            no_wrap=not column.can_wrap,
        )
    if required_width > console.width:
        for number, row in enumerate(rows):
            if number:
                print_line()
            headings = (column.heading.lower() for column in columns)
            print_fields([(name, cell) for name, cell in zip(headings, row, strict=True) if cell])
        return
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _console(stream: TextIO) -> Console:
    """Colors are left out if NO_COLOR is set or the terminal has none."""
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)
