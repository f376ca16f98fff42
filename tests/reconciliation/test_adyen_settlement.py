"""Adyen's settlement details report."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystick_core.money import format_amount
from tallystick_core.reconciliation.statement import (
    LineType,
    StatementEnd,
    StatementLine,
    StatementStart,
)
from tallystick_server.reconciliation.formats import adyen_settlement
from tests.reconciliation.files import (
    ends_of,
    lines_of,
    read_error,
    starts_of,
    write_file,
    write_table,
)
from tests.reconciliation.strategies import amounts, currencies, required_texts, seconds, texts

_COLUMNS = (
    "Company Account", *adyen_settlement.REQUIRED_COLUMNS[:3], "Payment Method",
    *adyen_settlement.REQUIRED_COLUMNS[3:10], "Exchange Rate",
    *adyen_settlement.REQUIRED_COLUMNS[10:], *adyen_settlement.COST_COLUMNS,
    "Modification Merchant Reference", "Reserved4",
)  # fmt: skip
ROW = {
    "Merchant Account": "Shop",
    "Psp Reference": "P1",
    "Merchant Reference": "c1",
    "Creation Date": "2026-06-03 23:30:00",
    "TimeZone": "CET",
    "Type": "Settled",
    "Modification Reference": "M1",
    "Gross Currency": "EUR",
    "Gross Credit (GC)": "5.00",
    "Exchange Rate": "1",
    "Net Currency": "EUR",
    "Net Credit (NC)": "4.88",
    "Markup (NC)": "0.04",
    "Scheme Fees (NC)": "0.01",
    "Interchange (NC)": "0.07",
    "Batch Number": "4",
}
_PAYOUT = {
    "Psp Reference": "",
    "Merchant Reference": "",
    "Type": "MerchantPayout",
    "Modification Reference": "TX1XT batch 4",
    "Gross Currency": "",
    "Gross Credit (GC)": "",
    "Net Credit (NC)": "",
    "Net Debit (NC)": "4.88",
}


def report(*rows: dict[str, str]) -> str:
    return write_table(_COLUMNS, (ROW | row for row in rows))


def _line(folder: Path, row: dict[str, str]) -> StatementLine:
    (line,) = lines_of(adyen_settlement.read(write_file(folder, report(row))))
    return line


def test_a_batch_and_its_payout(tmp_path: Path) -> None:
    assert list(adyen_settlement.read(write_file(tmp_path, report({}, _PAYOUT)))) == [
        StatementStart(2, "Shop", "EUR"),
        StatementLine(
            line_number=2,
            line_type=LineType.CHARGE,
            code="Settled",
            amount=488,
            currency="EUR",
            fee=12,
            booking_date=date(2026, 6, 3),
            reference="M1",
            charge_reference="P1",
            client_reference="c1",
            settlement_reference="4",
            text="M1",
        ),
        StatementLine(
            line_number=3,
            line_type=LineType.SETTLEMENT,
            code="MerchantPayout",
            amount=-488,
            currency="EUR",
            booking_date=date(2026, 6, 3),
            reference="TX1XT batch 4",
            settlement_reference="4",
            text="TX1XT batch 4",
        ),
        StatementEnd(3, 2, 0),
    ]


def test_the_fee_of_a_conversion_is_that_of_the_cost_columns(tmp_path: Path) -> None:
    line = _line(tmp_path, {"Gross Currency": "JPY", "Gross Credit (GC)": "850"})
    assert (line.original_amount, line.original_currency) == (850, "JPY")
    assert (line.amount, line.fee) == (488, 12)


def test_a_debit_is_negative(tmp_path: Path) -> None:
    debit = {
        "Type": "Chargeback",
        "Gross Credit (GC)": "",
        "Gross Debit (GC)": "349.99",
        "Net Credit (NC)": "",
        "Net Debit (NC)": "357.49",
        "Modification Merchant Reference": "m1",
    }
    line = _line(tmp_path, debit)
    assert (line.line_type, line.amount, line.fee) == (LineType.DISPUTE, -35749, 750)
    assert line.client_reference == "m1"


@pytest.mark.parametrize(
    ("code", "line_type"),
    [
        ("Refunded", LineType.REFUND),
        ("ChargebackReversed", LineType.DISPUTE_REVERSAL),
        ("InvoiceDeduction", LineType.FEE),
        ("Balancetransfer", LineType.TRANSFER),
        ("BalanceTransfer", LineType.TRANSFER),
        ("SomethingNew", LineType.OTHER),
    ],
)
def test_an_unknown_type_is_no_damage(tmp_path: Path, code: str, line_type: LineType) -> None:
    line = _line(tmp_path, {"Type": code})
    assert (line.line_type, line.code) == (line_type, code)


def test_only_a_time_in_utc_is_a_time(tmp_path: Path) -> None:
    assert _line(tmp_path, {}).booking_time is None
    time = datetime(2026, 6, 3, 23, 30, tzinfo=UTC)
    assert _line(tmp_path, {"TimeZone": "UTC"}).booking_time == time


def test_the_booking_date_is_preferred(tmp_path: Path) -> None:
    content = write_table(
        (*_COLUMNS, "Booking Date", "Booking Date TimeZone"),
        [ROW | {"Booking Date": "2026-06-05 01:00:00", "Booking Date TimeZone": "UTC"}],
    )
    (line,) = lines_of(adyen_settlement.read(write_file(tmp_path, content)))
    assert line.booking_time == datetime(2026, 6, 5, 1, tzinfo=UTC)
    assert line.booking_date == date(2026, 6, 5)


def test_there_is_a_statement_for_each_account_and_currency(tmp_path: Path) -> None:
    usd = {"Net Currency": "USD", "Gross Currency": "USD"}
    file = write_file(tmp_path, report({}, {"Merchant Account": "Other"}, usd, {}))
    items = list(adyen_settlement.read(file))
    assert [(start.account, start.currency) for start in starts_of(items)] == [
        ("Shop", "EUR"),
        ("Other", "EUR"),
        ("Shop", "USD"),
    ]
    assert [end.line_count for end in ends_of(items)] == [2, 1, 1]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"Net Debit (NC)": "4.88"},
            "column 16: Net Credit (NC) must be empty if there is a Net Debit (NC)",
        ),
        (
            {"Net Credit (NC)": ""},
            "column 16: Net Credit (NC) or Net Debit (NC) must have an amount",
        ),
        ({"Net Credit (NC)": "-4.88"}, "column 16: Net Credit (NC) must have no sign"),
        (
            {"Net Credit (NC)": "4,88"},
            "column 16: Net Credit (NC) must be an amount in EUR such as -12.34",
        ),
        ({"Gross Credit (GC)": "-5.00"}, "column 12: Gross Credit (GC) must have no sign"),
        (
            {"Gross Currency": ""},
            "column 10: Gross Currency must be a currency code such as EUR",
        ),
        ({"Net Currency": "Euro"}, "column 14: Net Currency must be a currency code such as EUR"),
        ({"Merchant Account": ""}, "column 2: Merchant Account must not be empty"),
        ({"Type": ""}, "column 8: Type must not be empty"),
        (
            {"Creation Date": "2026-06-31 00:00:00"},
            "column 6: Creation Date must be a time such as 2026-01-31 23:59:59, from 1970 to 2199",
        ),
        (
            {"Gross Currency": "JPY", "Gross Credit (GC)": "850", "Markup (NC)": "x"},
            "column 19: Markup (NC) must be an amount in EUR such as -12.34",
        ),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, row: dict[str, str], expected: str) -> None:
    file = write_file(tmp_path, report({}, row))
    assert read_error(adyen_settlement.read, file) == f"statement.csv, line 3, {expected}"


@pytest.mark.parametrize("name", adyen_settlement.REQUIRED_COLUMNS)
def test_a_missing_column_is_named(tmp_path: Path, name: str) -> None:
    columns = [column for column in _COLUMNS if column != name]
    file = write_file(tmp_path, write_table(columns, []))
    assert read_error(adyen_settlement.read, file) == (
        f"statement.csv, line 1, column {len(_COLUMNS)}: the column {name} is missing"
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
    settlement_reference=texts,
)


def adyen_row(line: StatementLine) -> dict[str, str]:
    net = format_amount(abs(line.amount), line.currency)
    gross = format_amount(abs(line.gross_amount), line.currency)
    return {
        "Merchant Account": "Shop",
        "Psp Reference": line.charge_reference,
        "Merchant Reference": line.client_reference,
        "Creation Date": f"{line.booking_time:%Y-%m-%d %H:%M:%S}",
        "TimeZone": "UTC",
        "Type": line.code,
        "Modification Reference": line.reference,
        "Gross Currency": line.currency,
        f"Gross {'Debit' if line.gross_amount < 0 else 'Credit'} (GC)": gross,
        "Net Currency": line.currency,
        f"Net {'Debit' if line.amount < 0 else 'Credit'} (NC)": net,
        "Batch Number": line.settlement_reference,
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lines=st.lists(_lines, max_size=6))
def test_any_report_is_read_as_it_was_written(tmp_path: Path, lines: list[StatementLine]) -> None:
    content = write_table(_COLUMNS, map(adyen_row, lines))
    read = lines_of(adyen_settlement.read(write_file(tmp_path, content)))
    order = list(dict.fromkeys(line.currency for line in lines))
    expected = sorted(lines, key=lambda line: order.index(line.currency))
    assert [_compared(line) for line in read] == [_compared(line) for line in expected]


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
