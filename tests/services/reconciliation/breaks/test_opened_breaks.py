"""Breaks that a person opens for ledger entries, because no statement has them as they are."""

from __future__ import annotations

import pytest

from tallystick import Client, InvalidArgumentError
from tallystick.event.v1 import event_pb2
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2
from tests.support.break_operator import Operator, resolution_of, state_of
from tests.support.errors import error_reason, expect_error_reason
from tests.support.platform import ServedPlatform, eventually, unique_id
from tests.support.reconciliation import (
    Provider,
    breaks_of,
    charge,
    clearing,
    kinds_of,
    ledger_balance,
    only_break,
    posted_clearing,
    reconcile,
    require_verified,
    transactions_of,
    wait_until_posted,
)

REASON = "not on the statement"


def bank_line(amount: int, reference: str = "") -> reconciliation_pb2.StatementLine:
    """A booking of a bank."""
    return charge(amount, line_type="BANK_ENTRY", reference=reference)


def pay_to_bank(
    client: Client, platform: ServedPlatform, provider: Provider, amount: int, day: int = 10
) -> str:
    """The provider pays to the bank; returns the transaction of the ledger."""
    line = charge(
        -amount,
        line_type="SETTLEMENT",
        reference=unique_id("set"),
        booking_date=f"2026-03-{day:02}",
    )
    reconcile(client, provider.account, [line])
    wait_until_posted(platform.databases)
    return transactions_of(client, provider.account)[-1].transaction_id


@pytest.fixture
def bank(client: Client) -> str:
    """An account of a bank, with a statement."""
    account = f"banks/{unique_id('b')}"
    reconcile(client, account, [], file_name="first")
    return account


def test_a_settlement_that_the_bank_pays_otherwise_is_matched_by_hand(
    platform: ServedPlatform, client: Client, provider: Provider, ann: Operator, bank: str
) -> None:
    """Two settlements in one booking, with a reference of the bank: nothing is left anywhere."""
    in_transit = float(ledger_balance(client, "banks/transit")) if transit_exists(client) else 0
    transactions = [
        pay_to_bank(client, platform, provider, amount, day)
        for amount, day in ((10_00, 9), (7_00, 10))
    ]
    file = reconcile(client, bank, [bank_line(17_00, "batch-1")]).statement_file
    assert kinds_of(file) == {"BANK_ENTRY_UNKNOWN": 1}
    line_break = only_break(client, bank)
    opened = [ann.open(bank, transaction) for transaction in transactions]
    assert [item.difference for item in opened] == ["-10.00", "-7.00"]
    assert {(state_of(item), item.account) for item in opened} == {("OPEN", bank)}
    require_verified(client, platform.databases)
    matched = ann.match(line_break.break_id, *(item.break_id for item in opened))
    assert {resolution_of(item) for item in matched} == {"MATCH"}
    report = posted_clearing(client, bank)
    assert (report.ledger_balance, report.statement_balance) == ("17.00", "17.00")
    wait_until_posted(platform.databases)
    assert float(ledger_balance(client, "banks/transit")) == in_transit
    require_verified(client, platform.databases)


def transit_exists(client: Client) -> bool:
    """Whether the ledger has the account of what is between providers and banks."""
    request = ledger_service_pb2.ListAccountsRequest(prefix="banks/transit")
    return bool(client.ledger.ListAccounts(request).accounts)


def test_an_opened_break_has_its_entry_author_and_event(
    client: Client, provider: Provider, ann: Operator, bob: Operator
) -> None:
    """It is as one that the platform found. The same call has no effect; another is rejected."""
    provider.pay_in(10_00, "ch-1")
    reconcile(client, provider.account, [])
    (transaction,) = transactions_of(client, provider.account)
    opened = ann.open(provider.account, transaction.transaction_id, REASON)
    assert ann.open(provider.account, transaction.transaction_id, REASON) == opened
    found = ann.get(opened.break_id)
    kind = reconciliation_pb2.BREAK_KIND_MISSING_IN_FILE
    assert (found.kind, found.difference, found.statement_file_id) == (kind, "-10.00", "")
    assert [(item.action, item.caller, item.reason) for item in found.changes] == [
        ("FOUND", "ann", REASON)
    ]
    assert [item.transaction_id for item in found.ledger_items] == [transaction.transaction_id]
    (event,) = eventually(lambda: list(client.events(aggregate_id=f"breaks/{opened.break_id}")))
    assert (event.type, event.caller) == (event_pb2.EVENT_TYPE_BREAK_CHANGED, "ann")
    report = clearing(client, provider.account)
    assert (report.unexplained, list(report.expected)) == ("0.00", [])
    for operator, reason in ((ann, "another reason"), (bob, REASON)):
        with pytest.raises(InvalidArgumentError) as error:
            operator.open(provider.account, transaction.transaction_id, reason)
        assert error_reason(error) == "FIELD_INVALID"
        assert f"is in the break {opened.break_id} already" in str(error.value)


def test_a_line_that_comes_late_ends_an_opened_break(
    client: Client, provider: Provider, ann: Operator
) -> None:
    """As it ends one that the platform found."""
    provider.pay_in(10_00, "ch-1")
    reconcile(client, provider.account, [])
    (transaction,) = transactions_of(client, provider.account)
    opened = ann.open(provider.account, transaction.transaction_id)
    file = reconcile(client, provider.account, [charge(10_00, "ch-1", fee=30)]).statement_file
    assert kinds_of(file) == {}
    assert resolution_of(ann.get(opened.break_id)) == "MATCH"
    assert posted_clearing(client, provider.account).ledger_balance == "9.70"


def test_an_opened_break_is_written_off(
    platform: ServedPlatform, client: Client, provider: Provider, ann: Operator, bank: str
) -> None:
    """Money that never reached the bank leaves the account where it was."""
    transaction = pay_to_bank(client, platform, provider, 9_00)
    before = float(ledger_balance(client, "banks/transit"))
    opened = ann.open(bank, transaction)
    assert state_of(ann.resolve(opened.break_id, "WRITE_OFF")) == "RESOLVED"
    wait_until_posted(platform.databases)
    assert float(ledger_balance(client, "banks/transit")) == before + 9, "a debit is below zero"
    require_verified(client, platform.databases)


def test_the_provider_of_a_settlement_may_take_it_back(
    platform: ServedPlatform, client: Client, provider: Provider, ann: Operator
) -> None:
    """An entry in transit fits the provider that has paid it, and no other."""
    other = Provider(client)
    reconcile(client, other.account, [])
    transaction = pay_to_bank(client, platform, provider, 9_00)
    assert expect_error_reason(ann.open, other.account, transaction) == "FIELD_INVALID"
    opened = ann.open(provider.account, transaction)
    assert (opened.account, opened.difference) == (provider.account, "-9.00")


def test_an_entry_must_be_one_that_a_statement_can_have(
    client: Client, provider: Provider, ann: Operator, bank: str
) -> None:
    """The error names the field and what is expected."""
    provider.pay_in(10_00, "ch-1")
    provider.pay_in(11_00, "ch-2")
    charges = [item.transaction_id for item in transactions_of(client, provider.account)]
    new_bank = f"banks/{unique_id('b')}"
    payout_provider = Provider(client)
    payout_provider.payout(5_00)
    (payout,) = transactions_of(client, payout_provider.payouts_account)
    for account, transaction, entry, field, expected in (
        (provider.account, charges[0], 0, "account", "has none"),
        (bank, charges[0], 0, "transaction_id", f"a statement of {bank} can have"),
        (bank, "main-999999999", 0, "transaction_id", "main-999999999 has none"),
        (bank, payout.transaction_id, 1, "entry_number", "must be 2"),
        (new_bank, payout.transaction_id, 2, "account", "has none"),
    ):
        with pytest.raises(InvalidArgumentError) as error:
            ann.open(account, transaction, entry_number=entry)
        assert error_reason(error) == "FIELD_INVALID"
        assert error.value.field_violations[0].field == field
        assert expected in str(error.value)
    reconcile(client, provider.account, [charge(10_00, "ch-1")])
    with pytest.raises(InvalidArgumentError) as error:
        ann.open(provider.account, charges[0])
    assert "is on a statement already" in str(error.value)
    assert breaks_of(client, account=provider.account) == []
    assert state_of(ann.open(bank, payout.transaction_id, entry_number=2)) == "OPEN"
