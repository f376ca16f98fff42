"""Hands each service's changes to EventService, at least once and in order for each aggregate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, Row

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest, BatchPublishResponse
from tallystick_core.event import event_id
from tallystick_core.refusal import Refused
from tallystick_server.runtime.peers import Peers
from tallystick_storage import outbox
from tallystick_storage.database import Database

log = logging.getLogger(__name__)

MOST_EVENTS = 1000
_MOST_BYTES = 3 * 1024 * 1024  # a request may have 4 MiB
_MOST_ROWS = 20
_PUBLISH = "/tallystick.event.v1.EventService/BatchPublish"
_AFTER_FAILURE = 1.0


@dataclass(frozen=True, slots=True)
class Unpublished:
    """BatchPublishRequests to send, serialized, in order; what forgets them once EventService has them; whether more is known to wait."""

    requests: Sequence[bytes]
    forget: Callable[[], Awaitable[None]]
    more: bool


Source = Callable[[], Awaitable[Unpublished]]
"""Reads what is to be published next."""


@contextmanager
def telling(connection: Connection, changed: Iterable[Row[Any]]) -> Iterator[BatchPublishRequest]:
    """What is told in the block becomes the events of what a statement changed. Its rows name, as `told`, their outbox row; no rows, no events."""
    told = BatchPublishRequest()
    yield told
    row = next(iter(changed), None)
    if row is not None:
        outbox.tell(connection, row.told, told.SerializeToString())


def tell(
    told: BatchPublishRequest,
    type_: event_pb2.EventType.ValueType,
    aggregate: str,
    version: int,
    created: Timestamp,
    caller: str,
    traceparent: str = "",
    owner: str = "",
    **resource: Any,  # the one field of the event that holds what changed
) -> None:
    """Adds an event to what is told; `owner`: whose callers may stream it, "": none but the platform."""
    told.events.add(
        event_id=event_id(aggregate, version),
        type=type_,
        aggregate_id=aggregate,
        aggregate_version=version,
        create_time=created,
        caller=caller,
        traceparent=traceparent,
        owner=owner,
        **resource,
    )


class FromOutbox:
    """The source of a service that tells of its changes in an outbox."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __call__(self) -> Unpublished:
        rows = await self._database.load(lambda connection: outbox.unpublished(connection, _MOST_ROWS))

        def forget(connection: Connection) -> None:
            outbox.published(connection, [row.sequence for row in rows])

        return Unpublished(joined(rows), lambda: self._database.transact(forget), more=len(rows) == _MOST_ROWS)


class Relay:
    """One service's relay. It publishes what its source gives, forgets it after the answer, and rests while there is nothing."""

    def __init__(self, name: str, source: Source, peers: Peers, address: str, interval: float) -> None:
        self._name = name
        self._interval = interval
        self._source = source
        self._peers = peers
        self._publish: Callable[..., Any] = peers.stub(  # what is handed on has been serialized when it was told
            lambda channel: channel.unary_unary(_PUBLISH, response_deserializer=BatchPublishResponse.FromString), address
        )
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
        found = await self._source()
        if not found.requests:
            return self._interval
        for request in found.requests:
            await self._peers.call(self._publish, request, "tallystick.event.v1.BatchPublish")
        await found.forget()
        return 0.0 if found.more else max(asyncio.get_running_loop().time() - started, self._interval)


def joined(rows: Sequence[outbox.Unpublished]) -> list[bytes]:
    """The requests of all rows in order, small ones as one, large ones in parts that EventService takes."""
    requests: list[bytes] = []
    waiting: list[bytes] = []
    events = size = 0
    for row in rows:
        if events + row.events > MOST_EVENTS or size + len(row.request) > _MOST_BYTES:
            requests.append(b"".join(waiting))  # messages of a repeated field, written one behind the other, are one message
            waiting, events, size = [], 0, 0
        if row.events > MOST_EVENTS or len(row.request) > _MOST_BYTES:
            requests += to_requests(BatchPublishRequest.FromString(row.request))
        else:
            waiting.append(row.request)
            events, size = events + row.events, size + len(row.request)
    return [request for request in (*requests, b"".join(waiting)) if request]


def to_requests(told: BatchPublishRequest) -> list[bytes]:
    """What is told as requests that are not too long nor too large, in order; none if that is nothing."""
    whole = told.SerializeToString()
    if len(told.events) <= MOST_EVENTS and len(whole) <= _MOST_BYTES:
        return [whole] if whole else []
    parts: list[list[event_pb2.Event]] = [[]]
    size = 0
    for event in told.events:
        more = event.ByteSize()
        if len(parts[-1]) == MOST_EVENTS or size + more > _MOST_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(event)
        size += more
    return [BatchPublishRequest(events=part).SerializeToString() for part in parts if part]
