"""What comes late ends its break: an entry that the ledger lacked, or a line that no file had."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_server.reconciliation import ledger_reader
from tests.support.break_operator import Operator, resolution_of, state_of
from tests.support.platform import eventually, unique_id
from tests.support.reconciliation import (
    DAY,
    Provider,
    breaks_of,
    charge,
    clearing,
    entries_of,
    kinds_of,
    lines_of,
    only_break,
    posted_clearing,
    reconcile,
    transactions_of,
)

LATER: dict[str, Any] = {"closing_date": (DAY + timedelta(days=6)).date().isoformat()}
"""The end of a statement in which an entry of DAY is overdue."""


def resolved(client: Client, account: str) -> list[reconciliation_pb2.Break]:
    """The breaks of an account once all of them are resolved."""

    def all_resolved() -> list[reconciliation_pb2.Break]:
        found = breaks_of(client, account=account)
        return found if {state_of(item) for item in found} == {"RESOLVED"} else []

    return eventually(all_resolved)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (charge(10_00, "ch-1", fee=30, client_reference="o-po-1"), "CHARGE_NOT_BOOKED"),
        (charge(10_00, "ch-1", fee=30), "CHARGE_UNKNOWN"),
        (charge(10_00, reference="ch-1", fee=30), "CHARGE_UNKNOWN"),
    ],
)
def test_a_charge_that_is_booked_late_ends_its_break(
    client: Client, provider: Provider, line: reconciliation_pb2.StatementLine, kind: str
) -> None:
    """The statement was faster than the ledger: once the charge is booked, both agree, and the fee
    is posted. Nobody has to do anything.
    """
    file = reconcile(client, provider.account, [line]).statement_file
    assert kinds_of(file) == {kind: 1}
    provider.pay_in(10_00, "ch-1")
    (found,) = resolved(client, provider.account)
    assert (resolution_of(found), found.changes[-1].caller) == ("MATCH", "tallystick")
    assert [item.amount for item in found.ledger_items] == ["10.00"]
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.statement_balance) == ("9.70", "9.70")
    assert (report.unexplained, list(report.expected), list(report.breaks)) == ("0.00", [], [])


def test_a_payout_that_is_booked_late_ends_its_break(client: Client, provider: Provider) -> None:
    """It moves from the account of payouts to that of the statement."""
    line = charge(-10_00, line_type="PAYOUT", charge_reference="tr-1", client_reference="pay-1")
    file = reconcile(client, provider.account, [line]).statement_file
    assert kinds_of(file) == {"PAYOUT_NOT_BOOKED": 1}
    provider.payout(10_00, "tr-1")
    resolved(client, provider.account)
    assert posted_clearing(client, provider.payouts_account).ledger_balance == "0.00"
    assert entries_of(transactions_of(client, provider.account)[-1]) == {
        provider.account: "-10.00",
        provider.payouts_account: "10.00",
    }
    found = only_break(client, provider.account)
    assert found.transaction_id == transactions_of(client, provider.account)[-1].transaction_id


def test_a_charge_that_is_booked_otherwise_stays_a_break(
    client: Client, provider: Provider
) -> None:
    """Another amount, currency or type does not end it, nor does a fee that cannot be right."""
    lines = [
        charge(10_00, "ch-1", client_reference="a"),
        charge(10_00, "ch-2", client_reference="b"),
        charge(10_00, "ch-3", client_reference="c"),
        charge(10_00, "ch-4", client_reference="d", fee=9_00),
        charge(10_00, "ch-5", client_reference="e"),
    ]
    reconcile(client, provider.account, lines)
    provider.pay_in(11_00, "ch-1")
    provider.pay_in(10_00, "ch-2", currency="USD")
    provider.payout(10_00, "ch-3")
    provider.pay_in(10_00, "ch-4")
    provider.pay_in(10_00, "ch-5")

    def states() -> list[str]:
        found = breaks_of(client, account=provider.account)
        return [state_of(item) for item in sorted(found, key=lambda item: item.lines[0].number)]

    assert eventually(lambda: "RESOLVED" in states())
    assert states() == ["OPEN"] * 4 + ["RESOLVED"]
    assert clearing(client, provider.account).unexplained == "0.00"


def test_breaks_that_stay_do_not_hold_up_others(
    client: Client, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many breaks have an entry that does not agree, those after them end."""
    monkeypatch.setattr(ledger_reader, "_MAX_BREAKS", 2)
    lines = [charge(10_00, f"ch-{number}", client_reference="x") for number in range(8)]
    reconcile(client, provider.account, lines)
    for number in range(8):
        provider.pay_in(10_00 if number in (3, 7) else 11_00, f"ch-{number}")
    state = reconciliation_pb2.BREAK_STATE_RESOLVED
    assert eventually(lambda: len(breaks_of(client, account=provider.account, state=state)) == 2)


def test_a_reopened_break_ends_once_the_ledger_has_its_charge(
    client: Client, provider: Provider
) -> None:
    """An operator adjusted the ledger too early: reopened, the break matches the charge."""
    operator = Operator(client)
    reconcile(client, provider.account, [charge(10_00, "ch-1", client_reference="o-po-1")])
    break_id = only_break(client, provider.account).break_id
    operator.resolve(break_id, "ADJUST")
    provider.pay_in(10_00, "ch-1")
    assert posted_clearing(client, provider.account).ledger_balance == "20.00"
    operator.reopen(break_id)
    (found,) = resolved(client, provider.account)
    assert resolution_of(found) == "MATCH"
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained) == ("10.00", "0.00")


def test_a_line_that_comes_late_ends_its_break(client: Client, provider: Provider) -> None:
    """The line is in the break that its entry opened, and the fee is posted. A repeat of the line
    is a repeat.
    """
    provider.pay_in(10_00, "ch-1")
    file = reconcile(client, provider.account, [], **LATER).statement_file
    assert kinds_of(file) == {"MISSING_IN_FILE": 1}
    line = charge(10_00, "ch-1", fee=30)
    late_file = reconcile(client, provider.account, [line]).statement_file
    assert (kinds_of(late_file), late_file.matched_count) == ({}, 0)
    (found,) = breaks_of(client, account=provider.account)
    assert (state_of(found), resolution_of(found)) == ("RESOLVED", "MATCH")
    assert (found.changes[-1].caller, found.statement_file_id) == (
        "tallystick",
        file.statement_file_id,
    )
    assert [item.break_id for item in lines_of(client, late_file.statement_file_id)] == [
        found.break_id
    ]
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.statement_balance) == ("9.70", "9.70")
    assert (report.unexplained, list(report.expected), list(report.breaks)) == ("0.00", [], [])
    again = reconcile(client, provider.account, [line], file_name="again").statement_file
    assert (again.repeated_count, kinds_of(again)) == (1, {})


def test_a_late_line_may_be_about_several_orders(client: Client, provider: Provider) -> None:
    """Each order has its own break; they end together."""
    for amount in (5_00, 7_00):
        provider.pay_in(amount, "ch-1")
    reconcile(client, provider.account, [], **LATER)
    reconcile(client, provider.account, [charge(12_00, "ch-1", fee=30)])
    found = breaks_of(client, account=provider.account)
    assert [resolution_of(item) for item in found] == ["MATCH", "MATCH"]
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained, list(report.breaks)) == ("11.70", "0.00", [])


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (charge(11_00, "ch-1"), "DUPLICATE_LINE"),
        (charge(10_00, "ch-1", fee=9_00), "DUPLICATE_LINE"),
        (charge(10_00, "ch-1", currency="USD"), "DUPLICATE_LINE"),
        (charge(10_00, "ch-1", booking_date="2026-06-01"), "DUPLICATE_LINE"),
        (charge(-10_00, "ch-1", line_type="REFUND"), "REFUND_NOT_BOOKED"),
    ],
)
def test_a_late_line_that_differs_is_a_break_of_its_own(
    client: Client, provider: Provider, line: reconciliation_pb2.StatementLine, kind: str
) -> None:
    """What differs needs a person."""
    provider.pay_in(10_00, "ch-1")
    reconcile(client, provider.account, [], **LATER)
    assert kinds_of(reconcile(client, provider.account, [line]).statement_file) == {kind: 1}
    found = breaks_of(client, account=provider.account)
    assert {state_of(item) for item in found} == {"OPEN"}
    assert clearing(client, provider.account).unexplained == "0.00"


def test_a_break_that_was_decided_stays_so(client: Client, provider: Provider) -> None:
    """An operator has written the missing charge off: the late line is a break of its own."""
    provider.pay_in(10_00, "ch-1")
    reconcile(client, provider.account, [], **LATER)
    Operator(client).resolve(only_break(client, provider.account).break_id, "WRITE_OFF")
    file = reconcile(client, provider.account, [charge(10_00, "ch-1")]).statement_file
    assert kinds_of(file) == {"DUPLICATE_LINE": 1}
    assert posted_clearing(client, provider.account).unexplained == "0.00"


def test_a_missed_file_may_come_later(client: Client, provider: Provider) -> None:
    """A whole file that was not loaded in its time ends all the breaks it had caused."""
    count = 600
    references = [unique_id("ch") for _ in range(count)]
    provider.pay_in_all(10_00, references)
    file = reconcile(client, provider.account, [], **LATER).statement_file
    assert kinds_of(file) == {"MISSING_IN_FILE": count}
    lines = [charge(10_00, reference, fee=30) for reference in references]
    assert kinds_of(reconcile(client, provider.account, lines).statement_file) == {}
    open_state = reconciliation_pb2.BREAK_STATE_OPEN
    assert breaks_of(client, account=provider.account, state=open_state) == []
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained) == ("5820.00", "0.00")


@pytest.mark.parametrize("files", [1, 2])
def test_a_transfer_that_was_taken_back_is_no_difference(
    client: Client, provider: Provider, files: int
) -> None:
    """It never reached the seller, so the ledger has neither the transfer nor its reversal. Their
    lines cancel each other out, in one file or in two.
    """
    reference = unique_id("tr")
    out = charge(-10_00, reference, line_type="PAYOUT", client_reference="pay-9")
    back = charge(10_00, reference, line_type="PAYOUT_RETURN", client_reference="pay-9")
    for lines in [[out, back]] if files == 1 else [[out], [back]]:
        reconcile(client, provider.account, lines)
    found = breaks_of(client, account=provider.account)
    assert [item.state for item in found] == [reconciliation_pb2.BREAK_STATE_RESOLVED] * 2
    assert {item.resolution for item in found} == {reconciliation_pb2.RESOLUTION_MATCH}
    assert posted_clearing(client, provider.account).unexplained == "0.00"
