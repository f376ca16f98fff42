"""Events of ReconciliationService."""

from __future__ import annotations

from collections.abc import Sequence

from tallystick.event.v1 import event_pb2
from tallystick_server.outbox.events import add_event, record_events
from tallystick_server.reconciliation import convert
from tallystick_storage.reconciliation import breaks as store
from tallystick_storage.sql import Connection


def record_break_changes(
    connection: Connection, rows: Sequence[store.ChangedBreak], caller: str, traceparent: str
) -> None:
    """Stores the events of breaks that one statement changed."""
    with record_events(connection, rows) as events:
        for row in rows:
            message = convert.reconciliation_break(row)
            add_event(
                events,
                event_pb2.EVENT_TYPE_BREAK_CHANGED,
                f"breaks/{row.break_id}",
                row.version,
                message.update_time,
                caller,
                traceparent,
                reconciliation_break=message,
            )
