"""Publishes the events of the outbox to EventService."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import metrics
from sqlalchemy import Connection

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest, BatchPublishResponse
from tallystick_core.errors import ApiError
from tallystick_core.event import format_event_id
from tallystick_server.rpc.service_client import ServiceCallRejected, ServiceClient
from tallystick_storage import outbox
from tallystick_storage.database import Database

log = logging.getLogger(__name__)

MAX_EVENTS = 1000
_MAX_BYTES = 3 * 1024 * 1024  # a request may have 4 MiB
_MAX_ROWS = 20
_PUBLISH_PATH = "/tallystick.event.v1.EventService/BatchPublish"
_FAILURE_DELAY_SECONDS = 1.0
_RETRY_INTERVAL_SECONDS = 2.0
"""Seconds after which a process looks for refused events that are to be tried again."""
_MAX_REJECTIONS = 100
"""Refusals after which a turn ends, and what it has found out is stored."""
_MAX_RETRIED_AGGREGATES, _MAX_RETRIED_PER_AGGREGATE = 50, 10
_MAX_DETAIL_LENGTH = 1000
_rejected_counter = metrics.get_meter("tallystick").create_counter(
    "tallystick.events.refused",
    description="Aggregates of which EventService began to refuse an event, by service.",
)


@dataclass(frozen=True, slots=True)
class EventBatch:
    """BatchPublishRequests to send, serialized, in order; what deletes them once EventService has
    them; whether more is known to wait.
    """

    requests: Sequence[bytes]
    delete: Callable[[Connection], None]
    has_more: bool
    rejected_aggregates: frozenset[str] = frozenset()
    """The aggregates of their events of which EventService refuses an earlier event."""


EventSource = Callable[[], Awaitable[EventBatch]]
"""Reads what is to be published next."""


class OutboxSource:
    """The source of a service that tells of its changes in an outbox."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __call__(self) -> EventBatch:
        rows = await self._database.load(
            lambda connection: outbox.list_unpublished(connection, _MAX_ROWS)
        )

        def delete(connection: Connection) -> None:
            outbox.delete_published(connection, [row.sequence for row in rows])

        rejected_aggregates = frozenset(
            aggregate for row in rows for aggregate in row.rejected_aggregates
        )
        return EventBatch(
            merge_batches(rows),
            delete,
            has_more=len(rows) == _MAX_ROWS,
            rejected_aggregates=rejected_aggregates,
        )


class FirstNonEmptySource:
    """The source of a service that tells of its changes in several places: what the first of them
    has, or else what the next has.
    """

    def __init__(self, *sources: EventSource) -> None:
        self._sources = sources

    async def __call__(self) -> EventBatch:
        for source in self._sources:
            batch = await source()
            if batch.requests:
                break
        return batch


@dataclass(slots=True)
class _PublishResult:
    """What has become of events that were sent in parts."""

    published_ids: set[str] = field(default_factory=set)
    """Ids of events."""
    rejection_details: dict[str, str] = field(default_factory=dict)
    """Why EventService refuses an event, by its aggregate."""
    is_complete: bool = True
    """Whether all were sent, but those that are refused and the later ones of their aggregates."""


class Relay:
    """One service's relay. It publishes what its source gives, deletes it after the answer, and
    rests while there is nothing.

    When EventService refuses an event, it and the later ones of its aggregate are set apart, and
    tried again without end; the others are published.
    """

    def __init__(
        self,
        name: str,
        database: Database,
        source: EventSource,
        service_client: ServiceClient,
        address: str,
        interval_seconds: float,
    ) -> None:
        self._name = name
        self._database = database
        self._next_retry_time = 0.0
        self._interval_seconds = interval_seconds
        self._source = source
        self._service_client = service_client
        # what is handed on has been serialized when it was told
        self._publish_method: Callable[..., Any] = service_client.stub(
            lambda channel: channel.unary_unary(
                _PUBLISH_PATH, response_deserializer=BatchPublishResponse.FromString
            ),
            address,
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
                delay_seconds = await self.run_once()
            except (ApiError, ServiceCallRejected) as error:
                log.warning("the relay of %s waits: %s", self._name, error)
                delay_seconds = _FAILURE_DELAY_SECONDS
            except Exception:
                log.exception("the relay of %s failed; it goes on", self._name)
                delay_seconds = _FAILURE_DELAY_SECONDS
            await asyncio.sleep(delay_seconds)

    async def run_once(self) -> float:
        """Publishes once; returns how long to rest: not at all while there may be more."""
        start_time = asyncio.get_running_loop().time()
        if start_time >= self._next_retry_time:
            self._next_retry_time = start_time + _RETRY_INTERVAL_SECONDS
            if await self._retry_rejected():
                self._next_retry_time = start_time
        batch = await self._source()
        if not batch.requests:
            return self._interval_seconds
        result, events_to_store = await self._publish_batch(batch)

        def store_result(connection: Connection) -> None:
            if events_to_store:
                outbox.store_rejected_events(connection, result.rejection_details, events_to_store)
            if result.is_complete:
                batch.delete(connection)

        await self._database.transact(store_result)
        self._log_rejections(result.rejection_details)
        if not result.is_complete:
            return 0.0 if result.published_ids else _FAILURE_DELAY_SECONDS
        return (
            0.0
            if batch.has_more
            else max(asyncio.get_running_loop().time() - start_time, self._interval_seconds)
        )

    async def _publish_batch(
        self, batch: EventBatch
    ) -> tuple[_PublishResult, Sequence[outbox.RejectedEvent]]:
        """Publishes what the source gave, and returns the events that have to wait."""
        if not batch.rejected_aggregates:
            try:
                for request in batch.requests:
                    await self._send(request)
                return _PublishResult(), ()
            except ServiceCallRejected as error:
                if error.rejects_caller:
                    raise
        events = [
            event
            for request in batch.requests
            for event in BatchPublishRequest.FromString(request).events
        ]
        result = await self._publish_in_parts(events, batch.rejected_aggregates)
        blocked_aggregates = batch.rejected_aggregates | result.rejection_details.keys()
        blocked_events = [
            event
            for event in events
            if event.aggregate_id in blocked_aggregates
            and event.event_id not in result.published_ids
        ]
        return result, [
            outbox.RejectedEvent(
                event.aggregate_id, event.aggregate_version, event.SerializeToString()
            )
            for event in blocked_events
        ]

    async def _retry_rejected(self) -> bool:
        """Sends events again that were refused; whether more may be due at once."""
        due_events = await self._database.load(
            lambda connection: outbox.list_due_events(
                connection, _MAX_RETRIED_AGGREGATES, _MAX_RETRIED_PER_AGGREGATE
            )
        )
        if not due_events:
            return False
        result = await self._publish_in_parts(
            [event_pb2.Event.FromString(event.event) for event in due_events]
        )
        published_events = [
            event
            for event in due_events
            if format_event_id(event.aggregate_id, event.version) in result.published_ids
        ]
        await self._database.transact(
            lambda connection: outbox.record_retries(
                connection, published_events, result.rejection_details
            )
        )
        return bool(published_events)

    async def _publish_in_parts(
        self, events: Sequence[event_pb2.Event], blocked_aggregates: Collection[str] = ()
    ) -> _PublishResult:
        """Publishes events in order, and halves what EventService refuses until the one event is
        found; the later ones of its aggregate are not sent.

        `blocked_aggregates`: aggregates of which nothing is sent. Raises ServiceCallRejected if
        EventService rejects this service's calls.
        """
        result, parts = _PublishResult(), [events]
        while parts:
            if len(result.rejection_details) >= _MAX_REJECTIONS:
                result.is_complete = False
                break
            part = [
                event
                for event in parts.pop()
                if event.aggregate_id not in blocked_aggregates
                and event.aggregate_id not in result.rejection_details
            ]
            try:
                for request in split_requests(BatchPublishRequest(events=part)):
                    await self._send(request)
                result.published_ids.update(event.event_id for event in part)
            except ServiceCallRejected as error:
                if error.rejects_caller:
                    raise
                if len(part) == 1:
                    detail = f"version {part[0].aggregate_version}: {error.status} {error.message}"
                    result.rejection_details[part[0].aggregate_id] = detail[:_MAX_DETAIL_LENGTH]
                else:
                    parts += [part[len(part) // 2 :], part[: len(part) // 2]]
        return result

    async def _send(self, request: bytes) -> None:
        await self._service_client.call(
            self._publish_method, request, "tallystick.event.v1.BatchPublish"
        )

    def _log_rejections(self, rejection_details: Mapping[str, str]) -> None:
        for aggregate, detail in rejection_details.items():
            log.warning(
                "EventService refuses an event of %s; this and the later ones wait: %s",
                aggregate,
                detail,
            )
        if rejection_details:
            _rejected_counter.add(len(rejection_details), {"service": self._name})


def merge_batches(rows: Sequence[outbox.OutboxRow]) -> list[bytes]:
    """The requests of all rows in order, small ones as one, large ones in parts that EventService
    takes.
    """
    requests: list[bytes] = []
    pending: list[bytes] = []
    event_count = size = 0
    for row in rows:
        if event_count + row.event_count > MAX_EVENTS or size + len(row.request) > _MAX_BYTES:
            # messages of a repeated field, written one behind the other, are one message
            requests.append(b"".join(pending))
            pending, event_count, size = [], 0, 0
        if row.event_count > MAX_EVENTS or len(row.request) > _MAX_BYTES:
            requests += split_requests(BatchPublishRequest.FromString(row.request))
        else:
            pending.append(row.request)
            event_count, size = event_count + row.event_count, size + len(row.request)
    return [request for request in (*requests, b"".join(pending)) if request]


def split_requests(request: BatchPublishRequest) -> list[bytes]:
    """What is told as requests that are not too long nor too large, in order; none if that is
    nothing.
    """
    serialized = request.SerializeToString()
    if len(request.events) <= MAX_EVENTS and len(serialized) <= _MAX_BYTES:
        return [serialized] if serialized else []
    parts: list[list[event_pb2.Event]] = [[]]
    size = 0
    for event in request.events:
        event_size = event.ByteSize()
        if len(parts[-1]) == MAX_EVENTS or size + event_size > _MAX_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(event)
        size += event_size
    return [BatchPublishRequest(events=part).SerializeToString() for part in parts if part]
