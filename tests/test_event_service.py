"""EventService: every change once, in order, without a gap."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from contextlib import aclosing
from itertools import pairwise

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection

from tallystick import Client, TallystickError, new_order
from tallystick.event.v1 import event_pb2, event_service_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick_core.event import SUBJECTS
from tallystick_server.process.databases import Databases
from tallystick_server.runtime.follow import Numbered, follow
from tallystick_server.runtime.relay import joined
from tallystick_storage import event as store
from tallystick_storage.database import Database
from tallystick_storage.outbox import Unpublished as Told

from .conftest import eventually, unique


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


def events_of(client: Client, aggregate: str, count: int) -> list[event_pb2.Event]:
    """An aggregate's events, once there are so many."""

    def look() -> list[event_pb2.Event]:
        found = list(client.events(aggregate_id=aggregate))
        return found if len(found) >= count else []

    return eventually(look)


def test_each_change_is_one_event_with_the_resource_after_it(client: Client) -> None:
    """E1: an order's events tell its whole history; the payment's, the wallets' and the ledger's are there too."""
    checkout, seller = unique("c"), unique("s")
    order = f"{checkout}-1"
    client.create_payment(checkout, [new_order(order, "b", seller, "4.00", "EUR")], credit_card_info="tok_visa")
    found = events_of(client, f"paymentOrders/{order}", 4)
    names = [payment_pb2.PaymentOrderStatus.Name(e.payment_order.payment_order_status)[21:] for e in found]
    assert names == ["NOT_STARTED", "EXECUTING", "SUCCESS", "SUCCESS"]
    assert [e.aggregate_version for e in found] == [1, 2, 3, 4]
    assert [e.event_id for e in found] == [f"paymentOrders/{order}/{n}" for n in (1, 2, 3, 4)]
    assert [e.payment_order.wallet_updated for e in found] == [False, False, False, True]
    assert found[3].payment_order == client.get_payment(checkout).payment_orders[0]
    created, closed = events_of(client, f"payments/{checkout}", 2)
    assert (created.type, closed.type) == (event_pb2.EVENT_TYPE_PAYMENT_CREATED, event_pb2.EVENT_TYPE_PAYMENT_CLOSED)
    assert closed.payment.is_payment_done
    assert closed.payment.version == client.get_payment(checkout).version
    (wallet,) = events_of(client, f"wallets/{seller}/EUR", 1)
    assert wallet.wallet_entry.available_after == "4.00"
    kinds = [event_pb2.EVENT_TYPE_TRANSACTION_POSTED]
    assert len(eventually(lambda: [e for e in client.events(types=kinds) if e.transaction.cause_id == order])) == 1


def test_cursors_have_no_gap_under_concurrent_writers(client: Client) -> None:
    """E2: eight publishers and a follower at once: it sees every event once, in order for each aggregate, without a gap."""
    start = max((e.cursor for e in client.events()), default=0)
    prefix = unique("x")

    def publish(writer: int) -> None:
        for version in range(1, 31):
            aggregate = f"payments/{prefix}-{writer}"
            event = payment_created(aggregate, version)
            request = event_service_pb2.BatchPublishRequest(events=[event])
            client.event.BatchPublish(request)
            client.event.BatchPublish(request)  # a repeat is dropped

    seen: dict[str, list[int]] = defaultdict(list)
    cursors: list[int] = []

    def follow() -> None:
        for event in client.events(start, follow=True):
            cursors.append(event.cursor)
            if event.aggregate_id.startswith(f"payments/{prefix}"):
                seen[event.aggregate_id].append(event.aggregate_version)
            if sum(map(len, seen.values())) == 240:
                return

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(8)] + [threading.Thread(target=follow)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == {f"payments/{prefix}-{n}": list(range(1, 31)) for n in range(8)}
    assert cursors == list(range(start + 1, start + 1 + len(cursors)))


def test_what_comes_while_a_stream_reads_is_told_once(database: Databases, client: Client) -> None:
    """E2: what is numbered between a follower's look at the end and its look at the events is told once, and not again with what comes later."""
    aggregate = f"payments/{unique()}"

    def publish(version: int) -> None:
        client.event.BatchPublish(event_service_pb2.BatchPublishRequest(events=[payment_created(aggregate, version)]))

    looks = iter((1, 2))

    def end(connection: Connection) -> int:
        found = store.end(connection)
        publish(next(looks))
        return found

    numbered = Numbered(end, lambda connection, cursor, most: store.after(connection, cursor, [], aggregate, most), lambda row: int(row.cursor))

    async def told() -> list[int]:
        own = Database(database.service("event"), connections=1)
        try:
            async with aclosing(follow(own, numbered, 0, "after_cursor", on=True)) as rows:
                return [event_pb2.Event.FromString(bytes((await anext(rows)).body)).aggregate_version for _ in range(2)]
        finally:
            own.close()

    assert asyncio.run(told()) == [1, 2]


BAD = [
    ({"event_id": "x"}, "event_id"),
    ({"aggregate_id": ""}, "aggregate_id"),
    ({"aggregate_id": "payments/a\0b"}, "aggregate_id"),
    ({"aggregate_id": "payments/" + "x" * 60_000}, "aggregate_id"),
    ({"aggregate_id": "payments/4242424242424242"}, "aggregate_id"),
    ({"aggregate_id": "paymentOrders/x"}, "aggregate_id"),
    ({"aggregate_version": 0}, "aggregate_version"),
    ({"cursor": 3}, "cursor"),
    ({"type": 99}, "type"),
    ({"type": event_pb2.EVENT_TYPE_PAYMENT_ORDER_CHANGED}, "aggregate_id"),
    ({"payment_order": payment_pb2.PaymentOrder(payment_order_id="x")}, "payload"),
    ({"caller": ""}, "caller"),
    ({"caller": "a\0b"}, "caller"),
    ({"caller": "x" * 60_000}, "caller"),
    ({"caller": "4242424242424242"}, "caller"),
    ({"traceparent": "00-4242424242424242"}, "traceparent"),
    ({"traceparent": "\0"}, "traceparent"),
    ({"traceparent": "x" * 60_000}, "traceparent"),
]


@pytest.mark.parametrize(("changes", "field"), BAD, ids=[f"{field} {str(changes)[:40]}" for changes, field in BAD])
def test_bad_events_are_refused_whole(client: Client, changes: dict[str, object], field: str) -> None:
    """S1: a bad event is refused with its path, whoever sends it, and nothing of its batch is published."""
    aggregate = f"payments/{unique()}"
    batch = [payment_created(aggregate, 1), payment_created(aggregate, 2, **changes)]
    with pytest.raises(TallystickError) as error:
        client.event.BatchPublish(event_service_pb2.BatchPublishRequest(events=batch))
    assert error.value.field_violations[0].field == f"events[1].{field}"
    assert not list(client.events(aggregate_id=aggregate))


def test_each_event_type_has_its_subject() -> None:
    """Each type of the contract belongs to one collection and one field of the payload, and each field of the payload to a type."""
    types = {name.removeprefix("EVENT_TYPE_") for name in event_pb2.EventType.keys()} - {"UNSPECIFIED"}
    payload = {field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields}
    assert set(SUBJECTS) == types
    assert {subject.payload for subject in SUBJECTS.values()} == payload


def test_an_event_counts_once(client: Client) -> None:
    """K1: published again, alone or beside new ones, an event is dropped and not counted; twice in one request is refused."""
    name = f"payments/{unique()}"
    events = [payment_created(name, n) for n in (1, 2, 3)]
    publish = client.event.BatchPublish
    assert publish(event_service_pb2.BatchPublishRequest(events=events[:2])).published == 2
    assert publish(event_service_pb2.BatchPublishRequest(events=events)).published == 1
    assert publish(event_service_pb2.BatchPublishRequest(events=events)).published == 0
    assert [e.aggregate_version for e in client.events(aggregate_id=name)] == [1, 2, 3]
    with pytest.raises(TallystickError) as error:
        publish(event_service_pb2.BatchPublishRequest(events=[events[0], events[0]]))
    assert (error.value.reason, error.value.field_violations[0].field) == ("DUPLICATE_ITEM", "events[1].event_id")


LONG = [event_pb2.Event(event_id=f"x/{n}", payment=payment_pb2.Payment(buyer_info="🙂" * 1024, seller_info="🙂" * 1024)) for n in range(1, 1500)]
SHORT = [event_pb2.Event(event_id=f"y/{n}") for n in range(1, 2500)]


@pytest.mark.parametrize("rows", [[LONG], [SHORT], [[event] for event in SHORT], [LONG[:300], *([event] for event in SHORT), LONG, SHORT[:3]]])
def test_requests_of_the_relay_are_never_too_large(rows: list[list[event_pb2.Event]]) -> None:
    """However long the events and however many a transaction tells, requests stay below what EventService takes, and keep the order; small ones are joined."""
    told = [Told(n, len(row), event_service_pb2.BatchPublishRequest(events=row).SerializeToString()) for n, row in enumerate(rows)]
    sent = [event_service_pb2.BatchPublishRequest.FromString(raw) for raw in joined(told)]
    assert [event for request in sent for event in request.events] == [event for row in rows for event in row]
    assert all(request.ByteSize() < 4 * 1024 * 1024 and len(request.events) <= 1000 for request in sent)
    assert all(len(one.events) + len(two.events) > 1000 or one.ByteSize() + two.ByteSize() > 2 * 1024 * 1024 for one, two in pairwise(sent))


def test_a_stream_that_is_not_read_to_its_end_ends_quietly(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """A reader that goes away in the middle is no fault: nothing is logged as one."""
    for _ in client.events():
        break
    assert list(client.events())[:1]
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
