"""The rows of CSV files in bounded memory."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import NoReturn

from tallystick_core.reconciliation.statement import DamagedFile
from tallystick_server.reconciliation.formats.text_file import TextFile, TextLine

MAX_ROW_CHARACTERS = 100_000
"""Of a row, which may have several lines within quotes. The csv module limits a cell to 131,072."""
_ROWS_OF_A_BLOCK = 500
_CHARACTERS_OF_A_BLOCK = 1_000_000


class CsvFile:
    """The rows of a CSV file, as lists of cells. Empty lines are no rows."""

    def __init__(self, file: TextFile) -> None:
        self._file = file

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Each row with the number of the line where it begins. It can be called again. Raises
        DamagedFile for bad quotes and for a row of more than MAX_ROW_CHARACTERS.
        """
        lines = _RowLines(self._file)
        reader = csv.reader(lines, strict=True)
        while True:
            lines.start_row()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error:
                self.fail(lines.first_number, 1, "a text must end with the quote that begins it")
            if cells:
                yield lines.first_number, cells

    def row_blocks(self) -> Iterator[tuple[Sequence[int], list[list[str]]]]:
        """The rows of `rows`, many at once: the numbers of their lines, and their cells. Without a
        quote in the file, each line is a row.
        """
        if self._file.has_byte(b'"'):
            yield from self._collect()
            return
        for first_number, lines in self._file.blocks():
            numbers = [number for number, line in enumerate(lines, first_number) if line]
            if numbers:
                yield numbers, [line.split(",") for line in lines if line]

    def _collect(self) -> Iterator[tuple[Sequence[int], list[list[str]]]]:
        """The rows, many at once. Those before a damaged row come first, so that the first damage
        of the file is found first.
        """
        numbers: list[int] = []
        rows: list[list[str]] = []
        size = 0
        try:
            for number, cells in self.rows():
                numbers.append(number)
                rows.append(cells)
                size += sum(map(len, cells))
                if len(rows) >= _ROWS_OF_A_BLOCK or size >= _CHARACTERS_OF_A_BLOCK:
                    yield numbers, rows
                    numbers, rows, size = [], [], 0
        except DamagedFile:
            if rows:
                yield numbers, rows
            raise
        if rows:
            yield numbers, rows

    def fail(self, line: int, column: int, expected: str) -> NoReturn:
        """Raises DamagedFile."""
        self._file.fail(line, column, expected)


class _RowLines:
    """The lines of a file, as the csv module reads them. It limits those of one row."""

    def __init__(self, file: TextFile) -> None:
        self._file = file
        self._lines = file.lines()
        self._size = 0
        self.first_number = 0

    def start_row(self) -> None:
        self._size = self.first_number = 0

    def __iter__(self) -> _RowLines:
        return self

    def __next__(self) -> str:
        line: TextLine = next(self._lines)
        if not self.first_number:
            self.first_number = line.number
        self._size += len(line.text) + 1
        if self._size > MAX_ROW_CHARACTERS:
            self._file.fail(
                self.first_number, 1, f"a row must have at most {MAX_ROW_CHARACTERS} characters"
            )
        return line.text + "\n"
