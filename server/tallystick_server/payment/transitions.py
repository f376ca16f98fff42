"""Order transitions: orders change state and record their events in the same transaction.

Every change of an order's state goes through this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.payment.v1 import payment_pb2
from tallystick_server.outbox.events import record_events
from tallystick_server.payment import convert, events
from tallystick_server.payment.charge import Charge, OrderInCharge
from tallystick_storage.payment import orders as store
from tallystick_storage.payment import queries
from tallystick_storage.sql import Connection


@dataclass(frozen=True, slots=True)
class OrderTransition:
    """A transition of an order whose charge this process has leased."""

    charge: Charge
    order: OrderInCharge
    update: store.OrderTransitionRow


@dataclass(frozen=True, slots=True)
class TransitionResult:
    """The orders that changed, by id, and the payments that became final, by checkout id."""

    orders: dict[str, OrderInCharge] = field(default_factory=dict)
    final_payments: dict[str, payment_pb2.Payment] = field(default_factory=dict)

    def apply_to(self, charge: Charge, now: float) -> Charge:
        """The charge with its current orders at loop time `now`. A transition resets the retry
        counts.
        """
        final_payment = self.final_payments.get(charge.checkout_id)
        orders = tuple(self.orders.get(order.payment_order_id, order) for order in charge.orders)
        if orders == charge.orders:
            return replace(charge, final_payment=final_payment)
        seconds_left = inf if charge.buyer_timed_out else orders[0].buyer_action_seconds()
        return replace(
            charge,
            orders=orders,
            final_payment=final_payment,
            tries={},
            end_deadline=now + seconds_left,
        )


def transition_orders(
    connection: Connection, transitions: Sequence[OrderTransition]
) -> TransitionResult:
    """Applies transitions to orders whose lease and version are unchanged."""
    rows = (
        store.transition_orders(connection, [transition.update for transition in transitions])
        if transitions
        else ()
    )
    transitions_by_key = {
        (transition.order.payment_order_id, transition.charge.lease_token): transition
        for transition in transitions
    }
    result = TransitionResult()
    final_ids = set()
    with record_events(connection, rows) as publish_request:
        for row in rows:
            if row.payment_order_id is None:
                final_ids.add(row.checkout_id)
                continue
            transition = transitions_by_key[row.payment_order_id, row.lease_token]
            order = transition.order.apply_transition(transition.update, row)
            result.orders[row.payment_order_id] = order
            events.add_order_changed(publish_request, order.message, transition.charge)
        if final_ids:
            result.final_payments.update(
                add_payment_closed_events(
                    connection,
                    publish_request,
                    final_ids,
                    [order.message for order in result.orders.values()],
                )
            )
    return result


def add_payment_closed_events(
    connection: Connection,
    publish_request: BatchPublishRequest,
    checkout_ids: set[str],
    current_orders: Iterable[payment_pb2.PaymentOrder],
) -> dict[str, payment_pb2.Payment]:
    """Adds the events of payments that have just become final; returns these payments by id.

    `current_orders`: the orders after the transition.
    """
    orders: dict[str, list[payment_pb2.PaymentOrder]] = {
        checkout_id: [] for checkout_id in checkout_ids
    }
    for order in current_orders:
        if order.checkout_id in orders:
            orders[order.checkout_id].append(order)
    checkouts = queries.load_checkouts(connection, sorted(checkout_ids))
    incomplete_ids = [
        checkout.checkout_id
        for checkout in checkouts
        if checkout.order_count > len(orders[checkout.checkout_id])
    ]
    for checkout_id, rows in (
        queries.load_payments(connection, incomplete_ids) if incomplete_ids else {}
    ).items():
        orders[checkout_id] = [convert.payment_order(row) for row in rows]
    final_payments = {}
    for checkout in checkouts:
        payment = convert.final_payment(checkout, orders[checkout.checkout_id])
        events.add_payment_closed(publish_request, payment, checkout.traceparent)
        convert.add_orders(payment, orders[checkout.checkout_id])
        final_payments[checkout.checkout_id] = payment
    return final_payments
