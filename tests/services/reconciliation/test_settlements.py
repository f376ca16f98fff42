"""What providers pay to the bank: lines of their own, or the sum of the lines of a settlement."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick import Client
from tallystick.reconciliation.v1 import reconciliation_pb2
from tests.support.break_operator import Operator
from tests.support.platform import ServedPlatform, eventually, unique_id
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
    require_explained,
    require_verified,
    transactions_of,
)


def line(
    number: int, amount: int, settlement: str, **values: Any
) -> reconciliation_pb2.StatementLine:
    """A line of a report in which each line names its settlement."""
    return charge(
        amount,
        f"ch-{number}",
        reference=f"txn-{number}",
        settlement_reference=settlement,
        **values,
    )


def send_report(
    client: Client, provider: Provider, *lines: reconciliation_pb2.StatementLine
) -> reconciliation_pb2.StatementFile:
    """Reconciles a report of Stripe, which has no lines for what was paid to the bank."""
    return reconcile(client, provider.account, lines, format_="stripe_report").statement_file


def require_paid_out(client: Client, provider: Provider, **expected: list[str]) -> None:
    """What was posted as paid to the bank, once all is posted: amounts by reference, with "_" for
    "-".
    """

    def paid_out() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for transaction in transactions_of(client, provider.account):
            for entry in transaction.entries:
                if entry.account == "banks/transit":
                    reference = transaction.external_reference.replace("-", "_")
                    found.setdefault(reference, []).append(entry.amount)
        return found

    posted_clearing(client, provider.account)
    eventually(lambda: paid_out() == expected, 5)
    assert paid_out() == expected


def book(client: Client, *amounts: int) -> Provider:
    """A provider with a charge for each amount: ch-1, ch-2 and so on."""
    provider = Provider(client)
    for number, amount in enumerate(amounts, 1):
        provider.pay_in(amount, f"ch-{number}")
    return provider


def test_each_settlement_is_the_sum_of_its_lines(client: Client) -> None:
    """Also if several files have its lines; each line is paid once."""
    provider = book(client, 10_00, 20_00, 30_00)
    first = [line(1, 10_00, "po-1", fee=30), line(2, 20_00, "po-2", fee=50)]
    send_report(client, provider, *first)
    require_paid_out(client, provider, po_1=["9.70"], po_2=["19.50"])
    fee = line(9, -1_00, "po-2", line_type="FEE")
    send_report(client, provider, *first, line(3, 30_00, "po-2"), fee)
    require_paid_out(client, provider, po_1=["9.70"], po_2=["19.50", "29.00"])
    report = clearing(client, provider.account)
    assert (report.ledger_balance, report.statement_balance) == ("0.00", "0.00")
    entry = charge(48_50, line_type="BANK_ENTRY", reference="po-2")
    bank = f"banks/{unique_id('b')}"
    assert kinds_of(reconcile(client, bank, [entry]).statement_file) == {}
    require_explained(client)


def test_a_settlement_may_take_money(client: Client) -> None:
    """If refunds and fees exceed the charges, the bank pays the provider."""
    provider = book(client)
    fee = line(1, -5_00, "po-1", line_type="FEE")
    send_report(client, provider, fee)
    require_paid_out(client, provider, po_1=["5.00"])
    assert clearing(client, provider.account).ledger_balance == "0.00"
    bank = f"banks/{unique_id('b')}"
    entry = charge(-5_00, line_type="BANK_ENTRY", reference="po-1")
    assert kinds_of(reconcile(client, bank, [entry]).statement_file) == {}


def test_lines_without_a_settlement_wait_for_one(client: Client) -> None:
    """The provider holds their money still."""
    provider = book(client, 10_00)
    send_report(client, provider, line(1, 10_00, ""))
    require_paid_out(client, provider)
    assert clearing(client, provider.account).ledger_balance == "10.00"


def test_lines_in_breaks_are_part_of_a_settlement(client: Client) -> None:
    """The provider paid them, whatever the ledger has: the bank has the whole sum."""
    provider = book(client, 10_00)
    lines = [
        line(1, 10_00, "po-1"),
        line(2, 7_00, "po-1"),
        line(3, -2_00, "po-1", line_type="REFUND"),
    ]
    file = send_report(client, provider, *lines)
    assert kinds_of(file) == {"CHARGE_UNKNOWN": 1, "REFUND_NOT_BOOKED": 1}
    require_paid_out(client, provider, po_1=["15.00"])
    require_explained(client)


def test_a_line_that_comes_twice_is_paid_once(client: Client) -> None:
    """A copy in the file, and a correction, are no money that the bank gets: the only break is that
    of the line.
    """
    provider, paid = book(client, 10_00, 20_00), unique_id("po").replace("-", "_")
    lines = [line(1, 10_00, paid), line(1, 10_00, paid)]
    file = send_report(client, provider, *lines)
    assert kinds_of(file) == {"DUPLICATE_LINE": 1}
    require_paid_out(client, provider, **{paid: ["10.00"]})
    lines = [line(1, 9_00, paid), line(2, 20_00, paid)]
    file = send_report(client, provider, *lines)
    assert kinds_of(file) == {"LINE_CORRECTED": 1}
    require_paid_out(client, provider, **{paid: ["10.00", "20.00"]})
    entry = charge(30_00, line_type="BANK_ENTRY", reference=paid)
    assert kinds_of(reconcile(client, f"banks/{unique_id('b')}", [entry]).statement_file) == {}
    require_explained(client)


def test_a_report_with_the_line_of_its_settlement_pays_it_once(client: Client) -> None:
    """Stripe's reports of a balance have the payout as a line; it is what was paid then."""
    provider = book(client, 10_00, 20_00)
    lines = [
        line(1, 10_00, "po-1", fee=30),
        line(7, -9_70, "po-1", line_type="SETTLEMENT"),
        line(2, 20_00, "po-2"),
    ]
    file = send_report(client, provider, *lines)
    assert kinds_of(file) == {}
    require_paid_out(client, provider, po_1=["9.70"], po_2=["20.00"])
    report = clearing(client, provider.account)
    assert (report.ledger_balance, report.statement_balance, report.unexplained) == (
        "0.00",
        "0.00",
        "0.00",
    )


def test_a_corrected_settlement_is_a_break(
    client: Client,
) -> None:
    """The money that was paid is posted once; a person decides about the rest."""
    provider = book(client, 10_00)
    reconcile(
        client,
        provider.account,
        [charge(10_00, "ch-1"), charge(-9_00, line_type="SETTLEMENT", reference="set-1")],
    )
    corrected = charge(-10_00, line_type="SETTLEMENT", reference="set-1")
    file = reconcile(client, provider.account, [corrected]).statement_file
    assert kinds_of(file) == {"LINE_CORRECTED": 1}
    require_paid_out(client, provider, set_1=["9.00"])
    assert only_break(client, provider.account).difference == "-10.00"
    require_explained(client)


def failure_line(amount: int, reference: str, **values: Any) -> reconciliation_pb2.StatementLine:
    """The bank returned a settlement."""
    return charge(amount, line_type="SETTLEMENT_FAILURE", reference=reference, **values)


@pytest.mark.parametrize("resolution", ["ADJUST", "MATCH"])
def test_a_failed_settlement_counts_its_money_once(
    platform: ServedPlatform, client: Client, resolution: str
) -> None:
    """The money goes back from transit to the provider, and nothing is adjusted. The break of the
    failure has the settlement of its provider, and no other.
    """
    provider, other = book(client, 10_00), book(client, 11_00)
    reference = unique_id("set")
    for each, amount in ((provider, 10_00), (other, 11_00)):
        settlement = charge(-amount, line_type="SETTLEMENT", reference=reference)
        reconcile(client, each.account, [charge(amount, "ch-1"), settlement])
        posted_clearing(client, each.account)
    in_transit = float(ledger_balance(client, "banks/transit"))
    file = reconcile(client, provider.account, [failure_line(10_00, reference)]).statement_file
    assert kinds_of(file) == {"SETTLEMENT_FAILED": 1}
    found = only_break(client, provider.account)
    assert (found.difference, [item.amount for item in found.ledger_items]) == ("0.00", ["10.00"])
    operator = Operator(client)
    if resolution == "MATCH":
        operator.match(found.break_id)
    else:
        operator.resolve(found.break_id, resolution)
    report = posted_clearing(client, provider.account)
    assert (report.ledger_balance, report.statement_balance) == ("10.00", "10.00")
    assert entries_of(transactions_of(client, provider.account)[-1]) == {
        provider.account: "10.00",
        "banks/transit": "-10.00",
    }
    assert float(ledger_balance(client, "banks/transit")) == in_transit + 10
    require_verified(client, platform.databases)


def test_a_failure_that_names_its_settlement_has_it(client: Client) -> None:
    """The reference of the line is its own, and it has that of the settlement too. A failure of
    something else has no entry.
    """
    provider, reference = book(client), unique_id("set")
    settlement = charge(-9_00, line_type="SETTLEMENT", reference=reference)
    reconcile(client, provider.account, [settlement])
    posted_clearing(client, provider.account)
    lines = [
        failure_line(9_00, "fail-1", settlement_reference=reference),
        failure_line(9_00, "fail-2"),
    ]
    file = reconcile(client, provider.account, lines).statement_file
    assert kinds_of(file) == {"SETTLEMENT_FAILED": 2}
    found = breaks_of(client, account=provider.account)
    assert sorted(item.difference for item in found) == ["0.00", "9.00"]
    require_explained(client)


def test_a_failure_in_the_file_of_its_settlement_is_matched_by_hand(
    platform: ServedPlatform, client: Client
) -> None:
    """The ledger does not have the settlement yet when the failure is compared."""
    provider, reference = book(client), unique_id("set")
    settlement = charge(-9_00, line_type="SETTLEMENT", reference=reference)
    reconcile(client, provider.account, [settlement, failure_line(9_00, reference)])
    posted_clearing(client, provider.account)
    found = only_break(client, provider.account)
    operator = Operator(client)
    (transaction,) = transactions_of(client, provider.account)
    opened = operator.open(provider.account, transaction.transaction_id)
    operator.match(found.break_id, opened.break_id)
    assert posted_clearing(client, provider.account).ledger_balance == "0.00"
    require_verified(client, platform.databases)
