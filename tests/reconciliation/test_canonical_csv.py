"""The canonical CSV: any statement survives being written and read."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tallystick_core.reconciliation.statement import (
    MAX_REFERENCE_LENGTH,
    LineType,
    StatementEnd,
    StatementItem,
    StatementLine,
    StatementStart,
)
from tallystick_server.reconciliation.formats import canonical_csv
from tallystick_server.reconciliation.formats.canonical_csv import COLUMNS, write_canonical
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
         "a date such as 2026-01-31"),
        ([START, LINE | {"booking_time": "2026-01-31T00:00:00+01:00"}], "line 3, column 15: "
         "booking_time must be a time in UTC such as 2026-01-31T23:59:59Z"),
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
