"""An owner with many callers neither delays other owners nor gets their calls rejected."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar
from uuid import UUID

import grpc
import psycopg
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tallystick import UnavailableError, new_order
from tallystick.event.v1 import event_service_pb2, event_service_pb2_grpc
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from tallystick_core.access import Role
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.rpc.authentication import BearerTokens
from tallystick_server.rpc.bulkhead import CallLimits
from tallystick_server.rpc.call import Call
from tallystick_server.rpc.fair_semaphore import FairSemaphore
from tallystick_server.rpc.server import RpcServer
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection
from tests.support.callers import make_callers, settings_with_callers, token_of
from tests.support.errors import from_rpc
from tests.support.events import payment_created
from tests.support.platform import (
    ServedPlatform,
    eventually,
    payments_of,
    serve_platform,
    unique_id,
)
from tests.support.rpc import DESCRIPTORS, serve_rpc

T = TypeVar("T")

CALLERS = {
    "first": ("market", {Role.TEAM, Role.PAYOUTS}),
    "second": ("market", {Role.TEAM, Role.PAYOUTS}),
    "other": ("", {Role.TEAM, Role.PAYOUTS}),
    "third": ("", {Role.TEAM, Role.PAYOUTS}),
    "operator": ("head", {Role.OPERATOR}),
    "second-operator": ("head", {Role.OPERATOR}),
    "auditor": ("", {Role.AUDITOR}),
    "platform": ("", {Role.SERVICE}),
    "all": ("", set(Role)),
}
"""The owner and the roles of each caller."""
SETTINGS = settings_with_callers(CALLERS)


class GatedDatabase(Database):
    """A database whose reads wait until the test releases them."""

    read_permits = asyncio.Semaphore(0)

    async def read(self, work: Callable[[Connection], T], *, changed: bool = False) -> T:
        await self.read_permits.acquire()
        return await super().read(work, changed=changed)


@contextmanager
def gated_event_service(
    databases: DatabaseUrls,
) -> Iterator[tuple[ServedPlatform, Callable[[int], None], Any]]:
    """EventService, a function that releases a number of its reads, and the tail that its streams
    share.
    """
    read_permits = asyncio.Semaphore(0)

    def open_database(url: str, connections: int, new_id: Callable[[], UUID]) -> Database:
        database = GatedDatabase(url, connections=connections, new_id=new_id)
        database.read_permits = read_permits
        return database

    with serve_platform(
        databases, SETTINGS, ("event",), Dependencies(open_database=open_database)
    ) as platform:
        handlers: Any = platform.server.service("event").servicer

        async def release(reads: int) -> None:
            for _ in range(reads):
                read_permits.release()

        def release_reads(reads: int) -> None:
            platform.run_in_loop(release, reads)

        yield platform, release_reads, handlers.tail
        platform.run_in_loop(release, 10_000)


def test_streams_that_catch_up_do_not_delay_other_owners(scratch_database: DatabaseUrls) -> None:
    """Hundreds of streams of one owner, of several callers, wait to catch up. Another owner's one
    stream is served after the next one.
    """
    flood = 200
    with (
        gated_event_service(scratch_database) as (platform, release, tail),
        grpc.insecure_channel(platform.address) as channel,
    ):
        aggregate = f"payments/{unique_id()}"
        with platform.client(token_of("platform")) as service:
            service.event.BatchPublish(
                event_service_pb2.BatchPublishRequest(
                    events=[payment_created(aggregate, 1, owner="other")]
                )
            )
        stub, request = (
            event_service_pb2_grpc.EventServiceStub(channel),
            event_service_pb2.StreamEventsRequest(),
        )

        def open_stream(name: str) -> Any:
            return stub.StreamEvents(
                request, metadata=(("authorization", f"Bearer {token_of(name)}"),), timeout=20
            )

        streams = [open_stream(name) for name in ("first", "second") for _ in range(flood // 2)]
        # one is being served
        assert eventually(lambda: tail.waiting_read_count == flood - 1)
        own_stream = open_stream("other")
        assert eventually(lambda: tail.waiting_read_count == flood)
        release(3)  # the stream in service, the next of the same owner, and the other owner's
        assert [response.event.aggregate_id for response in own_stream] == [aggregate]
        for stream in streams:
            stream.cancel()


class HoldingHandlers:
    """The handlers of a service; each holds its call until the test ends, with `waits_for_provider`
    as a call that waits for a provider.
    """

    def __init__(self, service: ServiceDescriptor, *, waits_for_provider: bool) -> None:
        self.admitted = threading.Semaphore(0)
        self._service = service
        self._waits_for_provider = waits_for_provider

    def __getattr__(self, name: str) -> Callable[[Message, Call], Any]:
        method = self._service.methods_by_name[name]
        response_class = GetMessageClass(method.output_type)

        async def unary(request: Message, call: Call) -> Message:
            del request
            with call.waiting_slot() if self._waits_for_provider else nullcontext(True) as has_slot:
                if has_slot:
                    self.admitted.release()
                    await asyncio.Event().wait()
            return response_class()

        async def hold() -> AsyncIterator[Message]:
            self.admitted.release()
            await asyncio.Event().wait()
            yield response_class()

        async def stream(_request: Message, _call: Call) -> AsyncIterator[Message]:
            return hold()

        return stream if method.server_streaming else unary


@contextmanager
def holding_server(
    limits: CallLimits, *, wait_for_provider: bool = False
) -> Iterator[Callable[..., bool]]:
    """A server that holds every call that it admits. The yielded function makes a call with a body
    of the given size, and returns whether it was admitted.
    """
    servicers = {
        name: HoldingHandlers(service, waits_for_provider=wait_for_provider)
        for name, service in DESCRIPTORS.items()
    }
    with (
        serve_rpc(RpcServer(BearerTokens(make_callers(CALLERS)), limits), servicers) as (
            address,
            _,
        ),
        grpc.insecure_channel(address) as channel,
    ):
        calls: list[Any] = []
        bodies: dict[int, bytes] = {}

        def is_admitted(caller: str, method: str, size: int = 0) -> bool:
            (name,) = (
                name for name, service in DESCRIPTORS.items() if method in service.methods_by_name
            )
            path, metadata = (
                f"/{DESCRIPTORS[name].full_name}/{method}",
                (("authorization", f"Bearer {token_of(caller)}"),),
            )
            body = bodies.setdefault(
                size,
                payment_service_pb2.CreatePaymentRequest(buyer_info="x" * size).SerializeToString(),
            )
            if DESCRIPTORS[name].methods_by_name[method].server_streaming:
                stream: Any = channel.unary_stream(path)
                call = stream(body, metadata=metadata, timeout=60)
            else:
                unary: Any = channel.unary_unary(path)
                call = unary.future(body, metadata=metadata, timeout=60)
            calls.append(call)
            admitted = False

            def is_decided() -> bool:
                nonlocal admitted
                admitted = servicers[name].admitted.acquire(blocking=False)
                return admitted or call.done()

            assert eventually(is_decided)
            if not admitted and not wait_for_provider:
                assert from_rpc(call.exception()).reason == "OVERLOADED"
            return admitted

        yield is_admitted
        for call in calls:
            call.cancel()


CALL_KINDS: list[tuple[str, str, dict[str, int], int]] = [
    ("sells", "CreatePayment", {"writes": 8}, 0),
    ("pays out", "CreatePayout", {"writes": 8}, 0),
    ("reads", "ListPayments", {"reads": 8}, 0),
    ("streams", "WatchPayment", {"streams": 8}, 0),
    ("waits", "CreatePayment", {"waiting": 8}, 0),
    ("sends bytes", "CreatePayment", {"message_bytes": 80_000}, 10_000),
]


@pytest.mark.parametrize(
    ("method", "limits", "size"),
    [kind[1:] for kind in CALL_KINDS],
    ids=[kind[0] for kind in CALL_KINDS],
)
def test_one_owner_never_has_all_slots_or_bytes(
    method: str, limits: dict[str, int], size: int
) -> None:
    """An owner alone, with any number of callers, gets at most half of the slots of a kind or of
    the bytes; each further owner gets half of the remainder.
    """
    with holding_server(CallLimits(**limits), wait_for_provider="waiting" in limits) as is_admitted:
        assert [is_admitted(("first", "second")[n % 2], method, size) for n in range(6)] == [
            True
        ] * 4 + [False] * 2
        assert [is_admitted("other", method, size) for _ in range(3)] == [True, True, False]
        assert [is_admitted("third", method, size) for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("method", "waits"),
    [("CreatePayment", True), ("WatchPayment", False)],
    ids=["waits", "streams"],
)
def test_waiting_calls_and_streams_release_their_request_bytes(method: str, waits: bool) -> None:
    """Calls that wait for a provider, and streams, release the bytes of their requests: many more
    are admitted than the limit, and memory holds none of the requests.
    """
    size, calls = 60_000, 100
    with holding_server(CallLimits(message_bytes=4 * size), wait_for_provider=waits) as is_admitted:
        tracemalloc.start()
        try:
            assert is_admitted("first", method, size)
            before, _ = tracemalloc.get_traced_memory()
            assert all(is_admitted("first", method, size) for _ in range(calls))
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert after - before < calls * size / 2, f"{(after - before) // calls} bytes for each call"


def test_reads_are_served_round_robin_by_owner() -> None:
    """However many reads one owner has in flight, another's starts after one more of them
    completes: all reads share a few connections, first come, first served.
    """
    started_reads: queue.SimpleQueue[str] = queue.SimpleQueue()
    read_permits = asyncio.Semaphore(0)
    flood = 40

    class Reads:
        def __getattr__(self, _name: str) -> Callable[[Message, Call], Any]:
            async def read(_request: Message, call: Call) -> Message:
                started_reads.put(call.caller.owner)
                await read_permits.acquire()
                return payment_service_pb2.ListPaymentsResponse()

            return read

    rpc_server = RpcServer(BearerTokens(make_callers(CALLERS)))
    with (
        serve_rpc(rpc_server, {"PaymentService": Reads()}) as (address, loop),
        grpc.insecure_channel(address) as channel,
    ):
        stub = payment_service_pb2_grpc.PaymentServiceStub(channel)

        def call(name: str) -> Any:
            metadata = (("authorization", f"Bearer {token_of(name)}"),)
            return stub.ListPayments.future(
                payment_service_pb2.ListPaymentsRequest(), metadata=metadata, timeout=60
            )

        def waiting_reads() -> int:
            return rpc_server.waiting_read_count

        calls = [call(("first", "second")[n % 2]) for n in range(flood)]
        assert eventually(lambda: started_reads.qsize() + waiting_reads() == flood)
        assert started_reads.qsize() == 32
        calls.append(call("other"))
        assert eventually(lambda: waiting_reads() == flood + 1 - 32)
        for _ in range(2):
            loop.call_soon_threadsafe(read_permits.release)
        assert [started_reads.get(timeout=10) for _ in range(34)][-2:] == ["market", "other"]
        for _ in range(flood):
            loop.call_soon_threadsafe(read_permits.release)
        for finished_call in calls:
            finished_call.result(10)


def test_waiting_orders_of_one_owner_leave_capacity_for_others(
    scratch_database: DatabaseUrls,
) -> None:
    """While the database is blocked, one owner has at most half of the orders that a process lets
    wait. Another owner's payment still waits with them, and all are stored afterwards.
    """
    with (
        serve_platform(scratch_database, SETTINGS.replace(worker__max_in_flight=10)) as platform,
        ThreadPoolExecutor(4) as callers,
    ):
        payments = payments_of(platform)

        def pays(name: str, orders: int) -> payment_pb2.Payment:
            with platform.client(token_of(name), tries=1) as client:
                new = [
                    new_order(unique_id("o"), "buyer-1", f"{name}-seller", "1.00", "EUR")
                    for _ in range(orders)
                ]
                return client.create_payment(
                    unique_id("c"),
                    new,
                    credit_card_info="tok_visa",
                    wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE,
                )

        for name in ("first", "other"):
            pays(name, 1)
        assert eventually(lambda: not payments.worker.in_flight_count)
        with psycopg.connect(scratch_database.admin) as admin:
            admin.execute("lock table payment.checkout in share mode")
            pending_calls = [callers.submit(pays, "first", 4) for _ in range(2)]
            assert eventually(lambda: payments.create_bulkhead.used == 8)
            with pytest.raises(UnavailableError) as error:
                pays("first", 4)
            assert error.value.reason == "OVERLOADED"
            pending_calls.append(callers.submit(pays, "other", 1))
            assert eventually(lambda: payments.create_bulkhead.used == 9)
            admin.rollback()
            assert [len(payment.result(60).payment_orders) for payment in pending_calls] == [
                4,
                4,
                1,
            ]
        assert payments.create_bulkhead.used == 0


def test_operators_share_their_slots_and_services_do_not() -> None:
    """Operators of one owner leave half of their slots to others; services, which may all be one
    caller, use all of theirs.
    """
    with holding_server(CallLimits(platform=8)) as is_admitted:
        assert [
            is_admitted(("operator", "second-operator")[n % 2], "ListUnappliedCharges")
            for n in range(6)
        ] == [True] * 4 + [False] * 2
        assert is_admitted("auditor", "ListAccounts")
        assert [is_admitted("platform", "BatchPost") for _ in range(9)] == [True] * 8 + [False]


@pytest.mark.parametrize("full", ["teams", "services", "operators"])
def test_a_call_uses_the_slots_of_its_role(full: str) -> None:
    """For every method, a call takes a team's slots for the roles team and payouts, and a service's
    or an operator's slots for those roles; no kind uses another's.
    """
    calls = {
        "teams": [
            ("first", "CreatePayout"),
            ("other", "CancelPayout"),
            ("other", "CreatePayment"),
            ("all", "CreatePayout"),
            ("all", "CancelPayout"),
        ],
        "services": [
            ("platform", "BatchCredit"),
            ("platform", "SetWalletPolicy"),
            ("all", "BatchPublish"),
            ("all", "SetWalletPolicy"),
        ],
        "operators": [
            ("operator", "CancelPayout"),
            ("operator", "SetWalletPolicy"),
            ("auditor", "GetTrialBalance"),
            ("all", "ApprovePayout"),
        ],
    }
    for first, *other_calls in (
        (calls[full][n], *calls[full][:n], *calls[full][n + 1 :]) for n in range(len(calls[full]))
    ):
        with holding_server(CallLimits(writes=1, reads=1, platform=1)) as is_admitted:
            assert is_admitted(*first)
            assert not any(is_admitted(*other_call) for other_call in other_calls), first
            assert all(is_admitted(*calls[kind][0]) for kind in calls if kind != full), first


def test_permits_are_granted_round_robin_by_owner() -> None:
    """Each waiting owner is served once before any is served twice, its own callers in order, and a
    caller that leaves uses no permit.
    """

    async def served_owners() -> list[str]:
        semaphore, order = FairSemaphore(1), list[str]()

        async def ask(owner: str, name: str) -> None:
            async with semaphore.permit(owner):
                order.append(name)

        async with semaphore.permit("a"):
            requests = {
                name: asyncio.ensure_future(ask(name[0], name))
                for name in ("a1", "a2", "a3", "a4", "b1", "c1", "b2", "d1")
            }
            await asyncio.sleep(0)
            assert semaphore.waiting_count() == 8
            requests["a2"].cancel()
            requests["d1"].cancel()
            await asyncio.sleep(0)
            assert semaphore.waiting_count() == 6
        requests["a1"].cancel()  # the permit was just passed on to it
        await asyncio.wait(requests.values())
        async with semaphore.permit("e"):
            order.append("e1")
        assert semaphore.waiting_count() == 0
        return order

    assert asyncio.run(served_owners()) == ["b1", "c1", "a3", "b2", "a4", "e1"]
