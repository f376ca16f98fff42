"""The checker: what callers were told, what the provider logged, and what the database holds must be one story."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import psycopg

from tallystick.payment.v1 import payment_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick_server.process.databases import Databases
from tallystick_server.process.verify import verify

from .load import PaidOut, Told

_FINAL = {payment_pb2.PAYMENT_STATE_PAID, payment_pb2.PAYMENT_STATE_PARTIALLY_PAID, payment_pb2.PAYMENT_STATE_FAILED}

AT_REST = """
    select (select count(*) from payment.due where next_attempt_time is not null) + (select count(*) from payment.to_release) + (select count(*) from payment.outbox)
        + (select count(*) from payout.due where next_attempt_time < 'infinity') + (select count(*) from payment.watch) + (select count(*) from payout.watch) + (select count(*) from payout.outbox)
        + (select count(*) from payout.payout_batch where state = 'COLLECTING') + (select count(*) from wallet.outbox) + (select count(*) from ledger.outbox) + (select count(*) from payment.unapplied_charge where not ledger_updated)
        + (select h.sequence - r.sequence from ledger.head h join ledger.relayed r using (book)) + (select count(*) from payment.refused_aggregate)
        + (select count(*) from wallet.refused_aggregate) + (select count(*) from payout.refused_aggregate) + (select count(*) from ledger.refused_aggregate)
"""
"""How much is due, or has not been told or booked."""


def at_rest(admin: str) -> bool:
    """Whether nothing is due and everything has been told and booked."""
    with psycopg.connect(admin, connect_timeout=5) as connection:
        row = connection.execute(AT_REST).fetchone()
    return row is not None and row[0] == 0


def check(databases: Databases, told: dict[str, Told], paid_out: dict[str, PaidOut]) -> dict[str, Any]:
    """`lost`, `doubled`, `dead_letters` and `violations`.

    The count of what was acknowledged and is not there, of what was charged or paid twice, of dead letters that wait for a person, and a line for each breach.
    """
    with psycopg.connect(databases.admin) as connection:
        orders = connection.execute("""
            select checkout_id, payment_order_id, charge_id, status, wallet_updated and ledger_updated, failure_reason from payment.payment_order""").fetchall()
        states: dict[str, str] = dict(connection.execute("select checkout_id, payment_state from payment.checkout").fetchall())
        charges = connection.execute("select charge_id, reference from sandbox.charge where state = 'SUCCEEDED'").fetchall()
        aside = {row[0].removeprefix("charges/") for row in connection.execute("select subject from payment.dead_letter where state = 'OPEN'")}
        unapplied = Counter(row[0] for row in connection.execute("select charge_id from payment.unapplied_charge"))
    charged: dict[str, int] = Counter(charge for charge, _ in charges)
    by_checkout: dict[str, dict[str, str]] = defaultdict(dict)
    violations, lost, doubled = [], 0, 0
    for checkout, order, charge, status, settled, _ in orders:
        by_checkout[checkout][order] = status
        if charged[charge] > 1:
            doubled += 1
            violations.append(f"order {order} was charged {charged[charge]} times")
        if status == "SUCCESS" and charged[charge] != 1:
            violations.append(f"order {order} is SUCCESS with {charged[charge]} charges")
        if status == "FAILED" and charged[charge] != unapplied[charge]:
            violations.append(f"order {order} is FAILED with {charged[charge]} charges, {unapplied[charge]} of them unapplied")
        if (status in ("NOT_STARTED", "EXECUTING", "PENDING") or (status == "SUCCESS" and not settled)) and charge not in aside:
            violations.append(f"order {order} is {status}, settled: {settled}, and nobody will move it on")
    for checkout, one in told.items():
        if one.answers and checkout not in states:
            lost += 1
            violations.append(f"payment {checkout} was acknowledged, and is not there")
            continue
        for answer in one.answers:
            violations += _contradictions(answer, states[checkout], by_checkout[checkout])
        violations += [f"payment {checkout} was refused with {refusal}" for refusal in one.refusals]
    gone, again, wrong_payouts = _check_payouts(databases, paid_out)
    lost, doubled, violations = lost + gone, doubled + again, violations + wrong_payouts
    report = verify(databases)
    violations += [wrong for one in report.checks for wrong in one.wrong]
    revivable = _to_revive(databases)
    violations += [f"dead letter {row} waits for a person" for row in revivable]
    return {"lost": lost, "doubled": doubled, "dead_letters": len(revivable), "violations": violations}


def _to_revive(databases: Databases) -> list[str]:
    """The open dead letters that a person would have to revive: all but those of requests that the provider rejects as malformed."""
    with psycopg.connect(databases.admin) as connection:
        rows = connection.execute("""
            select subject || ': ' || cause || ' ' || detail from payment.dead_letter where state = 'OPEN' and cause <> 'REJECTED' union all
            select subject || ': ' || cause || ' ' || detail from payout.dead_letter where state = 'OPEN' and cause <> 'REJECTED'""").fetchall()
    return [row[0] for row in rows]


def _check_payouts(databases: Databases, paid_out: dict[str, PaidOut]) -> tuple[int, int, list[str]]:
    """How many payouts were acknowledged and are not there, and were paid twice; and a line for each breach."""
    with psycopg.connect(databases.admin) as connection:
        payouts = {row[0]: row[1:] for row in connection.execute("select payout_id, state, settled, net_amount from payout.payout").fetchall()}
        made = connection.execute(
            "select payout_id, amount, coalesce(returned_amount, 0), reference from sandbox.transfer where state in ('PAID', 'RETURNED')"
        ).fetchall()
        known = {
            row[0]: row[1:]
            for row in connection.execute(
                "select provider_reference, payout_id, amount, coalesce(returned_amount, 0) from payout.transfer"
            ).fetchall()
        }
        aside = {row[0].removeprefix("payouts/") for row in connection.execute("select subject from payout.dead_letter where state = 'OPEN'")}
    times = Counter(payout for payout, _, _, _ in made)
    violations = [f"payout {payout} was paid {count} times" for payout, count in times.items() if count > 1]
    doubled, lost = len(violations), 0
    for payout, amount, returned, reference in made:
        if known.get(reference) != (payout, amount, returned):
            violations.append(f"payout {payout} was paid {amount} and {returned} came back, and known is {known.get(reference)}")
    for payout, (state, settled, _) in payouts.items():
        if state in ("PAID", "RETURNED") and not times[payout]:
            violations.append(f"payout {payout} is {state}, and was not paid")
        if not settled and payout not in aside:
            violations.append(f"payout {payout} is {state}, and nobody will move it on")
    for payout, one in paid_out.items():
        violations += [f"payout {payout} was refused with {refusal}" for refusal in one.refusals]
        if one.answers and payout not in payouts:
            lost += 1
            violations.append(f"payout {payout} was acknowledged, and is not there")
            continue
        for answer in one.answers:
            before, now = payout_pb2.PayoutState.Name(answer.payout_state).removeprefix("PAYOUT_STATE_"), payouts[payout][0]
            if before in ("PAID", "FAILED", "RETURNED") and now != before and (before, now) != ("PAID", "RETURNED"):
                violations.append(f"payout {payout} was told to be {before}, and is {now}")
    return lost, doubled, violations


def _contradictions(answer: payment_pb2.Payment, state: str, statuses: dict[str, str]) -> list[str]:
    """Where an answer, whose final parts must stand for ever, is not what is stored."""
    found = []
    if answer.payment_state in _FINAL and payment_pb2.PaymentState.Name(answer.payment_state) != f"PAYMENT_STATE_{state}":
        found.append(f"payment {answer.checkout_id} was told to be {payment_pb2.PaymentState.Name(answer.payment_state)}, and is {state}")
    for order in answer.payment_orders:
        status = payment_pb2.PaymentOrderStatus.Name(order.payment_order_status).removeprefix("PAYMENT_ORDER_STATUS_")
        if status in ("SUCCESS", "FAILED") and statuses.get(order.payment_order_id) != status:
            found.append(f"order {order.payment_order_id} was told to be {status}, and is {statuses.get(order.payment_order_id)}")
    return found
