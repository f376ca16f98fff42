"""Breaks that agree together."""

from __future__ import annotations

import pytest

from tallystick import Client, InvalidArgumentError
from tests.support.break_operator import Operator, resolution_of, state_of
from tests.support.errors import error_reason, expect_error_reason
from tests.support.reconciliation import (
    Provider,
    breaks_of,
    charge,
    clearing,
    entries_of,
    only_break,
    posted_clearing,
    reconcile,
    transactions_of,
)


def test_breaks_that_agree_together_are_matched(
    client: Client, provider: Provider, ann: Operator
) -> None:
    """A charge that came late and in two parts: its fees are posted, and nothing is adjusted."""
    provider.pay_in(10_00, "ch-1")
    lines = [charge(4_00, "ch-8", fee=10), charge(6_00, "ch-9", fee=20)]
    reconcile(client, provider.account, lines, closing_date="2026-04-01")
    found = breaks_of(client, account=provider.account)
    assert sorted(item.difference for item in found) == ["-10.00", "4.00", "6.00"]
    with pytest.raises(InvalidArgumentError) as error:
        ann.match(found[0].break_id, found[1].break_id)
    assert error_reason(error) == "FIELD_INVALID"
    assert "EUR more" in str(error.value)
    ids = [item.break_id for item in found]
    matched = ann.match(*ids)
    assert [item.break_id for item in matched] == ids
    assert {(state_of(item), resolution_of(item)) for item in matched} == {("RESOLVED", "MATCH")}
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.statement_balance) == ("9.70", "9.70")
    assert (report.unexplained, list(report.breaks)) == ("0.00", [])
    assert entries_of(transactions_of(client, provider.account)[-1]) == {
        provider.account: "-0.30",
        f"psp/{provider.name}/fees": "0.30",
    }
    ann.comment(ids[0])
    assert [item.version for item in ann.match(*ids)][1:] == [2, 2], "a repeat has no effect"
    again = lambda: ann.match(*ids, reason="another reason")  # noqa: E731
    assert expect_error_reason(again) == "INVALID_STATE"
    assert expect_error_reason(ann.reopen, ids[0]) == "INVALID_STATE"


def test_a_match_moves_money_between_the_accounts(
    client: Client, provider: Provider, ann: Operator
) -> None:
    """Payouts are on an account of their own until a statement has them."""
    provider.payout(10_00, "tr-1")
    provider.pay_in(3_00, "ch-1")
    lines = [
        charge(-4_00, line_type="PAYOUT", charge_reference="tr-1"),
        charge(-6_00, line_type="PAYOUT", charge_reference="tr-2"),
    ]
    reconcile(client, provider.account, lines)
    found = breaks_of(client, account=provider.account)
    assert sorted(item.difference for item in found) == ["-6.00", "6.00"]
    ann.match(*(item.break_id for item in found))
    assert posted_clearing(client, provider.payouts_account).ledger_balance == "0.00"
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.statement_balance) == ("-7.00", "-10.00")
    assert (report.unexplained, report.expected[0].amount.amount) == ("0.00", "3.00")
    assert clearing(client, provider.payouts_account).unexplained == "0.00"


def test_only_breaks_of_one_account_are_matched(
    client: Client, provider: Provider, ann: Operator
) -> None:
    """Money of one provider does not pay another's charge."""
    other = Provider(client)
    ids = []
    for account, amount in ((provider.account, 5_00), (other.account, -5_00)):
        reconcile(client, account, [charge(amount, "ch-9")])
        ids.append(only_break(client, account).break_id)
    assert expect_error_reason(ann.match, *ids) == "FIELD_INVALID"
    assert expect_error_reason(ann.match, ids[0], ids[0]) == "DUPLICATE_ITEM"
    assert expect_error_reason(ann.match) == "FIELD_REQUIRED"
    assert {state_of(ann.get(break_id)) for break_id in ids} == {"OPEN"}
