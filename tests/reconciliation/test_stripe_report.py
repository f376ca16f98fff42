"""Stripe's itemized payout reconciliation report."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystick_core.currencies import EXPONENTS
from tallystick_core.money import format_amount
from tallystick_core.reconciliation.statement import (
    LineType,
    StatementEnd,
    StatementLine,
    StatementStart,
)
from tallystick_sandbox.stripe.reports import COLUMNS as SANDBOX_COLUMNS
from tallystick_server.reconciliation.formats import stripe_report
from tallystick_server.reconciliation.formats.csv_table import MAX_STATEMENTS
from tallystick_server.reconciliation.formats.registry import find_format
from tests.reconciliation.files import (
    ends_of,
    lines_of,
    read_error,
    starts_of,
    write_file,
    write_table,
)
from tests.reconciliation.strategies import (
    amounts,
    currencies,
    required_texts,
    seconds,
    texts,
)

_METADATA = ("payment_metadata[charge_id]", "payment_metadata[key]", "transfer_metadata[payout_id]")
_COLUMNS = (*SANDBOX_COLUMNS, *_METADATA)
ROW = {
    "automatic_payout_id": "po_1",
    "balance_transaction_id": "txn_1",
    "created_utc": "2026-01-30 23:30:00",
    "created": "2026-01-31 00:30:00",
    "available_on_utc": "2026-02-02 00:00:00",
    "available_on": "2026-02-02 01:00:00",
    "reporting_category": "charge",
    "gross": "10.00",
    "fee": "0.40",
    "net": "9.60",
    "currency": "eur",
    "description": "=HYPERLINK(1)",
    "source_id": "ch_1",
    "charge_id": "ch_1",
    "payment_metadata[charge_id]": "c1",
    "payment_metadata[key]": "k1",
}


def report(*rows: dict[str, str]) -> str:
    return write_table(_COLUMNS, (ROW | row for row in rows))


@pytest.mark.parametrize("time", ["17:20:31", "20:25:28", "10:20:25"])
def test_times_do_not_look_like_another_format(tmp_path: Path, time: str) -> None:
    """ ":20:" begins a statement of MT940, and is a part of a time in each hour."""
    row = {"created_utc": f"2026-01-30 {time}", "description": "order :28 of :60"}
    assert find_format(write_file(tmp_path, report(row))).name == "stripe_report"


def test_a_line_has_all_that_the_report_has(tmp_path: Path) -> None:
    file = write_file(tmp_path, report({}))
    assert list(stripe_report.read(file)) == [
        StatementStart(2, "", "EUR"),
        StatementLine(
            line_number=2,
            line_type=LineType.CHARGE,
            code="charge",
            amount=960,
            currency="EUR",
            fee=40,
            booking_date=date(2026, 1, 30),
            value_date=date(2026, 2, 2),
            booking_time=datetime(2026, 1, 30, 23, 30, tzinfo=UTC),
            reference="txn_1",
            charge_reference="ch_1",
            client_reference="c1",
            settlement_reference="po_1",
            text="=HYPERLINK(1)",
        ),
        StatementEnd(2, 1, 960),
    ]


def test_only_the_required_columns_are_needed(tmp_path: Path) -> None:
    content = write_table(
        stripe_report.REQUIRED_COLUMNS,
        [{name: ROW[name] for name in stripe_report.REQUIRED_COLUMNS}],
    )
    (line,) = lines_of(stripe_report.read(write_file(tmp_path, content)))
    assert (line.value_date, line.charge_reference, line.client_reference) == (None, "", "")


def test_there_is_a_statement_for_each_currency(tmp_path: Path) -> None:
    rows = [
        {},
        {
            "currency": "jpy",
            "gross": "500",
            "fee": "0",
            "net": "500",
            "automatic_payout_id": "po_2",
        },
        {"balance_transaction_id": "txn_3"},
    ]
    items = list(stripe_report.read(write_file(tmp_path, report(*rows))))
    assert [(start.line_number, start.currency) for start in starts_of(items)] == [
        (2, "EUR"),
        (3, "JPY"),
    ]
    assert [line.line_number for line in lines_of(items)] == [2, 4, 3]
    assert [(end.line_number, end.line_count, end.total) for end in ends_of(items)] == [
        (4, 2, 1920),
        (3, 1, 500),
    ]


def test_an_empty_report_has_no_statement(tmp_path: Path) -> None:
    assert list(stripe_report.read(write_file(tmp_path, report()))) == []


@pytest.mark.parametrize(
    ("category", "line_type"),
    [
        ("refund", LineType.REFUND),
        ("dispute", LineType.DISPUTE),
        ("transfer", LineType.PAYOUT),
        ("risk_reserved_funds", LineType.RESERVE),
        ("a_new_one", LineType.OTHER),
    ],
)
def test_an_unknown_category_is_no_damage(
    tmp_path: Path, category: str, line_type: LineType
) -> None:
    file = write_file(tmp_path, report({"reporting_category": category}))
    (line,) = lines_of(stripe_report.read(file))
    assert (line.line_type, line.code) == (line_type, category)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"net": "9.61"}, "column 12: net must be gross minus fee"),
        ({"fee": "-0.40"}, "column 12: net must be gross minus fee"),
        ({"gross": "-10.00"}, "column 12: net must be gross minus fee"),
        ({"gross": "10.001"}, "column 10: gross must be an amount in EUR such as -12.34"),
        ({"fee": ""}, "column 11: fee must be an amount in EUR such as -12.34"),
        ({"currency": "eu"}, "column 13: currency must be a currency code such as EUR"),
        ({"currency": "jpy"}, "column 12: net must be an amount in JPY such as -12"),
        (
            {"created_utc": "30.01.2026"},
            "column 5: created_utc must be a time such as 2026-01-31 23:59:59, from 1970 to 2199",
        ),
        (
            {"available_on_utc": "2026-13-01 00:00:00"},
            "column 7: available_on_utc must be a time such as 2026-01-31 23:59:59, from 1970 to "
            "2199",
        ),
        ({"balance_transaction_id": ""}, "column 4: balance_transaction_id must not be empty"),
        ({"automatic_payout_id": ""}, "column 1: automatic_payout_id must not be empty"),
        ({"reporting_category": ""}, "column 9: reporting_category must not be empty"),
        ({"charge_id": "c" * 256}, "column 16: charge_id must have at most 255 characters"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, row: dict[str, str], expected: str) -> None:
    file = write_file(tmp_path, report({}, row))
    assert read_error(stripe_report.read, file) == f"statement.csv, line 3, {expected}"


@pytest.mark.parametrize("name", stripe_report.REQUIRED_COLUMNS)
def test_a_missing_column_is_named(tmp_path: Path, name: str) -> None:
    columns = [column for column in _COLUMNS if column != name]
    file = write_file(tmp_path, write_table(columns, []))
    assert read_error(stripe_report.read, file) == (
        f"statement.csv, line 1, column {len(_COLUMNS)}: the column {name} is missing"
    )


def test_a_truncated_row_is_damage(tmp_path: Path) -> None:
    content = report({}, {})
    file = write_file(tmp_path, content[: content.rindex("charge")])
    assert read_error(stripe_report.read, file) == (
        "statement.csv, line 3, column 10: the row must have 23 columns"
    )


def test_the_number_of_currencies_is_limited(tmp_path: Path) -> None:
    codes = sorted(code for code, exponent in EXPONENTS.items() if exponent == 2)
    rows = ({"currency": code} for code in codes[: MAX_STATEMENTS + 1])
    file = write_file(tmp_path, report(*rows))
    assert read_error(stripe_report.read, file) == (
        "statement.csv, line 52, column 1: a file must have at most 50 accounts and currencies"
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
    reference=required_texts,
    charge_reference=texts,
    client_reference=texts,
    settlement_reference=required_texts,
    text=texts,
)


def stripe_row(line: StatementLine) -> dict[str, str]:
    time = f"{line.booking_time:%Y-%m-%d %H:%M:%S}"
    return {
        "automatic_payout_id": line.settlement_reference,
        "balance_transaction_id": line.reference,
        "created_utc": time,
        "available_on_utc": time,
        "reporting_category": line.code,
        "gross": format_amount(line.gross_amount, line.currency),
        "fee": format_amount(line.fee, line.currency),
        "net": format_amount(line.amount, line.currency),
        "currency": line.currency.lower(),
        "description": line.text,
        "charge_id": line.charge_reference,
        "payment_metadata[charge_id]": line.client_reference,
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lines=st.lists(_lines, max_size=6))
def test_any_report_is_read_as_it_was_written(tmp_path: Path, lines: list[StatementLine]) -> None:
    content = write_table(_COLUMNS, map(stripe_row, lines))
    read = lines_of(stripe_report.read(write_file(tmp_path, content)))
    order = list(dict.fromkeys(line.currency for line in lines))
    expected = sorted(lines, key=lambda line: order.index(line.currency))
    assert [_compared(line) for line in read] == [_compared(line) for line in expected]
    assert all(line.value_date == line.booking_date for line in read)


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
        line.text,
    )
