"""Builds PaymentService from the settings."""

from __future__ import annotations

from collections.abc import Sequence

from tallystick_core.payment.fees import FeeRates
from tallystick_core.payment.risk import BuiltInRiskCheck, RiskRules
from tallystick_core.payment.routing import RoutingTable
from tallystick_core.payment.state import ALERT_AFTER_SECONDS
from tallystick_core.provider.outcome import PendingReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.configuration.network import is_loopback
from tallystick_server.app.wiring import Service, ServiceImplementation, Wiring
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.payment.explain import PaymentExplainer
from tallystick_server.payment.handlers import ACCESS, PaymentHandlers
from tallystick_server.payment.hosted_pages import HostedPageSettings
from tallystick_server.payment.payments import Payments
from tallystick_server.payment.service import SPEC
from tallystick_server.payment.status_links import StatusLinkSettings
from tallystick_storage.alerts import AlertQuery
from tallystick_storage.database import Database
from tallystick_storage.payment import alerts


def _build(wiring: Wiring, database: Database) -> Service:
    settings, bundle = wiring.settings, wiring.payment_providers()
    risk_bundle = wiring.risk_providers()
    payments = Payments(
        database,
        BuiltInRiskCheck(_risk_rules(settings)),
        FeeRates(settings.payment.fee_rate, dict(settings.payment.seller_fee_rates)),
        bundle.providers,
        next(iter(risk_bundle.providers.values()), None),
        wiring.service_client,
        wiring.addresses["wallet"],
        wiring.addresses["ledger"],
        wiring.worker_settings(),
        routing=RoutingTable(
            settings.routing,
            settings.providers.payment,
            frozenset(name for name, item in bundle.providers.items() if item.hosts_pages),
        ),
        environment=settings.environment,
        max_queued_charges=settings.payment.max_queued_charges,
        resolve_within={PendingReason.BUYER_ACTION: settings.payment.buyer_action_timeout},
        seller_owner_max_age_seconds=settings.payment.seller_owner_max_age,
        page_settings=HostedPageSettings(
            settings.payment.hosted_page_lifetime, settings.payment.return_origins
        ),
        link_settings=StatusLinkSettings(
            public_url(settings), settings.payment.status_link_lifetime
        ),
        new_id=wiring.new_id,
    )
    explainer = PaymentExplainer(
        database,
        wiring.other_services(),
        payments.worker.next_action,
        RetryPolicies(settings.retry),
        settings.worker.lease_duration,
    )
    handlers = PaymentHandlers(database, payments, explainer)
    service = Service(SPEC, handlers, [handlers], [database], payments.worker)
    return service.with_providers(bundle).with_providers(risk_bundle)


def public_url(settings: Settings) -> str:
    """Where buyers reach the HTTP server; "": nowhere. Without the setting it is reached on this
    machine only.
    """
    http = settings.http
    if http.public_url or not is_loopback(http.listen):
        return http.public_url
    return f"{'https' if http.certificate_file else 'http'}://{http.listen}"


def _risk_rules(settings: Settings) -> RiskRules:
    risk = settings.risk
    return RiskRules(
        risk.amount_limits,
        risk.velocity_limit or None,
        risk.velocity_window,
        risk.blocked_accounts,
        risk.blocked_countries,
    )


def _alert_queries(settings: Settings) -> Sequence[AlertQuery]:
    return alerts.alert_queries(
        {**ALERT_AFTER_SECONDS, **settings.payment.alert_after},
        settings.payment.review_timeout,
        settings.worker.events_alert_after,
    )


IMPLEMENTATION = ServiceImplementation(ACCESS, _build, _alert_queries, alerts.gauge_queries())
