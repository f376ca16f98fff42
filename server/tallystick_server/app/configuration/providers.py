"""The section `[providers]`, and the configured providers below it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias, TypeVar

from pydantic import Field, PlainValidator

from tallystick_core.provider.outcome import FinalNotFound
from tallystick_server.providers.provider_type import CallLimits, ProviderSettings, ProviderTerms
from tallystick_server.providers.registry import DEFAULT_PROVIDERS
from tallystick_server.setting_types import Count, Kind, Seconds, Section, parse_text

_YEAR_SECONDS = 31_536_000

N = TypeVar("N", int, float)

ProviderName: TypeAlias = Annotated[
    str,
    PlainValidator(parse_text),
    Kind("text", expected="the name of a configured provider"),
]

CONFIGURED_PROVIDERS = ("providers", "configured")
"""The path of the providers' own settings in `Settings`."""


class ProvidersSection(Section):
    """Which providers are used, and how they are called. Each configured provider has a section of
    its own, `[providers.<name>]`, with the settings of its type.
    """

    payment: ProviderName = "sandbox"
    """Name of the configured provider that charges buyers, where no rule of `routing` matches. The
    operations of every configured provider are completed.
    """
    payout: ProviderName = "sandbox"
    """Name of the configured provider that pays sellers. It takes new payouts."""
    risk: ProviderName = ""
    """Name of the configured provider that approves charges before they are sent; empty: only the
    rules of the section `risk` decide.
    """
    timeout: Seconds = Field(default=30.0, ge=0.1, le=600)
    """How long a call to a provider may take before its outcome is Unknown."""
    max_calls_per_provider: Count = Field(default=2000, ge=1, le=100_000)
    """Maximum concurrent calls to each provider."""
    key_window: Seconds = Field(default=86_400.0, ge=1, le=_YEAR_SECONDS)
    """How long a provider honors an idempotency key. After that an operation is looked up, and
    never sent again. Must be longer than `worker.lease_duration`.
    """
    not_found_after: Seconds = Field(default=60.0, ge=0, le=_YEAR_SECONDS)
    """How long after a charge was last sent the answer "not found" counts as a proof that the
    provider did not receive it.
    """
    not_found_min_count: Count = Field(default=2, ge=1, le=1000)
    """How many such answers are required."""
    configured: Mapping[str, ProviderSettings] = DEFAULT_PROVIDERS
    """The configured providers by name. Not a setting: each has a section."""

    def terms(self, name: str) -> ProviderTerms:
        """How the provider is called: the values of its section, else the shared ones. A name
        without a section has the shared ones.
        """
        settings = self.configured.get(name, ProviderSettings())
        return ProviderTerms(
            name,
            CallLimits(
                _first(settings.timeout, self.timeout),
                _first(settings.max_calls, self.max_calls_per_provider),
            ),
            _first(settings.key_window, self.key_window),
            FinalNotFound(
                _first(settings.not_found_after, self.not_found_after),
                _first(settings.not_found_min_count, self.not_found_min_count),
            ),
        )


def _first(override: N | None, shared: N) -> N:
    return shared if override is None else override
