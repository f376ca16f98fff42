"""Hands each service's changes to EventService, at least once and in order for each aggregate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence

from tallystick.event.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc
from tallystick_core.refusal import Refused
from tallystick_server.runtime.peers import Peers

log = logging.getLogger(__name__)

MOST_EVENTS = 1000
_MOST_BYTES = 3 * 1024 * 1024  # a request may have 4 MiB
_IDLE = 0.2
_AFTER_FAILURE = 1.0

Source = Callable[[], Awaitable[tuple[list[event_pb2.Event], Callable[[], Awaitable[None]]]]]
"""Reads the next events, and what forgets them once EventService has them."""


class Relay:
    """One service's relay. It publishes what its source gives, forgets it after the answer, and rests while there is nothing."""

    def __init__(self, name: str, source: Source, peers: Peers, address: str) -> None:
        self._name = name
        self._source = source
        self._peers = peers
        self._stub: event_service_pb2_grpc.EventServiceAsyncStub = peers.stub(event_service_pb2_grpc.EventServiceStub, address)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"{self._name}-relay")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            try:
                rest = await self.turn()
            except Refused as error:
                log.warning("the relay of %s waits: %s", self._name, error)
                rest = _AFTER_FAILURE
            except Exception:
                log.exception("the relay of %s failed; it goes on", self._name)
                rest = _AFTER_FAILURE
            await asyncio.sleep(rest)

    async def turn(self) -> float:
        """Publishes once; returns how long to rest: not at all while there may be more."""
        started = asyncio.get_running_loop().time()
        events, forget = await self._source()
        if not events:
            return _IDLE
        for part in parts(events):
            await self._peers.call(self._stub.BatchPublish, event_service_pb2.BatchPublishRequest(events=part))
        await forget()
        return 0.0 if len(events) >= MOST_EVENTS else max(asyncio.get_running_loop().time() - started, _IDLE)


def parts(events: Sequence[event_pb2.Event]) -> Iterator[list[event_pb2.Event]]:
    """Events in order, in lists that are not too long nor too large for one request."""
    part: list[event_pb2.Event] = []
    size = 0
    for event in events:
        more = event.ByteSize()
        if part and (len(part) == MOST_EVENTS or size + more > _MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(event)
        size += more
    if part:
        yield part
