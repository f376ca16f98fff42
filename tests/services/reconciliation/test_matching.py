"""Lines of statements match entries of the ledger, and what does not match is a break."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest

from tallystick import Client
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind
from tests.support.platform import unique_id
from tests.support.reconciliation import (
    DAY,
    Provider,
    charge,
    clearing,
    kinds_of,
    ledger_balance,
    only_break,
    post,
    posted_clearing,
    reconcile,
)


def test_lines_may_name_one_entry_by_different_keys(client: Client, provider: Provider) -> None:
    """A charge is reported in two parts: one has its reference, and one has our id. Together they
    agree with the ledger, so they match.
    """
    order_id = provider.pay_in(10_00, "ch-1")
    lines = [charge(6_00, "ch-1", fee=10), charge(4_00, client_reference=f"o-{order_id}")]
    file = reconcile(client, provider.account, lines).statement_file
    assert (kinds_of(file), file.matched_count) == ({}, 2)
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained) == ("9.90", "0.00")


def test_lines_that_agree_with_the_ledger_match(client: Client, provider: Provider) -> None:
    """By the reference of the charge, of the line, or by our id; the fee is booked."""
    provider.pay_in(10_00, "ch-1")
    provider.pay_in(20_00, "ch-2")
    order_id = provider.pay_in(30_00, "ch-3")
    lines = [
        charge(10_00, "ch-1", fee=30),
        charge(20_00, reference="ch-2"),
        charge(30_00, client_reference=f"o-{order_id}"),
    ]
    file = reconcile(client, provider.account, lines).statement_file
    assert (file.line_count, file.matched_count, kinds_of(file)) == (3, 3, {})
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.statement_balance) == ("59.70", "59.70")
    assert (report.unexplained, list(report.expected), list(report.breaks)) == ("0.00", [], [])
    assert ledger_balance(client, f"psp/{provider.name}/fees") == "-0.30"


@pytest.mark.parametrize("other_count", [0, 40])
def test_matches_do_not_depend_on_how_many_entries_are_open(
    client: Client, provider: Provider, other_count: int
) -> None:
    """A file reads all open entries if they are few, and looks up those of its lines otherwise."""
    provider.pay_in_all(10_00, [f"ch-other-{number}" for number in range(other_count)])
    provider.pay_in(10_00, "ch-1")
    provider.pay_in(4_00, "ch-2")
    provider.pay_in(6_00, "ch-2")
    provider.pay_in(7_00, "ch-3", currency="USD")
    provider.pay_in(8_00, "ch-4")
    provider.pay_in(9_00, "ch-5")
    provider.pay_in(11_00, "ch-6", time=DAY - timedelta(days=60))
    lines = [
        charge(10_00, "ch-1", fee=30),
        charge(10_00, "ch-2"),
        charge(7_00, "ch-3"),
        charge(5_00, "ch-4"),
        charge(3_00, "ch-4"),
        charge(9_50, "ch-5"),
        charge(11_00, "ch-6"),
    ]
    file = reconcile(client, provider.account, lines).statement_file
    assert file.matched_count == 4
    assert kinds_of(file) == {"CURRENCY_DIFFERS": 1, "AMOUNT_DIFFERS": 1, "DATE_DIFFERS": 1}


def test_a_charge_for_several_orders_matches_them_all(client: Client, provider: Provider) -> None:
    """A combined charge is one line, and one transaction for each order."""
    for amount in (5_00, 7_00, 8_00):
        provider.pay_in(amount, "ch-1")
    file = reconcile(client, provider.account, [charge(20_00, "ch-1")]).statement_file
    assert (file.matched_count, kinds_of(file)) == (1, {})


def test_a_charge_in_several_lines_matches_once(client: Client, provider: Provider) -> None:
    """A provider may pay a charge in parts."""
    provider.pay_in(20_00, "ch-1")
    lines = [charge(12_00, "ch-1"), charge(8_00, "ch-1")]
    file = reconcile(client, provider.account, lines).statement_file
    assert (file.matched_count, kinds_of(file)) == (2, {})


def test_entries_that_no_file_has_are_expected(client: Client, provider: Provider) -> None:
    """They are no exception: the next file may have them."""
    provider.pay_in(10_00, "ch-1")
    provider.pay_in(15_00, "ch-2")
    file = reconcile(client, provider.account, [charge(10_00, "ch-1")]).statement_file
    assert kinds_of(file) == {}
    report = clearing(client, provider.account)
    (expected, *_) = report.expected
    assert (expected.count, expected.amount.amount) == (1, "15.00")
    assert report.unexplained == "0.00"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (charge(9_00, "ch-1"), "AMOUNT_DIFFERS"),
        (charge(10_01, "ch-1"), "ROUNDING"),
        (charge(-10_00, "ch-1"), "SIGN_DIFFERS"),
        (charge(10_00, "ch-1", currency="USD"), "CURRENCY_DIFFERS"),
        (charge(10_00, "ch-1", fee=6_00), "FEE_DIFFERS"),
        (charge(10_00, "ch-1", fee=-1), "FEE_DIFFERS"),
        (charge(10_00, "ch-1", booking_date="2026-04-10"), "DATE_DIFFERS"),
        (charge(10_00, "ch-9"), "CHARGE_UNKNOWN"),
        (charge(10_00, "ch-9", client_reference="o-po-9"), "CHARGE_NOT_BOOKED"),
        (charge(-10_00, line_type="PAYOUT", reference="tr-9"), "PAYOUT_UNKNOWN"),
        (charge(-10_00, line_type="PAYOUT", client_reference="pay-9"), "PAYOUT_NOT_BOOKED"),
        (charge(-10_00, "ch-1", line_type="REFUND"), "REFUND_NOT_BOOKED"),
        (charge(10_00, "ch-1", line_type="REFUND_FAILURE"), "REFUND_NOT_BOOKED"),
        (charge(-10_00, "ch-1", line_type="DISPUTE"), "DISPUTE_NOT_BOOKED"),
        (charge(10_00, "ch-1", line_type="DISPUTE_REVERSAL"), "DISPUTE_NOT_BOOKED"),
        (charge(-10_00, line_type="RESERVE"), "RESERVE"),
        (charge(-10_00, line_type="TRANSFER"), "TRANSFER"),
        (charge(-10_00, line_type="CONVERSION"), "CONVERSION"),
        (charge(-10_00, line_type="ADJUSTMENT"), "PROVIDER_ADJUSTMENT"),
        (charge(10_00, line_type="SETTLEMENT_FAILURE"), "SETTLEMENT_FAILED"),
        (charge(-10_00, line_type="OTHER"), "LINE_UNKNOWN"),
    ],
)
def test_each_difference_has_its_kind(
    client: Client, provider: Provider, line: object, kind: str
) -> None:
    """The ledger has a charge of 10.00; the break has the line, and the clearing report explains
    all money by it.
    """
    provider.pay_in(10_00, "ch-1")
    file = reconcile(client, provider.account, [line]).statement_file  # type: ignore[list-item]
    assert (file.matched_count, kinds_of(file)) == (0, {kind: 1})
    found = only_break(client, provider.account)
    assert len(found.lines) == 1
    assert found.detail
    for currency in {"EUR", found.currency}:
        assert float(posted_clearing(client, provider.account, currency).unexplained) == 0


def test_the_same_line_twice_in_a_file_is_a_break(client: Client, provider: Provider) -> None:
    """The ledger has the charge once: one line matches, and the other is in a break."""
    provider.pay_in(10_00, "ch-1")
    lines = [charge(10_00, "ch-1"), charge(10_00, "ch-1")]
    file = reconcile(client, provider.account, lines).statement_file
    assert kinds_of(file) == {"DUPLICATE_LINE": 1}
    assert file.matched_count == 1
    assert clearing(client, provider.account).unexplained == "0.00"


def test_an_entry_that_should_have_come_is_a_break(client: Client, provider: Provider) -> None:
    """A file that is five days later than the entry should have it."""
    provider.pay_in(10_00, "ch-1")
    late = DAY + timedelta(days=6)
    provider.pay_in(20_00, "ch-2", time=late)
    lines = [charge(20_00, "ch-2", booking_date=late.date().isoformat())]
    file = reconcile(client, provider.account, lines).statement_file
    assert kinds_of(file) == {"MISSING_IN_FILE": 1}
    found = only_break(client, provider.account)
    assert (found.difference, [item.amount for item in found.ledger_items]) == (
        "-10.00",
        ["10.00"],
    )
    assert clearing(client, provider.account).unexplained == "0.00"


def test_a_settlement_moves_money_to_the_bank(client: Client, provider: Provider) -> None:
    """The provider pays its balance out, and the line of the bank closes the transit account."""
    provider.pay_in(10_00, "ch-1")
    settlement = charge(
        -9_70, line_type="SETTLEMENT", reference="set-1", settlement_reference="set-1"
    )
    reconcile(client, provider.account, [charge(10_00, "ch-1", fee=30), settlement])
    assert posted_clearing(client, provider.account).ledger_balance == "0.00"
    bank = f"banks/{unique_id('b')}"
    entry = charge(9_70, line_type="BANK_ENTRY", settlement_reference="set-1")
    file = reconcile(client, bank, [entry]).statement_file
    assert (file.matched_count, kinds_of(file)) == (1, {})
    report = posted_clearing(client, bank)
    assert (report.ledger_balance, report.unexplained) == ("9.70", "0.00")
    assert clearing(client, "banks/transit").unexplained == "0.00"


def test_lines_that_name_their_settlement_pay_it(client: Client, provider: Provider) -> None:
    """Stripe's report has no line of the payout to the bank: the sum of its lines is paid."""
    provider.pay_in(10_00, "ch-1")
    provider.pay_in(20_00, "ch-2")
    lines = [
        charge(10_00, "ch-1", fee=30, settlement_reference="po_1"),
        charge(20_00, "ch-2", fee=50, settlement_reference="po_1"),
    ]
    reconcile(client, provider.account, lines, format_="stripe_report")
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.statement_balance) == ("0.00", "0.00")
    assert report.unexplained == "0.00"
    entry = charge(29_20, line_type="BANK_ENTRY", reference="po_1")
    file = reconcile(client, f"banks/{unique_id('b')}", [entry]).statement_file
    assert (file.matched_count, kinds_of(file)) == (1, {})


def test_one_line_of_a_bank_pays_a_batch_of_payouts(client: Client, provider: Provider) -> None:
    """The bank has one line for the payouts of a day: without a reference, by their sum."""
    far_day = DAY + timedelta(days=hash(provider.name) % 20_000)
    for amount in (11_11, 22_22, 33_33):
        provider.payout(amount, time=far_day)
    entry = charge(-66_66, line_type="BANK_ENTRY", booking_date=far_day.date().isoformat())
    bank = f"banks/{unique_id('b')}"
    file = reconcile(client, bank, [entry]).statement_file
    assert (file.matched_count, kinds_of(file)) == (1, {})
    assert posted_clearing(client, provider.payouts_account).ledger_balance == "0.00"
    assert posted_clearing(client, bank).ledger_balance == "-66.66"


def test_a_line_that_names_something_else_pays_no_payout(
    client: Client, provider: Provider
) -> None:
    """A rent of the same amount is not the payout of a seller. The name that we gave is."""
    amount = 1_000_00 + random.Random(provider.name).randrange(900_000)
    payout_id = provider.payout(amount)
    bank = f"banks/{unique_id('b')}"
    rent = charge(-amount, line_type="BANK_ENTRY", reference="b-1", client_reference="RENT-9")
    file = reconcile(client, bank, [rent]).statement_file
    assert kinds_of(file) == {"BANK_ENTRY_UNKNOWN": 1}
    paid = charge(-amount, line_type="BANK_ENTRY", reference="b-2", client_reference=payout_id)
    assert reconcile(client, bank, [paid]).statement_file.matched_count == 1


def test_payouts_whose_ids_differ_by_the_prefix_of_a_charge_are_two(
    client: Client, provider: Provider
) -> None:
    """A payout's own id is sent to the provider, so it may begin with "o-"."""
    payout_id = provider.payout(5_00)
    line = charge(-5_00, line_type="PAYOUT", reference="tr-1", client_reference=f"o-{payout_id}")
    file = reconcile(client, provider.account, [line]).statement_file
    assert kinds_of(file) == {"PAYOUT_NOT_BOOKED": 1}


def test_a_line_without_a_reference_matches_by_amount_and_date(
    client: Client, provider: Provider
) -> None:
    """The nearest entries of the amount match first."""
    provider.pay_in(10_00)
    provider.pay_in(10_00, time=DAY + timedelta(days=1))
    file = reconcile(client, provider.account, [charge(10_00)]).statement_file
    assert (file.matched_count, kinds_of(file)) == (1, {})
    assert clearing(client, provider.account).expected[0].count == 1


def test_a_fee_line_is_booked(client: Client, provider: Provider) -> None:
    """A fee of the provider that belongs to no charge."""
    reconcile(client, provider.account, [charge(-5_00, line_type="FEE", reference="fee-1")])
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained) == ("-5.00", "0.00")
    assert ledger_balance(client, f"psp/{provider.name}/fees") == "-5.00"


def test_the_days_of_a_file_are_those_of_all_its_lines(client: Client, provider: Provider) -> None:
    """A file without balances reaches to its last line, also if that is in a break."""
    provider.pay_in(10_00, "ch-1")
    late = (DAY + timedelta(days=6)).date().isoformat()
    file = reconcile(
        client, provider.account, [charge(5_00, "ch-9", booking_date=late)]
    ).statement_file
    assert kinds_of(file) == {"CHARGE_UNKNOWN": 1, "MISSING_IN_FILE": 1}


def test_a_settlement_that_the_bank_pays_differently_is_one_break(
    client: Client, provider: Provider
) -> None:
    """The line of the bank names the settlement: the break has both, and says the difference."""
    settlement = charge(-9_70, line_type="SETTLEMENT", reference=unique_id("set"))
    reconcile(client, provider.account, [settlement])
    posted_clearing(client, provider.account)
    bank = f"banks/{unique_id('b')}"
    entry = charge(9_60, line_type="BANK_ENTRY", settlement_reference=settlement.reference)
    assert kinds_of(reconcile(client, bank, [entry]).statement_file) == {"AMOUNT_DIFFERS": 1}
    found = only_break(client, bank)
    assert (found.difference, [item.amount for item in found.ledger_items]) == ("-0.10", ["9.70"])


def test_an_old_entry_of_the_same_amount_hides_no_match(client: Client, provider: Provider) -> None:
    """Lines without a reference match entries of their amount within days of them; entries that
    are too old stay expected, even if another line of the file is as old.
    """
    old, new = DAY, DAY + timedelta(days=20)
    provider.pay_in(10_00, time=old)
    provider.pay_in(10_00, time=new)
    provider.pay_in(99_00, time=old)
    lines = [
        charge(10_00, booking_date=new.date().isoformat()),
        charge(99_00, booking_date=old.date().isoformat()),
    ]
    file = reconcile(client, provider.account, lines).statement_file
    assert (file.matched_count, kinds_of(file)) == (2, {"MISSING_IN_FILE": 1})
    found = only_break(client, provider.account)
    assert found.ledger_items[0].effective_time.ToDatetime().date() == old.date()


def test_an_entry_near_another_line_hides_no_match(client: Client, provider: Provider) -> None:
    """Lines and entries of one amount are paired in their order; an entry that no line can have
    does not shift the others.
    """
    days = [DAY + timedelta(days=offset) for offset in (0, 4, 30)]
    for time in days:
        provider.pay_in(10_00, time=time)
    lines = [charge(10_00, booking_date=time.date().isoformat()) for time in (days[0], days[2])]
    file = reconcile(client, provider.account, lines).statement_file
    assert (file.matched_count, kinds_of(file)) == (2, {"MISSING_IN_FILE": 1})


def test_an_entry_of_the_bank_itself_matches(client: Client) -> None:
    """The ledger may have a movement of the bank already: its line posts nothing."""
    bank = f"banks/{unique_id('b')}"
    lines = (JournalLine(bank, "EUR", -8_00), JournalLine("platform/adjustments", "EUR", 8_00))
    post(client, PostingKind.ADJUSTMENT, unique_id("a"), lines, "ref-1")
    entry = charge(8_00, line_type="BANK_ENTRY", reference="ref-1")
    file = reconcile(client, bank, [entry]).statement_file
    assert (file.matched_count, kinds_of(file), list(file.posted_sums)) == (1, {}, [])
    report = clearing(client, bank)
    assert (report.ledger_balance, report.statement_balance) == ("8.00", "8.00")
    assert (report.unexplained, list(report.expected)) == ("0.00", [])
