"""Builds the services of a process from its settings: handlers, workers, batchers and relays."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar
from uuid import UUID, uuid4

from google.protobuf.descriptor import ServiceDescriptor

from tallystick.event.v1 import event_service_pb2
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.payment.fees import FeeRates
from tallystick_core.payment.risk import BuiltInRiskCheck, RiskRules
from tallystick_core.payment.state import ALERT_AFTER_SECONDS
from tallystick_core.payout.state import ALERT_AFTER_SECONDS as PAYOUT_ALERT_AFTER
from tallystick_core.provider.outcome import FinalNotFound, PendingReason
from tallystick_core.provider.payment_provider import PaymentProvider
from tallystick_core.provider.payout_provider import PayoutProvider
from tallystick_sandbox.payouts import SandboxPayouts
from tallystick_sandbox.sandbox import Sandbox
from tallystick_server.app.configuration import DEFAULT_DESTINATION_COOLDOWN, SERVICES, Settings
from tallystick_server.event import handlers as event
from tallystick_server.ledger import handlers as ledger
from tallystick_server.ledger.events import LedgerEvents
from tallystick_server.observability.tracing import TracedDatabase
from tallystick_server.operations.monitor import Monitor
from tallystick_server.operations.periodic import Periodic
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.operations.worker import OperationWorker, WorkerSettings
from tallystick_server.outbox.relay import EventSource, FirstNonEmptySource, OutboxSource, Relay
from tallystick_server.payment import handlers as payment
from tallystick_server.payment.payments import Payments
from tallystick_server.payout import handlers as payout
from tallystick_server.payout.payouts import Payouts, PayoutSettings
from tallystick_server.providers.circuit_breaker import BreakerSettings
from tallystick_server.providers.sandbox import provider as sandbox_provider
from tallystick_server.rpc.authentication import DEVELOPER
from tallystick_server.rpc.call import Access
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_server.wallet import handlers as wallet
from tallystick_server.wallet.scheduler import WalletScheduler
from tallystick_storage import alerts as alert_store
from tallystick_storage.database import Database, prune_commit_markers
from tallystick_storage.ledger import postings as ledger_store
from tallystick_storage.payment import alerts as payment_alerts
from tallystick_storage.payout import alerts as payout_alerts

_CONNECTION_COUNTS = {"ledger": 2}
_DEFAULT_CONNECTIONS = 4
_READ_CONNECTIONS = 2
_HOUSEKEEPING_INTERVAL_SECONDS = 600.0
_SERVICE_MODULES = {
    "payment": payment_service_pb2,
    "ledger": ledger_service_pb2,
    "wallet": wallet_service_pb2,
    "payout": payout_service_pb2,
    "event": event_service_pb2,
}

P = TypeVar("P")


def full_names(services: Sequence[str]) -> list[str]:
    """The full gRPC names of services."""
    return [str(_descriptor(name).full_name) for name in services]


def _descriptor(service: str) -> ServiceDescriptor:
    file = _SERVICE_MODULES[service].DESCRIPTOR
    descriptor: ServiceDescriptor = file.services_by_name[f"{service.title()}Service"]
    return descriptor


class _Lifecycle(Protocol):
    def start(self) -> None: ...
    async def stop(self) -> None: ...


_CloseHook = Callable[[], Awaitable[None]]


@dataclass
class Service:
    """A service in this process: its handlers and its background work. On a drain, `worker` first
    gets time to finish the operations in flight.
    """

    name: str
    servicer: object
    access: Access
    running: Sequence[_Lifecycle]
    databases: Sequence[Database]
    worker: OperationWorker | None = None
    closing: Sequence[_CloseHook] = ()

    @property
    def descriptor(self) -> ServiceDescriptor:
        return _descriptor(self.name)

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
    close_hooks: Sequence[_CloseHook] = ()


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
        self._settings = settings
        self._urls = urls
        self._addresses = addresses
        self._service_client = service_client
        self._dependencies = dependencies or Dependencies()

    def build(self, names: Sequence[str] = SERVICES) -> list[Service]:
        builders = {
            "payment": self._build_payment,
            "ledger": self._build_ledger,
            "wallet": self._build_wallet,
            "payout": self._build_payout,
            "event": self._build_event,
        }
        return [builders[name]() for name in names]

    def _open_database(self, name: str) -> Database:
        connections = self._settings.database.connections.get(
            name, _CONNECTION_COUNTS.get(name, _DEFAULT_CONNECTIONS)
        )
        if self._dependencies.open_database is not None:
            return self._dependencies.open_database(
                self._urls[name], connections, self._dependencies.new_id
            )
        readers = self._settings.database.read_connections.get(name, _READ_CONNECTIONS)
        return TracedDatabase(
            self._urls[name],
            connections=connections,
            readers=readers,
            read_timeout=self._settings.database.read_timeout,
            new_id=self._dependencies.new_id,
        )

    def _housekeeping_task(self, name: str, database: Database) -> Periodic:
        async def run_once() -> None:
            # short transactions, however many markers there are
            while await database.transact(prune_commit_markers):
                continue

        return Periodic(f"{name}.housekeeping", _HOUSEKEEPING_INTERVAL_SECONDS, run_once)

    def _build_payment(self) -> Service:
        database = self._open_database("payment")
        settings = self._settings
        final_not_found = FinalNotFound(
            settings.providers.not_found_after, settings.providers.not_found_min_count
        )
        bundle = self._build_providers(
            self._dependencies.providers,
            partial(sandbox_provider.HttpSandbox, final_not_found=final_not_found),
            Sandbox,
            partial(sandbox_provider.InProcessSandbox, final_not_found=final_not_found),
        )
        payments = Payments(
            database,
            BuiltInRiskCheck(self._risk_rules()),
            FeeRates(settings.payment.fee_rate, dict(settings.payment.seller_fee_rates)),
            bundle.providers,
            self._service_client,
            self._addresses["wallet"],
            self._addresses["ledger"],
            self._worker_settings(),
            provider=settings.providers.payment,
            environment=settings.environment,
            max_queued_charges=settings.payment.max_queued_charges,
            resolve_within={PendingReason.BUYER_ACTION: settings.payment.buyer_action_timeout},
            seller_owner_max_age_seconds=settings.payment.seller_owner_max_age,
            holder_id=self._dependencies.new_id(),
        )
        handlers = payment.PaymentHandlers(database, payments)
        alert_queries = payment_alerts.alert_queries(
            {**ALERT_AFTER_SECONDS, **settings.payment.alert_after},
            settings.payment.review_timeout,
            settings.worker.events_alert_after,
        )
        service = Service(
            "payment", handlers, payment.ACCESS, [handlers], [database], payments.worker
        )
        return self._with_providers(
            bundle, self._with_relay(service, alert_queries, OutboxSource(database))
        )

    def _with_relay(
        self, service: Service, alert_queries: Sequence[alert_store.AlertQuery], source: EventSource
    ) -> Service:
        """Adds the relay and the monitor to a service that has events.

        `alert_queries`: the conditions for alerts; `source`: the source of the relay.
        """
        (database,) = service.databases
        settings = self._settings
        relay = Relay(
            service.name,
            database,
            source,
            self._service_client,
            self._addresses["event"],
            settings.worker.relay_interval,
        )
        monitor = Monitor(
            service.name,
            database,
            self._dependencies.new_id(),
            alert_queries,
            settings.worker.monitor_interval,
        )
        return replace(
            service,
            running=[
                *service.running,
                relay,
                monitor,
                self._housekeeping_task(service.name, database),
            ],
        )

    def _with_providers(self, bundle: _ProviderBundle[Any], service: Service) -> Service:
        """Adds providers to a service. They start before it and stop after it."""
        components, databases = (
            [*bundle.components, *service.running],
            [*service.databases, *bundle.databases],
        )
        return replace(service, running=components, databases=databases, closing=bundle.close_hooks)

    def _build_providers(
        self,
        providers: Mapping[str, P] | None,
        over_http: Callable[[str, float], Any],
        make_sandbox: Callable[..., Any],
        in_process: Callable[[Any, float], P],
    ) -> _ProviderBundle[P]:
        """The given providers, or else the sandbox: a separate server, or one in this process."""
        if providers is not None:
            return _ProviderBundle(providers)
        window = self._settings.providers.key_window
        if self._settings.providers.sandbox.url:
            remote = over_http(self._settings.providers.sandbox.url, window)
            return _ProviderBundle({sandbox_provider.NAME: remote}, close_hooks=[remote.close])
        database = self._open_database("sandbox")
        sandbox = make_sandbox(
            database,
            latency_seconds=self._settings.providers.sandbox.latency,
            key_window_seconds=window,
        )
        return _ProviderBundle(
            {sandbox_provider.NAME: in_process(sandbox, window)}, [sandbox], [database]
        )

    def _worker_settings(self) -> WorkerSettings:
        settings = self._settings
        return WorkerSettings(
            lease_seconds=settings.worker.lease_duration,
            provider_timeout_seconds=settings.providers.timeout,
            max_calls_per_provider=settings.providers.max_calls_per_provider,
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

    def _risk_rules(self) -> RiskRules:
        settings = self._settings
        return RiskRules(
            settings.risk.amount_limits,
            settings.risk.velocity_limit or None,
            settings.risk.velocity_window,
            settings.risk.blocked_accounts,
            settings.risk.blocked_countries,
        )

    def _build_ledger(self) -> Service:
        database = self._open_database("ledger")
        handlers = ledger.LedgerHandlers(database)
        # Alerts come first, because ledger events may never pause.
        source = FirstNonEmptySource(
            OutboxSource(database), LedgerEvents(database, handlers.recent)
        )
        service = Service("ledger", handlers, ledger.ACCESS, [handlers], [database])
        return self._with_relay(
            service, ledger_store.alert_queries(self._settings.worker.events_alert_after), source
        )

    def _build_wallet(self) -> Service:
        database = self._open_database("wallet")
        handlers = wallet.WalletHandlers(
            database, self._settings.release_delay, self._payout_service_caller()
        )
        scheduler = Periodic(
            "wallet.scheduler",
            self._settings.worker.scan_interval,
            WalletScheduler(database, handlers.instruction_batcher).run_once,
        )
        service = Service("wallet", handlers, wallet.ACCESS, [handlers, scheduler], [database])
        return self._with_relay(
            service,
            alert_store.event_alert_queries(self._settings.worker.events_alert_after),
            OutboxSource(database),
        )

    def _build_payout(self) -> Service:
        database = self._open_database("payout")
        settings = self._settings
        bundle = self._build_providers(
            self._dependencies.payout_providers,
            sandbox_provider.HttpSandboxPayouts,
            SandboxPayouts,
            sandbox_provider.InProcessSandboxPayouts,
        )
        payouts = Payouts(
            database,
            bundle.providers,
            self._service_client,
            self._addresses["wallet"],
            self._addresses["ledger"],
            self._worker_settings(),
            PayoutSettings(
                settings.providers.payout,
                settings.environment,
                settings.payout.approval_threshold,
                self._destination_cooldown(),
                settings.payout.destination_approval_threshold,
            ),
            self._dependencies.new_id(),
        )
        alert_queries = payout_alerts.alert_queries(
            {**PAYOUT_ALERT_AFTER, **settings.payout.alert_after},
            settings.worker.events_alert_after,
        )
        handlers = payout.PayoutHandlers(database, payouts)
        service = Service(
            "payout", handlers, payout.ACCESS, [payouts, handlers], [database], payouts.worker
        )
        return self._with_providers(
            bundle, self._with_relay(service, alert_queries, OutboxSource(database))
        )

    def _payout_service_caller(self) -> str:
        """The name of the caller that WalletService accepts as PayoutService."""
        settings = self._settings
        if settings.authentication == "none":
            return DEVELOPER
        return settings.payout_service or settings.callers[settings.service_token].name

    def _destination_cooldown(self) -> float:
        """The cooldown of new destinations in seconds. Without authentication it is 0 unless it is
        set.
        """
        cooldown = self._settings.payout.destination_cooldown
        if cooldown is not None:
            return cooldown
        return 0.0 if self._settings.authentication == "none" else DEFAULT_DESTINATION_COOLDOWN

    def _build_event(self) -> Service:
        database = self._open_database("event")
        handlers = event.EventHandlers(database)
        return Service(
            "event",
            handlers,
            event.ACCESS,
            [handlers, self._housekeeping_task("event", database)],
            [database],
        )
