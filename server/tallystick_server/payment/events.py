"""What PaymentService tells of its changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from tallystick.event.v1 import event_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick_core.event import event_id
from tallystick_core.payment import Status
from tallystick_server.payment import encode
from tallystick_server.runtime.fields import to_timestamp
from tallystick_storage import outbox
from tallystick_storage import payment as store
from tallystick_storage.database import Database

_ORDERS, _PAYMENTS = "paymentOrders/", "payments/"
_MOST_KNOWN = 20_000


@dataclass(slots=True)
class _Known:
    """An order whose events are being told: its message as of the last one, and what its payment adds."""

    message: payment_pb2.PaymentOrder
    caller: str
    traceparent: str


class PaymentEvents:
    """The source of PaymentService's relay: each event is read off the history, as the resource stood after the change.

    What never changes of an order is read once, and kept until the order is final.
    """

    def __init__(self, database: Database, most: int) -> None:
        self._database = database
        self._most = most
        self._known: dict[str, _Known] = {}

    async def __call__(self) -> tuple[list[event_pb2.Event], Callable[[], Awaitable[None]]]:
        def unpublished(connection: Connection) -> tuple[list[outbox.Key], list[event_pb2.Event]]:
            keys = outbox.unpublished(connection, self._most)
            orders = [(key.removeprefix(_ORDERS), version) for key, version in keys if key.startswith(_ORDERS)]
            payments = [(key.removeprefix(_PAYMENTS), version) for key, version in keys if key.startswith(_PAYMENTS)]
            events = list(self._order_events(connection, orders)) if orders else []
            return keys, events + ([_payment_event(row) for row in store.payment_events(connection, payments)] if payments else [])

        keys, events = await self._database.read(unpublished)

        def published(connection: Connection) -> None:
            outbox.published(connection, keys)

        return events, lambda: self._database.transact(published)

    def _order_events(self, connection: Connection, keys: Sequence[outbox.Key]) -> Iterator[event_pb2.Event]:
        """One event for each change, by order and version."""
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        missing = sorted({order_id for order_id, _ in keys if order_id not in self._known})
        for row in store.orders(connection, missing) if missing else ():
            self._known[row.payment_order_id] = _Known(encode.order_head(row), row.caller, row.traceparent)
        for row in store.order_changes(connection, keys):
            order = self._known[row.payment_order_id]
            encode.move_on(order.message, row)
            aggregate = _ORDERS + row.payment_order_id
            yield event_pb2.Event(
                event_id=event_id(aggregate, row.version),
                type=event_pb2.EVENT_TYPE_PAYMENT_ORDER_CHANGED,
                aggregate_id=aggregate,
                aggregate_version=row.version,
                create_time=order.message.update_time,
                caller=order.caller,
                traceparent=order.traceparent,
                payment_order=order.message,
            )
            if row.ledger_updated or row.status == Status.FAILED:
                del self._known[row.payment_order_id]


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
