"""Builds MonitoringService from the settings."""

from __future__ import annotations

from functools import partial

from tallystick_server.app.wiring import Service, ServiceImplementation, Wiring
from tallystick_server.monitoring.handlers import ACCESS, MonitoringHandlers
from tallystick_server.monitoring.retention import delete_old
from tallystick_server.monitoring.service import SPEC
from tallystick_server.operations.periodic import Periodic
from tallystick_storage.database import Database
from tallystick_storage.monitoring.traces import TraceLimits

_RETENTION_INTERVAL_SECONDS = 60.0


def _build(wiring: Wiring, database: Database) -> Service:
    settings = wiring.settings.monitoring
    limits = TraceLimits(settings.max_spans, settings.max_span_bytes, settings.trace_retention)
    retention = Periodic(
        "monitoring.retention",
        _RETENTION_INTERVAL_SECONDS,
        partial(delete_old, database, settings.max_series, limits),
    )
    handlers = MonitoringHandlers(database, settings.max_series, limits)
    return Service(SPEC, handlers, [retention], [database])


IMPLEMENTATION = ServiceImplementation(ACCESS, _build, alert_queries=None)
