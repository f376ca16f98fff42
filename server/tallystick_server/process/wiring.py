"""Puts services together from settings: which handlers, stages and relays a process runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID, uuid4

from google.protobuf.descriptor import ServiceDescriptor

from tallystick.event.v1 import event_service_pb2
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.payment import ALERT_AFTER, FeeRates
from tallystick_core.payout import ALERT_AFTER as PAYOUT_ALERT_AFTER
from tallystick_core.provider import PayoutProvider, PendingReason, Provider
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
from tallystick_server.process.configuration import SERVED, Settings
from tallystick_server.providers import sandbox as sandbox_provider
from tallystick_server.runtime.breaker import BreakerSettings
from tallystick_server.runtime.door import Access
from tallystick_server.runtime.flow import FlowSettings
from tallystick_server.runtime.monitor import Monitor
from tallystick_server.runtime.peers import Peers
from tallystick_server.runtime.periodic import Periodic
from tallystick_server.runtime.relay import FromOutbox, Relay
from tallystick_server.runtime.retry import Policies
from tallystick_server.runtime.telemetry import TracedDatabase
from tallystick_server.wallet import handlers as wallet
from tallystick_storage import payment as payment_store
from tallystick_storage import payout as payout_store
from tallystick_storage.database import Database, forget_marks

_CONNECTIONS = {"ledger": 2}
_DEFAULT_CONNECTIONS = 4
_FORGET_EVERY = 600.0
_SWEEP_EVERY = 1.0


def _open_database(url: str, connections: int, new_id: Callable[[], UUID]) -> Database:
    return TracedDatabase(url, connections=connections, new_id=new_id)


class _Startable(Protocol):
    def start(self) -> None: ...
    async def stop(self) -> None: ...


@dataclass
class Service:
    """A service in this process: what it answers, and what runs behind it. `drain` lets what is in hand come to rest."""

    name: str
    descriptor: ServiceDescriptor
    servicer: object
    access: Access
    running: Sequence[_Startable] = ()
    drain: Callable[[float], Awaitable[None]] | None = None
    databases: Sequence[Database] = ()
    closing: Sequence[Callable[[], Awaitable[None]]] = field(default_factory=tuple)

    def start(self) -> None:
        for part in self.running:
            part.start()

    async def stop(self, patience: float) -> None:
        if self.drain is not None:
            await self.drain(patience)
        for part in reversed(self.running):
            await part.stop()
        for close in self.closing:
            await close()
        for database in self.databases:
            await asyncio.to_thread(database.close)


@dataclass(frozen=True, slots=True)
class Ports:
    """What a process reaches beyond itself, beside the other services; the simulation has its own."""

    new_id: Callable[[], UUID] = uuid4
    database: Callable[[str, int, Callable[[], UUID]], Database] = _open_database
    """From a URL, its number of connections, and what makes ids."""
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
        return self._ports.database(self._urls[name], connections, self._ports.new_id)

    def _housekeeping(self, name: str, database: Database) -> Periodic:
        return Periodic(f"{name}.housekeeping", _FORGET_EVERY, lambda: database.transact(forget_marks))

    def _payment(self) -> Service:
        database = self._database("payment")
        settings = self._settings
        providers, parts, databases, closing = self._providers()
        flow = PayIn(
            database,
            BuiltInRisk(self._risk_rules()),
            FeeRates(settings.fee_rate, dict(settings.seller_fee_rates)),
            providers,
            self._peers,
            self._addresses["wallet"],
            self._addresses["ledger"],
            self._flow_settings(),
            provider=settings.provider,
            environment=settings.environment,
            waiting_depth=settings.waiting_depth,
            resolve_within={
                PendingReason.BUYER_ACTION: settings.pending_action,
                PendingReason.PROVIDER_REVIEW: settings.pending_review,
                PendingReason.RISK_REVIEW: settings.pending_review,
            },
        )
        handlers = payment.PaymentHandlers(database, flow)
        findings = payment_store.findings({**ALERT_AFTER, **settings.alert_after})
        monitor = Monitor("payment", database, self._ports.new_id(), findings, settings.monitor_interval)
        relay = Relay("payment", FromOutbox(database), self._peers, self._addresses["event"], self._settings.relay_interval)
        flow_part = _Started(flow.start)
        return Service(
            "payment",
            payment_service_pb2.DESCRIPTOR.services_by_name["PaymentService"],
            handlers,
            payment.ACCESS,
            [*parts, flow_part, handlers, relay, monitor, self._housekeeping("payment", database)],
            flow.stop,
            [database, *databases],
            closing,
        )

    def _flow_settings(self) -> FlowSettings:
        settings = self._settings
        return FlowSettings(
            lease=settings.lease,
            provider_timeout=settings.provider_timeout,
            provider_calls=settings.provider_calls,
            sweep_interval=settings.sweep_interval,
            policies=Policies(settings.retry),
            breaker=BreakerSettings(settings.breaker_failures, settings.breaker_rest, settings.breaker_longest_rest),
        )

    def _providers(self) -> tuple[dict[str, Provider], list[_Startable], list[Database], list[Callable[[], Awaitable[None]]]]:
        if self._ports.providers is not None:
            return dict(self._ports.providers), [], [], []
        if self._settings.sandbox_url:
            remote = sandbox_provider.OverHttp(self._settings.sandbox_url, self._settings.provider_key_window)
            return {remote.name: remote}, [], [], [remote.close]
        database = self._database("sandbox")
        window = self._settings.provider_key_window
        sandbox = Sandbox(database, latency=self._settings.sandbox_latency, window=window)
        local = sandbox_provider.InProcess(sandbox, window)
        return {local.name: local}, [sandbox], [database], []

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
        relay = Relay("ledger", LedgerEvents(database, handlers.recent), self._peers, self._addresses["event"], self._settings.relay_interval)
        descriptor = ledger_service_pb2.DESCRIPTOR.services_by_name["LedgerService"]
        running: list[_Startable] = [handlers, relay, self._housekeeping("ledger", database)]
        return Service("ledger", descriptor, handlers, ledger.ACCESS, running, databases=[database])

    def _wallet(self) -> Service:
        database = self._database("wallet")
        handlers = wallet.WalletHandlers(database, self._settings.release_delay)
        relay = Relay("wallet", FromOutbox(database), self._peers, self._addresses["event"], self._settings.relay_interval)
        sweep = Periodic("wallet.sweep", _SWEEP_EVERY, handlers.sweep)
        descriptor = wallet_service_pb2.DESCRIPTOR.services_by_name["WalletService"]
        running: list[_Startable] = [handlers, relay, sweep, self._housekeeping("wallet", database)]
        return Service("wallet", descriptor, handlers, wallet.ACCESS, running, databases=[database])

    def _payout(self) -> Service:
        database = self._database("payout")
        settings = self._settings
        providers, parts, databases, closing = self._payout_providers()
        flow = PayOut(
            database,
            providers,
            self._peers,
            self._addresses["wallet"],
            self._addresses["ledger"],
            self._flow_settings(),
            PayoutSettings(settings.payout_provider, settings.environment, settings.payout_approve_above, settings.payout_waiting_period),
            self._ports.new_id(),
        )
        handlers = payout.PayoutHandlers(database, flow)
        findings = payout_store.findings({**PAYOUT_ALERT_AFTER, **settings.payout_alert_after})
        monitor = Monitor("payout", database, self._ports.new_id(), findings, settings.monitor_interval)
        relay = Relay("payout", FromOutbox(database), self._peers, self._addresses["event"], settings.relay_interval)
        return Service(
            "payout",
            payout_service_pb2.DESCRIPTOR.services_by_name["PayoutService"],
            handlers,
            payout.ACCESS,
            [*parts, _Started(flow.start), relay, monitor, self._housekeeping("payout", database)],
            flow.stop,
            [database, *databases],
            closing,
        )

    def _payout_providers(self) -> tuple[dict[str, PayoutProvider], list[_Startable], list[Database], list[Callable[[], Awaitable[None]]]]:
        if self._ports.payout_providers is not None:
            return dict(self._ports.payout_providers), [], [], []
        window = self._settings.provider_key_window
        if self._settings.sandbox_url:
            remote = sandbox_provider.PayoutsOverHttp(self._settings.sandbox_url, window)
            return {remote.name: remote}, [], [], [remote.close]
        database = self._database("sandbox")
        sandbox = SandboxPayouts(database, latency=self._settings.sandbox_latency, window=window)
        local = sandbox_provider.PayoutsInProcess(sandbox, window)
        return {local.name: local}, [sandbox], [database], []

    def _event(self) -> Service:
        database = self._database("event")
        handlers = event.EventHandlers(database)
        descriptor = event_service_pb2.DESCRIPTOR.services_by_name["EventService"]
        return Service("event", descriptor, handlers, event.ACCESS, [handlers, self._housekeeping("event", database)], databases=[database])


@dataclass
class _Started:
    """A part that is stopped by its service's `drain`."""

    begin: Callable[[], None]

    def start(self) -> None:
        self.begin()

    async def stop(self) -> None:
        return None
