"""What the ledger has already, and a statement reports once more or otherwise, needs a person."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick_core.ledger.posting_rules import PostingKind, unapplied_lines
from tests.support.break_operator import Operator, state_of
from tests.support.platform import eventually
from tests.support.reconciliation import (
    DAY,
    Provider,
    breaks_of,
    charge,
    kinds_of,
    only_break,
    post,
    posted_clearing,
    reconcile,
)

INVESTIGATION = reconciliation_pb2.BREAK_CLASS_INVESTIGATION


def classes(client: Client, account: str) -> list[int]:
    """The classes of the breaks of an account, by their first line."""
    found = sorted(
        breaks_of(client, account=account), key=lambda item: item.lines[0].line.reference
    )
    return [item.break_class for item in found]


@pytest.mark.parametrize("line_type", ["CHARGE", "PAYOUT"])
def test_a_second_report_of_a_matched_line_needs_a_person(
    client: Client, provider: Provider, line_type: str
) -> None:
    """The provider reports a charge once more under another id: the buyer may have paid twice. No
    lookup would find anything new.
    """
    amount = 10_00 if line_type == "CHARGE" else -10_00
    book = provider.pay_in if line_type == "CHARGE" else provider.payout
    order_id = book(10_00, "ch-1")
    for reference, kinds in (("txn-1", {}), ("txn-2", {"DUPLICATE_LINE": 1})):
        line = charge(
            amount, "ch-1", line_type=line_type, reference=reference, client_reference=order_id
        )
        assert kinds_of(reconcile(client, provider.account, [line]).statement_file) == kinds
    assert only_break(client, provider.account).break_class == INVESTIGATION


def test_a_second_report_may_have_our_id_alone(client: Client, provider: Provider) -> None:
    """The order is matched, so a line that names nothing else is about the same charge."""
    order_id = provider.pay_in(10_00)
    reconcile(client, provider.account, [charge(10_00, client_reference=f"o-{order_id}")])
    line = charge(11_00, client_reference=f"o-{order_id}")
    assert kinds_of(reconcile(client, provider.account, [line]).statement_file) == {
        "DUPLICATE_LINE": 1
    }


def test_another_charge_of_a_paid_order_needs_a_person(client: Client, provider: Provider) -> None:
    """It has an id of its own. If the lookup books it as an unapplied charge, the break ends."""
    order_id = provider.pay_in(10_00, "ch-1")
    lines = [charge(10_00, name, client_reference=f"o-{order_id}") for name in ("ch-1", "ch-2")]
    assert kinds_of(reconcile(client, provider.account, lines[:1]).statement_file) == {}
    file = reconcile(client, provider.account, lines[1:]).statement_file
    assert kinds_of(file) == {"CHARGE_UNKNOWN": 1}
    assert only_break(client, provider.account).break_class == INVESTIGATION
    entries = unapplied_lines(provider.name, "EUR", 10_00)
    post(client, PostingKind.UNAPPLIED, "unapplied-1", entries, "ch-2")
    assert eventually(lambda: state_of(only_break(client, provider.account)) == "RESOLVED")


def test_a_line_whose_missing_entry_was_adjusted_needs_a_person(
    client: Client, provider: Provider
) -> None:
    """The operator took the entry out of the ledger, and then the money came."""
    order_id = provider.pay_in(10_00, "ch-1")
    closing_date = (DAY + timedelta(days=6)).date().isoformat()
    reconcile(client, provider.account, [], closing_date=closing_date)
    Operator(client).resolve(only_break(client, provider.account).break_id, "ADJUST")
    line = charge(10_00, "ch-1", client_reference=f"o-{order_id}")
    assert kinds_of(reconcile(client, provider.account, [line]).statement_file) == {
        "DUPLICATE_LINE": 1
    }


@pytest.mark.parametrize(("amount", "currency"), [(11_00, "EUR"), (10_00, "USD")])
def test_a_charge_that_is_booked_otherwise_needs_a_person(
    client: Client, provider: Provider, amount: int, currency: str
) -> None:
    """The break waited for the charge. The ledger has it now, with other values, so it would wait
    without end.
    """
    reconcile(client, provider.account, [charge(10_00, "ch-1", client_reference="o-po-1")])
    found = only_break(client, provider.account)
    assert found.break_class == reconciliation_pb2.BREAK_CLASS_AUTOMATIC
    provider.pay_in(amount, "ch-1", currency=currency)
    assert eventually(lambda: only_break(client, provider.account).break_class == INVESTIGATION)
    found = only_break(client, provider.account)
    assert [change.action for change in found.changes] == ["FOUND", "RECLASSIFIED"]
    assert (state_of(found), found.changes[-1].caller) == ("OPEN", "tallystick")


def test_only_one_of_two_breaks_about_a_charge_ends(client: Client, provider: Provider) -> None:
    """Two files report a charge that is booked later: the first break ends, and the other is a
    second report.
    """
    for reference in ("txn-1", "txn-2"):
        line = charge(10_00, "ch-1", reference=reference, client_reference="o-po-1")
        reconcile(client, provider.account, [line])
    provider.pay_in(10_00, "ch-1")

    def states() -> list[tuple[str, bool]]:
        return sorted(
            (state_of(item), item.break_class == INVESTIGATION)
            for item in breaks_of(client, account=provider.account)
        )

    assert eventually(lambda: states() == [("OPEN", True), ("RESOLVED", False)])
    assert posted_clearing(client, provider.account).unexplained == "0.00"


@pytest.mark.parametrize(
    ("entries", "kinds"),
    [(0, {"CHARGE_UNKNOWN": 2}), (1, {"DUPLICATE_LINE": 1})],
    ids=["none is booked", "one is booked"],
)
def test_equal_lines_without_a_reference_are_copies_of_what_is_booked(
    client: Client, provider: Provider, entries: int, kinds: dict[str, int]
) -> None:
    """Two equal bookings that the ledger lacks may well be two."""
    for _ in range(entries):
        provider.pay_in(10_00)
    lines = [charge(10_00, text="cash"), charge(10_00, text="cash")]
    assert kinds_of(reconcile(client, provider.account, lines).statement_file) == kinds
