"""Events of PaymentService. Each event holds the resource in its state after the change."""

from __future__ import annotations

from typing import Protocol

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.payment.v1 import payment_pb2
from tallystick_server.outbox.events import add_event


class EventOrigin(Protocol):
    """The origin of an order: its checkout, its charge, or a row with the same fields."""

    @property
    def caller(self) -> str: ...
    @property
    def owner(self) -> str: ...
    @property
    def traceparent(self) -> str: ...


def add_order_changed(
    publish_request: BatchPublishRequest, order: payment_pb2.PaymentOrder, origin: EventOrigin
) -> None:
    """Adds the event of an order's change."""
    type_, aggregate = (
        event_pb2.EVENT_TYPE_PAYMENT_ORDER_CHANGED,
        f"paymentOrders/{order.payment_order_id}",
    )
    add_event(
        publish_request,
        type_,
        aggregate,
        order.version,
        order.update_time,
        origin.caller,
        origin.traceparent,
        origin.owner,
        payment_order=order,
    )


def add_payment_created(
    publish_request: BatchPublishRequest, payment: payment_pb2.Payment, traceparent: str
) -> None:
    """Adds the event of a new payment, without its orders; each order has its own event."""
    type_ = event_pb2.EVENT_TYPE_PAYMENT_CREATED
    _add_payment_event(publish_request, type_, 1, payment, traceparent)


def add_payment_closed(
    publish_request: BatchPublishRequest, payment: payment_pb2.Payment, traceparent: str
) -> None:
    """Adds the event of a final payment, without its orders."""
    type_ = event_pb2.EVENT_TYPE_PAYMENT_CLOSED
    _add_payment_event(publish_request, type_, 2, payment, traceparent)


def _add_payment_event(
    publish_request: BatchPublishRequest,
    type_: event_pb2.EventType.ValueType,
    version: int,
    payment: payment_pb2.Payment,
    traceparent: str,
) -> None:
    add_event(
        publish_request,
        type_,
        f"payments/{payment.checkout_id}",
        version,
        payment.update_time,
        payment.caller,
        traceparent,
        payment.owner,
        payment=payment,
    )
