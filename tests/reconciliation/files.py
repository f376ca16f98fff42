"""Statement files for tests, and what reading them gives."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tallystick_core.reconciliation.statement import (
    DamagedFile,
    StatementEnd,
    StatementItem,
    StatementLine,
    StatementStart,
)
from tallystick_server.reconciliation.formats.text_file import TextFile

Reader = Callable[[TextFile], Iterator[StatementItem]]


def write_file(folder: Path, content: str | bytes) -> TextFile:
    path = folder / "statement.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return TextFile(path)


def write_table(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    """A CSV file with these columns. A row may leave columns out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def lines_of(items: Iterable[StatementItem]) -> list[StatementLine]:
    return [item for item in items if isinstance(item, StatementLine)]


def starts_of(items: Iterable[StatementItem]) -> list[StatementStart]:
    return [item for item in items if isinstance(item, StatementStart)]


def ends_of(items: Iterable[StatementItem]) -> list[StatementEnd]:
    return [item for item in items if isinstance(item, StatementEnd)]


def without_line_numbers(items: Iterable[StatementItem]) -> list[StatementItem]:
    """To compare what was written with what was read."""
    return [replace(item, line_number=0) for item in items]


def read_error(read: Reader, file: TextFile) -> str:
    """The error of a damaged file."""
    with pytest.raises(DamagedFile) as error:
        list(read(file))
    return str(error.value)


def read_error_before_any_item(read: Reader, file: TextFile) -> str:
    """The error of a damaged file of which nothing was yielded."""
    with pytest.raises(DamagedFile) as error:
        next(read(file))
    return str(error.value)
