"""CSV that spreadsheets open: no cell of it is a formula."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from typing import TextIO

from tallystick_server.cli.output import escape

_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)


def to_cell(text: str) -> str:
    """The text as one line. One that a spreadsheet would take for a formula begins with an
    apostrophe; a number is none.
    """
    text = escape(text)
    if text.startswith(("=", "+", "-", "@")) and _NUMBER.fullmatch(text) is None:
        return f"'{text}"
    return text


def write_rows(file: TextIO, rows: Iterable[Sequence[str]]) -> int:
    """Writes rows of texts, and returns their number."""
    writer = csv.writer(file, lineterminator="\n")
    count = 0
    for row in rows:
        writer.writerow([to_cell(cell) for cell in row])
        count += 1
    return count
