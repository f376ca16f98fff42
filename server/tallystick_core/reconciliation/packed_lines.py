"""Lines of a statement as the API has them when they are many: a line of text for each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from tallystick_core.currencies import EXPONENTS

FIELDS = (
    "line_number",
    "line_type",
    "code",
    "amount",
    "currency",
    "fee",
    "booking_date",
    "value_date",
    "reference",
    "charge_reference",
    "client_reference",
    "settlement_reference",
    "original_amount",
    "original_currency",
    "text",
)
"""Those of the message StatementLine, in the order of their numbers."""
_MAX_DIGITS = 18
"""Of an amount in minor units."""
_ESCAPED = "\\\t\n\r"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_MEANINGS = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}
_ESCAPE = re.compile(r"\\.?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Consecutive lines of a statement, at least one, by column. `columns`: the texts of each of
    FIELDS, as the API has them; `total`: the sum of their amounts in minor units.
    """

    columns: Sequence[Sequence[str]]
    total: int

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def currency(self) -> str:
        """That of all lines."""
        return self.columns[FIELDS.index("currency")][0]

    @property
    def line_number(self) -> int:
        """Where the first line begins in the file."""
        return int(self.columns[FIELDS.index("line_number")][0])

    @property
    def last_line_number(self) -> int:
        """Where the last line begins in the file."""
        return int(self.columns[FIELDS.index("line_number")][-1])


def pack(columns: Sequence[Sequence[str]]) -> str:
    """A line of text for each line of a statement: its fields, separated by tabs."""
    lines = map("\t".join, zip(*map(escape_column, columns), strict=True))
    return "".join([f"{line}\n" for line in lines])


def escape_column(column: Sequence[str]) -> Sequence[str]:
    """The fields of a column with \\t, \\n, \\r and \\\\ for a tab, a line feed, a carriage return
    and a backslash, as the text format of COPY has them too.
    """
    joined = "".join(column)
    if not any(character in joined for character in _ESCAPED):
        return column
    return [field.translate(_ESCAPES) for field in column]


def unpack(text: str, field_count: int = len(FIELDS)) -> list[list[str]]:
    """The columns of packed lines. Raises ValueError, which says what is wrong."""
    if not text.endswith("\n"):
        raise ValueError("must end with a line feed")
    lines = text[:-1].split("\n")
    for number, line in enumerate(lines, 1):
        if line.count("\t") != field_count - 1:
            raise ValueError(f"must have {field_count} fields in line {number}")
    fields = text[:-1].replace("\n", "\t").split("\t")
    if "\\" in text:
        fields = [_unescape(field) if "\\" in field else field for field in fields]
    return [fields[place::field_count] for place in range(field_count)]


def _unescape(field: str) -> str:
    def meaning(match: re.Match[str]) -> str:
        if match[0] not in _MEANINGS:
            raise ValueError("must have only the escapes \\\\ \\t \\n \\r")
        return _MEANINGS[match[0]]

    return _ESCAPE.sub(meaning, field)


def parse_amounts(texts: Iterable[str], currency: str) -> list[int] | None:
    """Amounts with all decimals of their currency in minor units; None if one has another form."""
    joined = ",".join(texts)
    if not _amounts(EXPONENTS[currency]).fullmatch(joined):
        return None
    return [int(digits) for digits in joined.replace(".", "").split(",")]


@cache
def _amounts(exponent: int) -> re.Pattern[str]:
    amount = rf"-?(?:0|[1-9][0-9]{{0,{_MAX_DIGITS - exponent - 1}}})"
    if exponent:
        amount += rf"\.[0-9]{{{exponent}}}"
    return re.compile(f"{amount}(?:,{amount})*", re.ASCII)
