"""What PaymentService tells of its changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator

from sqlalchemy import Connection

from tallystick.event.v1 import event_pb2
from tallystick_core.event import event_id
from tallystick_server.payment import encode
from tallystick_server.runtime.fields import to_timestamp
from tallystick_storage import outbox
from tallystick_storage import payment as store
from tallystick_storage.database import Database

_ORDERS, _PAYMENTS = "paymentOrders/", "payments/"


class PaymentEvents:
    """The source of PaymentService's relay: each event is read off the history, as the resource stood after the change."""

    def __init__(self, database: Database, most: int) -> None:
        self._database = database
        self._most = most

    async def __call__(self) -> tuple[list[event_pb2.Event], Callable[[], Awaitable[None]]]:
        def unpublished(connection: Connection) -> tuple[list[outbox.Key], list[event_pb2.Event]]:
            keys = outbox.unpublished(connection, self._most)
            orders = [(key.removeprefix(_ORDERS), version) for key, version in keys if key.startswith(_ORDERS)]
            payments = [(key.removeprefix(_PAYMENTS), version) for key, version in keys if key.startswith(_PAYMENTS)]
            events = list(_order_events(store.order_events(connection, orders))) if orders else []
            return keys, events + ([_payment_event(row) for row in store.payment_events(connection, payments)] if payments else [])

        keys, events = await self._database.read(unpublished)

        def published(connection: Connection) -> None:
            outbox.published(connection, keys)

        return events, lambda: self._database.transact(published)


def _order_events(rows: Iterable[store.OrderRow]) -> Iterator[event_pb2.Event]:
    """Events of rows that are sorted by order and version; one message serves all versions of an order, since each event copies it."""
    order = None
    for row in rows:
        if order is None or order.payment_order_id != row.payment_order_id:
            order = encode.payment_order(row)
        else:
            encode.move_on(order, row)
        aggregate = _ORDERS + row.payment_order_id
        yield event_pb2.Event(
            event_id=event_id(aggregate, row.version),
            type=event_pb2.EVENT_TYPE_PAYMENT_ORDER_CHANGED,
            aggregate_id=aggregate,
            aggregate_version=row.version,
            create_time=order.update_time,
            caller=row.caller,
            traceparent=row.traceparent,
            payment_order=order,
        )


def _payment_event(row: store.PaymentRow) -> event_pb2.Event:
    aggregate = _PAYMENTS + row.checkout_id
    return event_pb2.Event(
        event_id=event_id(aggregate, row.checkout_version),
        type=event_pb2.EVENT_TYPE_PAYMENT_CREATED if row.checkout_version == 1 else event_pb2.EVENT_TYPE_PAYMENT_CLOSED,
        aggregate_id=aggregate,
        aggregate_version=row.checkout_version,
        create_time=to_timestamp(row.update_time),
        caller=row.caller,
        traceparent=row.traceparent,
        payment=encode.payment_head(row),
    )
