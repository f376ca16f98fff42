"""Builds the adapters of Stripe from their settings. Stripe's library is imported only here, and
only when an adapter is built: it is slow to import.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

from tallystick_core.provider.payment_provider import PaymentProvider
from tallystick_core.provider.payout_provider import PayoutProvider
from tallystick_core.provider.statement_source import StatementSource
from tallystick_core.provider.webhook import WebhookSource
from tallystick_server.providers.provider_type import BuiltProvider, OpenDatabase, ProviderTerms
from tallystick_server.providers.stripe.settings import StripeSettings


def build_charges(
    terms: ProviderTerms, settings: StripeSettings, _open_database: OpenDatabase
) -> BuiltProvider[PaymentProvider]:
    """The adapter of charges."""
    from tallystick_server.providers.stripe.charges import StripeCharges
    from tallystick_server.providers.stripe.client import StripeApi

    api = StripeApi(settings)
    charges = StripeCharges(terms, api, settings.statement_descriptor_suffix)
    return BuiltProvider(charges, close_hooks=[api.close])


def build_payouts(
    terms: ProviderTerms, settings: StripeSettings, _open_database: OpenDatabase
) -> BuiltProvider[PayoutProvider]:
    """The adapter of payouts."""
    from tallystick_server.providers.stripe.client import StripeApi
    from tallystick_server.providers.stripe.payouts import StripePayouts

    api = StripeApi(settings)
    return BuiltProvider(StripePayouts(terms, api), close_hooks=[api.close])


def build_statements(
    terms: ProviderTerms, settings: StripeSettings, _open_database: OpenDatabase
) -> BuiltProvider[StatementSource]:
    """The statements: the report of payouts to the platform's bank."""
    from tallystick_server.providers.stripe.client import StripeApi
    from tallystick_server.providers.stripe.reports import StripeReports
    from tallystick_server.providers.stripe.statements import StripeStatements

    api = StripeApi(settings)
    statements = StripeStatements(
        terms.name, StripeReports(api), settings.payout_report, settings.single_payout_report
    )
    return BuiltProvider(statements, close_hooks=[api.close])


def build_webhooks(
    terms: ProviderTerms, settings: StripeSettings, _open_database: OpenDatabase
) -> BuiltProvider[WebhookSource]:
    """The webhooks, and the list of events."""
    from tallystick_server.providers.stripe.client import StripeApi
    from tallystick_server.providers.stripe.webhooks import StripeWebhooks

    api = StripeApi(settings)
    return BuiltProvider(StripeWebhooks(terms.name, settings, api), close_hooks=[api.close])
