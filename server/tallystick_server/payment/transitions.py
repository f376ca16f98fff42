"""Order transitions: orders change state and record their events in the same transaction.

Every change of an order's state goes through this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.payment.v1 import payment_pb2
from tallystick_core.payment.state import OrderStatus, PaymentTransitionReason
from tallystick_server.outbox.events import record_events
from tallystick_server.payment import convert, events
from tallystick_server.payment.charge import Charge, OrderInCharge
from tallystick_storage.payment import orders as store
from tallystick_storage.payment import queries
from tallystick_storage.sql import Connection


@dataclass(frozen=True, slots=True)
class OrderTransition:
    """A transition of an order, from the version at which it was loaded."""

    charge: Charge
    order: OrderInCharge
    update: store.OrderTransitionRow

    @classmethod
    def of(
        cls,
        charge: Charge,
        order: OrderInCharge,
        status: OrderStatus,
        transition_reason: PaymentTransitionReason,
        **fields: Any,
    ) -> OrderTransition:
        """The transition of an order to a status. `fields`: the order's other fields that it
        sets.
        """
        update = store.OrderTransitionRow(
            payment_order_id=order.payment_order_id,
            charge_id=charge.charge_id,
            checkout_id=charge.checkout_id,
            version=order.version,
            from_status=order.status,
            status=status,
            transition_reason=transition_reason,
            **fields,
        )
        return cls(charge, order, update)


@dataclass(frozen=True, slots=True)
class TransitionResult:
    """The orders that changed, by id, and the payments that became final, by checkout id."""

    orders: dict[str, OrderInCharge] = field(default_factory=dict)
    final_payments: dict[str, payment_pb2.Payment] = field(default_factory=dict)
    lease_tokens: dict[str, int | None] = field(default_factory=dict)
    """The lease token that the operation of each changed order has now, by order id."""
    reloaded_orders: dict[str, OrderInCharge] = field(default_factory=dict)
    """The orders that had changed meanwhile, as they were found."""

    def changed(self, charge: Charge) -> bool:
        """Whether the charge has changed. Its orders change together."""
        return charge.orders[0].payment_order_id in self.orders

    def holds_lease(self, charge: Charge) -> bool:
        """Whether the charge has changed under its own lease."""
        token = self.lease_tokens.get(charge.orders[0].payment_order_id)
        return token == charge.lease_token

    def add(self, other: TransitionResult, reloaded: Iterable[Charge]) -> None:
        """Adds the result for charges that had changed meanwhile and were loaded again."""
        self.orders.update(other.orders)
        self.final_payments.update(other.final_payments)
        self.lease_tokens.update(other.lease_tokens)
        self.reloaded_orders.update(
            (order.payment_order_id, order) for charge in reloaded for order in charge.orders
        )

    def apply_to(self, charge: Charge, now: float) -> Charge:
        """The charge with its current orders at loop time `now`. A transition resets the retry
        counts.
        """
        current = {**self.reloaded_orders, **self.orders}
        final_payment = self.final_payments.get(charge.checkout_id)
        orders = tuple(current.get(order.payment_order_id, order) for order in charge.orders)
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
    """Applies transitions to orders whose version is unchanged."""
    result = TransitionResult()
    for is_final in (True, False):  # lock order: operations and checkouts before orders
        group = [item for item in transitions if item.update.is_final is is_final]
        if group:
            _transition_group(connection, group, result)
    return result


def _transition_group(
    connection: Connection, transitions: Sequence[OrderTransition], result: TransitionResult
) -> None:
    """Applies transitions that are all final, or all not, and adds them to the result."""
    rows = store.transition_orders(connection, [item.update for item in transitions])
    by_order = {item.order.payment_order_id: item for item in transitions}
    final_ids = set()
    changed: list[payment_pb2.PaymentOrder] = []
    with record_events(connection, rows) as publish_request:
        for row in rows:
            if isinstance(row, store.FinalPaymentRow):
                final_ids.add(row.checkout_id)
                continue
            item = by_order[row.payment_order_id]
            order = item.order.apply_transition(item.update, row)
            result.orders[row.payment_order_id] = order
            result.lease_tokens[row.payment_order_id] = row.lease_token
            changed.append(order.message)
            events.add_order_changed(publish_request, order.message, item.charge)
        if final_ids:
            result.final_payments.update(
                add_payment_closed_events(connection, publish_request, final_ids, changed)
            )


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
