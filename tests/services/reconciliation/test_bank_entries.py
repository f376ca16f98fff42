"""Lines of banks and entries of the ledger find each other, whichever comes first."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_server.reconciliation import bank_entries
from tests.support.break_operator import Operator, resolution_of, state_of
from tests.support.platform import ServedPlatform, eventually, unique_id
from tests.support.reconciliation import (
    Provider,
    breaks_of,
    charge,
    entries_of,
    kinds_of,
    only_break,
    posted_clearing,
    reconcile,
    require_verified,
    transactions_of,
    wait_until_posted,
)


def bank_line(amount: int, reference: str = "", **values: Any) -> reconciliation_pb2.StatementLine:
    """A booking of a bank."""
    day = values.pop("booking_date", "2026-03-10")
    return charge(amount, line_type="BANK_ENTRY", reference=reference, booking_date=day, **values)


def settlement_line(amount: int, reference: str) -> reconciliation_pb2.StatementLine:
    """What a provider has paid to the bank."""
    return charge(-amount, line_type="SETTLEMENT", reference=reference)


@pytest.fixture
def bank() -> str:
    """An account of a bank of this test."""
    return f"banks/{unique_id('b')}"


def states(client: Client, account: str) -> list[str]:
    """The states of the breaks of an account, oldest first."""
    return [state_of(item) for item in breaks_of(client, account=account)]


def require_ended(client: Client, platform: ServedPlatform, bank: str, balance: str) -> None:
    """The breaks of a bank end by themselves, and its account has what the statement has."""
    assert eventually(lambda: set(states(client, bank)) == {"RESOLVED"})
    found = breaks_of(client, account=bank)
    assert {(resolution_of(item), item.changes[-1].caller) for item in found} == {
        ("MATCH", "tallystick")
    }
    report = posted_clearing(client, bank)
    assert (report.ledger_balance, report.statement_balance) == (balance, balance)
    assert (list(report.breaks), list(report.expected)) == ([], [])
    wait_until_posted(platform.databases)
    require_verified(client, platform.databases)


@pytest.mark.parametrize("bank_first", [True, False])
@pytest.mark.parametrize("is_named", [True, False])
def test_the_order_of_two_files_does_not_matter(
    platform: ServedPlatform,
    client: Client,
    provider: Provider,
    bank: str,
    bank_first: bool,
    is_named: bool,
) -> None:
    """The bank pays a settlement before or after the provider's statement has it, with its
    reference or without.
    """
    reference = unique_id("set")
    amount = 12_34 + bank_first + 2 * is_named
    lines = [bank_line(amount, reference if is_named else "")]
    if bank_first:
        file = reconcile(client, bank, lines).statement_file
        assert kinds_of(file) == {"BANK_ENTRY_UNKNOWN": 1}
    reconcile(client, provider.account, [settlement_line(amount, reference)])
    if not bank_first:
        reconcile(client, bank, lines)
    balance = f"{amount // 100}.{amount % 100}"
    assert eventually(lambda: set(states(client, bank)) <= {"RESOLVED"})
    report = posted_clearing(client, bank)
    assert (report.ledger_balance, report.statement_balance) == (balance, balance)
    if bank_first:
        require_ended(client, platform, bank, balance)


def test_a_payout_that_is_booked_late_ends_the_break_of_the_bank(
    platform: ServedPlatform, client: Client, provider: Provider, bank: str
) -> None:
    """The bank has paid it; it moves from the account of payouts to that of the bank."""
    lines = [bank_line(-21_00), bank_line(-22_00, "tr-7")]
    assert kinds_of(reconcile(client, bank, lines).statement_file) == {"BANK_ENTRY_UNKNOWN": 2}
    provider.payout(21_00)
    provider.payout(22_00, "tr-7")
    require_ended(client, platform, bank, "-43.00")
    assert posted_clearing(client, provider.payouts_account).ledger_balance == "0.00"
    assert entries_of(transactions_of(client, bank)[-1])[bank].startswith("-2")


def test_several_entries_that_a_line_names_end_its_break(
    platform: ServedPlatform,
    client: Client,
    provider: Provider,
    bank: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Payouts that the bank pays in one booking; however few breaks end at once."""
    monkeypatch.setattr(bank_entries, "_MAX_BREAKS", 1)
    batches = [unique_id("batch") for _ in range(3)]
    reconcile(client, bank, [bank_line(-30_00, "x", settlement_reference=name) for name in batches])
    for name in batches:
        provider.payout(10_00, name)
        provider.payout(20_00, name)
    require_ended(client, platform, bank, "-90.00")


def test_what_fits_twice_waits_for_a_person(
    platform: ServedPlatform, client: Client, provider: Provider, bank: str
) -> None:
    """Two lines of the same amount, or two entries: which is which, only a person can find out.
    Nor does an entry of another day, currency or account end a break.
    """
    lines = [
        bank_line(-31_00, "a"),
        bank_line(-31_00, "b"),
        bank_line(-32_00, "c"),
        bank_line(-33_00, "d", booking_date="2026-05-10"),
        bank_line(-34_00, "e", currency="USD"),
        bank_line(-35_00, "f"),
        bank_line(-36_00, "g"),
    ]
    reconcile(client, bank, lines)
    payouts = f"payouts/{provider.name}/clearing"
    provider.payouts([31_00, 32_00, 32_00, 33_00, 34_00])
    provider.payout(37_00, "g")
    provider.payout(36_00, "other")
    with_statements = Provider(client)
    reconcile(client, with_statements.account, [])
    with_statements.payout(35_00)
    last = Provider(client)
    reconcile(client, f"{bank}-2", [bank_line(-39_00, "z")])
    last.payout(39_00)
    require_ended(client, platform, f"{bank}-2", "-39.00")
    assert states(client, bank) == ["OPEN"] * len(lines)
    assert posted_clearing(client, payouts).unexplained == "0.00"


def test_an_entry_ends_one_break(client: Client, provider: Provider, bank: str) -> None:
    """Of two lines with its reference and its amount, the second is a difference."""
    lines = [bank_line(-61_00, "tr-61", text=text) for text in ("first", "second")]
    reconcile(client, bank, lines)
    provider.payout(61_00, "tr-61")
    assert eventually(lambda: "RESOLVED" in states(client, bank))
    assert states(client, bank) == ["RESOLVED", "OPEN"]
    assert posted_clearing(client, bank).unexplained == "0.00"


def test_a_decision_keeps_a_break_from_ending(
    client: Client, provider: Provider, bank: str
) -> None:
    """An operator has accepted the line; the entry stays expected."""
    reconcile(client, bank, [bank_line(-41_00, "tr-41"), bank_line(-42_00, "tr-42")])
    decided, waiting = breaks_of(client, account=bank)
    Operator(client).resolve(decided.break_id, "ACCEPT")
    provider.payout(41_00, "tr-41")
    provider.payout(42_00, "tr-42")
    operator = Operator(client)
    assert eventually(lambda: state_of(operator.get(waiting.break_id)) == "RESOLVED")
    assert resolution_of(operator.get(decided.break_id)) == "ACCEPT"
    report = posted_clearing(client, provider.payouts_account)
    assert [item.amount.amount for item in report.expected] == ["-41.00"]


def test_a_reopened_break_of_a_bank_ends(client: Client, provider: Provider, bank: str) -> None:
    """The operator adjusted the ledger before the settlement was booked."""
    reconcile(client, bank, [bank_line(51_00, "set-51")])
    operator = Operator(client)
    found = only_break(client, bank)
    operator.resolve(found.break_id, "ADJUST")
    reconcile(client, provider.account, [settlement_line(51_00, "set-51")])
    posted_clearing(client, provider.account)
    operator.reopen(found.break_id)
    assert eventually(lambda: resolution_of(operator.get(found.break_id)) == "MATCH")
    assert posted_clearing(client, bank).ledger_balance == "51.00"
