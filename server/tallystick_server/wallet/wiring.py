"""Builds WalletService from the settings."""

from __future__ import annotations

from collections.abc import Sequence

from tallystick_server.app.configuration import Settings
from tallystick_server.app.wiring import Service, ServiceImplementation, Wiring
from tallystick_server.operations.periodic import Periodic
from tallystick_server.rpc.authentication import DEVELOPER
from tallystick_server.wallet.handlers import ACCESS, WalletHandlers
from tallystick_server.wallet.scheduler import WalletScheduler
from tallystick_server.wallet.service import SPEC
from tallystick_storage.alerts import AlertQuery, event_alert_queries
from tallystick_storage.database import Database
from tallystick_storage.gauges import event_gauge_queries


def _build(wiring: Wiring, database: Database) -> Service:
    settings = wiring.settings
    handlers = WalletHandlers(database, settings.release_delay, _payout_service_caller(settings))
    scheduler = Periodic(
        "wallet.scheduler",
        settings.worker.scan_interval,
        WalletScheduler(database, handlers.instruction_batcher).run_once,
    )
    return Service(SPEC, handlers, [handlers, scheduler], [database])


def _payout_service_caller(settings: Settings) -> str:
    """The name of the caller that WalletService accepts as PayoutService."""
    if settings.authentication == "none":
        return DEVELOPER
    return settings.payout_service or settings.callers[settings.service_token].name


def _alert_queries(settings: Settings) -> Sequence[AlertQuery]:
    return event_alert_queries(settings.worker.events_alert_after)


IMPLEMENTATION = ServiceImplementation(ACCESS, _build, _alert_queries, event_gauge_queries())
