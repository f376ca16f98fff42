"""The lines of statement files: each counts once, with its amount, its currency and its date."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tests.support.errors import expect_error_reason
from tests.support.platform import (
    ServedPlatform,
)
from tests.support.reconciliation import (
    Provider,
    breaks_of,
    charge,
    clearing,
    file_request,
    kinds_of,
    lines_of,
    outcomes_of,
    posted_clearing,
    reconcile,
    statement,
    stored_rows,
    transactions_of,
)
from tests.support.statement_items import (
    add,
    as_text,
    create,
    end,
    finish,
    line,
    rejected_field,
    start,
)

RECONCILED = reconciliation_pb2.STATEMENT_FILE_STATE_RECONCILED
LOADING = reconciliation_pb2.STATEMENT_FILE_STATE_LOADING


def test_the_lines_of_overlapping_files_count_once(client: Client, provider: Provider) -> None:
    """Files often have the last days again. Those lines are repeated; nothing is booked twice."""
    provider.pay_in(10_00, "ch-1")
    provider.pay_in(20_00, "ch-2")
    fee = charge(-5_00, line_type="FEE", reference="fee-1")
    plain = charge(-1_00, line_type="FEE")
    settlement = charge(-7_00, line_type="SETTLEMENT", reference="set-1")
    unknown = charge(3_00, "ch-9")
    first = [charge(10_00, "ch-1", fee=30), fee, plain, settlement, unknown]
    reconcile(client, provider.account, first)
    file = reconcile(
        client, provider.account, [*first, charge(20_00, "ch-2", fee=40), plain]
    ).statement_file
    assert (file.matched_count, file.repeated_count, kinds_of(file)) == (2, 5, {})
    assert outcomes_of(client, file.statement_file_id) == ["REPEATED"] * 5 + ["MATCHED"] * 2
    report = posted_clearing(client, provider.account)
    # charges, less fees of 0.30, 0.40, 5.00 and two of 1.00, less the settlement
    assert (report.ledger_balance, report.statement_balance) == ("15.30", "18.30")
    assert report.unexplained == "0.00"
    assert len(breaks_of(client, account=provider.account)) == 1
    repeated = lines_of(client, file.statement_file_id)[0]
    assert repeated.first_statement_file_id != file.statement_file_id


def test_a_line_that_comes_again_with_other_values_is_a_correction(
    client: Client, provider: Provider
) -> None:
    """The line stays as it was booked, and the corrected one is a break."""
    provider.pay_in(10_00, "ch-1")
    reconcile(client, provider.account, [charge(10_00, "ch-1", reference="tx-1")])
    corrected = charge(9_00, "ch-1", reference="tx-1")
    file = reconcile(client, provider.account, [corrected]).statement_file
    assert kinds_of(file) == {"LINE_CORRECTED": 1}
    report = clearing(client, provider.account)
    assert (report.statement_balance, report.unexplained) == ("19.00", "0.00")


@pytest.mark.parametrize("line_type", ["FEE", "SETTLEMENT"])
def test_a_corrected_fee_is_not_booked_twice(
    client: Client, provider: Provider, line_type: str
) -> None:
    """Fees and settlements are booked as the file has them; a correction of one is a break."""
    reconcile(client, provider.account, [charge(-5_00, line_type=line_type, reference="x-1")])
    corrected = charge(-6_00, line_type=line_type, reference="x-1")
    file = reconcile(client, provider.account, [corrected]).statement_file
    assert kinds_of(file) == {"LINE_CORRECTED": 1}
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained) == ("-5.00", "0.00")


@pytest.mark.parametrize("line_type", ["FEE", "SETTLEMENT"])
def test_of_lines_with_one_reference_only_the_first_is_booked(
    client: Client, provider: Provider, line_type: str
) -> None:
    """A file may have a correction of its own line. A person decides what is true."""
    lines = [
        charge(amount, line_type=line_type, reference="x-1") for amount in (-10_00, -10_01, -10_00)
    ]
    file = reconcile(client, provider.account, lines).statement_file
    assert kinds_of(file) == {"LINE_CORRECTED": 1, "DUPLICATE_LINE": 1}
    assert posted_clearing(client, provider.account).ledger_balance == "-10.00"


def test_equal_references_of_other_settlements_are_no_correction(
    client: Client, provider: Provider
) -> None:
    """Some providers name a fee by its month, in each batch of it."""
    for batch, amount in (("1", -5_00), ("2", -6_00)):
        fee = charge(amount, line_type="FEE", reference="fees of March", settlement_reference=batch)
        assert kinds_of(reconcile(client, provider.account, [fee]).statement_file) == {}
    assert posted_clearing(client, provider.account).ledger_balance == "-11.00"


def test_amounts_may_be_as_large_as_the_ledger_allows(client: Client, provider: Provider) -> None:
    """Just below 10^18 minor units, with a fee."""
    amount = 10**18 - 1
    provider.pay_in(amount, "ch-1", currency="USD")
    lines = [charge(amount, "ch-1", fee=10**17, currency="USD")]
    file = reconcile(client, provider.account, lines).statement_file
    assert (file.matched_count, kinds_of(file)) == (1, {})
    report = posted_clearing(client, provider.account, "USD")
    assert (report.ledger_balance, report.unexplained) == ("8999999999999999.99", "0.00")


def test_sums_beyond_what_the_ledger_can_post_are_rejected(
    platform: ServedPlatform, client: Client, provider: Provider
) -> None:
    """A file with more fees than one entry can have is rejected, not stuck."""
    lines = [
        charge(-(10**18 - 1), line_type="FEE", reference=f"fee-{number}") for number in range(12)
    ]
    items = statement(lines)
    file_id = create(client, provider.account, items)
    add(client, file_id, items)
    stored = stored_rows(platform.databases)
    assert expect_error_reason(lambda: finish(client, file_id, len(items))) == "AMOUNT_OUT_OF_RANGE"
    assert stored_rows(platform.databases) == stored


def test_no_card_number_of_a_statement_is_stored(
    platform: ServedPlatform, client: Client, provider: Provider
) -> None:
    """Banks print card numbers in the text of a line. The file is accepted, but such a text is
    withheld; the line is still recognized in another file.
    """
    lines = [charge(10_00, text="CARD 4111 1111 1111 1111"), charge(10_00, text="IBAN 4111")]
    file = reconcile(client, provider.account, lines).statement_file
    texts = [found.line.text for found in lines_of(client, file.statement_file_id)]
    assert "card number" in texts[0]
    assert texts[1] == "IBAN 4111"
    assert "1111 1111" not in str(stored_rows(platform.databases))
    again = reconcile(client, provider.account, lines, file_name="again").statement_file
    assert again.repeated_count == 2


def test_a_reference_of_digits_is_a_reference(client: Client, provider: Provider) -> None:
    """Some providers number their charges with 16 digits, of which a tenth look like card numbers:
    they are stored as they are, as the ledger does, because they match.
    """
    reference = "4111111111111111"
    provider.pay_in(10_00, reference)
    file = reconcile(client, provider.account, [charge(10_00, reference)]).statement_file
    assert (file.matched_count, kinds_of(file)) == (1, {})


def test_an_id_of_a_statement_may_be_digits(client: Client, provider: Provider) -> None:
    """It is the bank's, and no reason to reject the file."""
    items = [start(statement_id="4111111111111111"), end(0, "0.00")]
    request = file_request(provider.account, items)
    assert client.reconcile_statement_file(request, items).statement_file.state == RECONCILED


def test_lines_without_dates_match_by_reference(client: Client, provider: Provider) -> None:
    """A line without a date can match by what it names, and not by its amount."""
    provider.pay_in(10_00, "ch-1")
    provider.pay_in(20_00)
    lines = [charge(10_00, "ch-1", booking_date=""), charge(20_00, booking_date="")]
    file = reconcile(client, provider.account, lines).statement_file
    assert (file.matched_count, kinds_of(file)) == (1, {"CHARGE_UNKNOWN": 1})
    assert clearing(client, provider.account).unexplained == "0.00"


def test_lines_of_several_currencies_are_separate(client: Client, provider: Provider) -> None:
    """Each currency has its own sums, fees and report."""
    for currency, amount in (("EUR", 10_00), ("JPY", 500), ("KWD", 10_000)):
        provider.pay_in(amount, f"ch-{currency}", currency=currency)
    lines = [
        charge(10_00, "ch-EUR", fee=30),
        charge(500, "ch-JPY", fee=7, currency="JPY"),
        charge(10_000, "ch-KWD", fee=1, currency="KWD"),
    ]
    file = reconcile(client, provider.account, lines).statement_file
    assert {(item.currency, item.amount) for item in file.posted_sums} == {
        ("EUR", "-0.30"),
        ("JPY", "-7"),
        ("KWD", "-0.001"),
    }
    for currency, balance in (("EUR", "9.70"), ("JPY", "493"), ("KWD", "9.999")):
        report = posted_clearing(client, provider.account, currency)
        assert report.ledger_balance == report.statement_balance == balance
        assert float(report.unexplained) == 0


def test_movements_that_cancel_out_post_nothing(client: Client, provider: Provider) -> None:
    """Payouts and returns of a file may sum to zero: the ledger cannot post zero, and need not."""
    payout_id = provider.payout(10_00, "tr-1")
    provider.payout_return(10_00, "tr-2")
    lines = [
        charge(-10_00, line_type="PAYOUT", reference="tr-1", client_reference=payout_id),
        charge(10_00, line_type="PAYOUT_RETURN", reference="tr-2"),
        charge(0, line_type="SETTLEMENT", reference="set-0"),
        charge(0, line_type="FEE", reference="fee-0"),
    ]
    file = reconcile(client, provider.account, lines).statement_file
    assert (file.matched_count, kinds_of(file), list(file.posted_sums)) == (4, {}, [])
    assert clearing(client, provider.account).unexplained == "0.00"


def test_a_settlement_may_have_a_fee(client: Client, provider: Provider) -> None:
    """The bank gets what is left of it."""
    line_ = charge(-9_00, line_type="SETTLEMENT", reference="set-1", fee=1_00)
    assert line_.amount == "-10.00"
    file = reconcile(client, provider.account, [line_]).statement_file
    assert {item.kind: item.amount for item in file.posted_sums} == {
        "PROVIDER_FEE": "-1.00",
        "SETTLEMENT": "-9.00",
    }
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained) == ("-10.00", "0.00")
    (settlement,) = [
        item for item in transactions_of(client, provider.account) if item.external_reference
    ]
    assert {entry.amount for entry in settlement.entries} == {"9.00"}


@pytest.mark.parametrize("day", ["0001-01-01", "1969-12-31", "2200-01-01", "9999-12-31"])
def test_a_date_must_be_of_our_time(client: Client, provider: Provider, day: str) -> None:
    """A wrong century is an error of the file. It would make each entry overdue, or none."""
    for items, field in (
        ([start(opening_date=day)], "items[0].start.opening_date"),
        ([start(), end(0, "0.00", closing_date=day)], "items[1].end.closing_date"),
        ([start(), line(booking_date=day)], "items[1].line.booking_date"),
        ([start(), line(value_date=day)], "items[1].line.value_date"),
    ):
        file_id = create(client, provider.account, items)
        assert rejected_field(add, client, file_id, items) == field


@pytest.mark.parametrize("day", ["1970-01-01", "2199-12-31"])
def test_the_first_and_the_last_date_are_accepted(
    client: Client, provider: Provider, day: str
) -> None:
    """A settlement of that day is posted."""
    lines = [charge(-1_00, line_type="SETTLEMENT", reference="set-1", booking_date=day)]
    balances: dict[str, Any] = {"opening_date": day, "closing_date": day}
    file = reconcile(client, provider.account, lines, **balances).statement_file
    assert file.matched_count == 1
    assert posted_clearing(client, provider.account).ledger_balance == "-1.00"


@pytest.mark.parametrize("is_text", [False, True])
@pytest.mark.parametrize("line_type", ["CHARGE", "FEE", "OTHER"])
def test_a_bank_has_bookings_only(client: Client, line_type: str, is_text: bool) -> None:
    """The file of a provider with the account of a bank is rejected: its charges would wait for the
    ledger without end.
    """
    lines = [charge(10_00, "ch-1", line_type=line_type, line_number=2)]
    item = pb.StatementItem(lines=as_text(lines)) if is_text else pb.StatementItem(line=lines[0])
    items = [start(), item]
    file_id = create(client, "banks/main", items)
    field = "lines.rows[0]" if is_text else "line"
    assert rejected_field(add, client, file_id, items) == f"items[1].{field}.line_type"
