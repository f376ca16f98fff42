"""The canonical CSV: any statement survives being written and read."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tallystick_core.reconciliation.packed_lines import LineBlock, pack
from tallystick_core.reconciliation.statement import (
    MAX_REFERENCE_LENGTH,
    DamagedFile,
    LineType,
    StatementEnd,
    StatementItem,
    StatementLine,
    StatementStart,
)
from tallystick_server.reconciliation.formats import (
    canonical_blocks,
    canonical_csv,
    csv_file,
    text_file,
)
from tallystick_server.reconciliation.formats.canonical_csv import COLUMNS, write_canonical
from tallystick_server.reconciliation.formats.line_blocks import in_blocks
from tallystick_server.reconciliation.formats.text_file import TextFile
from tests.reconciliation.files import (
    ends_of,
    lines_of,
    read_error_before_any_item,
    without_line_numbers,
    write_file,
    write_table,
)
from tests.reconciliation.strategies import amounts, currencies, days

_any_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30
) | st.sampled_from(["=1+1", "+1", "-1", "@x", "\\", "\\n", "a\r\nb", "\ufeff", '"', "\u2028"])
_times = st.datetimes(datetime(1970, 1, 1), datetime(2099, 12, 31)).map(  # noqa: DTZ001
    lambda time: time.replace(tzinfo=UTC)
)
START = {"record": "START", "currency": "EUR", "account": "DE12", "balance": "100.00"}
LINE = {"record": "LINE", "currency": "EUR", "line_type": "CHARGE", "code": "x", "amount": "9.60"}
END = {
    "record": "END", "currency": "EUR", "balance": "109.60", "line_count": "1", "amount": "9.60",
}  # fmt: skip


def table(*rows: dict[str, str]) -> str:
    return write_table(COLUMNS, rows)


@st.composite
def statements(draw: st.DrawFn) -> list[StatementItem]:
    currency = draw(currencies)
    start = draw(
        st.builds(
            StatementStart,
            line_number=st.just(0),
            account=_any_text,
            currency=st.just(currency),
            statement_id=_any_text,
            sequence=_any_text,
            opening_balance=st.none() | amounts,
            opening_date=st.none() | days,
        )
    )
    lines = draw(st.lists(_lines(currency), max_size=4))
    total = sum(line.amount for line in lines)
    closing = draw(st.none() | amounts)
    difference = None
    if closing is not None and start.opening_balance is not None:
        difference = closing - start.opening_balance - total
    end = StatementEnd(0, len(lines), total, closing, draw(st.none() | days), difference)
    return [start, *lines, end]


@st.composite
def _lines(draw: st.DrawFn, currency: str) -> StatementLine:
    original_amount = draw(st.none() | amounts)
    return draw(
        st.builds(
            StatementLine,
            line_number=st.just(0),
            line_type=st.sampled_from(LineType),
            code=_any_text,
            amount=amounts,
            currency=st.just(currency),
            fee=amounts,
            booking_date=st.none() | days,
            value_date=st.none() | days,
            booking_time=st.none() | _times,
            reference=_any_text,
            charge_reference=_any_text,
            client_reference=_any_text,
            settlement_reference=_any_text,
            original_amount=st.just(original_amount),
            original_currency=st.just("") if original_amount is None else currencies,
            text=_any_text,
        )
    )


def _written(items: list[StatementItem]) -> str:
    text = io.StringIO(newline="")
    write_canonical(items, text)
    return text.getvalue()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(statements(), max_size=3))
def test_any_statement_survives_writing_and_reading(
    tmp_path: Path, written: list[list[StatementItem]]
) -> None:
    items = [item for statement in written for item in statement]
    content = _written(items)
    read = list(canonical_csv.read(write_file(tmp_path, content)))
    assert without_line_numbers(read) == items
    assert [item.line_number for item in read] == list(range(2, len(read) + 2))
    assert len(content.split("\n")) == len(items) + 2  # each row is one line


def _flatten(items: Iterable[StatementItem | LineBlock]) -> list[object]:
    """The items, each line as the texts of its fields."""
    flat: list[object] = []
    for item in in_blocks(items):
        if isinstance(item, LineBlock):
            flat += zip(*item.columns, strict=True)
            flat.append(item.total)
        else:
            flat.append(item)
    total = 0
    joined: list[object] = []
    for value in flat:  # where a block ends does not matter
        if isinstance(value, int):
            total += value
        else:
            joined += [total, value] if isinstance(value, StatementEnd) else [value]
    return joined


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(written=st.lists(statements(), max_size=3), is_quoted=st.booleans())
def test_many_lines_at_once_are_as_one_by_one(
    tmp_path: Path, written: list[list[StatementItem]], is_quoted: bool
) -> None:
    """However few rows are looked at together, whether or not a cell is quoted."""
    content = _written([item for statement in written for item in statement])
    if is_quoted:
        content = content.replace("record", '"record"', 1)
    file = write_file(tmp_path, content)
    expected = _flatten(canonical_csv.read(file))
    for size in (1, 60, 500):
        with (
            patch.object(text_file, "_CHUNK_BYTES", size),
            patch.object(csv_file, "_ROWS_OF_A_BLOCK", size // 50 + 1),
        ):
            assert _flatten(canonical_blocks.read_blocks(file)) == expected


def test_usual_lines_are_never_read_one_by_one(tmp_path: Path) -> None:
    """Whether or not they have quotes or escapes."""
    for text in ("Vase", 'a "vase", blue', "a\nb", "=x"):
        line = StatementLine(0, LineType.CHARGE, "x", 960, "EUR", 40, reference="t", text=text)
        start, end = StatementStart(0, "", "EUR"), StatementEnd(0, 2_000, 1_920_000)
        statement: list[StatementItem] = [start, *[line] * 2_000, end]
        file = write_file(tmp_path, _written(statement * 2))
        blocks = list(canonical_blocks.read_blocks(file))
        assert not any(isinstance(block, StatementLine) for block in blocks)
        assert sum(len(block) for block in blocks if isinstance(block, LineBlock)) == 4_000
        assert len(blocks) < 30


@pytest.mark.parametrize(
    "damage",
    [
        ("9.60", "9.6"),
        ("9.60", "9.601"),
        ("9.60", ""),
        ("9.60", "1" * 20 + ".00"),
        ("EUR", "USD"),
        ("EUR", "eur"),
        ("CHARGE", "charge"),
        ("CHARGE", ""),
        ("LINE", "TOTAL"),
        ("LINE", "START"),
        (",x,", ",\\x,"),
        (",x,", "," + "y" * 256 + ","),
        (",x,", ',"x,'),
        (",x,", ',"x"x,'),
        (",x,", ",\0,"),
        (",x,", ",,,"),
        (",x,", ","),
        (",,,,,,,,\n", ",,,,,,USD,,\n"),
        (",2026-01-31,", ",2026-02-30,"),
        (",2026-01-31,", ",20260131,"),
        ("LINE", "\n\nLINE"),
        ("LINE", "x" * 70_000 + "LINE"),
    ],
)
def test_a_damaged_line_among_many_has_the_same_error(
    tmp_path: Path, damage: tuple[str, str]
) -> None:
    """Read many at once, a line has the error that it has one by one; or both read it alike."""
    dated = LINE | {"booking_date": "2026-01-31"}
    *lines, end = table(START, *[dated] * 2_000, END).splitlines(keepends=True)
    lines[1_000] = lines[1_000].replace(*damage, 1)
    end = end.replace("109.60", "").replace(",1,", ",2000,").replace(",9.60,", ",19200.00,")
    require_same_result(write_file(tmp_path, "".join((*lines, end))))


def test_an_end_that_is_missing_after_many_lines_has_the_same_error(tmp_path: Path) -> None:
    require_same_result(write_file(tmp_path, table(START, *[LINE] * 2_000)))


def require_same_result(file: TextFile) -> None:
    """A file has the same items, or the same error, many lines at once and one by one."""

    def result(read: Callable[[TextFile], Iterable[StatementItem | LineBlock]]) -> object:
        try:
            return _flatten(read(file))
        except DamagedFile as error:
            return str(error)

    assert result(canonical_blocks.read_blocks) == result(canonical_csv.read)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(reference=st.text("=\\\n\r-é", min_size=MAX_REFERENCE_LENGTH, max_size=MAX_REFERENCE_LENGTH))
@example(reference="\n" * MAX_REFERENCE_LENGTH)
def test_a_reference_of_the_maximum_length_survives(tmp_path: Path, reference: str) -> None:
    line = StatementLine(0, LineType.OTHER, "", 0, "EUR", reference=reference, text=reference)
    items: list[StatementItem] = [StatementStart(0, reference, "EUR"), line, StatementEnd(0, 1, 0)]
    read = list(canonical_csv.read(write_file(tmp_path, _written(items))))
    assert without_line_numbers(read) == items


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    line = StatementLine(0, LineType.OTHER, "+x", 0, "EUR", reference="=1+1", text="@SUM(A1)")
    content = _written([StatementStart(0, "-1", "EUR"), line, StatementEnd(0, 1, 0)])
    assert "\\=1+1" in content
    assert "\\@SUM" in content
    assert ",\\-1," in content
    assert ",\\+x," in content


def test_a_file_written_by_hand_needs_few_cells(tmp_path: Path) -> None:
    items = list(canonical_csv.read(write_file(tmp_path, table(START, LINE, END))))
    assert items == [
        StatementStart(2, "DE12", "EUR", opening_balance=10_000),
        StatementLine(3, LineType.CHARGE, "x", 960, "EUR"),
        StatementEnd(4, 1, 960, 10_960, None, 0),
    ]
    assert lines_of(items)[0].text == ""


def test_balances_that_differ_are_shown_and_no_damage(tmp_path: Path) -> None:
    content = table(START, LINE, END | {"balance": "110.00"})
    (end,) = ends_of(canonical_csv.read(write_file(tmp_path, content)))
    assert end.difference == 40


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([LINE, END], "line 2, column 1: record must be START"),
        ([START, START], "line 3, column 1: record must be LINE or END"),
        ([START, LINE, END, END], "line 5, column 1: record must be START"),
        ([START, LINE], "line 3, column 1: the last row must be an END"),
        ([START, {"record": "TOTAL"}], "line 3, column 1: record must be START, LINE or END"),
        ([START, LINE, LINE, END], "line 5, column 8: line_count must be the number of LINE rows "
         "of the statement"),
        ([START, END], "line 3, column 8: line_count must be the number of LINE rows of the "
         "statement"),
        ([START, LINE | {"amount": "9.61"}, END], "line 4, column 11: amount must be the sum of "
         "the LINE rows of the statement"),
        ([START, LINE | {"amount": "-9.60"}, END], "line 4, column 11: amount must be the sum of "
         "the LINE rows of the statement"),
        ([START, LINE, END | {"currency": "USD"}], "line 4, column 2: currency must be that of "
         "the START"),
        ([START, LINE | {"currency": "USD"}, END], "line 3, column 2: currency must be that of "
         "the START"),
        ([START, LINE | {"currency": ""}, END], "line 3, column 2: currency must be a currency "
         "code such as EUR"),
        ([START | {"text": "x"}], "line 2, column 22: text must be empty in a START"),
        ([START, LINE | {"balance": "1"}], "line 3, column 6: balance must be empty in a LINE"),
        ([START, LINE | {"line_type": "charge"}], "line 3, column 9: line_type must be one of "
         + ", ".join(LineType)),
        ([START, LINE | {"text": "\\x"}], "line 3, column 22: text must have only the escapes "
         "\\\\ \\n \\r \\= \\+ \\- \\@"),
        ([START, LINE | {"booking_date": "1.2.2026"}], "line 3, column 13: booking_date must be "
         "a date such as 2026-01-31, from 1970 to 2199"),
        ([START, LINE | {"booking_time": "2026-01-31T00:00:00+01:00"}], "line 3, column 15: "
         "booking_time must be a time in UTC such as 2026-01-31T23:59:59Z, from 1970 to "
         "2199"),
        ([START, LINE | {"original_amount": "1.00"}], "line 3, column 21: original_currency must "
         "be a currency code such as EUR"),
        ([START, LINE | {"original_currency": "EUR"}], "line 3, column 20: original_amount must "
         "be an amount in EUR such as -12.34"),
        ([START, LINE | {"amount": "=9.60"}], "line 3, column 11: amount must be an amount in EUR "
         "such as -12.34"),
    ],
)  # fmt: skip
def test_nothing_is_yielded_of_a_damaged_file(
    tmp_path: Path, rows: list[dict[str, str]], expected: str
) -> None:
    file = write_file(tmp_path, table(*rows))
    assert read_error_before_any_item(canonical_csv.read, file) == f"statement.csv, {expected}"


@pytest.mark.parametrize("name", COLUMNS)
def test_a_missing_column_is_named(tmp_path: Path, name: str) -> None:
    columns = [column for column in COLUMNS if column != name]
    file = write_file(tmp_path, write_table(columns, []))
    assert read_error_before_any_item(canonical_csv.read, file) == (
        f"statement.csv, line 1, column 22: the column {name} is missing"
    )


def test_the_first_damage_is_named(tmp_path: Path) -> None:
    """A quote that is never closed does not hide damage before it."""
    content = table(START, LINE | {"amount": "x"}, LINE) + 'LINE,"EUR'
    with pytest.raises(DamagedFile) as error:
        list(canonical_blocks.read_blocks(write_file(tmp_path, content)))
    assert (error.value.line, error.value.column) == (3, 11)


@pytest.mark.parametrize("fee", ["", "0.00", "-0.00"])
def test_zeros_are_the_same_however_they_are_read(tmp_path: Path, fee: str) -> None:
    """Many lines at once, and one by one."""
    lines = [LINE | {"fee": fee}, LINE | {"amount": "-0.00"}]
    end = END | {"line_count": "2"}
    file = write_file(tmp_path, table(START, *lines, end))
    (block,) = [item for item in canonical_blocks.read_blocks(file) if isinstance(item, LineBlock)]
    _, slow_block, _ = in_blocks(canonical_csv.read(file))
    assert isinstance(slow_block, LineBlock)
    assert pack(block.columns) == pack(slow_block.columns)
