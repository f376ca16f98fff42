"""Alerts as every service shows them, and raises them: a row, an event, a metric and a log line."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from opentelemetry import metrics
from sqlalchemy import Connection, Row

from tallystick.event.v1 import event_pb2
from tallystick.recovery.v1 import recovery_pb2
from tallystick_server.runtime.fields import to_timestamp
from tallystick_server.runtime.relay import tell, telling
from tallystick_storage import alert as store

log = logging.getLogger(__name__)
_MOST = 1000
_raised = metrics.get_meter("tallystick").create_counter("tallystick.alerts", description="Alerts that were raised, by kind.")


def message(row: Row[Any]) -> recovery_pb2.Alert:
    return recovery_pb2.Alert(
        alert_id=row.alert_id,
        kind=row.kind,
        subject=row.subject,
        detail=row.detail,
        create_time=to_timestamp(row.create_time),
        end_time=to_timestamp(row.end_time) if row.end_time else None,
    )


def apply(connection: Connection, findings: Sequence[store.Finding]) -> Sequence[Row[Any]]:
    """Makes the open alerts those that are found now, so many at a time; returns the new ones, which are to be announced once this is committed."""
    found, too_many = store.find(connection, findings)
    new = store.raise_(connection, found, _MOST)
    _tell(connection, new)
    _tell(connection, store.end(connection, found, too_many, _MOST))
    return new


def announce(alerts: Sequence[Row[Any]]) -> None:
    """Says in log and metric what was raised."""
    for row in alerts:
        log.warning("alert %s: %s %s", row.kind, row.subject, row.detail)
        _raised.add(1, {"kind": row.kind})


def _tell(connection: Connection, rows: Sequence[Row[Any]]) -> None:
    with telling(connection, rows) as told:
        for row in rows:
            alert, version = message(row), 2 if row.end_time else 1
            at = alert.end_time if row.end_time else alert.create_time
            tell(told, event_pb2.EVENT_TYPE_ALERT_CHANGED, f"alerts/{row.alert_id}", version, at, "monitor", alert=alert)
