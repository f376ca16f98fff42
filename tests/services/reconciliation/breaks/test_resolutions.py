"""What the resolution of a break posts to the ledger, and who must approve it."""

from __future__ import annotations

import pytest

from tallystick import Client, InvalidArgumentError, TallystickError
from tallystick.ledger.v1 import ledger_pb2
from tallystick.reconciliation.v1 import reconciliation_pb2
from tests.services.reconciliation.breaks.support import big_break, find_break
from tests.support.break_operator import Operator, resolution_of, state_of
from tests.support.errors import error_reason, expect_error_reason
from tests.support.platform import ServedPlatform
from tests.support.reconciliation import (
    Provider,
    breaks_of,
    charge,
    clearing,
    entries_of,
    kinds_of,
    ledger_balance,
    only_break,
    posted_clearing,
    reconcile,
    transactions_of,
    wait_until_posted,
)


@pytest.mark.parametrize(
    ("resolution", "account", "kind"),
    [
        ("ADJUST", "platform/adjustments", "ADJUSTMENT"),
        ("WRITE_OFF", "platform/losses", "WRITE_OFF"),
    ],
)
def test_a_resolution_adjusts_the_ledger_to_the_statement(
    client: Client, provider: Provider, ann: Operator, resolution: str, account: str, kind: str
) -> None:
    """The statement has 9.00 with a fee of 0.30, and the ledger 10.00. The transaction has its
    reason and its author.
    """
    break_id = find_break(client, provider, 9_00)
    before = ledger_balance(client, account) if has_account(client, account) else "0.00"
    ann.resolve(break_id, resolution, "the provider is right")
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.statement_balance) == ("8.70", "8.70")
    assert (report.unexplained, list(report.breaks), list(report.expected)) == ("0.00", [], [])
    transaction = transactions_of(client, provider.account)[-1]
    assert entries_of(transaction) == {
        provider.account: "-1.30",
        f"psp/{provider.name}/fees": "0.30",
        account: "1.00",
    }
    assert (transaction.description, transaction.caller) == ("the provider is right", "ann")
    assert transaction.kind == ledger_pb2.TransactionKind.Value(f"TRANSACTION_KIND_{kind}")
    assert float(ledger_balance(client, account)) == float(before) - 1
    found = ann.get(break_id)
    assert (found.transaction_id, resolution_of(found)) == (transaction.transaction_id, resolution)


def has_account(client: Client, account: str) -> bool:
    try:
        ledger_balance(client, account)
    except TallystickError:
        return False
    return True


def test_an_accepted_break_posts_nothing(client: Client, provider: Provider, ann: Operator) -> None:
    """The difference stays, and the report still explains it."""
    break_id = find_break(client, provider, 9_00)
    ann.resolve(break_id, "ACCEPT")
    report = clearing(client, provider.account)
    assert (report.unposted, report.unexplained) == ("0.00", "0.00")
    assert [(item.count, item.amount.amount) for item in report.breaks] == [(1, "1.30")]
    assert ann.get(break_id).transaction_id == ""
    assert len(transactions_of(client, provider.account)) == 1


def test_a_break_without_lines_and_entries_can_only_be_accepted(
    client: Client, provider: Provider, ann: Operator
) -> None:
    """The ledger cannot be adjusted to a gap between balances: that would post nothing, or what no
    line has. Nor do such breaks agree with anything.
    """
    reconcile(
        client,
        provider.account,
        [charge(10_00, "ch-1")],
        difference_reason="known",
        opening_balance="0.00",
        closing_balance="9.00",
    )
    (found,) = breaks_of(
        client, account=provider.account, kind=reconciliation_pb2.BREAK_KIND_BALANCE_DIFFERS
    )
    for resolution in ("ADJUST", "WRITE_OFF"):
        with pytest.raises(InvalidArgumentError) as error:
            ann.resolve(found.break_id, resolution)
        assert error_reason(error) == "FIELD_INVALID"
        assert error.value.field_violations[0].field == "resolution"
    assert expect_error_reason(ann.match, found.break_id) == "FIELD_INVALID"
    assert state_of(ann.resolve(found.break_id, "ACCEPT")) == "RESOLVED"


def test_a_resolution_must_be_one(client: Client, provider: Provider, ann: Operator) -> None:
    """MATCH needs the other call, and a reason is required."""
    break_id = find_break(client, provider, 9_00)
    assert expect_error_reason(ann.resolve, break_id, "MATCH") == "FIELD_INVALID"
    assert expect_error_reason(ann.resolve, break_id, "UNSPECIFIED") == "FIELD_REQUIRED"
    assert expect_error_reason(ann.resolve, break_id, "ADJUST", "") == "FIELD_REQUIRED"
    assert state_of(ann.get(break_id)) == "OPEN"


def test_a_second_person_approves_large_resolutions(
    client: Client, provider: Provider, ann: Operator, bob: Operator
) -> None:
    """Above the threshold nothing is posted before another operator approves. The ledger gets the
    author and the reason of the resolution; the history has both persons.
    """
    break_id = big_break(client, provider)
    assert state_of(ann.resolve(break_id, "ADJUST", "found it")) == "AWAITING_APPROVAL"
    assert clearing(client, provider.account).unposted == "0.00"
    assert expect_error_reason(ann.approve, break_id) == "SECOND_APPROVER_REQUIRED"
    assert state_of(bob.approve(break_id, "looks right")) == "RESOLVED"
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained) == ("109.71", "0.00")
    transaction = transactions_of(client, provider.account)[-1]
    assert (transaction.description, transaction.caller) == ("found it", "ann")
    assert [(item.action, item.caller, item.reason) for item in ann.get(break_id).changes[1:]] == [
        ("PROPOSED", "ann", "found it"),
        ("APPROVED", "bob", "looks right"),
    ]


def test_the_threshold_itself_needs_no_approval(
    client: Client, provider: Provider, ann: Operator
) -> None:
    """A larger difference does, also if it is only accepted: it leaves the queue."""
    break_id = find_break(client, provider, 110_00)
    assert state_of(ann.resolve(break_id, "ADJUST")) == "RESOLVED"
    assert state_of(ann.reopen(break_id)) == "OPEN"
    assert state_of(ann.resolve(big_break(client, provider), "ACCEPT")) == "AWAITING_APPROVAL"


@pytest.mark.parametrize(
    ("line_currency", "line_amount", "ledger_amount"),
    [("USD", 1, 100_01), ("USD", 200_01, 1), ("JPY", 1, 100_01)],
)
def test_each_currency_of_a_break_counts_for_the_approval(
    client: Client,
    provider: Provider,
    ann: Operator,
    line_currency: str,
    line_amount: int,
    ledger_amount: int,
) -> None:
    """A line of one cent must not write off a charge of any size, because it is in another
    currency.
    """
    provider.pay_in(ledger_amount, "ch-1")
    reconcile(client, provider.account, [charge(line_amount, "ch-1", currency=line_currency)])
    break_id = only_break(client, provider.account).break_id
    assert state_of(ann.resolve(break_id, "WRITE_OFF")) == "AWAITING_APPROVAL"


def test_a_rejected_resolution_opens_the_break(
    client: Client, provider: Provider, ann: Operator, bob: Operator
) -> None:
    """Nothing is posted, and it can be resolved otherwise. The author may reject it, too."""
    break_id = big_break(client, provider)
    ann.resolve(break_id, "ADJUST")
    found = bob.reject(break_id)
    assert (state_of(found), resolution_of(found)) == ("OPEN", "UNSPECIFIED")
    bob.resolve(break_id, "WRITE_OFF")
    assert expect_error_reason(bob.approve, break_id) == "SECOND_APPROVER_REQUIRED"
    assert state_of(bob.reject(break_id, "no, after all")) == "OPEN"
    bob.resolve(break_id, "WRITE_OFF", "again")
    assert state_of(ann.approve(break_id)) == "RESOLVED"
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained) == ("109.71", "0.00")
    assert entries_of(transactions_of(client, provider.account)[-1])["platform/losses"] == "-100.01"


def test_a_reopened_break_posts_the_other_way_round(
    platform: ServedPlatform, client: Client, provider: Provider, ann: Operator
) -> None:
    """As often as it is resolved and reopened, whatever is said meanwhile: the ledger is as it was
    before, and nothing is edited.
    """
    break_id = find_break(client, provider, 9_00)
    for number, resolution in enumerate(("ADJUST", "WRITE_OFF", "ACCEPT", "ADJUST")):
        ann.resolve(break_id, resolution, f"resolved {number}")
        ann.comment(break_id, f"comment {number}")
        found = ann.reopen(break_id, f"reopened {number}")
        assert (state_of(found), resolution_of(found)) == ("OPEN", "UNSPECIFIED")
        ann.comment(break_id, f"another comment {number}")
        assert ann.reopen(break_id, f"reopened {number}").version == found.version + 1
        wait_until_posted(platform.databases)
        report = clearing(client, provider.account)
        assert (report.ledger_balance, report.unexplained) == ("10.00", "0.00")
        assert ann.get(break_id).transaction_id == ""
    posted = transactions_of(client, provider.account)[1:]
    assert len(posted) == 6, "each resolution but ACCEPT, and its reverse"
    for done, undone in zip(posted[::2], posted[1::2], strict=True):
        assert {name: f"-{amount}" for name, amount in entries_of(done).items()} == {
            name: amount if amount.startswith("-") else f"--{amount}"
            for name, amount in entries_of(undone).items()
        }
        assert done.kind == undone.kind
    assert posted[1].description == "reopened 0"


def test_a_break_with_many_lines_is_resolved_as_a_whole(
    client: Client, provider: Provider, ann: Operator
) -> None:
    """All lines count, also those beyond what GetBreak shows."""
    count = 10_050
    provider.pay_in(100_00, "ch-1")
    lines = [charge(1, "ch-1", reference=f"tx-{number}") for number in range(count)]
    file = reconcile(client, provider.account, lines).statement_file
    assert kinds_of(file) == {"AMOUNT_DIFFERS": 1}
    found = only_break(client, provider.account)
    assert (found.difference, len(found.lines)) == ("0.50", 200)
    ann.resolve(found.break_id, "ADJUST")
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.unexplained) == ("100.50", "0.00")
    assert entries_of(transactions_of(client, provider.account)[-1]) == {
        provider.account: "0.50",
        "platform/adjustments": "-0.50",
    }


def test_a_break_in_two_currencies_is_adjusted_in_both(
    client: Client, provider: Provider, ann: Operator
) -> None:
    """Each currency balances by itself; reopened, both are as before."""
    provider.pay_in(10_00, "ch-1")
    reconcile(client, provider.account, [charge(12_00, "ch-1", fee=40, currency="USD")])
    break_id = only_break(client, provider.account).break_id
    ann.resolve(break_id, "ADJUST")
    for currency, balance in (("EUR", "0.00"), ("USD", "11.60")):
        report = posted_clearing(client, provider.account, currency)
        assert report.ledger_balance == report.statement_balance == balance
        assert float(report.unexplained) == 0
    ann.reopen(break_id)
    for currency, balance in (("EUR", "10.00"), ("USD", "0.00")):
        report = posted_clearing(client, provider.account, currency)
        assert (report.ledger_balance, report.unexplained) == (balance, "0.00")


def test_a_break_with_many_entries_is_shown_in_part(client: Client, provider: Provider) -> None:
    """GetBreak has the first 200 lines, and the first 200 entries."""
    provider.pay_in_all(1, ["ch-1"] * 201)
    reconcile(client, provider.account, [charge(3_00, "ch-1")])
    found = only_break(client, provider.account)
    assert (found.difference, len(found.ledger_items)) == ("0.99", 200)
