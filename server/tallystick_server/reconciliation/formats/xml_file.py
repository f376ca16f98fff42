"""An XML file that is read in bounded memory, element by element. It uses expat and no tree of the
standard library: those do not know the line and the column of an element.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

from tallystick_server.reconciliation.formats.text_file import TextFile

MAX_DEPTH = 40
MAX_TEXT_LENGTH = 20_000
"""Of the text of one element."""
MAX_ELEMENT_SIZE = 4_000_000
"""Of an element with all that it contains, in characters; streamed elements count by themselves."""
_ELEMENT_SIZE = 100
"""What an element without content counts."""
_CHUNK_BYTES = 64 * 1024
_MAX_TOKEN_BYTES = 1024 * 1024


@dataclass(eq=False, slots=True)
class XmlElement:
    """An element. `name` is without prefix, `namespace` is the URI; the column counts from 1."""

    name: str
    namespace: str
    line: int
    column: int
    attributes: dict[str, str] = field(repr=False)
    parent: XmlElement | None = field(repr=False)
    children: list[XmlElement] = field(default_factory=list, repr=False)
    text: str = field(default="", repr=False)
    size_before: int = 0

    def find_all(self, path: str) -> list[XmlElement]:
        """The elements of a path such as "NtryDtls/Btch", in the order of the file."""
        found = [self]
        for name in path.split("/"):
            found = [child for element in found for child in element.children if child.name == name]
        return found

    def find(self, *paths: str) -> XmlElement | None:
        """The first element of the first path that has one."""
        return next((element for path in paths for element in self.find_all(path)), None)

    def text_of(self, *paths: str) -> str:
        """The text of the first element with a text, without spaces around it; or empty."""
        texts = (element.text.strip() for path in paths for element in self.find_all(path))
        return next(filter(None, texts), "")

    def release(self) -> None:
        """Cuts the links back to parents, so that memory is free before the garbage collector."""
        for child in self.children:
            child.parent = None
            child.release()


class _Builder:
    """Builds the elements while expat reports them. Streamed ones leave the tree at their end."""

    def __init__(self, file: TextFile, streamed: frozenset[str]) -> None:
        self._file = file
        self._streamed = streamed
        self._open: XmlElement | None = None
        self._depth = 0
        self._size = 0
        self.ended: list[XmlElement] = []
        self.parser = expat.ParserCreate(namespace_separator=" ")
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._doctype

    def fail(self, expected: str) -> NoReturn:
        """Raises DamagedFile for the place that is being read."""
        parser = self.parser
        self._file.fail(parser.CurrentLineNumber, parser.CurrentColumnNumber + 1, expected)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self.fail(f"elements must be nested at most {MAX_DEPTH} deep")
        namespace, _, local_name = name.rpartition(" ")
        element = XmlElement(
            local_name,
            namespace,
            self.parser.CurrentLineNumber,
            self.parser.CurrentColumnNumber + 1,
            attributes,
            self._open,
            size_before=self._size,
        )
        if self._open is not None:
            self._open.children.append(element)
        self._open = element
        self._add_size(_ELEMENT_SIZE + sum(len(key) + len(attributes[key]) for key in attributes))

    def _end(self, name: str) -> None:
        element = self._open
        if element is None:  # expat ends only what it has started
            return
        self._depth -= 1
        self._open = element.parent
        if element.name in self._streamed:
            self.ended.append(element)
            if element.parent is not None:
                element.parent.children.pop()
                self._size = element.size_before

    def _text(self, text: str) -> None:
        element = self._open
        if element is None or (not element.text and text.isspace()):
            return
        if len(element.text) + len(text) > MAX_TEXT_LENGTH:
            self.fail(f"a text must have at most {MAX_TEXT_LENGTH} characters")
        element.text += text
        self._add_size(len(text))

    def _doctype(self, *_: object) -> None:
        self.fail("the file must not have a DOCTYPE, which bank statements never have")

    def _add_size(self, size: int) -> None:
        self._size += size
        if self._size > MAX_ELEMENT_SIZE:
            self.fail(f"an entry must have at most {MAX_ELEMENT_SIZE} characters")


def read_elements(file: TextFile, streamed: frozenset[str]) -> Iterator[XmlElement]:
    """The elements of these names, each at its end, so inner ones come before outer ones. A parent
    does not contain them any more, and has what precedes them in the file. Raises DamagedFile.
    """
    builder = _Builder(file, streamed)
    parser, byte_count = builder.parser, 0
    with file.open() as content:
        while True:
            chunk = content.read(_CHUNK_BYTES)
            byte_count += len(chunk)
            try:
                parser.Parse(chunk, not chunk)
            except expat.ExpatError as error:
                message = expat.ErrorString(error.code)
                expected = f"the file must be whole, well-formed XML ({message})"
                file.fail(error.lineno, error.offset + 1, expected)
            except (LookupError, ValueError):
                builder.fail("the encoding of the file must be a known one, such as UTF-8")
            if byte_count - parser.CurrentByteIndex > _MAX_TOKEN_BYTES:
                builder.fail(f"a tag must have at most {_MAX_TOKEN_BYTES} bytes")
            for element in builder.ended:
                yield element
                element.release()
            builder.ended.clear()
            if not chunk:
                return
