"""No owner, however many callers it has, keeps other owners waiting or has their calls refused."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID

import grpc
import psycopg
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from sqlalchemy import Connection

from tallystick import Client, ClientSettings, UnavailableError, new_order
from tallystick._errors import from_rpc
from tallystick.event.v1 import event_service_pb2, event_service_pb2_grpc
from tallystick.payment.v1 import payment_pb2, payment_service_pb2, payment_service_pb2_grpc
from tallystick_core.caller import Caller, Role
from tallystick_server.process.configuration import Settings
from tallystick_server.process.databases import Databases
from tallystick_server.process.wiring import Ports
from tallystick_server.runtime.authentication import BearerTokens
from tallystick_server.runtime.bulkhead import CallLimits
from tallystick_server.runtime.door import Call, Door
from tallystick_server.runtime.fair_semaphore import FairSemaphore
from tallystick_storage.database import Database

from .conftest import Platform, eventually, flow_of, serving, unique
from .test_door import SERVICES, served
from .test_event_service import payment_created

T = TypeVar("T")

_CALLERS = {
    "first": ("market", {Role.TEAM, Role.PAYOUTS}),
    "second": ("market", {Role.TEAM, Role.PAYOUTS}),
    "other": ("", {Role.TEAM, Role.PAYOUTS}),
    "third": ("", {Role.TEAM, Role.PAYOUTS}),
    "chief": ("head", {Role.OPERATOR}),
    "deputy": ("head", {Role.OPERATOR}),
    "auditor": ("", {Role.AUDITOR}),
    "platform": ("", {Role.SERVICE}),
    "all": ("", set(Role)),
}
TOKENS = {name: f"token-of-{name}-aaaaaaaa" for name in _CALLERS}
CALLERS = {TOKENS[name]: Caller(name, frozenset(roles), owner) for name, (owner, roles) in _CALLERS.items()}
SETTINGS = Settings(authentication="tokens", callers=CALLERS, service_token=TOKENS["platform"])


class Stopped(Database):
    """A database whose reads wait until the test lets them through."""

    through = asyncio.Semaphore(0)

    async def read(self, work: Callable[[Connection], T], *, changed: bool = False) -> T:
        await self.through.acquire()
        return await super().read(work, changed=changed)


@contextmanager
def stopped_events(databases: Databases) -> Iterator[tuple[Platform, Callable[[int], None], Any]]:
    """EventService, what lets a number of its reads through, and the tail that its streams share."""
    through = asyncio.Semaphore(0)

    def stopped(url: str, connections: int, new_id: Callable[[], UUID]) -> Database:
        database = Stopped(url, connections=connections, new_id=new_id)
        database.through = through
        return database

    with serving(databases, SETTINGS, ("event",), Ports(database=stopped)) as platform:
        (handlers,) = (service.servicer for service in platform.running._services)

        async def release(reads: int) -> None:
            for _ in range(reads):
                through.release()

        def let(reads: int) -> None:
            platform.run(release, reads)

        yield platform, let, handlers._tail  # type: ignore[attr-defined]
        platform.run(release, 10_000)


def test_an_owners_streams_behind_do_not_delay_anothers(own_database: Databases) -> None:
    """While hundreds of streams of one owner, of several callers, wait for their turn to catch up, another owner's one stream has the turn after the next."""
    flood = 200
    with stopped_events(own_database) as (platform, release, tail), grpc.insecure_channel(platform.address) as channel:
        aggregate = f"payments/{unique()}"
        with platform.client(TOKENS["platform"]) as service:
            service.event.BatchPublish(event_service_pb2.BatchPublishRequest(events=[payment_created(aggregate, 1, owner="other")]))
        stub, request = event_service_pb2_grpc.EventServiceStub(channel), event_service_pb2.StreamEventsRequest()

        def opened(name: str) -> Any:
            return stub.StreamEvents(request, metadata=(("authorization", f"Bearer {TOKENS[name]}"),), timeout=20)

        streams = [opened(name) for name in ("first", "second") for _ in range(flood // 2)]
        assert eventually(lambda: tail._catching_up.waiting() == flood - 1)  # one has its turn
        own = opened("other")
        assert eventually(lambda: tail._catching_up.waiting() == flood)
        release(3)  # the turn that was taken, the next of the same owner, and the other's
        assert [response.event.aggregate_id for response in own] == [aggregate]
        for stream in streams:
            stream.cancel()


class Held:
    """The handlers of a service; each holds its call until the test ends, with `waits` as one that waits for a provider."""

    def __init__(self, service: ServiceDescriptor, *, waits: bool) -> None:
        self.admitted = threading.Semaphore(0)
        self._service = service
        self._waits = waits

    def __getattr__(self, name: str) -> Callable[[Message, Call], Any]:
        method = self._service.methods_by_name[name]
        answer = GetMessageClass(method.output_type)

        async def unary(request: Message, call: Call) -> Message:
            del request
            with call.waiting() if self._waits else nullcontext(True) as waits:
                if waits:
                    self.admitted.release()
                    await asyncio.Event().wait()
            return answer()

        async def stream(request: Message, _call: Call) -> AsyncIterator[Message]:
            del request
            self.admitted.release()
            await asyncio.Event().wait()
            yield answer()

        return stream if method.server_streaming else unary


@contextmanager
def holding(limits: CallLimits, *, waits: bool = False) -> Iterator[Callable[..., bool]]:
    """A server that holds every call that it admits. What is yielded makes a call, with a body of some bytes, and says whether it was admitted."""
    servicers = {name: Held(service, waits=waits) for name, service in SERVICES.items()}
    with served(Door(BearerTokens(CALLERS), limits), servicers) as (address, _), grpc.insecure_channel(address) as channel:
        calls: list[Any] = []
        bodies: dict[int, bytes] = {}

        def is_admitted(caller: str, method: str, size: int = 0) -> bool:
            (name,) = (name for name, service in SERVICES.items() if method in service.methods_by_name)
            path, metadata = f"/{SERVICES[name].full_name}/{method}", (("authorization", f"Bearer {TOKENS[caller]}"),)
            body = bodies.setdefault(size, payment_service_pb2.CreatePaymentRequest(buyer_info="x" * size).SerializeToString())
            if SERVICES[name].methods_by_name[method].server_streaming:
                stream: Any = channel.unary_stream(path)
                call = stream(body, metadata=metadata, timeout=60)
            else:
                unary: Any = channel.unary_unary(path)
                call = unary.future(body, metadata=metadata, timeout=60)
            calls.append(call)
            admitted = False

            def is_known() -> bool:
                nonlocal admitted
                admitted = servicers[name].admitted.acquire(blocking=False)
                return admitted or call.done()

            assert eventually(is_known)
            if not admitted and not waits:
                assert from_rpc(call.exception()).reason == "OVERLOADED"
            return admitted

        yield is_admitted
        for call in calls:
            call.cancel()


KINDS: list[tuple[str, str, dict[str, int], int]] = [
    ("sells", "CreatePayment", {"writes": 8}, 0),
    ("pays out", "CreatePayout", {"writes": 8}, 0),
    ("reads", "ListPayments", {"reads": 8}, 0),
    ("streams", "WatchPayment", {"streams": 8}, 0),
    ("waits", "CreatePayment", {"waiting": 8}, 0),
    ("sends bytes", "CreatePayment", {"message_bytes": 80_000}, 10_000),
]


@pytest.mark.parametrize(("method", "limits", "size"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS])
def test_one_owner_never_has_all_slots_or_bytes(method: str, limits: dict[str, int], size: int) -> None:
    """An owner alone, with any number of callers, has at most half of the slots of a kind or of the bytes; each that comes has half of what is left."""
    with holding(CallLimits(**limits), waits="waiting" in limits) as is_admitted:
        assert [is_admitted(("first", "second")[n % 2], method, size) for n in range(6)] == [True] * 4 + [False] * 2
        assert [is_admitted("other", method, size) for _ in range(3)] == [True, True, False]
        assert [is_admitted("third", method, size) for _ in range(2)] == [True, False]


@pytest.mark.parametrize(("method", "waits"), [("CreatePayment", True), ("WatchPayment", False)], ids=["waits", "streams"])
def test_what_waits_and_what_streams_keeps_no_body(method: str, waits: bool) -> None:
    """Calls that wait for a provider, and streams, give the bytes of their requests back: many more are admitted than fit at a time, and memory has none."""
    size, calls = 60_000, 100
    with holding(CallLimits(message_bytes=4 * size), waits=waits) as is_admitted:
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


def test_reads_of_owners_take_turns() -> None:
    """However many reads one owner has under way, another's begins after one more of those: all reads share a few connections, which serve who comes first."""
    begun: queue.SimpleQueue[str] = queue.SimpleQueue()
    turns = asyncio.Semaphore(0)
    flood = 40

    class Reads:
        def __getattr__(self, _name: str) -> Callable[[Message, Call], Any]:
            async def read(_request: Message, call: Call) -> Message:
                begun.put(call.caller.owner)
                await turns.acquire()
                return payment_service_pb2.ListPaymentsResponse()

            return read

    door = Door(BearerTokens(CALLERS))
    with served(door, {"PaymentService": Reads()}) as (address, loop), grpc.insecure_channel(address) as channel:
        stub = payment_service_pb2_grpc.PaymentServiceStub(channel)

        def call(name: str) -> Any:
            metadata = (("authorization", f"Bearer {TOKENS[name]}"),)
            return stub.ListPayments.future(payment_service_pb2.ListPaymentsRequest(), metadata=metadata, timeout=60)

        def waiting() -> int:
            return door._readers.waiting()

        calls = [call(("first", "second")[n % 2]) for n in range(flood)]
        assert eventually(lambda: begun.qsize() + waiting() == flood)
        assert begun.qsize() == 32
        calls.append(call("other"))
        assert eventually(lambda: waiting() == flood + 1 - 32)
        for _ in range(2):
            loop.call_soon_threadsafe(turns.release)
        assert [begun.get(timeout=10) for _ in range(34)][-2:] == ["market", "other"]
        for _ in range(flood):
            loop.call_soon_threadsafe(turns.release)
        for done in calls:
            done.result(10)


def test_orders_that_wait_to_be_stored_leave_room_for_other_owners(own_database: Databases) -> None:
    """While the database stores nothing, one owner has at most half of the orders that a process takes waiting; another owner's payment still waits beside
    them, and all are stored once it goes on."""
    with serving(own_database, replace(SETTINGS, in_flight=10)) as platform, ThreadPoolExecutor(4) as callers:
        flow = flow_of(platform)

        def pays(name: str, orders: int) -> payment_pb2.Payment:
            with Client(platform.address, settings=ClientSettings(token=TOKENS[name], attempts=1)) as client:
                new = [new_order(unique("o"), "buyer-1", f"{name}-seller", "1.00", "EUR") for _ in range(orders)]
                return client.create_payment(unique("c"), new, credit_card_info="tok_visa", wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE)

        for name in ("first", "other"):
            pays(name, 1)
        assert eventually(lambda: not flow.in_hand)
        with psycopg.connect(own_database.admin) as admin:
            admin.execute("lock table payment.checkout in share mode")
            waiting = [callers.submit(pays, "first", 4) for _ in range(2)]
            assert eventually(lambda: flow._unstored.taken == 8)
            with pytest.raises(UnavailableError) as refused:
                pays("first", 4)
            assert refused.value.reason == "OVERLOADED"
            waiting.append(callers.submit(pays, "other", 1))
            assert eventually(lambda: flow._unstored.taken == 9)
            admin.rollback()
            assert [len(payment.result(60).payment_orders) for payment in waiting] == [4, 4, 1]
        assert flow._unstored.taken == 0


def test_operators_share_their_slots_and_services_do_not() -> None:
    """Operators of one owner leave half of their slots to others; services, which may all be one caller, use all of theirs."""
    with holding(CallLimits(platform=8)) as is_admitted:
        assert [is_admitted(("chief", "deputy")[n % 2], "ListUnappliedCharges") for n in range(6)] == [True] * 4 + [False] * 2
        assert is_admitted("auditor", "ListAccounts")
        assert [is_admitted("platform", "BatchPost") for _ in range(9)] == [True] * 8 + [False]


@pytest.mark.parametrize("full", ["teams", "services", "operators"])
def test_a_call_takes_the_slots_of_the_role_that_admits_it(full: str) -> None:
    """Whatever the method, a call takes a team's slots for the roles team and payouts, a service's or an operator's for those; no kind takes another's."""
    calls = {
        "teams": [("first", "CreatePayout"), ("other", "CancelPayout"), ("other", "CreatePayment"), ("all", "CreatePayout"), ("all", "CancelPayout")],
        "services": [("platform", "BatchCredit"), ("platform", "SetWalletPolicy"), ("all", "BatchPublish"), ("all", "SetWalletPolicy")],
        "operators": [("chief", "CancelPayout"), ("chief", "SetWalletPolicy"), ("auditor", "GetTrialBalance"), ("all", "ApprovePayout")],
    }
    for first, *others in ((calls[full][n], *calls[full][:n], *calls[full][n + 1 :]) for n in range(len(calls[full]))):
        with holding(CallLimits(writes=1, reads=1, platform=1)) as is_admitted:
            assert is_admitted(*first)
            assert not any(is_admitted(*other) for other in others), first
            assert all(is_admitted(*calls[kind][0]) for kind in calls if kind != full), first


def test_owners_who_wait_are_served_in_turns() -> None:
    """Each owner that waits is served once before any is served twice, its own callers in order, and a caller that leaves takes no turn."""

    async def served() -> list[str]:
        semaphore, order = FairSemaphore(1), list[str]()

        async def ask(owner: str, name: str) -> None:
            async with semaphore.permit(owner):
                order.append(name)

        async with semaphore.permit("a"):
            asked = {name: asyncio.ensure_future(ask(name[0], name)) for name in ("a1", "a2", "a3", "a4", "b1", "c1", "b2", "d1")}
            await asyncio.sleep(0)
            assert semaphore.waiting() == 8
            asked["a2"].cancel()
            asked["d1"].cancel()
            await asyncio.sleep(0)
            assert semaphore.waiting() == 6
        asked["a1"].cancel()  # the permit was just passed on to it
        await asyncio.wait(asked.values())
        async with semaphore.permit("e"):
            order.append("e1")
        assert semaphore.waiting() == 0
        return order

    assert asyncio.run(served()) == ["b1", "c1", "a3", "b2", "a4", "e1"]
