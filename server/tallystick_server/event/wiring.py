"""Builds EventService from the settings."""

from __future__ import annotations

from tallystick_server.app.wiring import Service, ServiceImplementation, Wiring
from tallystick_server.event.handlers import ACCESS, EventHandlers
from tallystick_server.event.service import SPEC
from tallystick_storage.database import Database


def _build(_wiring: Wiring, database: Database) -> Service:
    handlers = EventHandlers(database)
    return Service(SPEC, handlers, [handlers], [database])


IMPLEMENTATION = ServiceImplementation(ACCESS, _build, alert_queries=None)
