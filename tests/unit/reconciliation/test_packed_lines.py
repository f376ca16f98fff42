"""Lines that are sent as text mean what they mean one by one."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_core.errors import ApiError
from tallystick_core.money import format_amount, parse_signed_amount
from tallystick_core.reconciliation.packed_lines import FIELDS, pack, parse_amounts, unpack
from tallystick_core.reconciliation.statement import LineType
from tallystick_server.reconciliation import convert
from tallystick_server.reconciliation.packed_lines import Position, parse_lines
from tallystick_storage.reconciliation.statement_files import NewLine, to_columns

_POSITION = Position("psp/p/clearing", "EUR", 7, 2)
_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["\t", "\\n", "\n", "\r", "\\", "x" * 255, "x" * 256, "4242 4242 4242 4242"]
)
_amounts = st.integers(-(10**18), 10**18).map(lambda amount: format_amount(amount, "EUR"))
_days = st.dates().map(str)
_USUAL = {
    "line_number": st.integers(1, 10**12).map(str),
    "line_type": st.sampled_from(sorted(set(LineType) - {LineType.BANK_ENTRY})),
    "code": st.just("charge"),
    "amount": _amounts,
    "currency": st.just("EUR"),
    "fee": st.just("") | _amounts,
    "booking_date": st.just("") | _days,
    "value_date": st.just("") | _days,
    **dict.fromkeys(FIELDS[8:12], st.just("") | st.text("abc-1", max_size=20)),
    "original_amount": st.just(""),
    "original_currency": st.just(""),
    "text": st.text("abc €\\\t\n", max_size=20),
}
_UNUSUAL = {
    "line_number": st.sampled_from(["", "0", "01", "x", "٣", "1" * 13]),
    "line_type": st.sampled_from(["", "charge", "UNSPECIFIED", "BANK_ENTRY"]),
    "code": _texts,
    "amount": st.sampled_from(["", "1", "1.5", "-0.00", "1e3", "+1.00", "1" * 30]),
    "currency": st.sampled_from(["", "USD", "eur"]),
    "fee": st.sampled_from(["0", "-1.5", "x"]),
    "booking_date": st.sampled_from(["2026-02-30", "20260201", "2026-W01-1", "x"]),
    "value_date": st.sampled_from(["2026-2-1", "tomorrow"]),
    **dict.fromkeys(FIELDS[8:12], _texts),
    "original_amount": st.just("1.00"),
    "original_currency": st.just("USD"),
    "text": _texts | st.just("x" * 501),
}


@st.composite
def _rows(draw: st.DrawFn) -> list[list[str]]:
    """Lines of which some have a field that is unusual or wrong."""
    rows = draw(st.lists(st.fixed_dictionaries(_USUAL), min_size=1, max_size=4))
    for field in draw(st.lists(st.sampled_from(FIELDS), max_size=2)):
        draw(st.sampled_from(rows))[field] = draw(_UNUSUAL[field])
    return [[row[field] for field in FIELDS] for row in rows]


def _columns(rows: list[list[str]]) -> list[tuple[str, ...]]:
    return list(zip(*rows, strict=True))


def _parse_one(row: list[str], number: int) -> NewLine:
    """A line that comes as a message of its own."""
    fields = dict(zip(FIELDS, row, strict=True))
    line_number, line_type = fields.pop("line_number"), fields.pop("line_type")
    unknown_type: Any = 99
    message = reconciliation_pb2.StatementLine(
        line_number=int(line_number) if line_number.isascii() and line_number.isdigit() else 0,
        line_type=convert.LINE_TYPES.number(line_type)
        if line_type in set(LineType)
        else unknown_type,
        **fields,
    )
    return convert.parse_line(
        message, _POSITION.account, _POSITION.currency, number, _POSITION.statement_number
    )


@given(_rows())
def test_lines_as_text_are_parsed_as_one_by_one(rows: list[list[str]]) -> None:
    """Both give the same lines, or reject the same field of the same line."""
    try:
        expected = [_parse_one(row, _POSITION.number + index) for index, row in enumerate(rows)]
    except ApiError as error:
        with pytest.raises(ApiError) as rejected:
            parse_lines(pack(_columns(rows)), _POSITION)
        assert (rejected.value.field or "").endswith(f"].{error.field}")
        return
    parsed = parse_lines(pack(_columns(rows)), _POSITION)
    columns = [list(column) for column in parsed.columns]
    columns[NewLine._fields.index("identity")] = [
        str(UUID(identity)) for identity in columns[NewLine._fields.index("identity")]
    ]
    assert columns == [list(column) for column in to_columns(expected)]
    assert parsed.total == sum(line.amount for line in expected)


@given(st.lists(st.lists(_texts, min_size=3, max_size=3), min_size=1, max_size=5))
def test_any_text_survives_packing(rows: list[list[str]]) -> None:
    packed = pack(_columns(rows))
    assert [tuple(column) for column in unpack(packed, 3)] == _columns(rows)
    assert packed.count("\n") == len(rows)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("a\tb", "must end with a line feed"),
        ("a\tb\na\n", "must have 2 fields in line 2"),
        ("a\tb\tc\n", "must have 2 fields in line 1"),
        ("\n", "must have 2 fields in line 1"),
        ("a\tb\\x\n", r"must have only the escapes \\ \t \n \r"),
        ("a\tb\\\n", r"must have only the escapes \\ \t \n \r"),
    ],
)
def test_text_that_is_not_packed_lines_is_rejected(rows: str, expected: str) -> None:
    with pytest.raises(ValueError, match=".") as error:
        unpack(rows, 2)
    assert str(error.value) == expected


@given(
    st.lists(_amounts | st.sampled_from(["1", "1.5", "", "x", "٣.00", "01.00"]), min_size=1),
    st.sampled_from(["EUR", "JPY", "KWD"]),
)
def test_amounts_with_all_decimals_are_parsed_at_once(texts: list[str], currency: str) -> None:
    """They are as if they were parsed one by one, or there are none."""
    parsed = parse_amounts(texts, currency)
    if parsed is not None:
        assert parsed == [parse_signed_amount(text, currency) for text in texts]


def test_amounts_of_the_largest_size_are_parsed_at_once() -> None:
    texts = ["-9999999999999999.99", "9999999999999999.99", "0.00"]
    assert parse_amounts(texts, "EUR") == [1 - 10**18, 10**18 - 1, 0]
    assert parse_amounts(["10000000000000000.00"], "EUR") is None
