"""CSV files: encodings, quotes, limits, and the values of cells."""

from __future__ import annotations

import codecs
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from tallystick_core.money import MAX_BALANCE
from tallystick_core.reconciliation.statement import DamagedFile
from tallystick_server.reconciliation.formats.csv_file import MAX_ROW_CHARACTERS, CsvFile
from tallystick_server.reconciliation.formats.csv_table import Columns, CsvTable, Row
from tests.reconciliation.files import write_file

_COLUMNS = Columns(("id", "amount"), frozenset({"text"}))


def _rows(folder: Path, content: str | bytes) -> list[Row]:
    return list(CsvTable(write_file(folder, content), _COLUMNS).rows())


def _row(folder: Path, amount: str) -> Row:
    return _rows(folder, f"id,amount\n1,{amount}\n")[0]


def _error(folder: Path, content: str | bytes) -> str:
    with pytest.raises(DamagedFile) as error:
        _rows(folder, content)
    return str(error.value)


_CONTENT = 'id,amount,text\n1,5,é\n2,6,"a, ""b"""\n'


@pytest.mark.parametrize(
    "content",
    [
        _CONTENT.encode(),
        codecs.BOM_UTF8 + _CONTENT.encode(),
        codecs.BOM_UTF16_LE + _CONTENT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + _CONTENT.encode("utf-16-be"),
        _CONTENT.encode("latin-1"),
        _CONTENT.replace("\n", "\r\n").encode(),
        _CONTENT.replace("\n", "\r").encode(),
        _CONTENT.replace("\n", "\n\n").encode(),
        _CONTENT.rstrip("\n").encode(),
    ],
    ids=[
        "UTF-8", "BOM", "UTF-16 LE", "UTF-16 BE", "Latin-1", "CRLF", "CR", "empty lines",
        "no last line end",
    ],
)  # fmt: skip
def test_encodings_and_line_ends_do_not_matter(tmp_path: Path, content: bytes) -> None:
    rows = _rows(tmp_path, content)
    assert [(row.text("id"), row.text("text")) for row in rows] == [("1", "é"), ("2", 'a, "b"')]


def test_a_row_may_have_several_lines(tmp_path: Path) -> None:
    rows = _rows(tmp_path, 'id,amount,text\r\n1,5,"a\r\nb"\r\n2,6,c\r\n')
    assert [(row.line_number, row.text("text")) for row in rows] == [(2, "a\nb"), (4, "c")]


def test_blocks_of_wide_rows_are_small(tmp_path: Path) -> None:
    """What is in memory does not depend on the width of the rows: a block has at most 500 rows, and
    little more than a million characters.
    """
    row = f'1,5,"{"x" * 60_000}"\n'
    file = write_file(tmp_path, "id,amount,text\n" + row * 100 + '1,5,"x"\n' * 1_000)
    blocks = [rows for _, rows in CsvFile(file).row_blocks()]
    assert sum(map(len, blocks)) == 1_101
    for rows in blocks:
        assert len(rows) <= 500
        assert sum(len(cell) for cells in rows for cell in cells) <= 1_100_000


@pytest.mark.parametrize("separator", [";", "\t"])
def test_another_separator_is_named(tmp_path: Path, separator: str) -> None:
    """The error does not list the columns, which the file has."""
    content = f"id{separator}amount\n1{separator}5\n"
    assert _error(tmp_path, content).endswith("line 1, column 1: cells must be separated by commas")


def test_a_column_may_be_left_out(tmp_path: Path) -> None:
    row = _row(tmp_path, "5")
    assert (row.has("text"), row.raw("text"), row.text("text")) == (False, "", "")


@pytest.mark.parametrize("cell", ["=1+1", "+A1", "-A1", "@SUM(A1)", "=cmd|' /C calc'!A0"])
def test_a_formula_is_text(tmp_path: Path, cell: str) -> None:
    assert _row(tmp_path, cell).text("amount") == cell


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "line 1, column 1: the first row must name the columns"),
        (
            "id,amount,phone\n",
            "line 1, column 3: the column must be one of id, amount, or an optional one of the "
            "format",
        ),
        ("id,text\n", "line 1, column 3: the column amount is missing"),
        ("id,amount,id\n", "line 1, column 3: the column id must be unique"),
        ("id,amount\n1\n", "line 2, column 2: the row must have 2 columns"),
        ("id,amount\n1,2,3\n", "line 2, column 3: the row must have 2 columns"),
        ('id,amount\n1,"2', "line 2, column 1: a text must end with the quote that begins it"),
        ('id,amount\n1,"2"3\n', "line 2, column 1: a text must end with the quote that begins it"),
        (
            "id,amount\n1,2\n2,\0\n",
            "line 3, column 3: a text must not contain NUL; UTF-16 needs a byte order mark",
        ),
        (
            codecs.BOM_UTF16_LE + "id,amount\n".encode("utf-16-le") + b"1",
            "line 2, column 1: the text must be utf-16-le",
        ),
        (
            "id,amount\n" + "1" * 65_537,
            "line 2, column 65536: a line must have at most 65536 characters",
        ),
        (
            'id,amount\n1,"' + ("2" * 50_000 + "\n") * 3 + '"\n',
            f"line 2, column 1: a row must have at most {MAX_ROW_CHARACTERS} characters",
        ),
    ],
)
def test_damage_is_named_by_line_and_column(
    tmp_path: Path, content: str | bytes, expected: str
) -> None:
    assert _error(tmp_path, content) == f"statement.csv, {expected}"


@pytest.mark.parametrize(
    ("text", "currency", "amount"),
    [
        ("12.34", "EUR", 1234),
        ("-12.34", "EUR", -1234),
        ("7.5", "EUR", 750),
        ("0", "EUR", 0),
        ("-0.00", "EUR", 0),
        ("12", "JPY", 12),
        ("12.00", "JPY", 12),
        ("1.234", "KWD", 1234),
        ("0.00000001", "BTC", 1),
        ("9" * 18, "JPY", 10**18 - 1),
    ],
)
def test_amounts_have_the_decimals_of_their_currency(
    tmp_path: Path, text: str, currency: str, amount: int
) -> None:
    assert _row(tmp_path, text).amount("amount", currency) == amount


@pytest.mark.parametrize(
    ("text", "currency"),
    [
        (text, "EUR")
        for text in (
            "", "-", "--1", "+1", "1.234", "1e3", " 1", "1,5", "=1", "01", ".5", "1.", "٣",
            "1" * 17, "1" * 41, "nan", "1.00.00",
        )
    ]
    + [("12.0", "JPY"), ("12.000", "JPY"), ("12.50", "JPY")],
)  # fmt: skip
def test_a_bad_amount_is_damage(tmp_path: Path, text: str, currency: str) -> None:
    example = {"EUR": "-12.34", "JPY": "-12"}[currency]
    with pytest.raises(DamagedFile) as error:
        _row(tmp_path, f'"{text}"').amount("amount", currency)
    assert str(error.value) == (
        f"statement.csv, line 2, column 2: amount must be an amount in {currency} such as {example}"
    )


def _unsigned(row: Row) -> object:
    return row.unsigned_amount("amount", "EUR")


@pytest.mark.parametrize(
    ("cell", "read", "expected"),
    [
        ("-1", _unsigned, "must have no sign"),
        ("Euro", lambda row: row.currency("amount"), "must be a currency code such as EUR"),
        ("", lambda row: row.currency("amount"), "must be a currency code such as EUR"),
        ("", lambda row: row.required_text("amount"), "must not be empty"),
        ("x" * 256, lambda row: row.text("amount"), "must have at most 255 characters"),
        ("1.0", lambda row: row.count("amount"), "must be a whole number"),
        ("-1", lambda row: row.count("amount"), "must be a whole number"),
        ("1" * 19, lambda row: row.count("amount"), "must be a whole number"),
        (
            "2026-02-30",
            lambda row: row.date("amount"),
            "must be a date such as 2026-01-31, from 1970 to 2199",
        ),
        (
            "20260131",
            lambda row: row.date("amount"),
            "must be a date such as 2026-01-31, from 1970 to 2199",
        ),
        (
            "31.01.2026",
            lambda row: row.date("amount"),
            "must be a date such as 2026-01-31, from 1970 to 2199",
        ),
        (
            "2026-01-31 25:00:00",
            lambda row: row.time("amount"),
            "must be a time such as 2026-01-31 23:59:59, from 1970 to 2199",
        ),
        (
            "2026-01-30",
            lambda row: row.time("amount"),
            "must be a time such as 2026-01-31 23:59:59, from 1970 to 2199",
        ),
    ],
)
def test_a_bad_value_is_damage(tmp_path: Path, cell: str, read: object, expected: str) -> None:
    assert callable(read)
    row = _row(tmp_path, cell)
    with pytest.raises(DamagedFile) as error:
        read(row)
    assert str(error.value) == f"statement.csv, line 2, column 2: amount {expected}"
    assert not cell or cell not in str(error.value)


def test_a_balance_may_be_larger_than_an_amount(tmp_path: Path) -> None:
    row = _row(tmp_path, "1" + 36 * "0")
    assert row.amount("amount", "JPY", MAX_BALANCE) == 10**36


def test_values_of_other_types(tmp_path: Path) -> None:
    assert _row(tmp_path, "eur").currency("amount") == "EUR"
    assert _row(tmp_path, "12").count("amount") == 12
    assert _row(tmp_path, "").unsigned_amount("amount", "EUR") == 0
    assert _row(tmp_path, "2026-01-31").date("amount") == date(2026, 1, 31)
    time = datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
    assert _row(tmp_path, "2026-01-31 23:59:59").time("amount") == time
