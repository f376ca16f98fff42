"""What a second person must approve, and what an approval is of."""

from __future__ import annotations

import pytest

from tallystick import Client, InvalidArgumentError, TallystickError
from tallystick.reconciliation.v1 import reconciliation_pb2
from tests.services.reconciliation.breaks.support import big_break
from tests.support.break_operator import Operator, resolution_of, state_of
from tests.support.errors import error_reason, expect_error_reason
from tests.support.platform import ServedPlatform, eventually
from tests.support.reconciliation import (
    Provider,
    breaks_of,
    charge,
    clearing,
    entries_of,
    kinds_of,
    only_break,
    posted_clearing,
    reconcile,
    require_verified,
    transactions_of,
    wait_until_posted,
)


def test_an_accepted_break_above_the_threshold_needs_a_second_person(
    client: Client, provider: Provider, ann: Operator, bob: Operator
) -> None:
    """Nothing is posted for it, before and after. So does a gap between balances."""
    break_id = big_break(client, provider)
    ann.resolve(break_id, "ACCEPT")
    assert expect_error_reason(ann.approve, break_id) == "SECOND_APPROVER_REQUIRED"
    assert state_of(bob.approve(break_id)) == "RESOLVED"
    report = clearing(client, provider.account)
    assert (report.unposted, report.unexplained) == ("0.00", "0.00")
    assert len(transactions_of(client, provider.account)) == 1
    assert state_of(ann.reopen(break_id)) == "OPEN", "nothing is reversed"
    reconcile(
        client,
        provider.account,
        [charge(10_00, "ch-1")],
        difference_reason="seen",
        opening_balance="0.00",
        closing_balance="910.00",
    )
    (found,) = breaks_of(
        client, account=provider.account, kind=reconciliation_pb2.BREAK_KIND_BALANCE_DIFFERS
    )
    assert state_of(ann.resolve(found.break_id, "ACCEPT")) == "AWAITING_APPROVAL"


def test_a_large_resolution_is_reopened_by_two_persons(
    platform: ServedPlatform, client: Client, provider: Provider, ann: Operator, bob: Operator
) -> None:
    """Until the second approves, it stays resolved, and nothing is reversed."""
    break_id = big_break(client, provider)
    ann.resolve(break_id, "ADJUST")
    bob.approve(break_id)
    wait_until_posted(platform.databases)
    proposed = bob.reopen(break_id, "wrong bank")
    assert (state_of(proposed), resolution_of(proposed)) == ("AWAITING_REOPENING", "ADJUST")
    assert bob.reopen(break_id, "wrong bank") == proposed, "a repeat has no effect"
    assert expect_error_reason(bob.approve, break_id, "yes") == "SECOND_APPROVER_REQUIRED"
    assert expect_error_reason(ann.reopen, break_id, "other") == "INVALID_STATE"
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained, list(report.breaks)) == (
        "109.71",
        "0.00",
        [],
    )
    require_verified(client, platform.databases)
    rejected = ann.reject(break_id, "it is right")
    assert (state_of(rejected), resolution_of(rejected)) == ("RESOLVED", "ADJUST")
    bob.reopen(break_id, "wrong bank, really")
    opened = ann.approve(break_id, "seen")
    assert (state_of(opened), resolution_of(opened)) == ("OPEN", "UNSPECIFIED")
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained) == ("10.00", "0.00")
    reverse = transactions_of(client, provider.account)[-1]
    assert (reverse.caller, reverse.description) == ("bob", "wrong bank, really")
    assert ann.approve(break_id, "seen") == opened
    require_verified(client, platform.databases)


def test_a_large_fee_needs_a_second_person(
    client: Client, provider: Provider, ann: Operator, bob: Operator
) -> None:
    """It is posted, although lines and entries do not differ before fees. A match is rejected, and
    says what to do.
    """
    provider.pay_in(150_00, "ch-1")
    file = reconcile(client, provider.account, [charge(150_00, "ch-1", fee=120_00)])
    assert kinds_of(file.statement_file) == {"FEE_DIFFERS": 1}
    found = only_break(client, provider.account)
    with pytest.raises(InvalidArgumentError) as error:
        ann.match(found.break_id)
    assert error.value.field_violations[0].field == "break_ids"
    assert "at most 100.00 EUR together; they are 120.00" in str(error.value)
    assert state_of(ann.resolve(found.break_id, "ADJUST")) == "AWAITING_APPROVAL"
    bob.approve(found.break_id)
    assert posted_clearing(client, provider.account).ledger_balance == "30.00"
    assert entries_of(transactions_of(client, provider.account)[-1]) == {
        provider.account: "-120.00",
        f"psp/{provider.name}/fees": "120.00",
    }


def test_an_approval_is_of_what_was_seen(
    client: Client, provider: Provider, ann: Operator, bob: Operator
) -> None:
    """Another proposal since then is neither approved nor rejected unseen."""
    break_id = big_break(client, provider)
    seen = ann.resolve(break_id, "ADJUST").version
    ann.reject(break_id)
    current = ann.resolve(break_id, "WRITE_OFF").version
    for call in (bob.approve, bob.reject):
        with pytest.raises(TallystickError) as error:
            call(break_id, "checked", version=seen)
        assert error_reason(error) == "VERSION_MISMATCH"
        assert error.value.metadata["version"] == str(current)
    approved = bob.approve(break_id, "checked", version=current)
    assert state_of(approved) == "RESOLVED"
    assert bob.approve(break_id, "checked", version=current) == approved, "a repeat has no effect"
    other = big_break(client, provider)
    version = ann.resolve(other, "ADJUST").version
    assert state_of(bob.reject(other, "no", version=version)) == "OPEN"


def test_what_was_booked_since_is_not_adjusted_again(
    client: Client, provider: Provider, ann: Operator, bob: Operator
) -> None:
    """The resolution waited while the charge was booked: approved, the ledger would have it twice.
    Rejected, the break ends by itself.
    """
    line = charge(200_00, "ch-1", client_reference="o-po-1")
    reconcile(client, provider.account, [line])
    break_id = only_break(client, provider.account).break_id
    ann.resolve(break_id, "ADJUST")
    provider.pay_in(200_00, "ch-1")
    clearing(client, provider.account)  # which reads the ledger
    with pytest.raises(TallystickError) as error:
        bob.approve(break_id)
    assert error_reason(error) == "INVALID_STATE"
    assert "The ledger has main-" in str(error.value)
    bob.reject(break_id)
    assert eventually(lambda: resolution_of(ann.get(break_id)) == "MATCH")
    assert posted_clearing(client, provider.account).ledger_balance == "200.00"


def test_what_was_booked_otherwise_is_adjusted_with_its_entry(
    client: Client, provider: Provider, ann: Operator, bob: Operator
) -> None:
    """A person opens a break for the entry; then both are adjusted, and the ledger has what the
    statement has.
    """
    reconcile(client, provider.account, [charge(20_00, "ch-1", client_reference="o-po-1")])
    break_id = only_break(client, provider.account).break_id
    provider.pay_in(21_00, "ch-1")
    clearing(client, provider.account)
    assert expect_error_reason(ann.resolve, break_id, "ADJUST") == "INVALID_STATE"
    (transaction,) = transactions_of(client, provider.account)
    opened = ann.open(provider.account, transaction.transaction_id)
    for each in (break_id, opened.break_id):
        assert state_of(ann.resolve(each, "ADJUST")) == "RESOLVED"
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained) == ("20.00", "0.00")


def test_a_rounding_is_adjusted_at_once_unless_it_needs_a_second_person(
    client: Client, provider: Provider, ann: Operator
) -> None:
    """A rounding in a currency whose threshold is zero waits for an operator, and then for
    another.
    """
    for currency in ("CHF", "EUR"):
        provider.pay_in(10_00, f"ch-{currency}", currency=currency)
    lines = [charge(10_01, f"ch-{currency}", currency=currency) for currency in ("CHF", "EUR")]
    file = reconcile(client, provider.account, lines).statement_file
    assert kinds_of(file) == {"ROUNDING": 2}
    states = {
        item.currency: (item.break_id, state_of(item))
        for item in breaks_of(client, account=provider.account)
    }
    assert {currency: state for currency, (_, state) in states.items()} == {
        "CHF": "OPEN",
        "EUR": "RESOLVED",
    }
    assert state_of(ann.resolve(states["CHF"][0], "ADJUST")) == "AWAITING_APPROVAL"
