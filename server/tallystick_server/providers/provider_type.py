"""What a type of provider consists of: its settings, and how its adapters are built from them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, TypeAlias, TypeVar

from pydantic import Field, PlainValidator

from tallystick_core.provider.outcome import FinalNotFound
from tallystick_core.provider.payment_provider import PaymentProvider
from tallystick_core.provider.payout_provider import PayoutProvider
from tallystick_core.provider.risk_provider import RiskProvider
from tallystick_core.provider.statement_source import StatementSource
from tallystick_core.provider.webhook import WebhookSource
from tallystick_server.setting_types import Count, Kind, Seconds, Section, parse_text
from tallystick_storage.database import Database

_YEAR_SECONDS = 31_536_000

_TYPE_NAME = Kind("text", expected="the name of a type of provider")

P_co = TypeVar("P_co", covariant=True)


class ProviderSettings(Section):
    """The settings that every provider has. A type of provider adds its own: address, credentials.

    A field that may hold a secret has `repr=False`.
    """

    type: Annotated[str, PlainValidator(parse_text), _TYPE_NAME] = ""
    """Type of the provider; empty: the name of the section."""
    timeout: Seconds | None = Field(default=None, ge=0.1, le=600)
    """How long a call to this provider may take. By default `providers.timeout`."""
    max_calls: Count | None = Field(default=None, ge=1, le=100_000)
    """Maximum concurrent calls to this provider. By default `providers.max_calls_per_provider`."""
    key_window: Seconds | None = Field(default=None, ge=1, le=_YEAR_SECONDS)
    """How long this provider honors an idempotency key. By default `providers.key_window`."""
    not_found_after: Seconds | None = Field(default=None, ge=0, le=_YEAR_SECONDS)
    """As `providers.not_found_after`, which is the default."""
    not_found_min_count: Count | None = Field(default=None, ge=1, le=1000)
    """As `providers.not_found_min_count`, which is the default."""

    @property
    def schemas(self) -> Sequence[str]:
        """The database schemas that the provider needs in this process."""
        return ()


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits of the calls to one provider in one process."""

    timeout_seconds: float
    max_calls: int
    """Maximum concurrent calls."""


@dataclass(frozen=True, slots=True)
class ProviderTerms:
    """How a provider is called. The keys of its ledger accounts have its name."""

    name: str
    limits: CallLimits
    key_window_seconds: float
    """How long the provider honors an idempotency key."""
    final_not_found: FinalNotFound
    """When the provider's "not found" proves that nothing was charged."""


class ProviderComponent(Protocol):
    """What runs for a provider in this process."""

    def start(self) -> None: ...
    async def stop(self) -> None: ...


CloseHook: TypeAlias = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class BuiltProvider(Generic[P_co]):
    """An adapter, and what it needs in this process."""

    adapter: P_co
    components: Sequence[ProviderComponent] = ()
    """They start before the service, and stop after it."""
    databases: Sequence[Database] = ()
    close_hooks: Sequence[CloseHook] = ()


OpenDatabase: TypeAlias = Callable[[str], Database]
"""Opens the database of a schema."""
Build: TypeAlias = Callable[[ProviderTerms, Any, OpenDatabase], BuiltProvider[P_co]]
"""Builds an adapter from its terms and from the settings of its type."""


@dataclass(frozen=True, slots=True)
class ProviderType:
    """A type of provider. None: it does not charge buyers, pay sellers, check risks, send webhooks,
    or write statements.
    """

    settings: type[ProviderSettings]
    build_charges: Build[PaymentProvider] | None = None
    build_payouts: Build[PayoutProvider] | None = None
    build_risk: Build[RiskProvider] | None = None
    build_webhooks: Build[WebhookSource] | None = None
    build_statements: Build[StatementSource] | None = None
