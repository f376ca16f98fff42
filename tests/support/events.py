"""Helpers for tests of events."""

from __future__ import annotations

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.event.v1 import event_pb2
from tallystick.payment.v1 import payment_pb2


def payment_created(aggregate: str, version: int, **changes: object) -> event_pb2.Event:
    """An event as PaymentService publishes it."""
    event = event_pb2.Event(
        event_id=f"{aggregate}/{version}",
        aggregate_id=aggregate,
        aggregate_version=version,
        type=event_pb2.EVENT_TYPE_PAYMENT_CREATED,
        create_time=Timestamp(seconds=1_700_000_000),
        caller="shop",
        payment=payment_pb2.Payment(checkout_id=aggregate.partition("/")[2]),
    )
    for name, value in changes.items():
        if isinstance(value, Message):
            getattr(event, name).CopyFrom(value)
        else:
            setattr(event, name, value)
    return event
