"""Order transitions: orders change state and record their events in the same transaction.

Every change of an order's state goes through this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any, NamedTuple

from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.payment.v1 import payment_pb2
from tallystick_core.payment.state import OrderStatus, PaymentTransitionReason
from tallystick_core.provider.outcome import PendingReason
from tallystick_server.outbox.events import record_events
from tallystick_server.payment import convert, events
from tallystick_server.payment.charge import Charge, OrderInCharge
from tallystick_storage.payment import orders as store
from tallystick_storage.payment import queries
from tallystick_storage.sql import Connection


@dataclass(frozen=True, slots=True)
class OrderTransition:
    """A transition of an order, from the version at which it was loaded, and the other fields that
    it sets.
    """

    charge: Charge
    order: OrderInCharge
    status: OrderStatus
    transition_reason: PaymentTransitionReason
    booked: bool = False
    pending_reason: str = ""
    next_action_url: str = ""
    failure_reason: str = ""
    decline_code: str = ""
    provider_reference: str = ""
    provider: str | None = None
    """The provider of the charge's next attempt; None: there is no new attempt."""
    resolve_within_seconds: float | None = None
    """Seconds until an order that now waits for something else must be resolved; None: no limit."""

    @property
    def is_final(self) -> bool:
        """Whether nothing remains to be done for the order afterwards."""
        return self.booked or self.status is OrderStatus.FAILED

    def _columns(self) -> dict[str, Any]:
        """The fields of the transition as it is stored, without its time."""
        return {
            "payment_order_id": self.order.payment_order_id,
            "charge_id": self.charge.charge_id,
            "checkout_id": self.charge.checkout_id,
            "version": self.order.version,
            "from_status": self.order.status,
            "status": self.status,
            "transition_reason": self.transition_reason,
            "booked": self.booked,
            "pending_reason": self.pending_reason,
            "next_action_url": self.next_action_url,
            "failure_reason": self.failure_reason,
            "decline_code": self.decline_code,
            "provider_reference": self.provider_reference,
            "provider": self.provider,
        }

    def row(self) -> store.OrderTransitionRow:
        """The transition as it is stored, without its time."""
        return store.OrderTransitionRow(**self._columns())

    def order_after(self, update_time: datetime) -> OrderInCharge:
        """The order after the transition."""
        return self.order.apply_transition(
            self.row(), update_time, self._resolve_by_time(update_time)
        )

    def _resolve_by_time(self, update_time: datetime) -> datetime | None:
        """When the order must be resolved. One that waits for the same as before keeps its time. A
        hosted page has its own.
        """
        if self.charge.page is not None and self.pending_reason == PendingReason.BUYER_ACTION:
            return self.charge.page.expire_time
        message = self.order.message
        last_reason = payment_pb2.PendingReason.Name(message.pending_reason)
        if last_reason == f"PENDING_REASON_{self.pending_reason}":
            has_time = message.HasField("resolve_by_time")
            return message.resolve_by_time.ToDatetime(UTC) if has_time else None
        if self.resolve_within_seconds is None:
            return None
        return update_time + timedelta(seconds=self.resolve_within_seconds)

    def at(self, now: datetime) -> TimedTransition:
        """The transition at `now`, or at the order's last change if that is later."""
        update_time = max(now, self.order.message.update_time.ToDatetime(UTC))
        order = self.order_after(update_time)
        publish_request = BatchPublishRequest()
        events.add_order_changed(publish_request, order.message, self.charge)
        row = store.TimedTransitionRow(
            **self._columns(),
            resolve_by_time=self._resolve_by_time(update_time),
            update_time=update_time,
            event=publish_request.SerializeToString().hex(),
        )
        return TimedTransition(row, order)


class TimedTransition(NamedTuple):
    """A transition as it is stored with its event, and the order after it."""

    row: store.TimedTransitionRow
    order: OrderInCharge


@dataclass(frozen=True, slots=True)
class TransitionResult:
    """The orders that changed, by id, and the payments that became final, by checkout id."""

    orders: dict[str, OrderInCharge] = field(default_factory=dict)
    final_payments: dict[str, payment_pb2.Payment] = field(default_factory=dict)
    lease_tokens: dict[str, int | None] = field(default_factory=dict)
    """The lease token that the operation of each changed order has now, by order id."""
    known_orders: dict[str, OrderInCharge] = field(default_factory=dict)
    """The orders before the transitions, as they were last loaded. Others may have loaded them
    earlier.
    """

    def changed(self, charge: Charge) -> bool:
        """Whether the charge has changed. Its orders change together."""
        return charge.orders[0].payment_order_id in self.orders

    def holds_lease(self, charge: Charge) -> bool:
        """Whether the charge has changed under its own lease."""
        token = self.lease_tokens.get(charge.orders[0].payment_order_id)
        return token == charge.lease_token

    def add(self, other: TransitionResult) -> None:
        """Adds the result for charges that had changed meanwhile and were loaded again."""
        self.orders.update(other.orders)
        self.final_payments.update(other.final_payments)
        self.lease_tokens.update(other.lease_tokens)

    def add_known(self, charges: Iterable[Charge]) -> None:
        """Adds the orders of charges as they were last loaded."""
        self.known_orders.update(
            (order.payment_order_id, order) for charge in charges for order in charge.orders
        )

    def apply_to(self, charge: Charge, now: float) -> Charge:
        """The charge with its current orders at loop time `now`. A transition resets the retry
        counts.
        """
        current = {**self.known_orders, **self.orders}
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
    final = [item for item in transitions if item.is_final]
    if final:  # lock order: operations and checkouts before orders
        _finish_orders(connection, final, result)
    others = [item.at(connection.begin_time) for item in transitions if not item.is_final]
    if others:
        orders = {item.order.payment_order_id: item.order for item in others}
        for row in store.change_orders(connection, [item.row for item in others]):
            result.orders[row.payment_order_id] = orders[row.payment_order_id]
            result.lease_tokens[row.payment_order_id] = row.lease_token
    return result


def _finish_orders(
    connection: Connection, transitions: Sequence[OrderTransition], result: TransitionResult
) -> None:
    """Applies transitions after which the orders are final, and adds them to the result."""
    rows = store.finish_orders(connection, [item.row() for item in transitions])
    by_order = {item.order.payment_order_id: item for item in transitions}
    final_ids = set()
    changed: list[payment_pb2.PaymentOrder] = []
    with record_events(connection, rows) as publish_request:
        for row in rows:
            if row.payment_order_id is None or row.update_time is None:
                final_ids.add(row.checkout_id)
                continue
            item = by_order[row.payment_order_id]
            order = item.order_after(row.update_time)
            result.orders[row.payment_order_id] = order
            result.lease_tokens[row.payment_order_id] = row.lease_token
            changed.append(order.message)
            events.add_order_changed(publish_request, order.message, item.charge)
        if final_ids:
            result.final_payments.update(
                _add_payment_closed_events(connection, publish_request, final_ids, changed)
            )


def _add_payment_closed_events(
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
        convert.complete_payment(payment, orders[checkout.checkout_id], checkout)
        final_payments[checkout.checkout_id] = payment
    return final_payments
