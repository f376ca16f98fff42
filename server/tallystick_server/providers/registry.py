"""The types of providers, and the configured providers that are built from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from tallystick_server.providers.provider_type import (
    Build,
    BuiltProvider,
    OpenDatabase,
    ProviderSettings,
    ProviderTerms,
    ProviderType,
)
from tallystick_server.providers.sandbox import charges, payouts, risk
from tallystick_server.providers.sandbox.settings import SandboxSettings
from tallystick_server.providers.stripe import build as stripe
from tallystick_server.providers.stripe.settings import StripeSettings

P = TypeVar("P")

PROVIDER_TYPES: dict[str, ProviderType] = {
    "sandbox": ProviderType(SandboxSettings, charges.build, payouts.build, risk.build),
    "stripe": ProviderType(
        StripeSettings,
        stripe.build_charges,
        stripe.build_payouts,
        build_webhooks=stripe.build_webhooks,
        build_statements=stripe.build_statements,
    ),
}
"""Every type of provider, by the name that `providers.<name>.type` has."""

DEFAULT_PROVIDERS: Mapping[str, ProviderSettings] = {"sandbox": SandboxSettings()}
"""The providers of an installation that configures none: a sandbox in the process."""


def type_of(name: str, settings: ProviderSettings) -> ProviderType:
    """The type of a configured provider. Raises KeyError if there is no such type, which loading
    the settings prevents.
    """
    return PROVIDER_TYPES[settings.type or name]


def names_that_charge(configured: Mapping[str, ProviderSettings]) -> list[str]:
    """The configured providers that charge buyers."""
    return [n for n, settings in configured.items() if type_of(n, settings).build_charges]


def names_that_pay_out(configured: Mapping[str, ProviderSettings]) -> list[str]:
    """The configured providers that pay sellers."""
    return [n for n, settings in configured.items() if type_of(n, settings).build_payouts]


def names_with_statements(configured: Mapping[str, ProviderSettings]) -> list[str]:
    """The configured providers whose statements can be fetched."""
    return [n for n, settings in configured.items() if type_of(n, settings).build_statements]


def names_that_check_risk(configured: Mapping[str, ProviderSettings]) -> list[str]:
    """The configured providers that check risks."""
    return [n for n, settings in configured.items() if type_of(n, settings).build_risk]


def schemas_of(configured: Mapping[str, ProviderSettings]) -> set[str]:
    """The database schemas that the configured providers need in this process."""
    return {schema for settings in configured.values() for schema in settings.schemas}


def build_providers(
    configured: Mapping[str, ProviderSettings],
    terms_of: Callable[[str], ProviderTerms],
    open_database: OpenDatabase,
    builder_of: Callable[[ProviderType], Build[P] | None],
) -> dict[str, BuiltProvider[P]]:
    """The adapters of the configured providers by name. `builder_of`: what is built of a type; a
    provider whose type has none is left out.
    """
    built = {}
    for name, settings in configured.items():
        build = builder_of(type_of(name, settings))
        if build is not None:
            built[name] = build(terms_of(name), settings, open_database)
    return built
