"""Each change is told, and nothing that is open is forgotten."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from typing import Any

from tallystick_server.process.checks.report import Check, Read, merged, opened


def check_due(read: Read) -> Check:
    """Whatever has not come to its end is due, or set aside for a person: nothing is forgotten."""
    check = Check("what is open is due, or waits for a person", "P5")
    for service in ("payment", "payout"):
        for row in read(f"{service}.due"):
            check.row()
            name = f"{service}.due {row.demand_id}"
            if not row.listed:
                check.fail(name, f"is missing, but {row.open} is open")
            elif row.open is None:
                check.fail(name, "is due, but has come to its end")
            elif row.due == row.set_aside:
                check.fail(name, "has an open dead letter and is due" if row.due else "is not due and has no open dead letter")
    return check


def check_events(read: Read) -> Check:
    """The stream has no gap, and every change of an order, payout or wallet is in it or still in the outbox.

    The changes are read before the outbox, and the outbox before the events: what left the outbox meanwhile is among the events.
    """
    check = Check("each change has its event", "E1 E2")
    heads = [*read("event.head")]  # before the events, which only grow
    if len(heads) != 1:
        check.fail("event.head", f"has {len(heads)} rows, and must have one")
    expected = 0
    for row in read("event.events"):
        expected += 1
        check.row()
        if row.cursor != expected:
            check.fail(f"event.event {row.cursor}", f"follows {expected - 1}, with a gap")
            expected = row.cursor
    for head in heads:
        if head.cursor != expected:  # both are of one moment
            check.fail("event.head", f"is at {head.cursor}, but the events end at {expected}")
    for service, name, prefix, of in _CHANGES:
        changes = opened((of(row), row.version) for row in read(name))
        waiting = {(row.aggregate_id, row.version) for row in read(f"{service}.outbox")}
        told = ((row.aggregate_id, row.aggregate_version) for row in read("event.by_aggregate", prefix=prefix))
        for key, change, event in merged(changes, lambda pair: pair, told, lambda pair: pair):
            if change is not None and event is None and key not in waiting:
                check.fail(f"{service} {key[0]} version {key[1]}", "has no event")
    return check


def check_versions(read: Read) -> Check:
    """Whatever has events and no history of its own is there, at the version of its last event, of which each version has one."""
    check = Check("each thing is at the version of its last event", "E1")
    streams = [opened(read(name)) for name in ("payment.versions", "payout.versions", "wallet.policy_versions")]
    waiting: Counter[str] = Counter()
    for service in ("payment", "wallet", "payout"):
        waiting.update(row.aggregate_id for row in read(f"{service}.outbox"))
    rows = heapq.merge(*streams, key=_aggregate)
    for key, row, event in merged(rows, _aggregate, read("event.last_versions"), _aggregate):
        check.row()
        if row is None:
            check.fail(f"{_TABLES[key.partition('/')[0]]} {key.partition('/')[2]}", f"is missing, but event.event has its version {event.version}")
        elif key in waiting:
            continue
        elif event is None or (event.version, event.events) != (row.version, row.version):
            check.fail(
                f"{row.name} {key.partition('/')[2]}",
                f"is at version {row.version}, but event.event has {event.events if event else 0} of its versions",
            )
    return check


def _aggregate(row: Any) -> str:
    return str(row.aggregate_id)


_TABLES = {
    "deadLetters": "dead_letter",
    "alerts": "alert",
    "payments": "payment.checkout",
    "unappliedCharges": "payment.unapplied_charge",
    "payoutDestinations": "payout.payout_destination",
    "payoutBatches": "payout.payout_batch",
    "payoutSchedules": "payout.payout_schedule",
    "walletPolicies": "wallet.wallet_policy",
    "sellers": "wallet.seller",
}
"""The tables of what has events, by collection."""

_CHANGES: tuple[tuple[str, str, str, Callable[[Any], str]], ...] = (
    ("payment", "payment.history", "paymentOrders/", lambda row: f"paymentOrders/{row.payment_order_id}"),
    ("wallet", "wallet.versions", "wallets/", lambda row: f"wallets/{row.seller_account}/{row.currency}"),
    ("payout", "payout.history", "payouts/", lambda row: f"payouts/{row.payout_id}"),
)
"""Whose versions are to be told: the service, the query, what its aggregates' ids begin with, and the id of a row's."""
