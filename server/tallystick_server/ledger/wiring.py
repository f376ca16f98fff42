"""Builds LedgerService from the settings."""

from __future__ import annotations

from collections.abc import Sequence

from tallystick_server.app.configuration import Settings
from tallystick_server.app.wiring import Service, ServiceImplementation, Wiring
from tallystick_server.ledger.events import LedgerEvents
from tallystick_server.ledger.handlers import ACCESS, LedgerHandlers
from tallystick_server.ledger.service import SPEC
from tallystick_server.outbox.relay import FirstNonEmptySource, OutboxSource
from tallystick_storage.alerts import AlertQuery
from tallystick_storage.database import Database
from tallystick_storage.ledger import postings


def _build(_wiring: Wiring, database: Database) -> Service:
    handlers = LedgerHandlers(database)
    # Alerts come first, because ledger events may never pause.
    source = FirstNonEmptySource(OutboxSource(database), LedgerEvents(database, handlers.recent))
    return Service(SPEC, handlers, [handlers], [database], event_source=source)


def _alert_queries(settings: Settings) -> Sequence[AlertQuery]:
    return postings.alert_queries(settings.worker.events_alert_after)


IMPLEMENTATION = ServiceImplementation(ACCESS, _build, _alert_queries, postings.gauge_queries())
