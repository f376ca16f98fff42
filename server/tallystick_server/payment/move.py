"""Move: orders move, and what changed is told, in the same transaction. Whoever moves orders does it here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from sqlalchemy import Connection

from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.payment.v1 import payment_pb2
from tallystick_server.payment import encode, events
from tallystick_server.payment.charge import Charge, ChargedOrder
from tallystick_server.runtime.relay import telling
from tallystick_storage.payment import orders as store
from tallystick_storage.payment import reads


@dataclass(frozen=True, slots=True)
class Move:
    """A move of an order that this process holds."""

    charge: Charge
    order: ChargedOrder
    to: store.OrderMove


@dataclass(frozen=True, slots=True)
class Moved:
    """What has moved: orders by id, as they stand now, and by checkout id the payments that came to their end by it."""

    orders: dict[str, ChargedOrder] = field(default_factory=dict)
    closed: dict[str, payment_pb2.Payment] = field(default_factory=dict)

    def of(self, charge: Charge) -> Charge:
        """The charge with its orders as they stand now; once they have moved it has not been tried in vain."""
        orders = tuple(self.orders.get(order.payment_order_id, order) for order in charge.orders)
        if orders == charge.orders:
            return charge
        left = inf if charge.overdue else orders[0].waits_for_buyer()
        return replace(charge, orders=orders, tries={}, look_by=asyncio.get_running_loop().time() + left)


def move_orders(connection: Connection, moves: Sequence[Move]) -> Moved:
    """Moves orders, as far as their leases and versions still hold."""
    rows = store.move_orders(connection, [move.to for move in moves]) if moves else ()
    asked = {(move.order.payment_order_id, move.charge.lease_token): move for move in moves}
    moved = Moved()
    closed = set()
    with telling(connection, rows) as told:
        for row in rows:
            if row.payment_order_id is None:
                closed.add(row.checkout_id)
                continue
            move = asked[row.payment_order_id, row.lease_token]
            order = move.order.moved(move.to, row)
            moved.orders[row.payment_order_id] = order
            events.order_changed(told, order.message, move.charge)
        if closed:
            moved.closed.update(tell_closed(connection, told, closed, [order.message for order in moved.orders.values()]))
    return moved


def tell_closed(
    connection: Connection, told: BatchPublishRequest, checkout_ids: set[str], known: Iterable[payment_pb2.PaymentOrder]
) -> dict[str, payment_pb2.Payment]:
    """Adds payments that have just come to their end to what is told; returns them, by id. `known`: orders as they stand."""
    orders: dict[str, list[payment_pb2.PaymentOrder]] = {checkout_id: [] for checkout_id in checkout_ids}
    for order in known:
        if order.checkout_id in orders:
            orders[order.checkout_id].append(order)
    heads = reads.checkouts(connection, sorted(checkout_ids))
    others = [head.checkout_id for head in heads if head.order_count > len(orders[head.checkout_id])]
    for checkout_id, rows in (reads.payments(connection, others) if others else {}).items():
        orders[checkout_id] = [encode.payment_order(row) for row in rows]
    closed = {}
    for head in heads:
        payment = encode.closed_payment(head, orders[head.checkout_id])
        events.payment_closed(told, payment, head.traceparent)
        encode.add_orders(payment, orders[head.checkout_id])
        closed[head.checkout_id] = payment
    return closed
