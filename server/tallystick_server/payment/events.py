"""What PaymentService tells of its changes. An event holds the resource as it stands after the change."""

from __future__ import annotations

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.payment.v1 import payment_pb2
from tallystick_core.event import event_id


def order_changed(told: BatchPublishRequest, order: payment_pb2.PaymentOrder, caller: str, traceparent: str) -> None:
    """Adds an order's change to what is told."""
    aggregate = f"paymentOrders/{order.payment_order_id}"
    told.events.add(
        event_id=event_id(aggregate, order.version),
        type=event_pb2.EVENT_TYPE_PAYMENT_ORDER_CHANGED,
        aggregate_id=aggregate,
        aggregate_version=order.version,
        create_time=order.update_time,
        caller=caller,
        traceparent=traceparent,
        payment_order=order,
    )


def payment_created(told: BatchPublishRequest, payment: payment_pb2.Payment, traceparent: str) -> None:
    """Adds a new payment; it comes without its orders, each of which has an event of its own."""
    _payment(told, payment, 1, traceparent)


def payment_closed(told: BatchPublishRequest, payment: payment_pb2.Payment, traceparent: str) -> None:
    """Adds a payment's end; it comes without its orders."""
    _payment(told, payment, 2, traceparent)


def _payment(told: BatchPublishRequest, payment: payment_pb2.Payment, version: int, traceparent: str) -> None:
    aggregate = f"payments/{payment.checkout_id}"
    told.events.add(
        event_id=event_id(aggregate, version),
        type=event_pb2.EVENT_TYPE_PAYMENT_CREATED if version == 1 else event_pb2.EVENT_TYPE_PAYMENT_CLOSED,
        aggregate_id=aggregate,
        aggregate_version=version,
        create_time=payment.update_time,
        caller=payment.caller,
        traceparent=traceparent,
        payment=payment,
    )
