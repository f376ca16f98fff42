"""Dead letters and their events, for every service."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tallystick.event.v1 import event_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick_core.operations.alert import AlertKind
from tallystick_core.operations.dead_letter import DeadLetterCause, DeadLetterState
from tallystick_core.operations.kind import KindName
from tallystick_server.operations import alerts
from tallystick_server.operations.operation import LeasedOperation
from tallystick_server.outbox.events import add_event, record_events
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.timestamps import to_optional_timestamp, to_timestamp
from tallystick_storage import dead_letters as dead_letter_store
from tallystick_storage import operations as operation_store
from tallystick_storage.dead_letters import ChangedDeadLetter, DeadLetterRow
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.sql import Connection

_MAX_REASON_LENGTH = 255
STATES = EnumNames(operator_pb2.DeadLetterState.DESCRIPTOR)
CAUSES = EnumNames(operator_pb2.DeadLetterCause.DESCRIPTOR)


def to_message(row: DeadLetterRow) -> operator_pb2.DeadLetter:
    return operator_pb2.DeadLetter(
        dead_letter_id=row.dead_letter_id,
        resource_name=row.resource_name,
        state=STATES.number(row.state),
        cause=to_cause_number(row.cause),
        detail=row.detail,
        tries=row.retry_count,
        operator=row.operator,
        reason=row.reason,
        evidence=row.evidence,
        create_time=to_timestamp(row.create_time),
        end_time=to_optional_timestamp(row.end_time),
        provider=row.provider,
    )


def to_cause_number(cause: str) -> Any:
    """The generated value of a stored cause. Raises ValueError for an unknown one."""
    return CAUSES.number(DeadLetterCause(cause))


def emit_changed(
    connection: Connection,
    rows: Sequence[ChangedDeadLetter],
    origin_of: Callable[[DeadLetterRow], tuple[str, str]],
) -> None:
    """Records the events of created or resolved dead letters. Ends the alerts of the resolved ones.

    `origin_of`: the caller and the traceparent of a row.
    """
    with record_events(connection, rows) as events:
        for row in rows:
            letter, version = to_message(row), 2 if row.end_time else 1
            event_time = letter.end_time if row.end_time else letter.create_time
            type_, aggregate = (
                event_pb2.EVENT_TYPE_DEAD_LETTER_CHANGED,
                f"deadLetters/{row.dead_letter_id}",
            )
            add_event(
                events, type_, aggregate, version, event_time, *origin_of(row), dead_letter=letter
            )
    resource_names = [f"deadLetters/{row.dead_letter_id}" for row in rows if row.end_time]
    if resource_names:
        alerts.end_alerts(connection, AlertKind.DEAD_LETTER, resource_names)


def end(
    connection: Connection,
    keys: Sequence[OperationKey],
    state: DeadLetterState,
    operator: str,
    reason: str,
    evidence: str = "",
    *,
    ids: Sequence[str] | None = None,
) -> Sequence[DeadLetterRow]:
    """Ends the open dead letters of operations as an operator decided, or only those with the given
    ids, and records their events. Returns the ended rows.
    """
    rows = dead_letter_store.end(connection, keys, state, operator, reason, evidence, ids=ids)
    emit_changed(connection, rows, lambda _: (operator, ""))
    return rows


def requeue_to_end(
    connection: Connection, keys: Sequence[OperationKey], operator: str, reason: str
) -> None:
    """Requeues dead-lettered operations that are to be cancelled and must never be sent. `operator`
    made the decision.
    """
    rows = end(
        connection,
        keys,
        DeadLetterState.RETRIED,
        operator,
        reason[:_MAX_REASON_LENGTH],
    )
    operation_store.requeue(connection, [key_of(row) for row in rows])


def resolve_and_requeue(connection: Connection, operations: Iterable[LeasedOperation]) -> None:
    """Resolves the dead letters of operations with a definite outcome, and requeues the
    dead-lettered ones.
    """
    rows = resolve(connection, {item.key: (item.caller, item.traceparent) for item in operations})
    if rows:
        operation_store.requeue(connection, [key_of(row) for row in rows])


def resolve(
    connection: Connection, origins: Mapping[OperationKey, tuple[str, str]]
) -> Sequence[DeadLetterRow]:
    """Resolves the dead letters of operations that need no decision any more. Returns the resolved
    rows.

    `origins`: caller and traceparent by operation.
    """
    rows = dead_letter_store.end(connection, list(origins), DeadLetterState.RESOLVED)
    emit_changed(connection, rows, lambda row: origins[key_of(row)])
    return rows


def key_of(row: DeadLetterRow) -> OperationKey:
    """The operation of a dead letter."""
    return OperationKey(KindName(row.kind), row.operation_id)
