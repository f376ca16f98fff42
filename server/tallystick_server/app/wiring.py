"""Builds the services of a process from its settings: handlers, workers, batchers and relays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
from uuid import UUID, uuid4

from google.protobuf.descriptor import ServiceDescriptor

from tallystick_core.provider.payment_provider import PaymentProvider
from tallystick_core.provider.payout_provider import PayoutProvider
from tallystick_core.provider.risk_provider import RiskProvider
from tallystick_core.provider.webhook import WebhookSource
from tallystick_server.app.configuration import Settings
from tallystick_server.app.metrics_export import exports_metrics
from tallystick_server.app.metrics_recording import records_metrics
from tallystick_server.observability.tracing import TracedDatabase
from tallystick_server.operations.monitor import Monitor
from tallystick_server.operations.other_services import OtherServices
from tallystick_server.operations.periodic import Periodic
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.operations.worker import OperationWorker, WorkerSettings
from tallystick_server.outbox.relay import EventSource, OutboxSource, Relay
from tallystick_server.providers.circuit_breaker import BreakerSettings
from tallystick_server.providers.provider_type import Build, CloseHook, ProviderType
from tallystick_server.providers.registry import build_providers
from tallystick_server.rpc.call import Access
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_server.service_spec import ServiceSpec
from tallystick_storage.alerts import AlertQuery
from tallystick_storage.database import Database, prune_commit_markers
from tallystick_storage.gauges import GaugeQuery

_PROVIDER_CONNECTIONS = 4
_READ_CONNECTIONS = 2
_HOUSEKEEPING_INTERVAL_SECONDS = 600.0
_LONG_STATEMENT_SECONDS = 310.0

P = TypeVar("P")


class _Lifecycle(Protocol):
    def start(self) -> None: ...
    async def stop(self) -> None: ...


@dataclass
class Service:
    """A service in this process: its handlers and its background work. On a drain, `worker` first
    gets time to finish the operations in flight.
    """

    spec: ServiceSpec
    servicer: object
    running: Sequence[_Lifecycle]
    databases: Sequence[Database]
    """Its own first, then those of its providers."""
    worker: OperationWorker | None = None
    closing: Sequence[CloseHook] = ()
    event_source: EventSource | None = None
    """The source of its relay. None: its outbox."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def descriptor(self) -> ServiceDescriptor:
        return self.spec.descriptor

    @property
    def access(self) -> Access:
        return implementation_of(self.spec).access

    def with_providers(self, bundle: _ProviderBundle[Any]) -> Service:
        """The service with its providers. They start before it and stop after it."""
        return replace(
            self,
            running=[*bundle.components, *self.running],
            databases=[*self.databases, *bundle.databases],
            closing=[*self.closing, *bundle.close_hooks],
        )

    def start(self) -> None:
        for component in self.running:
            component.start()
        if self.worker is not None:
            self.worker.start()

    async def drain(self, timeout_seconds: float) -> None:
        """Lets work in flight finish while its dependencies still run."""
        if self.worker is not None:
            await self.worker.drain(timeout_seconds)

    async def stop(self) -> None:
        """Stops the service. Call it after `drain`."""
        if self.worker is not None:
            await self.worker.stop()
        for component in reversed(self.running):
            await component.stop()
        for close_hook in self.closing:
            await close_hook()
        for database in self.databases:
            await asyncio.to_thread(database.close)


class _ProviderBundle(NamedTuple, Generic[P]):
    """Providers, and what must run for them in this process."""

    providers: Mapping[str, P]
    components: Sequence[_Lifecycle] = ()
    databases: Sequence[Database] = ()
    close_hooks: Sequence[CloseHook] = ()


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The external dependencies of a process, except other services. The simulation has its own."""

    new_id: Callable[[], UUID] = uuid4
    open_database: Callable[[str, int, Callable[[], UUID]], Database] | None = None
    """Takes a URL, the number of connections, and a function that makes ids. None: as configured.
    """
    providers: Mapping[str, PaymentProvider] | None = None
    """None: as configured."""
    payout_providers: Mapping[str, PayoutProvider] | None = None
    """None: as configured."""
    risk_provider: RiskProvider | None = None
    """None: as configured."""
    webhook_sources: Mapping[str, WebhookSource] | None = None
    """None: as configured."""


@dataclass(frozen=True, slots=True)
class ServiceImplementation:
    """The rest of a service's declaration, in the module that its `ServiceSpec` names."""

    access: Access
    build: Callable[[Wiring, Database], Service]
    """Takes the service's open database."""
    alert_queries: Callable[[Settings], Sequence[AlertQuery]] | None
    """The conditions for alerts. None: it has no alerts, and publishes no events."""
    gauge_queries: Sequence[GaugeQuery] = ()
    """The metrics in its database, which its monitor reads."""


def implementation_of(spec: ServiceSpec) -> ServiceImplementation:
    """The rest of a service's declaration."""
    implementation: ServiceImplementation = import_module(spec.wiring).IMPLEMENTATION
    return implementation


class Wiring:
    """Builds services. `urls`: the database of each schema; `addresses`: the address of each
    service.
    """

    def __init__(
        self,
        settings: Settings,
        urls: Mapping[str, str],
        addresses: Mapping[str, str],
        service_client: ServiceClient,
        dependencies: Dependencies | None = None,
    ) -> None:
        self.settings = settings
        self.addresses = addresses
        self.service_client = service_client
        self._urls = urls
        self._dependencies = dependencies or Dependencies()

    def build(self, specs: Sequence[ServiceSpec]) -> list[Service]:
        return [self._build_service(spec) for spec in specs]

    def _build_service(self, spec: ServiceSpec) -> Service:
        database = self._open_database(spec.name, spec.connections)
        implementation = implementation_of(spec)
        service = implementation.build(self, database)
        shows_metrics = exports_metrics(self.settings) or records_metrics(
            self.settings, self.addresses
        )
        background: list[_Lifecycle] = []
        if implementation.alert_queries is not None:
            background += self._relay_and_monitor(
                service,
                database,
                implementation.alert_queries(self.settings),
                implementation.gauge_queries if shows_metrics else (),
            )
        background.append(self._housekeeping_task(spec.name, database))
        return replace(service, running=[*service.running, *background])

    def new_id(self) -> UUID:
        return self._dependencies.new_id()

    def open_database_for_long_statements(self, name: str) -> Database:
        """A second database of a service, with one connection, for statements that take minutes."""
        if self._dependencies.open_database is not None:
            return self._open_database(name, 1)
        return TracedDatabase(
            self._urls[name],
            service=name,
            connections=1,
            readers=1,
            max_silence_seconds=_LONG_STATEMENT_SECONDS,
            new_id=self._dependencies.new_id,
        )

    def _open_database(self, name: str, default_connections: int) -> Database:
        connections = self.settings.database.connections.get(name, default_connections)
        if self._dependencies.open_database is not None:
            return self._dependencies.open_database(
                self._urls[name], connections, self._dependencies.new_id
            )
        readers = self.settings.database.read_connections.get(name, _READ_CONNECTIONS)
        return TracedDatabase(
            self._urls[name],
            service=name,
            connections=connections,
            readers=readers,
            read_timeout=self.settings.database.read_timeout,
            new_id=self._dependencies.new_id,
        )

    def _housekeeping_task(self, name: str, database: Database) -> Periodic:
        async def run_once() -> None:
            # short transactions, however many markers there are
            while await database.transact(prune_commit_markers):
                continue

        return Periodic(f"{name}.housekeeping", _HOUSEKEEPING_INTERVAL_SECONDS, run_once)

    def _relay_and_monitor(
        self,
        service: Service,
        database: Database,
        alert_queries: Sequence[AlertQuery],
        gauge_queries: Sequence[GaugeQuery],
    ) -> list[_Lifecycle]:
        """What a service with events and alerts runs."""
        worker = self.settings.worker
        relay = Relay(
            service.name,
            database,
            service.event_source or OutboxSource(database),
            self.service_client,
            self.addresses["event"],
            worker.relay_interval,
        )
        monitor = Monitor(
            service.name,
            database,
            self.new_id(),
            alert_queries,
            worker.monitor_interval,
            gauge_queries,
        )
        return [relay, monitor]

    def payment_providers(self) -> _ProviderBundle[PaymentProvider]:
        """The providers that charge buyers."""
        return self._build_providers(
            self._dependencies.providers, lambda provider_type: provider_type.build_charges
        )

    def risk_providers(self) -> _ProviderBundle[RiskProvider]:
        """The provider that checks risks; empty: only the rules decide."""
        own_provider, name = self._dependencies.risk_provider, self.settings.providers.risk
        if own_provider is not None:
            return _ProviderBundle({own_provider.name: own_provider})
        return self._build_providers(
            None if name else {}, lambda provider_type: provider_type.build_risk, only=name
        )

    def payout_providers(self) -> _ProviderBundle[PayoutProvider]:
        """The providers that pay sellers."""
        return self._build_providers(
            self._dependencies.payout_providers, lambda provider_type: provider_type.build_payouts
        )

    def _build_providers(
        self,
        providers: Mapping[str, P] | None,
        builder_of: Callable[[ProviderType], Build[P] | None],
        *,
        only: str = "",
    ) -> _ProviderBundle[P]:
        """The given providers, or else the configured ones that have such a builder. `only`: the
        name of one of them; "": all.
        """
        if providers is not None:
            return _ProviderBundle(providers)
        section = self.settings.providers
        built = build_providers(
            {only: section.configured[only]} if only else section.configured,
            section.terms,
            lambda schema: self._open_database(schema, _PROVIDER_CONNECTIONS),
            builder_of,
        )
        return _ProviderBundle(
            {name: provider.adapter for name, provider in built.items()},
            [part for provider in built.values() for part in provider.components],
            [database for provider in built.values() for database in provider.databases],
            [hook for provider in built.values() for hook in provider.close_hooks],
        )

    def other_services(self) -> OtherServices:
        """What explanations read from other services."""
        return OtherServices(
            self.service_client,
            self.addresses["wallet"],
            self.addresses["ledger"],
            self.addresses["event"],
        )

    def worker_settings(self) -> WorkerSettings:
        """The settings of the workers of operations."""
        settings = self.settings
        return WorkerSettings(
            lease_seconds=settings.worker.lease_duration,
            limits_of=lambda name: settings.providers.terms(name).limits,
            scan_interval_seconds=settings.worker.scan_interval,
            retry_policies=RetryPolicies(settings.retry),
            breaker_settings=BreakerSettings(
                settings.breaker.failure_threshold,
                settings.breaker.reset_timeout,
                settings.breaker.max_reset_timeout,
            ),
            max_in_flight=settings.worker.max_in_flight,
            max_owner_share=settings.server.max_owner_share,
        )
