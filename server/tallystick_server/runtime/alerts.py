"""Alerts of a service: how they are listed, and raised: a row, an event, a metric and a log line."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from opentelemetry import metrics
from sqlalchemy import Connection, Row

from tallystick.event.v1 import event_pb2
from tallystick.recovery.v1 import recovery_pb2
from tallystick_core.caller import Role
from tallystick_server.runtime.door import Access, Call
from tallystick_server.runtime.fields import PageToken, page_size, to_timestamp
from tallystick_server.runtime.relay import tell, telling
from tallystick_storage import alert as store
from tallystick_storage.database import Database

log = logging.getLogger(__name__)
ACCESS: Access = {"ListAlerts": frozenset({Role.OPERATOR})}
_MOST = 1000
_raised = metrics.get_meter("tallystick").create_counter("tallystick.alerts", description="Alerts that were raised, by kind.")


class AlertHandlers:
    """The call that lists a service's alerts. `messages`: the service's generated messages, which have this call's under the same names."""

    def __init__(self, database: Database, messages: ModuleType) -> None:
        self._database = database
        self._messages: Any = messages

    async def ListAlerts(self, request: Any, _call: Call) -> Any:
        size = page_size(request.page_size)
        token = PageToken("ListAlerts", int(request.ended))
        before = token.before(request.page_token)
        rows = await self._database.read(lambda connection: store.list_(connection, before, size + 1, ended=request.ended))
        shown, following = token.page(rows, size, message, lambda row: (row.create_time.isoformat(), row.alert_id))
        return self._messages.ListAlertsResponse(alerts=shown, next_page_token=following)


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


def end_of(connection: Connection, kind: str, subjects: Sequence[str]) -> None:
    """Ends the alerts of a kind about subjects that have just ended, in the same transaction; the monitor would find that only later."""
    _tell(connection, store.end_of(connection, kind, subjects))


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
