"""What PaymentService tells of its changes. An event holds the resource as it stands after the change."""

from __future__ import annotations

from typing import Any, Protocol

from sqlalchemy import Row

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.payment.v1 import payment_pb2
from tallystick_server.runtime.relay import tell


class Origin(Protocol):
    """Where an order comes from: its checkout, its charge, or a row with the same columns."""

    @property
    def caller(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def traceparent(self) -> str: ...


def order_changed(told: BatchPublishRequest, order: payment_pb2.PaymentOrder, of: Origin | Row[Any]) -> None:
    """Adds an order's change to what is told."""
    type_, aggregate = event_pb2.EVENT_TYPE_PAYMENT_ORDER_CHANGED, f"paymentOrders/{order.payment_order_id}"
    tell(told, type_, aggregate, order.version, order.update_time, of.caller, of.traceparent, of.owner, payment_order=order)


def payment_created(told: BatchPublishRequest, payment: payment_pb2.Payment, traceparent: str) -> None:
    """Adds a new payment; it comes without its orders, each of which has an event of its own."""
    type_, aggregate = event_pb2.EVENT_TYPE_PAYMENT_CREATED, f"payments/{payment.checkout_id}"
    tell(told, type_, aggregate, 1, payment.update_time, payment.caller, traceparent, payment.owner, payment=payment)


def payment_closed(told: BatchPublishRequest, payment: payment_pb2.Payment, traceparent: str) -> None:
    """Adds a payment's end; it comes without its orders."""
    type_, aggregate = event_pb2.EVENT_TYPE_PAYMENT_CLOSED, f"payments/{payment.checkout_id}"
    tell(told, type_, aggregate, 2, payment.update_time, payment.caller, traceparent, payment.owner, payment=payment)
