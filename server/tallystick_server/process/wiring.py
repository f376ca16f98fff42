"""Puts services together from settings: which handlers, stages and relays a process runs."""

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
from tallystick_core.payment import ALERT_AFTER, FeeRates
from tallystick_core.payout import ALERT_AFTER as PAYOUT_ALERT_AFTER
from tallystick_core.provider import FinalNotFound, PayoutProvider, PendingReason, Provider
from tallystick_core.risk import BuiltInRisk, RiskRules
from tallystick_sandbox.payouts import SandboxPayouts
from tallystick_sandbox.sandbox import Sandbox
from tallystick_server.event import handlers as event
from tallystick_server.ledger import handlers as ledger
from tallystick_server.ledger.events import LedgerEvents
from tallystick_server.payment import handlers as payment
from tallystick_server.payment.flow import PayIn
from tallystick_server.payout import handlers as payout
from tallystick_server.payout.flow import PayOut, PayoutSettings
from tallystick_server.process.configuration import DEFAULT_WAITING_PERIOD, SERVED, Settings
from tallystick_server.providers import sandbox as sandbox_provider
from tallystick_server.runtime.authentication import DEVELOPER
from tallystick_server.runtime.breaker import BreakerSettings
from tallystick_server.runtime.door import Access
from tallystick_server.runtime.flow import Flow, FlowSettings
from tallystick_server.runtime.monitor import Monitor
from tallystick_server.runtime.peers import Peers
from tallystick_server.runtime.periodic import Periodic
from tallystick_server.runtime.relay import FirstOf, FromOutbox, Relay, Source
from tallystick_server.runtime.retry import Policies
from tallystick_server.runtime.telemetry import TracedDatabase
from tallystick_server.wallet import handlers as wallet
from tallystick_server.wallet.sweep import Sweep
from tallystick_storage import alert
from tallystick_storage import ledger as ledger_store
from tallystick_storage.database import Database, forget_marks
from tallystick_storage.payment import orders as payment_store
from tallystick_storage.payout import payouts as payout_store

_CONNECTIONS = {"ledger": 2}
_DEFAULT_CONNECTIONS = 4
_READ_CONNECTIONS = 2
_FORGET_EVERY = 600.0
_PROTOS = {
    "payment": payment_service_pb2,
    "ledger": ledger_service_pb2,
    "wallet": wallet_service_pb2,
    "payout": payout_service_pb2,
    "event": event_service_pb2,
}

P = TypeVar("P")


def full_names(services: Sequence[str]) -> list[str]:
    """The full names of services."""
    return [str(_PROTOS[name].DESCRIPTOR.services_by_name[f"{name.title()}Service"].full_name) for name in services]


class _Startable(Protocol):
    def start(self) -> None: ...
    async def stop(self) -> None: ...


_Closing = Callable[[], Awaitable[None]]


@dataclass
class Service:
    """A service in this process: what it answers, and what runs behind it. `flow` is first given time to let what is in hand come to rest."""

    name: str
    servicer: object
    access: Access
    running: Sequence[_Startable]
    databases: Sequence[Database]
    flow: Flow[Any, Any] | None = None
    closing: Sequence[_Closing] = ()

    @property
    def descriptor(self) -> ServiceDescriptor:
        found: ServiceDescriptor = _PROTOS[self.name].DESCRIPTOR.services_by_name[f"{self.name.title()}Service"]
        return found

    def start(self) -> None:
        for part in self.running:
            part.start()
        if self.flow is not None:
            self.flow.start()

    async def drain(self, patience: float) -> None:
        """Lets what is in flight end, while all that it needs still runs."""
        if self.flow is not None:
            await self.flow.drain(patience)

    async def stop(self) -> None:
        """Ends it; after `drain`."""
        if self.flow is not None:
            await self.flow.stop()
        for part in reversed(self.running):
            await part.stop()
        for close in self.closing:
            await close()
        for database in self.databases:
            await asyncio.to_thread(database.close)


class _Behind(NamedTuple, Generic[P]):
    """Providers, and what they live on in this process."""

    providers: Mapping[str, P]
    running: Sequence[_Startable] = ()
    databases: Sequence[Database] = ()
    closing: Sequence[_Closing] = ()


@dataclass(frozen=True, slots=True)
class Ports:
    """What a process reaches beyond itself, beside the other services; the simulation has its own."""

    new_id: Callable[[], UUID] = uuid4
    database: Callable[[str, int, Callable[[], UUID]], Database] | None = None
    """From a URL, its number of connections, and what makes ids; None: as the settings say."""
    providers: Mapping[str, Provider] | None = None
    """None: as the settings say."""
    payout_providers: Mapping[str, PayoutProvider] | None = None
    """None: as the settings say."""


class Wiring:
    """Builds services. `urls`: each schema's database; `addresses`: where each service is reached."""

    def __init__(self, settings: Settings, urls: Mapping[str, str], addresses: Mapping[str, str], peers: Peers, ports: Ports | None = None) -> None:
        self._settings = settings
        self._urls = urls
        self._addresses = addresses
        self._peers = peers
        self._ports = ports or Ports()

    def build(self, names: Sequence[str] = SERVED) -> list[Service]:
        makers = {"payment": self._payment, "ledger": self._ledger, "wallet": self._wallet, "payout": self._payout, "event": self._event}
        return [makers[name]() for name in names]

    def _database(self, name: str) -> Database:
        connections = self._settings.connections.get(name, _CONNECTIONS.get(name, _DEFAULT_CONNECTIONS))
        if self._ports.database is not None:
            return self._ports.database(self._urls[name], connections, self._ports.new_id)
        readers = self._settings.read_connections.get(name, _READ_CONNECTIONS)
        return TracedDatabase(
            self._urls[name], connections=connections, readers=readers, read_timeout=self._settings.read_timeout, new_id=self._ports.new_id
        )

    def _housekeeping(self, name: str, database: Database) -> Periodic:
        async def forget() -> None:
            while await database.transact(forget_marks):  # each a short transaction, however many there are
                continue

        return Periodic(f"{name}.housekeeping", _FORGET_EVERY, forget)

    def _payment(self) -> Service:
        database = self._database("payment")
        settings = self._settings
        final = FinalNotFound(settings.provider_not_found_after, settings.provider_not_found_times)
        behind = self._behind(
            self._ports.providers,
            partial(sandbox_provider.OverHttp, final_not_found=final),
            Sandbox,
            partial(sandbox_provider.InProcess, final_not_found=final),
        )
        flow = PayIn(
            database,
            BuiltInRisk(self._risk_rules()),
            FeeRates(settings.fee_rate, dict(settings.seller_fee_rates)),
            behind.providers,
            self._peers,
            self._addresses["wallet"],
            self._addresses["ledger"],
            self._flow_settings(),
            provider=settings.provider,
            environment=settings.environment,
            waiting_depth=settings.waiting_depth,
            resolve_within={PendingReason.BUYER_ACTION: settings.pending_action},
            seller_check_interval=settings.seller_check_interval,
            holder=self._ports.new_id(),
        )
        handlers = payment.PaymentHandlers(database, flow)
        findings = payment_store.findings({**ALERT_AFTER, **settings.alert_after}, settings.pending_review, settings.events_alert_after)
        service = Service("payment", handlers, payment.ACCESS, [handlers], [database], flow)
        return self._over(behind, self._with_relay(service, findings, FromOutbox(database)))

    def _with_relay(self, service: Service, findings: Sequence[alert.Finding], source: Source) -> Service:
        """A service that has events, with all that it needs beside its handlers. `findings`: what its monitor looks for; `source`: of its relay."""
        (database,) = service.databases
        settings = self._settings
        relay = Relay(service.name, database, source, self._peers, self._addresses["event"], settings.relay_interval)
        monitor = Monitor(service.name, database, self._ports.new_id(), findings, settings.monitor_interval)
        return replace(service, running=[*service.running, relay, monitor, self._housekeeping(service.name, database)])

    def _over(self, behind: _Behind[Any], service: Service) -> Service:
        """A service with its providers, which start before it and stop after it."""
        running, databases = [*behind.running, *service.running], [*service.databases, *behind.databases]
        return replace(service, running=running, databases=databases, closing=behind.closing)

    def _behind(
        self,
        given: Mapping[str, P] | None,
        over_http: Callable[[str, float], Any],
        make: Callable[..., Any],
        in_process: Callable[[Any, float], P],
    ) -> _Behind[P]:
        """The providers that are given, or else the sandbox: a server of its own, or made in this process."""
        if given is not None:
            return _Behind(given)
        window = self._settings.provider_key_window
        if self._settings.sandbox_url:
            remote = over_http(self._settings.sandbox_url, window)
            return _Behind({sandbox_provider.NAME: remote}, closing=[remote.close])
        database = self._database("sandbox")
        sandbox = make(database, latency=self._settings.sandbox_latency, window=window)
        return _Behind({sandbox_provider.NAME: in_process(sandbox, window)}, [sandbox], [database])

    def _flow_settings(self) -> FlowSettings:
        settings = self._settings
        return FlowSettings(
            lease=settings.lease,
            provider_timeout=settings.provider_timeout,
            provider_calls=settings.provider_calls,
            sweep_interval=settings.sweep_interval,
            policies=Policies(settings.retry),
            breaker=BreakerSettings(settings.breaker_failures, settings.breaker_rest, settings.breaker_longest_rest),
            max_in_flight=settings.in_flight,
            owner_share=settings.caller_share,
        )

    def _risk_rules(self) -> RiskRules:
        settings = self._settings
        return RiskRules(
            settings.risk_amount_limits,
            settings.risk_velocity_limit or None,
            settings.risk_velocity_window,
            settings.risk_blocked_accounts,
            settings.risk_blocked_countries,
        )

    def _ledger(self) -> Service:
        database = self._database("ledger")
        handlers = ledger.LedgerHandlers(database)
        source = FirstOf(FromOutbox(database), LedgerEvents(database, handlers.recent))  # alerts before the book, which may never rest
        service = Service("ledger", handlers, ledger.ACCESS, [handlers], [database])
        return self._with_relay(service, ledger_store.findings(self._settings.events_alert_after), source)

    def _wallet(self) -> Service:
        database = self._database("wallet")
        handlers = wallet.WalletHandlers(database, self._settings.release_delay, self._payout_service())
        sweep = Periodic("wallet.sweep", self._settings.sweep_interval, Sweep(database, handlers.change).turn)
        service = Service("wallet", handlers, wallet.ACCESS, [handlers, sweep], [database])
        return self._with_relay(service, alert.of_events(self._settings.events_alert_after), FromOutbox(database))

    def _payout(self) -> Service:
        database = self._database("payout")
        settings = self._settings
        behind = self._behind(self._ports.payout_providers, sandbox_provider.PayoutsOverHttp, SandboxPayouts, sandbox_provider.PayoutsInProcess)
        flow = PayOut(
            database,
            behind.providers,
            self._peers,
            self._addresses["wallet"],
            self._addresses["ledger"],
            self._flow_settings(),
            PayoutSettings(
                settings.payout_provider,
                settings.environment,
                settings.payout_approve_above,
                self._waiting_period(),
                settings.destination_approve_above,
            ),
            self._ports.new_id(),
        )
        findings = payout_store.findings({**PAYOUT_ALERT_AFTER, **settings.payout_alert_after}, settings.events_alert_after)
        handlers = payout.PayoutHandlers(database, flow)
        service = Service("payout", handlers, payout.ACCESS, [handlers], [database], flow)
        return self._over(behind, self._with_relay(service, findings, FromOutbox(database)))

    def _payout_service(self) -> str:
        """Whom WalletService takes for PayoutService."""
        settings = self._settings
        if settings.authentication == "none":
            return DEVELOPER
        return settings.payout_service or settings.callers[settings.service_token].name

    def _waiting_period(self) -> float:
        """Seconds that a new destination waits; on a developer's machine none, unless it is set."""
        known = self._settings.payout_waiting_period
        if known is not None:
            return known
        return 0.0 if self._settings.authentication == "none" else DEFAULT_WAITING_PERIOD

    def _event(self) -> Service:
        database = self._database("event")
        handlers = event.EventHandlers(database)
        return Service("event", handlers, event.ACCESS, [handlers, self._housekeeping("event", database)], [database])
