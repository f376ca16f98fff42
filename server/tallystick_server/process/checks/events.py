"""Each change is told, and nothing that is open is forgotten."""

from __future__ import annotations

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

    Of other things (destinations, batches, schedules, policies, alerts) the database's triggers alone see to it.

    The changes are read before the outbox, and the outbox before the events: what left the outbox meanwhile is among the events.
    """
    check = Check("each change has its event", "E1 E2")
    (head,) = read("event.head")  # before the events, which only grow
    expected = 0
    for row in read("event.events"):
        expected += 1
        check.row()
        if row.cursor != expected:
            check.fail(f"event.event {row.cursor}", f"follows {expected - 1}, with a gap")
            expected = row.cursor
    if expected < head.cursor:
        check.fail("event.head", f"is at {head.cursor}, but the events end at {expected}")
    for service, name, prefix, of in _CHANGES:
        changes = opened((of(row), row.version) for row in read(name))
        waiting = {(row.aggregate_id, row.version) for row in read(f"{service}.outbox")}
        told = ((row.aggregate_id, row.aggregate_version) for row in read("event.by_aggregate", prefix=prefix))
        for key, change, event in merged(changes, lambda pair: pair, told, lambda pair: pair):
            if change is not None and event is None and key not in waiting:
                check.fail(f"{service} {key[0]} version {key[1]}", "has no event")
    return check


_CHANGES: tuple[tuple[str, str, str, Callable[[Any], str]], ...] = (
    ("payment", "payment.history", "paymentOrders/", lambda row: f"paymentOrders/{row.payment_order_id}"),
    ("wallet", "wallet.versions", "wallets/", lambda row: f"wallets/{row.seller_account}/{row.currency}"),
    ("payout", "payout.history", "payouts/", lambda row: f"payouts/{row.payout_id}"),
)
"""Whose versions are to be told: the service, the query, what its aggregates' ids begin with, and the id of a row's."""
