"""Hands each service's changes to EventService, at least once and in order for each aggregate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry import metrics
from sqlalchemy import Connection, Row

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest, BatchPublishResponse
from tallystick_core.event import event_id
from tallystick_core.refusal import Refused
from tallystick_server.runtime.peers import PeerRefused, Peers
from tallystick_storage import outbox
from tallystick_storage.database import Database

log = logging.getLogger(__name__)

MOST_EVENTS = 1000
_MOST_BYTES = 3 * 1024 * 1024  # a request may have 4 MiB
_MOST_ROWS = 20
_PUBLISH = "/tallystick.event.v1.EventService/BatchPublish"
_AFTER_FAILURE = 1.0
_AGAIN_AFTER = 2.0
"""Seconds after which a process looks for refused events that are to be tried again."""
_MOST_REFUSED = 100
"""Refusals after which a turn ends, and what it has found out is stored."""
_MOST_AGAIN, _MOST_OF_EACH = 50, 10
_MOST_DETAIL = 1000
_refused = metrics.get_meter("tallystick").create_counter(
    "tallystick.events.refused", description="Aggregates of which EventService began to refuse an event, by service."
)


@dataclass(frozen=True, slots=True)
class Unpublished:
    """BatchPublishRequests to send, serialized, in order; what deletes them once EventService has them; whether more is known to wait."""

    requests: Sequence[bytes]
    forget: Callable[[Connection], None]
    more: bool
    refused: frozenset[str] = frozenset()
    """The aggregates of their events of which EventService refuses an earlier event."""


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

        refused = frozenset(aggregate for row in rows for aggregate in row.refused)
        return Unpublished(joined(rows), forget, more=len(rows) == _MOST_ROWS, refused=refused)


class FirstOf:
    """The source of a service that tells of its changes in several places: what the first of them has, or else what the next has."""

    def __init__(self, *sources: Source) -> None:
        self._sources = sources

    async def __call__(self) -> Unpublished:
        for source in self._sources:
            found = await source()
            if found.requests:
                break
        return found


@dataclass(slots=True)
class _Sent:
    """What has become of events that were sent in parts."""

    published: set[str] = field(default_factory=set)
    """Ids of events."""
    details: dict[str, str] = field(default_factory=dict)
    """Why EventService refuses an event, by its aggregate."""
    complete: bool = True
    """Whether all were sent, but those that are refused and the later ones of their aggregates."""


class Relay:
    """One service's relay. It publishes what its source gives, deletes it after the answer, and rests while there is nothing.

    When EventService refuses an event, it and the later ones of its aggregate are set apart, and tried again without end; the others are published.
    """

    def __init__(self, name: str, database: Database, source: Source, peers: Peers, address: str, interval: float) -> None:
        self._name = name
        self._database = database
        self._again_at = 0.0
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
            except (Refused, PeerRefused) as error:
                log.warning("the relay of %s waits: %s", self._name, error)
                rest = _AFTER_FAILURE
            except Exception:
                log.exception("the relay of %s failed; it goes on", self._name)
                rest = _AFTER_FAILURE
            await asyncio.sleep(rest)

    async def turn(self) -> float:
        """Publishes once; returns how long to rest: not at all while there may be more."""
        started = asyncio.get_running_loop().time()
        if started >= self._again_at:
            self._again_at = started + _AGAIN_AFTER
            if await self._try_again():
                self._again_at = started
        found = await self._source()
        if not found.requests:
            return self._interval
        sent, apart = await self._send_found(found)

        def finish(connection: Connection) -> None:
            if apart:
                outbox.set_apart(connection, sent.details, apart)
            if sent.complete:
                found.forget(connection)

        await self._database.transact(finish)
        self._log_refusals(sent.details)
        if not sent.complete:
            return 0.0 if sent.published else _AFTER_FAILURE
        return 0.0 if found.more else max(asyncio.get_running_loop().time() - started, self._interval)

    async def _send_found(self, found: Unpublished) -> tuple[_Sent, Sequence[outbox.RefusedEvent]]:
        """Publishes what the source gave, and returns the events that have to wait."""
        if not found.refused:
            try:
                for request in found.requests:
                    await self._send(request)
                return _Sent(), ()
            except PeerRefused as refused:
                if refused.rejects_caller:
                    raise
        events = [event for request in found.requests for event in BatchPublishRequest.FromString(request).events]
        sent = await self._send_in_parts(events, found.refused)
        stopped = found.refused | sent.details.keys()
        apart = [event for event in events if event.aggregate_id in stopped and event.event_id not in sent.published]
        return sent, [outbox.RefusedEvent(event.aggregate_id, event.aggregate_version, event.SerializeToString()) for event in apart]

    async def _try_again(self) -> bool:
        """Sends events again that were refused; whether more may be due at once."""
        due = await self._database.load(lambda connection: outbox.due(connection, _MOST_AGAIN, _MOST_OF_EACH))
        if not due:
            return False
        sent = await self._send_in_parts([event_pb2.Event.FromString(one.event) for one in due])
        published = [one for one in due if event_id(one.aggregate_id, one.version) in sent.published]
        await self._database.transact(lambda connection: outbox.tried_again(connection, published, sent.details))
        return bool(published)

    async def _send_in_parts(self, events: Sequence[event_pb2.Event], refused: Collection[str] = ()) -> _Sent:
        """Publishes events in order, and halves what EventService refuses until the one event is found; the later ones of its aggregate are not sent.

        `refused`: aggregates of which nothing is sent. Raises PeerRefused if EventService rejects this service's calls.
        """
        sent, parts = _Sent(), [events]
        while parts:
            if len(sent.details) >= _MOST_REFUSED:
                sent.complete = False
                break
            part = [event for event in parts.pop() if event.aggregate_id not in refused and event.aggregate_id not in sent.details]
            try:
                for request in to_requests(BatchPublishRequest(events=part)):
                    await self._send(request)
                sent.published.update(event.event_id for event in part)
            except PeerRefused as error:
                if error.rejects_caller:
                    raise
                if len(part) == 1:
                    detail = f"version {part[0].aggregate_version}: {error.status} {error.message}"
                    sent.details[part[0].aggregate_id] = detail[:_MOST_DETAIL]
                else:
                    parts += [part[len(part) // 2 :], part[: len(part) // 2]]
        return sent

    async def _send(self, request: bytes) -> None:
        await self._peers.call(self._publish, request, "tallystick.event.v1.BatchPublish")

    def _log_refusals(self, details: Mapping[str, str]) -> None:
        for aggregate, detail in details.items():
            log.warning("EventService refuses an event of %s; this and the later ones wait: %s", aggregate, detail)
        if details:
            _refused.add(len(details), {"service": self._name})


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
