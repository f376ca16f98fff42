"""PayPal's settlement report: totals and counts are proven before anything is yielded."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystick_core.reconciliation.statement import (
    LineType,
    StatementEnd,
    StatementLine,
    StatementStart,
)
from tallystick_server.reconciliation.formats import paypal_stl
from tallystick_server.reconciliation.formats.paypal_event_codes import LINE_TYPES
from tests.reconciliation.files import (
    ends_of,
    lines_of,
    read_error_before_any_item,
    starts_of,
    write_file,
)
from tests.reconciliation.paypal_files import COLUMNS, Section, paypal_rows, write_rows
from tests.reconciliation.strategies import amounts, currencies, required_texts, seconds, texts

_TIME = datetime(2026, 1, 30, 12, 0, tzinfo=UTC)
CHARGE = StatementLine(
    line_number=5,
    line_type=LineType.CHARGE,
    code="T0006",
    amount=960,
    currency="EUR",
    fee=40,
    booking_date=date(2026, 1, 30),
    booking_time=_TIME,
    reference="tx1",
    charge_reference="tx1",
    client_reference="c1",
)
REFUND = replace(
    CHARGE,
    line_number=6,
    line_type=LineType.REFUND,
    code="T1107",
    amount=-300,
    fee=0,
    reference="tx2",
)
ROWS = paypal_rows(Section("SHOP", {"EUR": 10_000}, [CHARGE, REFUND]))
_EARLY = {"RH": 1, "FH": 2, "SH": 3, "CH": 4, "SB": 5, "SF": 7, "SC": 8, "RF": 9, "RC": 10}


def test_a_section_is_a_statement_with_both_balances(tmp_path: Path) -> None:
    assert list(paypal_stl.read(write_file(tmp_path, write_rows(ROWS)))) == [
        StatementStart(
            3, "SHOP", "EUR", opening_balance=10_000, opening_date=date(2026, 1, 30)
        ),
        CHARGE,
        REFUND,
        StatementEnd(7, 2, 660, 10_660, date(2026, 1, 30), 0),
    ]  # fmt: skip


def test_a_byte_order_mark_and_other_names_of_columns(tmp_path: Path) -> None:
    content = write_rows(ROWS).replace("Transaction Debit", "Transaction  Debit")
    file = write_file(tmp_path, b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
    assert lines_of(paypal_stl.read(file)) == [CHARGE, REFUND]


def test_there_is_a_statement_for_each_account_and_currency(tmp_path: Path) -> None:
    yen = replace(CHARGE, currency="JPY")
    rows = paypal_rows(
        Section("A", {"EUR": -5, "JPY": 0}, [CHARGE, yen, REFUND]),
        Section("B", {"EUR": 7, "USD": 1}, [CHARGE]),
    )
    items = list(paypal_stl.read(write_file(tmp_path, write_rows(rows))))
    assert [(item.account, item.currency, item.opening_balance) for item in starts_of(items)] == [
        ("A", "EUR", -5),
        ("A", "JPY", 0),
        ("B", "EUR", 7),
        ("B", "USD", 1),
    ]
    assert [item.line_number for item in lines_of(items)] == [5, 7, 6, 13]
    assert [(item.line_count, item.difference) for item in ends_of(items)] == [
        (2, 0),
        (1, 0),
        (1, 0),
        (0, 0),
    ]


def test_times_have_the_zone_of_the_file(tmp_path: Path) -> None:
    content = write_rows(ROWS).replace("12:00:00 +0000", "23:00:00 -0700")
    content = content.replace("2026/01/30 23:59:59", "2026/01/31 23:59:59")
    items = list(paypal_stl.read(write_file(tmp_path, content)))
    assert lines_of(items)[0].booking_time == datetime(2026, 1, 31, 6, 0, tzinfo=UTC)
    assert lines_of(items)[0].booking_date == date(2026, 1, 30)
    assert ends_of(items)[0].closing_date == date(2026, 1, 31)


def test_balances_that_differ_are_shown_and_no_damage(tmp_path: Path) -> None:
    rows = _changed(7, 10, "10659")
    (end,) = ends_of(paypal_stl.read(write_file(tmp_path, write_rows(rows))))
    assert end.difference == -1


@pytest.mark.parametrize(
    ("code", "amount", "line_type"),
    [
        *((code, 5, line_type) for code, line_type in LINE_TYPES.items() if len(code) == 5),
        ("T0001", -5, LineType.PAYOUT),
        ("T0000", -5, LineType.OTHER),
        ("T0403", -5, LineType.SETTLEMENT),
        ("T1503", -5, LineType.RESERVE),
        ("T9999", 5, LineType.OTHER),
        ("T11", 5, LineType.OTHER),
        ("new", 5, LineType.OTHER),
    ],
)
def test_types_by_code_and_direction(
    tmp_path: Path, code: str, amount: int, line_type: LineType
) -> None:
    rows = paypal_rows(Section("A", {"EUR": 0}, [replace(CHARGE, code=code, amount=amount, fee=0)]))
    (line,) = lines_of(paypal_stl.read(write_file(tmp_path, write_rows(rows))))
    assert (line.line_type, line.code, line.amount) == (line_type, code, amount)


def _changed(line: int, column: int, cell: str) -> list[list[str]]:
    rows = [list(row) for row in ROWS]
    rows[line - 1][column - 1] = cell
    return rows


@pytest.mark.parametrize(
    ("line", "column", "cell", "expected"),
    [
        (1, 1, "XX", "line 1, column 1: the first row must be RH"),
        (3, 1, "SB", "line 3, column 1: after FH must come SH or RF or RC"),
        (3, 2, "2026-01-30", "line 3, column 2: must be a time such as 2026/01/31 23:59:59 -0700, "
         "from 1970 to 2199"),
        (3, 4, "A" * 256, "line 3, column 4: Account ID must have at most 255 characters"),
        (4, 2, "Phone", "line 4, column 2: the column must be one of "
         + ", ".join(COLUMNS[:14]) + ", or an optional one of the format"),
        (4, 16, "Custom Field", "line 4, column 16: the column Custom Field must be unique"),
        (5, 6, "", "line 5, column 6: Transaction Event Code must not be empty"),
        (5, 8, "2026/02/30 00:00:00 -0700", "line 5, column 8: Transaction Completion Date must "
         "be a time such as 2026/01/31 23:59:59 -0700, from 1970 to 2199"),
        (5, 9, "", "line 5, column 9: Transaction Debit or Credit must be CR or DR"),
        (5, 10, "10.00", "line 5, column 10: Gross Transaction Amount must be an amount in minor "
         "units without sign"),
        (5, 10, "-1000", "line 5, column 10: Gross Transaction Amount must be an amount in minor "
         "units without sign"),
        (5, 11, "EURO", "line 5, column 11: Gross Transaction Currency must be a currency code "
         "such as EUR"),
        (5, 12, "", "line 5, column 12: Fee Debit or Credit must be CR or DR"),
        (5, 14, "USD", "line 5, column 14: Fee Currency must be that of Gross Transaction Amount"),
        # a wrong sign, amount, fee or currency shows in the totals
        (5, 9, "DR", "line 7, column 3: Total gross amount credits must be the sum of the rows of "
         "the section"),
        (6, 10, "301", "line 7, column 4: Total gross amount debits must be the sum of the rows "
         "of the section"),
        (5, 12, "CR", "line 7, column 5: Total transaction fee credits must be the sum of the "
         "rows of the section"),
        (5, 13, "41", "line 7, column 6: Total transaction fee debits must be the sum of the rows "
         "of the section"),
        (6, 11, "USD", "line 7, column 4: Total gross amount debits must be the sum of the rows "
         "of the section"),
        (7, 2, "EURO", "line 7, column 2: Currency of balance must be a currency code such as "
         "EUR"),
        (7, 3, "-1000", "line 7, column 3: Total gross amount credits must be an amount in minor "
         "units without sign"),
        (7, 7, "", "line 7, column 7: Beginning available balance must be CR or DR"),
        (7, 10, "", "line 7, column 10: Ending available balance must be an amount in minor units "
         "without sign"),
        (8, 2, "3", "line 8, column 2: the count must be the number of rows SB of the section"),
        (8, 2, "two", "line 8, column 2: the count must be the number of rows SB of the section"),
        (9, 4, "301", "line 9, column 4: Total gross amount debits must be the sum of the "
         "sections"),
        (9, 2, "USD", "line 9, column 3: Total gross amount credits must be the sum of the "
         "sections"),
        (10, 2, "1", "line 10, column 2: the count must be the number of rows SB of the file"),
        (11, 2, "1", "line 11, column 2: the count must be the number of rows SB of the file"),
    ],
)  # fmt: skip
def test_a_damaged_cell_is_named_before_anything_is_yielded(
    tmp_path: Path, line: int, column: int, cell: str, expected: str
) -> None:
    file = write_file(tmp_path, write_rows(_changed(line, column, cell)))
    assert read_error_before_any_item(paypal_stl.read, file) == f"statement.csv, {expected}"


def _error_of_rows(folder: Path, rows: list[list[str]]) -> str:
    return read_error_before_any_item(paypal_stl.read, write_file(folder, write_rows(rows)))


def test_a_missing_an_extra_and_a_duplicate_row_are_damage(tmp_path: Path) -> None:
    rest = "must be the sum of the rows of the section"
    assert _error_of_rows(tmp_path, ROWS[:4] + ROWS[5:]) == (
        f"statement.csv, line 6, column 3: Total gross amount credits {rest}"
    )
    assert _error_of_rows(tmp_path, ROWS[:5] + ROWS[4:]) == (
        f"statement.csv, line 8, column 3: Total gross amount credits {rest}"
    )
    extra = [*ROWS[4][:9], "0", "EUR", "", "", "", "", "", ""]
    assert _error_of_rows(tmp_path, [*ROWS[:6], extra, *ROWS[6:]]) == (
        "statement.csv, line 9, column 2: the count must be the number of rows SB of the section"
    )


def test_each_currency_has_its_totals_once(tmp_path: Path) -> None:
    assert _error_of_rows(tmp_path, ROWS[:6] + ROWS[7:]) == (
        "statement.csv, line 7, column 1: each currency of the section must have a row SF"
    )
    assert _error_of_rows(tmp_path, ROWS[:7] + ROWS[6:]) == (
        "statement.csv, line 8, column 2: a currency must have its totals only once"
    )
    assert _error_of_rows(tmp_path, ROWS[:8] + ROWS[9:]) == (
        "statement.csv, line 9, column 1: each currency of the report must have a row RF"
    )


@pytest.mark.parametrize(("record", "count"), _EARLY.items())
def test_a_truncated_file_is_damage(tmp_path: Path, record: str, count: int) -> None:
    error = _error_of_rows(tmp_path, ROWS[:count])
    assert error.startswith(
        f"statement.csv, line {count}, column 1: the file ends too early; after {record} must come "
    )


def test_an_empty_file_and_a_continued_one_are_damage(tmp_path: Path) -> None:
    assert _error_of_rows(tmp_path, []) == (
        "statement.csv, line 1, column 1: the file ends too early; the first row must be RH"
    )
    assert _error_of_rows(tmp_path, ROWS + ROWS) == (
        "statement.csv, line 12, column 1: after FF must come nothing"
    )


def test_a_footer_that_is_too_short_is_damage(tmp_path: Path) -> None:
    rows = [*ROWS[:6], ROWS[6][:9], *ROWS[7:]]
    assert _error_of_rows(tmp_path, rows) == (
        "statement.csv, line 7, column 10: the row must have at least 10 columns"
    )


def test_the_number_of_statements_is_limited(tmp_path: Path) -> None:
    sections = [Section(str(number), {"EUR": 0}, []) for number in range(51)]
    assert _error_of_rows(tmp_path, paypal_rows(*sections)) == (
        "statement.csv, line 205, column 1: a file must have at most 50 accounts and currencies"
    )


_lines = st.builds(
    StatementLine,
    line_number=st.just(0),
    line_type=st.just(LineType.OTHER),
    code=required_texts,
    amount=amounts,
    currency=currencies,
    fee=amounts,
    booking_time=seconds,
    reference=texts,
    charge_reference=texts,
    client_reference=texts,
    settlement_reference=texts,
)
_openings = st.fixed_dictionaries(dict.fromkeys(("EUR", "USD", "JPY", "KWD", "BTC"), amounts))
_sections = st.lists(st.builds(Section, texts, _openings, st.lists(_lines, max_size=5)), max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(sections=_sections)
def test_any_report_is_read_as_it_was_written(tmp_path: Path, sections: list[Section]) -> None:
    content = write_rows(paypal_rows(*sections))
    items = list(paypal_stl.read(write_file(tmp_path, content)))
    expected = [
        (section.account, currency, opening, [line for line in section.lines
                                              if line.currency == currency])
        for section in sections
        for currency, opening in section.openings.items()
    ]  # fmt: skip
    read = lines_of(items)
    for start, end, (account, currency, opening, lines) in zip(
        starts_of(items), ends_of(items), expected, strict=True
    ):
        assert (start.account, start.currency, start.opening_balance) == (
            account, currency, opening,
        )  # fmt: skip
        assert (end.line_count, end.total, end.difference) == (
            len(lines), sum(line.amount for line in lines), 0,
        )  # fmt: skip
        assert [_compared(line) for line in read[: len(lines)]] == [
            _compared(line) for line in lines
        ]
        read = read[len(lines) :]
    assert read == []


def _compared(line: StatementLine) -> tuple[object, ...]:
    return (
        line.code,
        line.amount,
        line.currency,
        line.fee,
        line.booking_time,
        line.reference,
        line.charge_reference,
        line.client_reference,
        line.settlement_reference,
    )
