"""No owner, however many callers it has, keeps other owners waiting or has their calls refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

import grpc
from sqlalchemy import Connection

from tallystick.event.v1 import event_service_pb2, event_service_pb2_grpc
from tallystick_core.caller import Caller, Role
from tallystick_server.process.configuration import Settings
from tallystick_server.process.databases import Databases
from tallystick_server.process.wiring import Ports
from tallystick_server.runtime.fair_semaphore import FairSemaphore
from tallystick_storage.database import Database

from .conftest import Platform, eventually, serving, unique
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

    async def read(self, work: Callable[[Connection], T]) -> T:
        await self.through.acquire()
        return await super().read(work)


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
