"""Builds PayoutService from the settings."""

from __future__ import annotations

from collections.abc import Sequence

from tallystick_core.payout.state import ALERT_AFTER_SECONDS
from tallystick_server.app.configuration import DEFAULT_DESTINATION_COOLDOWN, Settings
from tallystick_server.app.wiring import Service, ServiceImplementation, Wiring
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.payout.explain import PayoutExplainer
from tallystick_server.payout.handlers import ACCESS, PayoutHandlers
from tallystick_server.payout.payouts import Payouts, PayoutSettings
from tallystick_server.payout.service import SPEC
from tallystick_storage.alerts import AlertQuery
from tallystick_storage.database import Database
from tallystick_storage.payout import alerts


def _build(wiring: Wiring, database: Database) -> Service:
    settings, bundle = wiring.settings, wiring.payout_providers()
    payouts = Payouts(
        database,
        bundle.providers,
        wiring.service_client,
        wiring.addresses["wallet"],
        wiring.addresses["ledger"],
        wiring.worker_settings(),
        PayoutSettings(
            settings.providers.payout,
            settings.environment,
            settings.payout.approval_threshold,
            _destination_cooldown(settings),
            settings.payout.destination_approval_threshold,
        ),
        wiring.new_id(),
    )
    explainer = PayoutExplainer(
        database,
        wiring.other_services(),
        payouts.worker.next_action,
        RetryPolicies(settings.retry),
    )
    handlers = PayoutHandlers(database, payouts, explainer)
    service = Service(SPEC, handlers, [payouts, handlers], [database], payouts.worker)
    return service.with_providers(bundle)


def _destination_cooldown(settings: Settings) -> float:
    """The cooldown of new destinations in seconds. Without authentication it is 0 unless it is
    set.
    """
    cooldown = settings.payout.destination_cooldown
    if cooldown is not None:
        return cooldown
    return 0.0 if settings.authentication == "none" else DEFAULT_DESTINATION_COOLDOWN


def _alert_queries(settings: Settings) -> Sequence[AlertQuery]:
    return alerts.alert_queries(
        {**ALERT_AFTER_SECONDS, **settings.payout.alert_after},
        settings.worker.events_alert_after,
    )


IMPLEMENTATION = ServiceImplementation(ACCESS, _build, _alert_queries, alerts.gauge_queries())
