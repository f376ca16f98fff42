"""Checks that orders, charges and checkouts are consistent, and booked as they say."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from tallystick_core.ledger.posting_rules import JournalLine, pay_in_lines, unapplied_lines
from tallystick_core.payment.state import (
    TERMINAL_STATUSES,
    TRANSITIONS,
    OrderStatus,
    PaymentTrigger,
)
from tallystick_server.verify.report import (
    Check,
    QueryRunner,
    Rows,
    format_posting,
    merge_join,
    sum_counts,
    to_lists,
)

_SAME_STATUS_TRIGGERS = (PaymentTrigger.BOOKED, PaymentTrigger.PENDING, PaymentTrigger.FALLBACK)
"""The reasons of versions that keep an order's status."""
_TRANSITIONS = sorted(
    {
        f"{before} {after}"
        for (before, why), after in TRANSITIONS.items()
        if before != after or why in _SAME_STATUS_TRIGGERS
    }
)


def check_orders(read: QueryRunner) -> Check:
    """Every order's history is contiguous, follows the transition table, and ends in the order's
    current status. What was captured covers what was refunded and disputed.
    """
    check = Check(
        "each order matches its history",
        "P3 P4 P8 P9",
        sum_counts(read("payment.order_count")),
    )
    check.fail_each(read("payment.inconsistent_history", transitions=_TRANSITIONS))
    check.fail_each(read("payment.inconsistent_ends"))
    check.fail_each(read("payment.missing_orders"))
    return check


def check_charges(read: QueryRunner) -> Check:
    """Every charge requests the sum of its orders, and at most one of its attempts succeeds.
    SUCCESS has a charge, whose provider money belongs to no other charge.
    """
    check = Check(
        "each charge is the sum of its orders", "P1 P2", sum_counts(read("payment.attempt_count"))
    )
    for name in (
        "inconsistent_charges",
        "inconsistent_attempt_amounts",
        "shared_references",
        "inconsistent_money",
        "unpaid_successes",
    ):
        check.fail_each(read(f"payment.{name}"))
    return check


def check_unapplied(read: QueryRunner) -> Check:
    """Every unapplied charge is booked once, with the right kind, and nothing else is booked so."""
    check = Check("unapplied charges are in the ledger", "P2")
    for key, charge, posting_group in merge_join(
        read("payment.unapplied"),
        lambda row: row.unapplied_charge_id,
        _postings_by_source_id(read("ledger.unapplied")),
        _key,
    ):
        check.count_row()
        name = f"payment.unapplied_charge {key}"
        if charge is None:
            check.fail(name, "is booked, but there is no such charge")
        elif (charge.ledger_updated or posting_group is not None) and not _is_posted(
            posting_group,
            unapplied_lines(charge.provider, charge.currency, charge.amount),
            charge.provider_reference,
        ):
            check.fail(
                name, "its ledger transaction is not exactly one with its reference and entries"
            )
    return check


def check_deliveries(read: QueryRunner) -> Check:
    """Delivered orders are available, or their release is still to be sent to the wallet."""
    check = Check("delivered orders are released", "P5")
    pending = read("wallet.pending_pay_ins")
    for key, order, pending_credit in merge_join(
        read("payment.delivered"),
        lambda row: row.payment_order_id,
        pending,
        lambda row: row.payment_order_id,
    ):
        check.count_row()
        if order is not None and pending_credit is not None and not order.waiting:
            check.fail(
                f"wallet.pending_credit PAY_IN/{key}", "is pending, but its order was delivered"
            )
    return check


def check_checkouts(read: QueryRunner) -> Check:
    """is_payment_done is set exactly where every order is SUCCESS and booked, and the counters
    agree.
    """
    check = Check(
        "is_payment_done matches the orders", "P6", sum_counts(read("payment.checkout_count"))
    )
    check.fail_each(read("payment.inconsistent_checkouts", final=[*map(str, TERMINAL_STATUSES)]))
    return check


def check_booking(read: QueryRunner) -> Check:
    """A booked order has exactly one credit and one transaction, with its values. Every credit and
    every posting belongs to an order.
    """
    check = Check("flags, wallet and ledger agree", "P7")
    credits_ = to_lists(groupby(read("wallet.pay_ins"), key=lambda row: row.payment_order_id))
    with_credit = merge_join(
        read("payment.orders"), lambda row: row.payment_order_id, credits_, _key
    )
    for key, pair, posting_group in merge_join(
        with_credit, _key, _postings_by_source_id(read("ledger.pay_ins")), _key
    ):
        check.count_row()
        order, credit_group = (pair[1], pair[2]) if pair is not None else (None, None)
        name = f"payment.payment_order {key}"
        if order is None or (
            order.status != OrderStatus.SUCCESS and (credit_group or posting_group)
        ):
            check.fail(name, "was credited or posted, but is not a successful order")
            continue
        if order.wallet_updated or credit_group:
            _check_credit(check, name, order, credit_group[1] if credit_group else [])
        if order.ledger_updated or posting_group:
            lines = pay_in_lines(
                order.provider,
                order.buyer_account,
                order.seller_account,
                order.currency,
                order.amount,
                order.platform_fee,
            )
            if not _is_posted(posting_group, lines, order.provider_reference, order.buyer_account):
                check.fail(
                    name,
                    "its ledger transaction is not exactly one with the reference, buyer and "
                    "entries of its pay-in",
                )
    return check


def _check_credit(check: Check, name: str, order: Any, rows: list[Any]) -> None:
    expected = [(order.seller_account, order.currency, order.seller_amount)]
    if [(row.seller_account, row.currency, row.amount) for row in rows] != expected:
        check.fail(
            name,
            f"its wallet credits are not exactly one of {order.seller_amount} {order.currency} "
            f"for {order.seller_account}",
        )


def _is_posted(
    posting_group: tuple[str, list[str]] | None,
    lines: tuple[JournalLine, ...],
    external_reference: str,
    buyer_account: str = "",
) -> bool:
    """Whether a source id has exactly one transaction, with this reference, buyer and entries."""
    expected = format_posting(lines, external_reference, buyer_account)
    return posting_group is not None and posting_group[1] == [expected]


def _postings_by_source_id(rows: Rows) -> Iterator[tuple[str, list[str]]]:
    """The ledger's transactions by source id, each as one text."""
    for source_id, transactions in groupby(rows, key=lambda row: row.source_id):
        yield source_id, [row.posting for row in transactions]


def _key(item: tuple[Any, ...]) -> Any:
    return item[0]


CHECKS = (
    check_orders,
    check_charges,
    check_unapplied,
    check_deliveries,
    check_checkouts,
    check_booking,
)
