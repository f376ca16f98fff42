"""The inbox of webhook events: stores each event once, and starts its operation."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tallystick_core.errors import not_found_error
from tallystick_core.operations.dead_letter import DeadLetterState
from tallystick_core.operations.kind import KindName
from tallystick_core.operations.webhook_event import WebhookEventState, derive_webhook_event_id
from tallystick_core.provider.webhook import WebhookEvent, WebhookSubject
from tallystick_core.state_machine import Verb, invalid_state_error
from tallystick_server.observability import metrics
from tallystick_server.observability.tracing import traceparent
from tallystick_server.operations import dead_letters
from tallystick_server.operations.batcher import MAX_QUEUED_CALLS, Batcher
from tallystick_server.operations.operation import FIRST_LEASE_TOKEN, LeasedOperation
from tallystick_server.operations.worker import OperationWorker
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_storage import operations as operation_store
from tallystick_storage import webhook_events as store
from tallystick_storage.database import Database
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.sql import Connection

_REPLAY = Verb("REPLAY", "replayed")


@dataclass(frozen=True, slots=True)
class _ReceiveCall:
    """The events of one call, and its trace."""

    events: Sequence[WebhookEvent]
    trace: str

    @property
    def ids(self) -> list[str]:
        return [derive_webhook_event_id(event.provider, event.event_id) for event in self.events]


class WebhookInbox:
    """Stores webhook events. The worker applies them, see `operations/webhook_events.py`."""

    def __init__(self, service: str, database: Database, worker: OperationWorker) -> None:
        self._database = database
        self._worker = worker
        self.batcher: Batcher[_ReceiveCall, list[bool]] = Batcher(
            f"{service}.receive_webhook_events",
            self._receive,
            max_batch=MAX_ITEMS,
            size_of=lambda call: len(call.events),
            max_queued=MAX_QUEUED_CALLS,
        )

    async def receive(self, events: Sequence[WebhookEvent]) -> list[bool]:
        """Stores events. Returns for each whether it is new; then its operation is in progress, or
        due if this process has no capacity for background work. Raises OVERLOADED.
        """
        return await self.batcher.submit(_ReceiveCall(events, traceparent()))

    async def _receive(self, calls: Sequence[_ReceiveCall]) -> Sequence[list[bool]]:
        rows = {
            id_: _new_row(id_, event, call.trace)
            for call in calls
            for id_, event in zip(call.ids, call.events, strict=True)
        }
        now = asyncio.get_running_loop().time()
        may_start = self._worker.has_background_capacity
        lease_seconds = self._worker.lease_seconds if may_start else 0.0

        def store_events(connection: Connection) -> tuple[set[str], Sequence[LeasedOperation]]:
            new_ids = store.insert(connection, list(rows.values()), lease_seconds)
            tokens = {
                OperationKey(KindName.WEBHOOK_EVENT, id_): FIRST_LEASE_TOKEN
                for id_ in sorted(new_ids)
                if lease_seconds and rows[id_].state is WebhookEventState.RECEIVED
            }
            return new_ids, self._worker.load(connection, tokens, now) if tokens else ()

        new_ids, operations = await self._database.transact(store_events)
        for operation in operations:
            self._worker.start_operation(operation)
        return [_take_new(call, new_ids) for call in calls]

    async def replay(
        self, webhook_event_id: str, operator: str, reason: str
    ) -> store.WebhookEventRow:
        """Applies an event once more, whatever its state. Its open dead letter is retried, with the
        operator and the reason. Raises NOT_FOUND, and INVALID_STATE for an event that is IGNORED.
        """
        key = OperationKey(KindName.WEBHOOK_EVENT, webhook_event_id)

        def replay(connection: Connection) -> store.WebhookEventRow | None:
            operation_store.lock(connection, [key])
            operation_store.make_due(connection, key.kind, [key.operation_id])
            store.replay(connection, webhook_event_id)
            if dead_letters.end(connection, [key], DeadLetterState.RETRIED, operator, reason):
                operation_store.requeue(connection, [key])
            return store.find(connection, webhook_event_id)

        row = await self._database.transact(replay)
        if row is None:
            raise not_found_error("webhook event", webhook_event_id)
        if row.state == WebhookEventState.IGNORED:
            raise invalid_state_error("webhook event", row.state, _REPLAY)
        self._worker.wake()
        return row


def _new_row(webhook_event_id: str, event: WebhookEvent, trace: str) -> store.NewWebhookEvent:
    return store.NewWebhookEvent(
        webhook_event_id=webhook_event_id,
        provider=event.provider,
        event_id=event.event_id,
        event_type=event.event_type,
        subject=event.subject,
        reference=event.reference,
        client_reference=event.client_reference,
        account=event.account,
        traceparent=trace,
        state=(
            WebhookEventState.IGNORED
            if event.subject is WebhookSubject.OTHER
            else WebhookEventState.RECEIVED
        ),
        provider_time=event.provider_time,
    )


def _take_new(call: _ReceiveCall, new_ids: set[str]) -> list[bool]:
    """Whether each event of a call is new. The first of several deliveries of a batch is."""
    results = []
    for id_, event in zip(call.ids, call.events, strict=True):
        is_new = id_ in new_ids
        new_ids.discard(id_)
        metrics.WEBHOOK_EVENTS.add(
            1, event.provider, event.subject, "new" if is_new else "repeated"
        )
        results.append(is_new)
    return results
