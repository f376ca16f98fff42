"""The checker compares the callers' answers, the providers' logs and the database."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import psycopg

from tallystick.payment.v1 import payment_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.verify.run import verify
from tests.chaos.calls import PaymentCalls, PayoutCalls
from tests.chaos.provider_logs import (
    ProviderCharge,
    ProviderTransfer,
    read_charges,
    read_kept_transfers,
    read_open_pages,
    read_transfers,
)

_FINAL_STATES = {
    payment_pb2.PAYMENT_STATE_PAID,
    payment_pb2.PAYMENT_STATE_PARTIALLY_PAID,
    payment_pb2.PAYMENT_STATE_FAILED,
}

_BOOKED_CHARGES = """
    select provider, provider_reference, amount from payment.payment_order where status = 'SUCCESS'
    union all select provider, provider_reference, amount from payment.unapplied_charge
"""
OPEN_WORK_SQL = """
    select name, number from (
        select 'payment.operation', count(*) from payment.operation where next_try_time is not null
        union all select 'payment.pending_release', count(*) from payment.pending_release
        union all select 'payment.failed_charge_poll', count(*) from payment.failed_charge_poll
        union all select 'payment.unapplied_charge', count(*) from payment.unapplied_charge
            where not ledger_updated
        union all select 'payout.operation', count(*) from payout.operation
            where next_try_time < 'infinity'
        union all select 'payout.completed_payout_poll', count(*) from payout.completed_payout_poll
        union all select 'payout.payout_batch', count(*) from payout.payout_batch
            where state = 'GENERATING'
        union all select 'ledger.relayed', coalesce(sum(h.sequence - r.sequence), 0)
            from ledger.head h join ledger.relayed r using (book)
        union all select 'payment.outbox', count(*) from payment.outbox
        union all select 'payout.outbox', count(*) from payout.outbox
        union all select 'wallet.outbox', count(*) from wallet.outbox
        union all select 'ledger.outbox', count(*) from ledger.outbox
        union all select 'reconciliation.outbox', count(*) from reconciliation.outbox
        union all select 'payment.rejected_aggregate', count(*) from payment.rejected_aggregate
        union all select 'payout.rejected_aggregate', count(*) from payout.rejected_aggregate
        union all select 'wallet.rejected_aggregate', count(*) from wallet.rejected_aggregate
        union all select 'ledger.rejected_aggregate', count(*) from ledger.rejected_aggregate
        union all select 'reconciliation.rejected_aggregate', count(*)
            from reconciliation.rejected_aggregate
        union all select 'reconciliation.ledger_position', h.sequence - coalesce(p.sequence, 0)
            from ledger.head h left join reconciliation.ledger_position p using (book)
        union all select 'reconciliation.ledger_posting', count(*)
            from reconciliation.ledger_posting where not is_posted
    ) as open_work (name, number) where number > 0
"""
"""The tables with operations that are due or changes that are not published or booked, and the
number of each.
"""


def open_work(admin: str) -> dict[str, int]:
    """The number of rows that are still due, to publish or to book, by table. Empty: none is."""
    with psycopg.connect(admin, connect_timeout=5) as connection:
        return {name: int(number) for name, number in connection.execute(OPEN_WORK_SQL)}


def format_open_work(work: dict[str, int]) -> str:
    return ", ".join(f"{number} in {name}" for name, number in sorted(work.items()))


def check(
    databases: DatabaseUrls,
    payment_calls: dict[str, PaymentCalls],
    payout_calls: dict[str, PayoutCalls],
) -> dict[str, Any]:
    """`lost`, `doubled`, `dead_letters` and `violations`. The first three count acknowledged
    payments or payouts that are missing, duplicate charges or payouts, and open dead letters.
    `violations` has a line for each breach.
    """
    with psycopg.connect(databases.admin) as connection:
        orders = connection.execute("""
            select checkout_id, payment_order_id, charge_id, status, wallet_updated
                and ledger_updated, failure_reason from payment.payment_order""").fetchall()
        states: dict[str, str] = dict(
            connection.execute("select checkout_id, payment_state from payment.checkout").fetchall()
        )
        charges, open_pages = read_charges(connection), read_open_pages(connection)
        booked_charges = connection.execute(_BOOKED_CHARGES).fetchall()
        dead_lettered = {
            row[0].removeprefix("charges/")
            for row in connection.execute(
                "select resource_name from payment.dead_letter where state = 'OPEN'"
            )
        }
        unapplied = Counter(
            row[0] for row in connection.execute("select charge_id from payment.unapplied_charge")
        )
    charge_counts: dict[str, int] = Counter(charge.charge_id for charge in charges)
    by_checkout: dict[str, dict[str, str]] = defaultdict(dict)
    violations, lost, doubled = _unbooked_charges(charges, booked_charges), 0, 0
    violations += [f"the page of {charge_id} is open" for charge_id in open_pages]
    for checkout_id, order_id, charge_id, status, is_booked, _ in orders:
        by_checkout[checkout_id][order_id] = status
        if charge_counts[charge_id] > 1:
            doubled += 1
            violations.append(f"order {order_id} was charged {charge_counts[charge_id]} times")
        if status == "SUCCESS" and charge_counts[charge_id] != 1:
            violations.append(
                f"order {order_id} is SUCCESS with {charge_counts[charge_id]} charges"
            )
        if status == "FAILED" and charge_counts[charge_id] != unapplied[charge_id]:
            violations.append(
                f"order {order_id} is FAILED with {charge_counts[charge_id]} charges, "
                f"{unapplied[charge_id]} of them unapplied"
            )
        if (
            status in ("NOT_STARTED", "EXECUTING", "PENDING")
            or (status == "SUCCESS" and not is_booked)
        ) and charge_id not in dead_lettered:
            violations.append(
                f"order {order_id} is {status}, booked: {is_booked}, and is not scheduled"
            )
    for checkout_id, calls in payment_calls.items():
        if calls.payments and checkout_id not in states:
            lost += 1
            violations.append(f"payment {checkout_id} was acknowledged, but does not exist")
            continue
        for payment in calls.payments:
            violations += _differences(payment, states[checkout_id], by_checkout[checkout_id])
        violations += [f"payment {checkout_id} was rejected with {error}" for error in calls.errors]
    with psycopg.connect(databases.admin) as connection:
        transfers = read_transfers(connection)
        kept_transfers = read_kept_transfers(connection)
    lost_payouts, doubled_payouts, wrong_payouts = _check_payouts(
        databases, payout_calls, transfers, kept_transfers
    )
    lost, doubled, violations = (
        lost + lost_payouts,
        doubled + doubled_payouts,
        violations + wrong_payouts,
    )
    report = verify(databases)
    violations += [violation for calls in report.checks for violation in calls.failures]
    dead_letters = _open_dead_letters(databases)
    violations += [f"dead letter {row} waits for an operator" for row in dead_letters]
    return {
        "lost": lost,
        "doubled": doubled,
        "dead_letters": len(dead_letters),
        "charges": dict(Counter(charge.provider for charge in charges)),
        "transfers": dict(Counter(transfer.provider for transfer in transfers)),
        "violations": violations,
    }


def _unbooked_charges(
    charges: Sequence[ProviderCharge], booked_charges: Sequence[tuple[Any, ...]]
) -> list[str]:
    """Compares what the providers took with the orders that are paid and the unapplied charges: by
    reference and amount, and so in sum.
    """
    taken = Counter((charge.provider, charge.reference, charge.amount) for charge in charges)
    booked = Counter(booked_charges)
    return [
        *(
            f"{provider} took {amount} as {ref}: not booked"
            for provider, ref, amount in taken - booked
        ),
        *(f"{provider} took no {amount} as {ref}" for provider, ref, amount in booked - taken),
    ]


def _open_dead_letters(databases: DatabaseUrls) -> list[str]:
    """The open dead letters that an operator could requeue: all except requests that the provider
    rejects as malformed.
    """
    with psycopg.connect(databases.admin) as connection:
        rows = connection.execute("""
            select resource_name || ': ' || cause || ' ' || detail from payment.dead_letter
                where state = 'OPEN' and cause <> 'REJECTED' union all
            select resource_name || ': ' || cause || ' ' || detail from payout.dead_letter
                where state = 'OPEN' and cause <> 'REJECTED'""").fetchall()
    return [row[0] for row in rows]


def _check_payouts(
    databases: DatabaseUrls,
    payout_calls: dict[str, PayoutCalls],
    transfers: Sequence[ProviderTransfer],
    kept_transfers: Sequence[tuple[str, str]],
) -> tuple[int, int, list[str]]:
    """The number of acknowledged payouts that are missing, the number of duplicate payouts, and a
    line for each breach.
    """
    with psycopg.connect(databases.admin) as connection:
        payouts = {
            row[0]: row[1:]
            for row in connection.execute(
                "select payout_id, state, booked, net_amount from payout.payout"
            ).fetchall()
        }
        recorded_transfers = {
            row[:2]: row[2:]
            for row in connection.execute(
                "select provider, provider_reference, payout_id, amount, "
                "coalesce(returned_amount, 0) from payout.transfer"
            ).fetchall()
        }
        dead_lettered = {
            row[0].removeprefix("payouts/")
            for row in connection.execute(
                "select resource_name from payout.dead_letter where state = 'OPEN'"
            )
        }
    paid_counts = Counter(transfer.payout_id for transfer in transfers)
    violations = [
        f"payout {payout_id} was paid {count} times"
        for payout_id, count in paid_counts.items()
        if count > 1
    ]
    doubled, lost = len(violations), 0
    for provider, payout_id, reference, amount, returned_amount in transfers:
        recorded_transfer = recorded_transfers.pop((provider, reference), None)
        if recorded_transfer != (payout_id, amount, returned_amount):
            violations.append(
                f"payout {payout_id} was paid {amount}, returned {returned_amount}, and recorded "
                f"is {recorded_transfer}"
            )
    violations += [
        f"{provider} paid nothing as {reference}, and recorded is {recorded_transfer}"
        for (provider, reference), recorded_transfer in recorded_transfers.items()
    ]
    violations += [
        f"transfer {transfer_id} of payout {payout_id} was neither paid out nor reversed"
        for payout_id, transfer_id in kept_transfers
        if payout_id not in dead_lettered
    ]
    for payout_id, (state, is_booked, _) in payouts.items():
        if state in ("PAID", "RETURNED") and not paid_counts[payout_id]:
            violations.append(f"payout {payout_id} is {state}, but was not paid")
        if not is_booked and payout_id not in dead_lettered:
            violations.append(f"payout {payout_id} is {state}, and is not scheduled")
    for payout_id, calls in payout_calls.items():
        violations += [f"payout {payout_id} was rejected with {error}" for error in calls.errors]
        if calls.payouts and payout_id not in payouts:
            lost += 1
            violations.append(f"payout {payout_id} was acknowledged, but does not exist")
            continue
        for reported_payout in calls.payouts:
            reported_state, current_state = (
                payout_pb2.PayoutState.Name(reported_payout.payout_state).removeprefix(
                    "PAYOUT_STATE_"
                ),
                payouts[payout_id][0],
            )
            if (
                reported_state in ("PAID", "FAILED", "RETURNED")
                and current_state != reported_state
                and (reported_state, current_state) != ("PAID", "RETURNED")
            ):
                violations.append(
                    f"payout {payout_id} was reported as {reported_state}, and is {current_state}"
                )
    return lost, doubled, violations


def _differences(payment: payment_pb2.Payment, state: str, statuses: dict[str, str]) -> list[str]:
    """The differences between the final parts of an answer, which must not change, and the stored
    state.
    """
    violations = []
    if (
        payment.payment_state in _FINAL_STATES
        and payment_pb2.PaymentState.Name(payment.payment_state) != f"PAYMENT_STATE_{state}"
    ):
        violations.append(
            f"payment {payment.checkout_id} was reported as "
            f"{payment_pb2.PaymentState.Name(payment.payment_state)}, and is {state}"
        )
    for order in payment.payment_orders:
        status = payment_pb2.PaymentOrderStatus.Name(order.payment_order_status).removeprefix(
            "PAYMENT_ORDER_STATUS_"
        )
        if status in ("SUCCESS", "FAILED") and statuses.get(order.payment_order_id) != status:
            violations.append(
                f"order {order.payment_order_id} was reported as {status}, and is "
                f"{statuses.get(order.payment_order_id)}"
            )
    return violations
