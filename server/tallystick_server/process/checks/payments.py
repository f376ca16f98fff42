"""Orders, charges and checkouts hang together, and are settled as they say."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from tallystick_core.booking import Line, pay_in, unapplied
from tallystick_core.payment import FINAL, MOVES, Happening, Status
from tallystick_server.process.checks.report import Check, Read, listed, merged


def check_orders(read: Read) -> Check:
    """Every order's history is contiguous, moves along the table, and ends in what the order is."""
    check = Check("each order's history leads to what it is", "P3 P4 P9")
    again = (Happening.SETTLED, Happening.PENDING)  # an order stays what it is, in a version of its own
    allowed = {(before, after) for (before, why), after in MOVES.items() if before != after or why in again}
    history = groupby(read("payment.history"), key=lambda row: row.payment_order_id)
    for key, order, grouped in merged(read("payment.orders"), lambda row: row.payment_order_id, history, lambda pair: pair[0]):
        check.row()
        name = f"payment.payment_order {key}"
        moves = list(grouped[1]) if grouped is not None else []
        if order is None or not moves:
            check.fail(name, "has history and no order" if order is None else "has no history")
            continue
        before, noted, waited = None, 0, None
        for number, row in enumerate(moves, 1):
            stage = (row.wallet_updated and row.ledger_updated) + row.delivered  # settled, then delivered: each once, in versions of their own
            steady = before == row.to_status == Status.SUCCESS
            waits = (row.pending_reason, row.next_action_url, row.provider_reference) if row.to_status == Status.PENDING else None
            legal = row.to_status == Status.NOT_STARTED if before is None else (before, row.to_status) in allowed and stage == noted + steady
            legal = legal and (waits is None or waits != waited)
            if row.version != number or row.from_status != before or not legal:
                check.fail(f"payment.order_history {key} {row.version}", f"{row.from_status} to {row.to_status} does not follow {before}")
            before, noted, waited = row.to_status, stage, waits
        last = moves[-1]
        if (last.version, last.to_status, last.wallet_updated, last.ledger_updated, last.delivered) != (
            order.version, order.status, order.wallet_updated, order.ledger_updated, order.delivery_confirmed_time is not None,
        ):  # fmt: skip
            check.fail(name, f"is {order.status} at version {order.version}, but its history ends in {last.to_status} at {last.version}")
        if order.seller_amount + order.platform_fee != order.amount or order.platform_fee < 0 or order.seller_amount <= 0:
            check.fail(name, "seller's share and fee do not sum to the amount")
    return check


def check_charges(read: Read) -> Check:
    """Every charge demands the sum of its orders, at most one attempt of it succeeds, and SUCCESS has a charge."""
    check = Check("each charge is the sum of its orders", "P1 P2")
    for charge, grouped in groupby(read("payment.attempts"), key=lambda row: row.demand_id):
        attempts = list(grouped)
        name = f"payment.attempt {charge}"
        check.row()
        if [a.number for a in attempts] != list(range(1, len(attempts) + 1)):
            check.fail(name, "its attempts are not numbered 1, 2, …")
        alive = [a for a in attempts if a.outcome != "DECLINED"]
        if len(alive) > 1:
            check.fail(name, "has more than one attempt that is open or has succeeded")
        for a in attempts:
            if (a.orders_amount, a.low, a.high) != (a.amount, a.currency, a.currency):
                check.fail(f"{name} {a.number}", f"demands {a.amount} {a.currency}, but its orders sum to {a.orders_amount} {a.low}")
            if a.outcome == "SUCCEEDED" and not _has_its_place(a):
                check.fail(f"{name} {a.number}", "took money that is no SUCCESS order's share and no unapplied charge")
    _check_references(check, read)
    for order in read("payment.unpaid_successes"):
        check.fail(order.name, "is SUCCESS without an attempt that succeeded")
    return check


def _check_references(check: Check, read: Read) -> None:
    """What a provider charged is the money of one charge, as its orders' or unapplied."""
    for shared in read("payment.shared_references"):
        check.fail(f"payment.attempt {shared.provider} {shared.provider_reference}", f"is the money of {shared.charges} charges")
    for wrong in read("payment.wrong_money"):
        check.fail(f"payment.provider_money {wrong.reference}", wrong.what)


def _has_its_place(attempt: Any) -> bool:
    """Whether what a successful attempt took is its orders', or unapplied, or still to be judged."""
    charged = (attempt.moved_amount, attempt.moved_currency)
    if charged == (attempt.amount, attempt.currency) and attempt.orders in (attempt.succeeded, attempt.open):
        return True
    return attempt.open == attempt.orders or charged == (attempt.unapplied_amount, attempt.unapplied_currency)


def check_unapplied(read: Read) -> Check:
    """Money that fits no order is booked once, as what it is; nothing else is booked so."""
    check = Check("unapplied charges are in the ledger", "P2")
    postings = groupby(read("ledger.unapplied"), key=lambda row: row.cause_id)
    for key, charge, posted in merged(read("payment.unapplied"), lambda row: row.unapplied_charge_id, listed(postings), lambda pair: pair[0]):
        check.row()
        name = f"payment.unapplied_charge {key}"
        if charge is None:
            check.fail(name, "is booked, but there is no such charge")
        elif charge.ledger_updated or posted:
            lines = tuple(Line(row.account, row.currency, row.amount) for row in posted[1]) if posted else ()
            if lines != unapplied(charge.provider, charge.currency, charge.amount):
                check.fail(name, "its ledger transaction is not exactly one with its entries")
    return check


def check_deliveries(read: Read) -> Check:
    """What was delivered is available, or the wallet is still to be told."""
    check = Check("what was delivered is released", "P5")
    pending = read("wallet.pending_pay_ins")
    for key, order, waits in merged(read("payment.delivered"), lambda row: row.payment_order_id, pending, lambda row: row.payment_order_id):
        check.row()
        if order is not None and waits is not None and not order.waiting:
            check.fail(f"wallet.pending_credit PAY_IN/{key}", "is pending, but its order was delivered")
    return check


def check_checkouts(read: Read) -> Check:
    """is_payment_done holds exactly where every order is SUCCESS and settled, and the counters say so."""
    check = Check("is_payment_done says what its orders say", "P6")
    orders = groupby(read("payment.orders_by_checkout"), key=lambda row: row.checkout_id)
    for key, checkout, grouped in merged(read("payment.checkouts"), lambda row: row.checkout_id, orders, lambda pair: pair[0]):
        check.row()
        name = f"payment.checkout {key}"
        members = list(grouped[1]) if grouped is not None else []
        if checkout is None or not members:
            check.fail(name, "has orders and no checkout" if checkout is None else "has no orders")
            continue
        unpaid = sum(not (o.status == Status.SUCCESS and o.settled) for o in members)
        open_ = sum(not (o.status in FINAL and (o.settled or o.status == Status.FAILED)) for o in members)
        if (checkout.order_count, checkout.unpaid_orders, checkout.open_orders) != (len(members), unpaid, open_):
            check.fail(name, f"counts {checkout.unpaid_orders} unpaid and {checkout.open_orders} open orders; there are {unpaid} and {open_}")
        if checkout.is_payment_done != (unpaid == 0):
            check.fail(name, "is_payment_done is not what its orders say")
    return check


def check_settlement(read: Read) -> Check:
    """A settled order has exactly one credit and one transaction, of its values; what is credited or posted belongs to an order."""
    check = Check("flags, wallet and ledger tell the same", "P7")
    credits_ = groupby(read("wallet.pay_ins"), key=lambda row: row.payment_order_id)
    postings = groupby(read("ledger.pay_ins"), key=lambda row: row.cause_id)
    with_credit = merged(read("payment.orders"), lambda row: row.payment_order_id, listed(credits_), lambda pair: pair[0])
    for key, pair, posted in merged(with_credit, lambda row: row[0], listed(postings), lambda pair: pair[0]):
        check.row()
        order, credited = (pair[1], pair[2]) if pair is not None else (None, None)
        name = f"payment.payment_order {key}"
        if order is None or (order.status != Status.SUCCESS and (credited or posted)):
            check.fail(name, "was credited or posted, but there is no such order that succeeded")
            continue
        if order.wallet_updated or credited:
            _check_credit(check, name, order, credited[1] if credited else [])
        if order.ledger_updated or posted:
            _check_posting(check, name, order, posted[1] if posted else [])
    return check


def _check_credit(check: Check, name: str, order: Any, rows: list[Any]) -> None:
    wanted = [(order.seller_account, order.currency, order.seller_amount)]
    if [(row.seller_account, row.currency, row.amount) for row in rows] != wanted:
        check.fail(name, f"its wallet credits are not exactly one of {order.seller_amount} {order.currency} for {order.seller_account}")


def _check_posting(check: Check, name: str, order: Any, rows: list[Any]) -> None:
    wanted = pay_in(order.provider, order.buyer_account, order.seller_account, order.currency, order.amount, order.platform_fee)
    if tuple(Line(row.account, row.currency, row.amount) for row in rows) != wanted:
        check.fail(name, "its ledger transaction is not exactly one with the entries of its pay-in")
