"""Builds EventService from the settings."""

from __future__ import annotations

from functools import partial

from tallystick_server.app.wiring import Service, ServiceImplementation, Wiring
from tallystick_server.event.handlers import ACCESS, EventHandlers
from tallystick_server.event.retention import prune_events
from tallystick_server.event.service import SPEC
from tallystick_server.operations.periodic import Periodic
from tallystick_storage.database import Database

_RETENTION_INTERVAL_SECONDS = 600.0


def _build(wiring: Wiring, database: Database) -> Service:
    handlers = EventHandlers(database)
    retention_days = wiring.settings.event.retention_days
    retention = Periodic(
        "event.retention",
        _RETENTION_INTERVAL_SECONDS,
        partial(prune_events, database, retention_days),
    )
    return Service(SPEC, handlers, [handlers, *([retention] if retention_days else [])], [database])


IMPLEMENTATION = ServiceImplementation(ACCESS, _build, alert_queries=None)
