"""Publishes the events of the outbox to EventService."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest, BatchPublishResponse
from tallystick_core.errors import ApiError
from tallystick_core.event import format_event_id
from tallystick_server.observability import metrics, names
from tallystick_server.rpc.service_client import ServiceCallRejected, ServiceClient
from tallystick_storage import outbox
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection

log = logging.getLogger(__name__)

MAX_EVENTS = 1000
_MAX_BYTES = 3 * 1024 * 1024  # the limit of a request is 4 MiB
MIN_ROWS, MAX_ROWS = 20, 200
"""Outbox rows that are read at once: the former even if they have more than MAX_EVENTS events."""
_PUBLISH_PATH = "/tallystick.event.v1.EventService/BatchPublish"
_FAILURE_DELAY_SECONDS = 1.0
_IDLE_SECONDS = 1.0
"""Seconds between two scans while this process changes nothing. Another process of the service may
have ended before it published its changes.
"""
_RETRY_INTERVAL_SECONDS = 2.0
"""Seconds between scans for rejected events to retry."""
_MAX_REJECTIONS = 100
"""Rejections after which a run ends and stores its result."""
_MAX_RETRIED_AGGREGATES, _MAX_RETRIED_PER_AGGREGATE = 50, 10
_MAX_DETAIL_LENGTH = 1000


@dataclass(frozen=True, slots=True)
class EventBatch:
    """The next events to publish.

    `requests`: serialized BatchPublishRequests, in order. `delete`: deletes them after EventService
    has accepted them. `has_more`: more events are known to wait.
    """

    requests: Sequence[bytes]
    delete: Callable[[Connection], None]
    has_more: bool
    rejected_aggregates: frozenset[str] = frozenset()
    """The aggregates with an earlier event that EventService rejects."""


EventSource = Callable[[], Awaitable[EventBatch]]
"""Reads the next events to publish."""


class OutboxSource:
    """The source of a service that stores its events in an outbox."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __call__(self) -> EventBatch:
        rows = await self._database.load(
            lambda connection: outbox.list_unpublished(connection, MIN_ROWS, MAX_ROWS, MAX_EVENTS)
        )

        def delete(connection: Connection) -> None:
            outbox.delete_published(connection, [row.sequence for row in rows])

        rejected_aggregates = frozenset(
            aggregate for row in rows for aggregate in row.rejected_aggregates or ()
        )
        return EventBatch(
            merge_batches(rows),
            delete,
            has_more=bool(rows) and rows[-1].has_later,
            rejected_aggregates=rejected_aggregates,
        )


class FirstNonEmptySource:
    """The source of a service with several event stores: reads the first one that has events."""

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
    """The result of publishing events in parts."""

    published_ids: set[str] = field(default_factory=set)
    """Event ids."""
    rejection_details: dict[str, str] = field(default_factory=dict)
    """Why EventService rejects an event, by aggregate."""
    is_complete: bool = True
    """Whether every event was sent, except rejected ones and later ones of their aggregates."""


class Relay:
    """Publishes the events of one service: reads its source, publishes, deletes after the response,
    and pauses while there is nothing.

    An event that EventService rejects is stored separately with the later events of its aggregate.
    They are retried without limit; all other events are published.
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
        # the outbox holds serialized messages
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
                log.warning(
                    "the relay of %s is delayed: %s",
                    self._name,
                    error,
                    extra=names.RELAY_DELAYED.extra,
                )
                delay_seconds = _FAILURE_DELAY_SECONDS
            except Exception:  # no event is lost: the next run publishes it
                log.exception(
                    "the relay of %s failed; it continues with the next batch",
                    self._name,
                    extra=names.RELAY_FAILED.extra,
                )
                delay_seconds = _FAILURE_DELAY_SECONDS
            if delay_seconds is None:
                await self._database.wait_for_commit(_IDLE_SECONDS)
                delay_seconds = self._interval_seconds
            await asyncio.sleep(delay_seconds)

    async def run_once(self) -> float | None:
        """Publishes once. Returns the pause in seconds, which is 0 while more events may wait; None
        if there was nothing to publish.
        """
        start_time = asyncio.get_running_loop().time()
        if start_time >= self._next_retry_time:
            self._next_retry_time = start_time + _RETRY_INTERVAL_SECONDS
            if await self._retry_rejected():
                self._next_retry_time = start_time
        batch = await self._source()
        if not batch.requests:
            return None
        result, events_to_store = await self._publish_batch(batch)

        def store_result(connection: Connection) -> None:
            if events_to_store:
                outbox.store_rejected_events(connection, result.rejection_details, events_to_store)
            if result.is_complete:
                batch.delete(connection)

        await self._database.transact(store_result, idempotent=True)
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
        """Publishes a batch. Returns the events that must be retried later."""
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
        """Retries rejected events. Returns whether more may be due at once."""
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
        """Publishes events in order. A rejected part is bisected until the rejected event is found;
        later events of its aggregate are not sent.

        `blocked_aggregates`: aggregates whose events are not sent. Raises ServiceCallRejected if
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
        await self._service_client.call(self._publish_method, request)

    def _log_rejections(self, rejection_details: Mapping[str, str]) -> None:
        for aggregate, detail in rejection_details.items():
            log.warning(
                "EventService rejects an event of %s; it and later events are delayed: %s",
                aggregate,
                detail,
                extra=names.EVENT_REJECTED.extra,
            )
        if rejection_details:
            metrics.EVENTS_REJECTED.add(len(rejection_details), self._name)


def merge_batches(rows: Sequence[outbox.OutboxRow]) -> list[bytes]:
    """Merges the rows' requests in order: small ones into one, large ones split to the limits of
    EventService.
    """
    requests: list[bytes] = []
    pending: list[bytes] = []
    event_count = size = 0
    for row in rows:
        if event_count + row.event_count > MAX_EVENTS or size + len(row.request) > _MAX_BYTES:
            # concatenated messages with one repeated field are one message
            requests.append(b"".join(pending))
            pending, event_count, size = [], 0, 0
        if row.event_count > MAX_EVENTS or len(row.request) > _MAX_BYTES:
            requests += split_requests(BatchPublishRequest.FromString(row.request))
        else:
            pending.append(row.request)
            event_count, size = event_count + row.event_count, size + len(row.request)
    return [request for request in (*requests, b"".join(pending)) if request]


def split_requests(request: BatchPublishRequest) -> list[bytes]:
    """Splits a request, in order, into requests within the limits of count and size. Returns none
    for an empty request.
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
