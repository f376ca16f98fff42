"""Alerts of a service: lists them, and raises each as a row, an event, a metric and a log line."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tallystick.event.v1 import event_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick_core.access import Role
from tallystick_core.operations.alert import AlertKind
from tallystick_server.observability import metrics, names
from tallystick_server.outbox.events import add_event, record_events
from tallystick_server.rpc.call import Access, Call
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.pagination import NEWEST_FIRST, Listing, list_page
from tallystick_server.rpc.timestamps import to_optional_timestamp, to_timestamp
from tallystick_storage import alerts as store
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection

log = logging.getLogger(__name__)
ACCESS: Access = {"ListAlerts": frozenset({Role.OPERATOR})}
_KINDS = EnumNames(operator_pb2.AlertKind.DESCRIPTOR)
_MAX_CHANGES = 1000


class AlertHandlers:
    """The RPC that lists a service's alerts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ListAlerts(
        self, request: operator_pb2.ListAlertsRequest, _call: Call
    ) -> operator_pb2.ListAlertsResponse:
        alerts, next_page_token = await list_page(
            self._database, _ALERTS, request, store.AlertFilter(request.ended)
        )
        return operator_pb2.ListAlertsResponse(alerts=alerts, next_page_token=next_page_token)


def to_message(row: store.AlertRow) -> operator_pb2.Alert:
    return operator_pb2.Alert(
        alert_id=row.alert_id,
        kind=_KINDS.number(AlertKind(row.kind)),
        resource_name=row.resource_name,
        detail=row.detail,
        create_time=to_timestamp(row.create_time),
        end_time=to_optional_timestamp(row.end_time),
    )


_ALERTS = Listing(
    "ListAlerts",
    store.list_alerts,
    NEWEST_FIRST,
    lambda row: (row.create_time, row.alert_id),
    to_message,
)


def reconcile(
    connection: Connection, queries: Sequence[store.AlertQuery]
) -> Sequence[store.AlertRow]:
    """Makes the open alerts match the conditions found now, in bounded steps. Returns the new ones,
    which must be announced after the commit.
    """
    current, overflowing_kinds = store.evaluate(connection, queries)
    new_alerts = store.open_alerts(connection, current, _MAX_CHANGES)
    _emit_changed(connection, new_alerts)
    _emit_changed(
        connection, store.end_cleared(connection, current, overflowing_kinds, _MAX_CHANGES)
    )
    return new_alerts


def end_alerts(connection: Connection, kind: AlertKind, resource_names: Sequence[str]) -> None:
    """Ends alerts of a kind in the transaction in which their resources end. The monitor would end
    them only later.
    """
    _emit_changed(connection, store.end_by_resource_name(connection, kind, resource_names))


def announce(alerts: Sequence[store.AlertRow]) -> None:
    """Reports new alerts in the log and as a metric."""
    for row in alerts:
        log.warning(
            "alert %s: %s %s",
            row.kind,
            row.resource_name,
            row.detail,
            extra=names.ALERT_RAISED.extra,
        )
        metrics.ALERTS_RAISED.add(1, row.kind)


def _emit_changed(connection: Connection, rows: Sequence[store.ChangedAlert]) -> None:
    with record_events(connection, rows) as events:
        for row in rows:
            alert, version = to_message(row), 2 if row.end_time else 1
            event_time = alert.end_time if row.end_time else alert.create_time
            add_event(
                events,
                event_pb2.EVENT_TYPE_ALERT_CHANGED,
                f"alerts/{row.alert_id}",
                version,
                event_time,
                "monitor",
                alert=alert,
            )
