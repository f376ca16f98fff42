"""The operation kind "webhook_event": what an event is about is looked up at the provider, and the
answer is applied.

The file reads in the order of the lifecycle: load, next action, perform, record, close. There is
nothing to book, and an event never fails: repeating its lookup is harmless.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import NextAction
from tallystick_core.operations.webhook_event import WebhookEventState
from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    EventOutcome,
    LookedUp,
    NotFound,
    NotSent,
    PayoutLookupOutcome,
    PayoutOutcome,
    RetryReason,
    Succeeded,
    Unknown,
    has_valid_amounts,
    is_outcome_of,
)
from tallystick_server.observability.tracing import parse_traceparent
from tallystick_server.operations.batcher import Batcher, bisect_on_error
from tallystick_server.operations.coalescer import Coalescer
from tallystick_server.operations.dead_letters import resolve
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.kind import OperationKind
from tallystick_server.operations.operation import (
    NO_LEASE,
    LeasedOperation,
    parse_tries,
)
from tallystick_server.operations.worker import WorkerSettings
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_storage import operations as operation_store
from tallystick_storage import webhook_events as store
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection
from tallystick_storage.webhook_events import EventOperationRow, SubjectKey

S = TypeVar("S", bound=LeasedOperation)

SubjectOutcome: TypeAlias = ChargeLookupOutcome | PayoutLookupOutcome
_CALLER = "platform"
"""The caller of the events of its dead letters: a provider has no name among the callers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventOperation(LeasedOperation, Generic[S]):
    """A webhook event leased by this process."""

    kind: KindName = KindName.WEBHOOK_EVENT
    state: WebhookEventState
    event_reference: str
    """The provider's id of what it is about; "": the event does not name it."""
    subject: S | None
    """The charge or payout that it is about, without a lease; None: the platform knows none."""

    @property
    def subject_id(self) -> str:
        return "" if self.subject is None else self.subject.operation_id


class ReportedOperation(NamedTuple):
    """An operation, and the provider that reports it."""

    operation_id: str
    provider: str


def never_known(_subject: object, _reference: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class EventSubjects(Generic[S]):
    """The charges or payouts of a service, as webhook events need them."""

    find_reported: Callable[[Connection, Collection[SubjectKey]], Mapping[SubjectKey, str]]
    """The ids of the operations that events name."""
    find: Callable[[Connection, Sequence[ReportedOperation], float], Iterable[S]]
    """Loads operations in any state at a loop time, without their leases, as the provider that
    reports each has it: with its attempt there. One that the provider never had is left out.
    """
    perform: Callable[[Any, S, NextAction], Awaitable[SubjectOutcome]]
    """Calls the provider of an operation, as `OperationKind.perform` does."""
    record: Callable[[S, Any], Awaitable[object]]
    """Applies an outcome to an operation, as `OperationKind.record` does."""
    known_outcome: Callable[[S, str], ChargeOutcome | PayoutOutcome | None] = never_known
    """The final outcome of an operation under the reference that the event names, if its provider
    has reported everything that a lookup could tell. None: it has not.
    """


class EventOperations(Generic[S]):
    """The functions of the kind that need the database or the provider."""

    def __init__(
        self, service: str, database: Database, subjects: EventSubjects[S], settings: WorkerSettings
    ) -> None:
        self._database = database
        self._subjects = subjects
        self._settings = settings
        self._lookups: Coalescer[tuple[str, str, str], SubjectOutcome] = Coalescer()
        self._batcher: Batcher[EventOperation[S], EventOperation[S]] = Batcher(
            f"{service}.end_webhook_events", self._end_applied, max_batch=MAX_ITEMS
        )

    def kind(self) -> OperationKind[EventOperation[S]]:
        return OperationKind(
            name=KindName.WEBHOOK_EVENT,
            load=self.load,
            find=self.find,
            next_action=next_action,
            perform=self.perform,
            record=self.record,
            lock_unresolved=lock_unresolved,
            is_locked_after_queue=True,
            fail=fail,
            close=close,
            notify=lambda _: None,
            phase=lambda _: "",
            batchers=[self._batcher],
        )

    def load(
        self, connection: Connection, tokens: Mapping[str, int], now: float
    ) -> Sequence[EventOperation[S]]:
        """Loads events and what they are about, as it is stored now."""
        rows = store.load_operations(connection, list(tokens))
        ids_by_key = self._subjects.find_reported(connection, {_key_of(row) for row in rows})
        reported = {ReportedOperation(id_, key.provider) for key, id_ in ids_by_key.items()}
        subjects = {
            ReportedOperation(subject.operation_id, subject.provider): subject
            for subject in self._subjects.find(connection, sorted(reported), now)
        }
        return [
            self._operation(
                row,
                subjects.get(ReportedOperation(ids_by_key.get(_key_of(row), ""), row.provider)),
                tokens[row.webhook_event_id],
                now + self._settings.lease_seconds,
            )
            for row in rows
        ]

    def _operation(
        self, row: EventOperationRow, subject: S | None, lease_token: int, lease_deadline: float
    ) -> EventOperation[S]:
        event = _operation_from_row(row, subject, lease_token, lease_deadline)
        recorded = subject and self._subjects.known_outcome(subject, event.event_reference)
        return replace(event, recorded_outcome=LookedUp(recorded)) if recorded else event

    def find(
        self, connection: Connection, webhook_event_id: str, now: float
    ) -> EventOperation[S] | None:
        """Loads an event in any state, without its lease. It is to be looked up even if its subject
        has a known outcome: an operator decides by the provider's answer.
        """
        event = next(iter(self.load(connection, {webhook_event_id: NO_LEASE}, now)), None)
        return event and replace(event, recorded_outcome=None)

    async def perform(
        self, provider: Any, event: EventOperation[S], _action: NextAction
    ) -> EventOutcome:
        """Looks up what the event is about, under the reference that the event names. Events about
        the same share a lookup that begins after all of them.
        """
        subject, reference = event.subject, event.event_reference
        if subject is None:
            return Unknown(
                f"the platform knows no operation with the reference {reference}",
                RetryReason.NOT_FOUND,
            )
        outcome = await self._look_up(provider, subject, reference or subject.provider_reference)
        if subject.provider_reference not in ("", reference) and not isinstance(outcome, Succeeded):
            # what becomes of another object of the operation says nothing about the stored one
            outcome = await self._look_up(provider, subject, subject.provider_reference)
        return to_event_outcome(subject, outcome)

    async def _look_up(self, provider: Any, subject: S, reference: str) -> SubjectOutcome:
        reported = replace(subject, provider_reference=reference)

        async def look_up() -> SubjectOutcome:
            async with asyncio.timeout(self._settings.limits_of(subject.provider).timeout_seconds):
                return await self._subjects.perform(provider, reported, NextAction.LOOK_UP)

        return await self._lookups.run((subject.provider, subject.operation_id, reference), look_up)

    async def record(self, event: EventOperation[S], outcome: EventOutcome) -> EventOperation[S]:
        """Applies the answer to what the event is about, unless it is recorded, and ends the
        event.
        """
        if isinstance(outcome, LookedUp) and event.subject is not None:
            if event.recorded_outcome is None:
                await self._subjects.record(event.subject, outcome.outcome)
            await self._batcher.submit(event, event.context)
        return event

    async def _end_applied(
        self, events: Sequence[EventOperation[S]]
    ) -> Sequence[EventOperation[S] | Exception]:
        return await bisect_on_error(self._end, events)

    async def _end(self, events: Sequence[EventOperation[S]]) -> Sequence[EventOperation[S]]:
        applied = [
            store.AppliedEvent(event.operation_id, event.subject.resource_name)
            for event in events
            if event.subject is not None
        ]

        def end(connection: Connection) -> None:
            operation_store.lock(connection, [event.key for event in events])
            store.lock_received(connection, [event.operation_id for event in events])
            store.end(connection, applied, WebhookEventState.APPLIED)
            resolve(connection, {event.key: (event.caller, event.traceparent) for event in events})

        await self._database.transact(end)
        return events


def next_action(
    event: EventOperation[Any], _now: float, _key_window_seconds: float, _lease_seconds: float
) -> NextAction:
    """The next action of an event."""
    if event.state is not WebhookEventState.RECEIVED:
        return NextAction.WAIT
    return NextAction.APPLY_RECORDED if event.recorded_outcome else NextAction.LOOK_UP


def to_event_outcome(subject: LeasedOperation, outcome: SubjectOutcome) -> EventOutcome:
    """What the lookup of a subject means for the event. "Not found" is inconclusive: the provider
    has reported the subject itself.
    """
    match outcome:
        case NotSent() | Unknown():
            return outcome
        case NotFound():
            return Unknown(outcome.detail, RetryReason.NOT_FOUND)
        case _ if not is_outcome_of(outcome, subject.operation_id, subject.provider_key):
            return Unknown(
                f"the provider's object belongs to another operation than {subject.resource_name}",
                RetryReason.MISMATCHED_OPERATION,
            )
        case _ if not has_valid_amounts(outcome):
            return Unknown("the provider answered with an invalid amount")
        case _:
            return LookedUp(outcome)


def lock_unresolved(connection: Connection, webhook_event_ids: list[str]) -> set[str]:
    """Locks events. Returns those that are not applied or closed."""
    return store.lock_received(connection, webhook_event_ids)


def fail(
    _connection: Connection, _failures: Sequence[FailedStep[EventOperation[Any]]]
) -> Sequence[EventOperation[Any]]:
    """Never called with an event: it counts as maybe sent, so it becomes a dead letter instead."""
    return []


def close(connection: Connection, event: EventOperation[Any], _operator: str, _reason: str) -> None:
    """Ends the event as an operator decided; the dead letter keeps the operator."""
    store.end(connection, [store.AppliedEvent(event.operation_id, "")], WebhookEventState.CLOSED)


def _key_of(row: EventOperationRow) -> SubjectKey:
    return SubjectKey(row.provider, row.reference, row.client_reference)


def _operation_from_row(
    row: EventOperationRow, subject: S | None, lease_token: int, lease_deadline: float
) -> EventOperation[S]:
    return EventOperation(
        operation_id=row.webhook_event_id,
        caller=_CALLER,
        attempt_number=1,
        provider=row.provider,
        provider_key=row.event_id,
        lease_token=lease_token,
        lease_deadline=lease_deadline,
        traceparent=row.traceparent,
        context=parse_traceparent(row.traceparent),
        # so that it is only looked up, and becomes a dead letter if that fails too often
        age_seconds=inf,
        maybe_sent=True,
        tries=parse_tries(row.retry_counts),
        state=WebhookEventState(row.state),
        event_reference=row.reference,
        subject=subject,
    )
