"""EventService publishes every change once, in order, without a gap."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
from itertools import islice, pairwise
from typing import TypeVar

import pytest

from tallystick import Client, InvalidArgumentError, TallystickError, new_order
from tallystick.event.v1 import event_pb2, event_service_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick_core.errors import ApiError
from tallystick_core.event import EVENT_SUBJECTS
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.outbox.relay import merge_batches
from tallystick_server.rpc.streaming import SequenceSource, SequenceTail, StreamFilter
from tallystick_storage.database import Database
from tallystick_storage.event import events as store
from tallystick_storage.outbox import OutboxRow
from tallystick_storage.sql import Connection
from tests.support.events import payment_created
from tests.support.platform import eventually, unique_id

T = TypeVar("T")


def wait_for_events(client: Client, aggregate: str, count: int) -> list[event_pb2.Event]:
    """An aggregate's events, once there are at least the given number."""

    def list_events() -> list[event_pb2.Event]:
        events = list(client.events(aggregate_id=aggregate))
        return events if len(events) >= count else []

    return eventually(list_events)


def test_each_change_is_one_event_with_the_changed_resource(client: Client) -> None:
    """E1: an order's events contain its whole history; the events of the payment, the wallets and
    the ledger exist too.
    """
    checkout, seller = unique_id("c"), unique_id("s")
    order = f"{checkout}-1"
    client.create_payment(
        checkout, [new_order(order, "b", seller, "4.00", "EUR")], credit_card_info="tok_visa"
    )
    items = wait_for_events(client, f"paymentOrders/{order}", 4)
    names = [
        payment_pb2.PaymentOrderStatus.Name(e.payment_order.payment_order_status)[21:]
        for e in items
    ]
    assert names == ["NOT_STARTED", "EXECUTING", "SUCCESS", "SUCCESS"]
    assert [e.aggregate_version for e in items] == [1, 2, 3, 4]
    assert [e.event_id for e in items] == [f"paymentOrders/{order}/{n}" for n in (1, 2, 3, 4)]
    assert [e.payment_order.wallet_updated for e in items] == [False, False, False, True]
    assert items[3].payment_order == client.get_payment(checkout).payment_orders[0]
    created, closed_event = wait_for_events(client, f"payments/{checkout}", 2)
    assert (created.type, closed_event.type) == (
        event_pb2.EVENT_TYPE_PAYMENT_CREATED,
        event_pb2.EVENT_TYPE_PAYMENT_CLOSED,
    )
    assert closed_event.payment.is_payment_done
    assert closed_event.payment.version == client.get_payment(checkout).version
    (wallet,) = wait_for_events(client, f"wallets/{seller}/EUR", 1)
    assert wallet.wallet_entry.available_after == "4.00"
    kinds = [event_pb2.EVENT_TYPE_TRANSACTION_POSTED]
    assert (
        len(
            eventually(
                lambda: [e for e in client.events(types=kinds) if e.transaction.source_id == order]
            )
        )
        == 1
    )


def test_the_events_of_some_resources_are_listed(client: Client) -> None:
    """In order, without those of others, the oldest first; without a resource there is no list."""
    orders = [unique_id("o") for _ in range(3)]
    for order in orders:
        client.create_payment(
            f"c-{order}",
            [new_order(order, "b", unique_id("s"), "4.00", "EUR")],
            credit_card_info="tok_visa",
        )
        wait_for_events(client, f"paymentOrders/{order}", 4)
    request = event_service_pb2.ListEventsRequest(
        aggregate_ids=[f"paymentOrders/{order}" for order in orders[1:]]
    )
    events = list(client.event.ListEvents(request).events)
    assert [event.cursor for event in events] == sorted({event.cursor for event in events})
    assert sorted(event.event_id for event in events) == sorted(
        f"{name}/{version}" for name in request.aggregate_ids for version in (1, 2, 3, 4)
    )
    request.page_size = 3
    assert list(client.event.ListEvents(request).events) == events[:3]
    with pytest.raises(InvalidArgumentError, match="aggregate_ids must have at least one item"):
        client.event.ListEvents(event_service_pb2.ListEventsRequest())


def test_cursors_have_no_gap_under_concurrent_writers(client: Client) -> None:
    """E2: with eight concurrent publishers a follower receives every event once, in order for each
    aggregate, without a gap.
    """
    start = max((e.cursor for e in client.events()), default=0)
    prefix = unique_id("x")

    def publish(writer: int) -> None:
        for version in range(1, 31):
            aggregate = f"payments/{prefix}-{writer}"
            event = payment_created(aggregate, version)
            request = event_service_pb2.BatchPublishRequest(events=[event])
            client.event.BatchPublish(request)
            client.event.BatchPublish(request)  # a repeat is dropped

    cursors_by_stream: dict[str, list[int]] = defaultdict(list)
    cursors: list[int] = []

    def follow() -> None:
        for event in client.events(start, follow=True):
            cursors.append(event.cursor)
            if event.aggregate_id.startswith(f"payments/{prefix}"):
                cursors_by_stream[event.aggregate_id].append(event.aggregate_version)
            if sum(map(len, cursors_by_stream.values())) == 240:
                return

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(8)] + [
        threading.Thread(target=follow)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert cursors_by_stream == {f"payments/{prefix}-{n}": list(range(1, 31)) for n in range(8)}
    assert cursors == list(range(start + 1, start + 1 + len(cursors)))


def test_events_added_during_a_read_are_sent_once(database: DatabaseUrls, client: Client) -> None:
    """E2: an event that is numbered between a follower's read of the end and its read of the events
    is sent once, and not again with later events.
    """
    aggregate = f"payments/{unique_id()}"

    def publish(version: int) -> None:
        client.event.BatchPublish(
            event_service_pb2.BatchPublishRequest(events=[payment_created(aggregate, version)])
        )

    reads_per_second = iter((1, 2, 3))

    def end(connection: Connection) -> int:
        end_cursor = store.last_cursor(connection)
        for version in islice(reads_per_second, 1):
            publish(version)
        return end_cursor

    store_end = max((event.cursor for event in client.events()), default=0)

    def between(
        connection: Connection, after: int, until: int, limit: int, aggregate: str = ""
    ) -> Sequence[store.EventRow]:
        return store.list_between(connection, after, until, [], aggregate, "", limit)

    async def stream_cursors() -> list[int]:
        event_database = Database(database.service("event"), connections=1)
        tail = SequenceTail(
            event_database,
            SequenceSource(end, between, lambda row: int(row.cursor), lambda row: len(row.body)),
        )
        filtered_source = StreamFilter(
            partial(between, aggregate=aggregate),
            lambda row: row.aggregate_id == aggregate,
            "owner",
        )
        try:
            async with aclosing(
                tail.stream(filtered_source, store_end, "after_cursor", follow=True)
            ) as rows:
                return [
                    event_pb2.Event.FromString(bytes((await anext(rows)).body)).aggregate_version
                    for _ in range(3)
                ]
        finally:
            event_database.close()

    assert asyncio.run(stream_cursors()) == [1, 2, 3]


class ReadCountingDatabase(Database):
    """A database that counts its reads."""

    read_count = 0

    async def read(self, work: Callable[[Connection], T], *, changed: bool = False) -> T:
        self.read_count += 1
        return await super().read(work, changed=changed)


def test_idle_followers_share_one_poller(database: DatabaseUrls) -> None:
    """All streams that wait at the end share one poller; a new event reaches each of them and is
    read once for all.
    """
    last_cursor = 0

    def between(_connection: Connection, after: int, until: int, limit: int) -> Sequence[int]:
        return range(after + 1, min(until, after + limit) + 1)

    async def reads(followers: int) -> tuple[int, float, list[int]]:
        nonlocal last_cursor
        event_database = ReadCountingDatabase(database.service("event"), connections=1)
        tail = SequenceTail(
            event_database,
            SequenceSource(
                lambda _connection: last_cursor, between, lambda item: item, lambda _item: 1
            ),
        )
        try:
            async with AsyncExitStack() as stack:
                streams = [
                    await stack.enter_async_context(
                        aclosing(
                            tail.stream(
                                StreamFilter(between, lambda _item: True, "owner"),
                                last_cursor,
                                "after",
                                follow=True,
                            )
                        )
                    )
                    for _ in range(followers)
                ]
                steps = [asyncio.ensure_future(anext(stream)) for stream in streams]
                await asyncio.to_thread(
                    eventually, lambda: tail.waiting_stream_count == followers, 60
                )
                opened, start_time = event_database.read_count, time.monotonic()
                await asyncio.to_thread(eventually, lambda: event_database.read_count >= opened + 4)
                reads_per_second = (event_database.read_count - opened) / (
                    time.monotonic() - start_time
                )
                last_cursor += 1
                return opened, reads_per_second, await asyncio.gather(*steps)
        finally:
            event_database.close()

    read_count, reads_per_second, items = asyncio.run(reads(1000))
    assert read_count <= 1000 + 240, (
        "at most one read each at the start, besides the reads of the poller"
    )
    assert reads_per_second < 8, "then four reads a second for all of them"
    assert items == [1] * 1000


def test_a_selective_filter_uses_bounded_reads(database: DatabaseUrls) -> None:
    """A stream whose filter matches one item among many advances by bounded reads, and finds it."""
    windows = []

    def between(_connection: Connection, after: int, until: int, limit: int) -> Sequence[int]:
        windows.append(until - after)
        return [60_000] if after < 60_000 <= until else []

    async def find_cursors() -> list[int]:
        event_database = Database(database.service("event"), connections=1)
        tail = SequenceTail(
            event_database,
            SequenceSource(
                lambda _connection: 100_000, between, lambda item: item, lambda _item: 1
            ),
        )
        try:
            return [
                item
                async for item in tail.stream(
                    StreamFilter(between, lambda _item: True, "owner"), 0, "after", follow=False
                )
            ]
        finally:
            event_database.close()

    assert asyncio.run(find_cursors()) == [60_000]
    assert max(windows) <= 5_000


@pytest.mark.parametrize("follow", [False, True])
def test_a_cursor_beyond_the_end_is_rejected(client: Client, follow: bool) -> None:
    """A cursor beyond the last one, as after a restore, is rejected with the last cursor, whether
    or not the stream follows.
    """
    client.event.BatchPublish(
        event_service_pb2.BatchPublishRequest(
            events=[payment_created(f"payments/{unique_id()}", 1)]
        )
    )
    with pytest.raises(InvalidArgumentError) as error:
        next(client.events(10**12, follow=follow))
    assert (error.value.reason, error.value.field_violations[0].field) == (
        "FIELD_INVALID",
        "after_cursor",
    )
    last = int(error.value.metadata["last"])
    assert last >= max(event.cursor for event in client.events())
    assert list(client.events(last)) is not None


def test_a_follower_of_a_restored_database_is_rejected(database: DatabaseUrls) -> None:
    """A waiting stream is rejected when the sequence becomes shorter; it does not wait for numbers
    that now have another meaning.
    """
    last_cursor = 10

    def between(_connection: Connection, after: int, until: int, limit: int) -> Sequence[int]:
        return range(after + 1, min(until, after + limit) + 1)

    async def shortened() -> None:
        nonlocal last_cursor
        event_database = Database(database.service("event"), connections=1)
        tail = SequenceTail(
            event_database,
            SequenceSource(
                lambda _connection: last_cursor, between, lambda item: item, lambda _item: 1
            ),
        )
        try:
            async with aclosing(
                tail.stream(
                    StreamFilter(between, lambda _item: True, "owner"),
                    9,
                    "after_cursor",
                    follow=True,
                )
            ) as stream:
                assert await anext(stream) == 10
                last_cursor = 5
                with pytest.raises(ApiError) as error:
                    await asyncio.wait_for(anext(stream), 30)
                assert error.value.metadata == {"last": "5"}
        finally:
            event_database.close()

    asyncio.run(shortened())


INVALID_EVENTS = [
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


@pytest.mark.parametrize(
    ("changes", "field"),
    INVALID_EVENTS,
    ids=[f"{field} {str(changes)[:40]}" for changes, field in INVALID_EVENTS],
)
def test_a_batch_with_an_invalid_event_is_rejected(
    client: Client, changes: dict[str, object], field: str
) -> None:
    """S1: an invalid event is rejected with its path, for every sender, and nothing of its batch is
    published.
    """
    aggregate = f"payments/{unique_id()}"
    batch = [payment_created(aggregate, 1), payment_created(aggregate, 2, **changes)]
    with pytest.raises(TallystickError) as error:
        client.event.BatchPublish(event_service_pb2.BatchPublishRequest(events=batch))
    assert error.value.field_violations[0].field == f"events[1].{field}"
    assert not list(client.events(aggregate_id=aggregate))


def test_a_filter_with_too_many_types_is_rejected(client: Client) -> None:
    """A filter with more types than the contract has is rejected before any is looked up, with the
    limit; a filter of all types is accepted.
    """
    known_types = [number for number in event_pb2.EventType.values() if number]
    with pytest.raises(
        InvalidArgumentError, match=rf"types must have at most {len(known_types)}"
    ) as error:
        list(
            client.event.StreamEvents(
                event_service_pb2.StreamEventsRequest(types=[*known_types, 99])  # type: ignore[list-item]
            )
        )
    assert (error.value.reason, error.value.field_violations[0].field) == (
        "TOO_MANY_ITEMS",
        "types",
    )
    name = f"payments/{unique_id()}"
    client.event.BatchPublish(
        event_service_pb2.BatchPublishRequest(events=[payment_created(name, 1)])
    )
    everything = client.event.StreamEvents(
        event_service_pb2.StreamEventsRequest(types=known_types, aggregate_id=name)
    )
    assert [answer.event.aggregate_id for answer in everything] == [name]


def test_each_event_type_has_one_collection_and_payload() -> None:
    """Each type of the contract belongs to one collection and one field of the payload, and each
    field of the payload to a type.
    """
    types = {name.removeprefix("EVENT_TYPE_") for name in event_pb2.EventType.keys()} - {
        "UNSPECIFIED"
    }
    payload = {field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields}
    assert set(EVENT_SUBJECTS) == types
    assert {subject.payload for subject in EVENT_SUBJECTS.values()} == payload


def test_a_repeated_event_is_published_once(client: Client) -> None:
    """K1: an event that is published again, alone or with new ones, is dropped and not counted;
    twice in one request is rejected.
    """
    name = f"payments/{unique_id()}"
    events = [payment_created(name, n) for n in (1, 2, 3)]
    publish = client.event.BatchPublish
    assert publish(event_service_pb2.BatchPublishRequest(events=events[:2])).published == 2
    assert publish(event_service_pb2.BatchPublishRequest(events=events)).published == 1
    assert publish(event_service_pb2.BatchPublishRequest(events=events)).published == 0
    assert [e.aggregate_version for e in client.events(aggregate_id=name)] == [1, 2, 3]
    with pytest.raises(TallystickError) as error:
        publish(event_service_pb2.BatchPublishRequest(events=[events[0], events[0]]))
    assert (error.value.reason, error.value.field_violations[0].field) == (
        "DUPLICATE_ITEM",
        "events[1].event_id",
    )


def test_an_event_with_a_reused_id_is_rejected(client: Client) -> None:
    """K1: an event whose id was published with other content is rejected with the differing field;
    nothing of its batch is published.
    """
    name, other_name = f"payments/{unique_id()}", f"payments/{unique_id()}"
    publish = client.event.BatchPublish
    publish(event_service_pb2.BatchPublishRequest(events=[payment_created(name, 1)]))
    changes = (
        event_pb2.Event(caller="other"),
        event_pb2.Event(owner="other"),
        event_pb2.Event(payment=payment_pb2.Payment(buyer_info="another")),
    )
    for change, field in zip(changes, ("caller", "owner", "payment"), strict=True):
        differs = payment_created(name, 1)
        differs.MergeFrom(change)
        with pytest.raises(TallystickError) as error:
            publish(
                event_service_pb2.BatchPublishRequest(
                    events=[payment_created(other_name, 1), differs]
                )
            )
        assert (error.value.reason, error.value.field_violations[0].field) == (
            "IDEMPOTENCY_KEY_REUSED",
            f"events[1].{field}",
        )
        assert error.value.metadata == {"field": f"events[1].{field}"}
    assert not list(client.events(aggregate_id=other_name))
    assert [event.caller for event in client.events(aggregate_id=name)] == [
        payment_created(name, 1).caller
    ]


LARGE_EVENTS = [
    event_pb2.Event(
        event_id=f"x/{n}",
        payment=payment_pb2.Payment(buyer_info="🙂" * 1024, seller_info="🙂" * 1024),
    )
    for n in range(1, 1500)
]
SMALL_EVENTS = [event_pb2.Event(event_id=f"y/{n}") for n in range(1, 2500)]


@pytest.mark.parametrize(
    "rows",
    [
        [LARGE_EVENTS],
        [SMALL_EVENTS],
        [[event] for event in SMALL_EVENTS],
        [LARGE_EVENTS[:300], *([event] for event in SMALL_EVENTS), LARGE_EVENTS, SMALL_EVENTS[:3]],
    ],
)
def test_relay_requests_stay_below_the_size_limit(rows: list[list[event_pb2.Event]]) -> None:
    """For events of any length and transactions of any size, requests stay below EventService's
    limit and keep the order; small ones are joined.
    """
    published_rows = [
        OutboxRow(
            n,
            len(row),
            event_service_pb2.BatchPublishRequest(events=row).SerializeToString(),
            has_later=False,
            rejected_aggregates=None,
        )
        for n, row in enumerate(rows)
    ]
    publish_requests = [
        event_service_pb2.BatchPublishRequest.FromString(raw)
        for raw in merge_batches(published_rows)
    ]
    assert [event for request in publish_requests for event in request.events] == [
        event for row in rows for event in row
    ]
    assert all(
        request.ByteSize() < 4 * 1024 * 1024 and len(request.events) <= 1000
        for request in publish_requests
    )
    assert all(
        len(batch.events) + len(two.events) > 1000
        or batch.ByteSize() + two.ByteSize() > 2 * 1024 * 1024
        for batch, two in pairwise(publish_requests)
    )


def test_a_reader_that_disconnects_midway_is_no_error(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A reader that disconnects in the middle is not an error: nothing is logged as one."""
    for _ in client.events():
        break
    assert list(client.events())[:1]
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
