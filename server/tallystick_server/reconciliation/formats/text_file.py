"""A text file that is read in bounded memory, line by line, whatever its encoding."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from tallystick_core.reconciliation.statement import DamagedFile

MAX_LINE_BYTES = 64 * 1024
_CHUNK_BYTES = 64 * 1024
_NO_NUL = "a text must not contain NUL; UTF-16 needs a byte order mark"
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class UnexpectedValue(Exception):
    """A value that cannot be read. The text names what was expected, never the value."""


@dataclass(frozen=True, slots=True)
class TextLine:
    """A line without its end. `number`: from 1."""

    number: int
    text: str


class TextFile:
    """A file by its path, which can be read several times. `name`: for errors, without its
    folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = path.name

    def open(self) -> BinaryIO:
        """The bytes of the file, from the start."""
        return self._path.open("rb")

    def lines(self) -> Iterator[TextLine]:
        """The lines of the file, as `blocks` has them."""
        for first_number, texts in self.blocks():
            for number, text in enumerate(texts, first_number):
                yield TextLine(number, text)

    def blocks(self) -> Iterator[tuple[int, list[str]]]:
        """The lines of the file, many at once, with the number of the first: UTF-8, or UTF-16 with
        a byte order mark, or Latin-1 if it is not UTF-8. Ended by CR, LF or both. Raises
        DamagedFile for a line of more than MAX_LINE_BYTES and for a NUL.
        """
        encoding, skipped = self._find_encoding()
        decoder = codecs.getincrementaldecoder(encoding)("strict")
        number, rest, ends_with_cr = 1, "", False
        with self.open() as file:
            file.read(skipped)
            while True:
                chunk = file.read(_CHUNK_BYTES)
                try:
                    text = decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError:
                    self.fail(number, 1, f"the text must be {encoding}")
                if ends_with_cr and text.startswith("\n"):
                    text = text[1:]
                ends_with_cr = text.endswith("\r") if text else ends_with_cr
                *whole, rest = (rest + text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
                good_count = _count_good(whole)
                if good_count:
                    yield number, whole[:good_count]
                    number += good_count
                for line in (*whole[good_count:], rest):
                    self._check(number, line)
                if not chunk:
                    break
        if rest:
            yield number, [rest]

    def has_byte(self, byte: bytes) -> bool:
        """Whether the file has a byte anywhere."""
        with self.open() as file:
            return any(byte in chunk for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""))

    def _check(self, number: int, line: str) -> None:
        if len(line) > MAX_LINE_BYTES:
            self.fail(
                number, MAX_LINE_BYTES, f"a line must have at most {MAX_LINE_BYTES} characters"
            )
        if "\0" in line:
            self.fail(
                number,
                line.index("\0") + 1,
                "a text must not contain NUL; UTF-16 needs a byte order mark",
            )

    def _find_encoding(self) -> tuple[str, int]:
        """The encoding, and the number of bytes of its mark."""
        with self.open() as file:
            head = file.read(4)
            for mark, encoding in _BYTE_ORDER_MARKS:
                if head.startswith(mark):
                    return encoding, len(mark)
            decoder = codecs.getincrementaldecoder("utf-8")("strict")
            file.seek(0)
            try:
                while chunk := file.read(_CHUNK_BYTES):
                    decoder.decode(chunk)
                decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                return "latin-1", 0
        return "utf-8", 0

    def fail(self, line: int, column: int, expected: str) -> NoReturn:
        """Raises DamagedFile."""
        raise DamagedFile(self.name, line, column, expected)

    @contextmanager
    def position(self, line: int, column: int = 1) -> Iterator[None]:
        """An UnexpectedValue in the block is damage of this line and column."""
        try:
            yield
        except UnexpectedValue as error:
            raise DamagedFile(self.name, line, column, str(error)) from None


def _count_good(lines: list[str]) -> int:
    """How many lines come before the first that is too long or has a NUL."""
    if max(map(len, lines), default=0) <= MAX_LINE_BYTES and "\0" not in "".join(lines):
        return len(lines)
    bad = (len(line) > MAX_LINE_BYTES or "\0" in line for line in lines)
    return list(bad).index(True)
