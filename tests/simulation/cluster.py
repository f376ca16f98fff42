"""The platform in a world: two processes of each service, the provider, and whoever calls; what dies is started again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar
from uuid import UUID

from tallystick import AsyncClient, ClientSettings
from tallystick_core.caller import Caller, Role
from tallystick_core.provider import (
    ChargeDemand,
    FinalNotFound,
    Found,
    NotSent,
    Outcome,
    PayoutDemand,
    PayoutFound,
    PayoutOutcome,
    Trouble,
    Unknown,
    Verification,
)
from tallystick_sandbox.payouts import SandboxPayouts
from tallystick_sandbox.rules import Reply
from tallystick_sandbox.sandbox import Sandbox
from tallystick_server.process.configuration import Settings
from tallystick_server.process.wiring import Ports, Service, Wiring
from tallystick_server.providers.sandbox import MOST_AT_ONCE, found, outcome, payout_found, payout_outcome, verification
from tallystick_server.runtime.authentication import BearerTokens
from tallystick_server.runtime.door import Door
from tallystick_server.runtime.peers import Peers
from tallystick_server.runtime.retry import Policy, Strategy
from tests.policies import scaled_defaults

from .database import Engines, SimulatedDatabase
from .faults import CALL, HOUR, Fault
from .loop import Node
from .network import Broken, Network, Server, Unreached, exchange
from .world import PROVIDER, World

T = TypeVar("T")
R = TypeVar("R")

SERVICES = ("payment", "ledger", "wallet", "payout", "event")
TEAMS = ("team-1", "team-2")
"""Each an owner, with sellers of its own."""
OPERATOR = "operator"
LEASE = 6.0
_COMES_BACK = (0.05, 3.0)
_POLICIES = {**scaled_defaults(HOUR / 3600), Trouble.WATCHED: Policy(Strategy.FIXED, 1.5, 1.5, 4)}
"""The default policies, at the world's speed; but what is polled once a day for a month is polled four times."""
_FINAL = FinalNotFound(45.0, times=2)
"""Longer than a message is on its way, and a process stands still."""
_ONCE: Mapping[Fault, float] = {fault: weight for fault, weight in CALL.items() if fault is not Fault.REPEATED}
FEE_RATE = 25_000
"""Parts per million."""


def seller_of(team: str, name: str) -> str:
    """A seller that belongs to a team."""
    return f"seller-{name}-{team.partition('-')[2]}"


def other_team(team: str) -> str:
    return TEAMS[team == TEAMS[0]]


def settings(key_window: float) -> Settings:
    """Quick in everything, so that a minute of the world's time is a long one."""
    callers = {name: Caller(name, frozenset({Role.TEAM, Role.PAYOUTS})) for name in TEAMS}
    callers[OPERATOR] = Caller(OPERATOR, frozenset({Role.OPERATOR, Role.AUDITOR}))
    callers["service"] = Caller("service", frozenset({Role.SERVICE}))
    return Settings(
        environment="sim", authentication="tokens", callers=callers, service_token="service", lease=LEASE, provider_timeout=3.0, sweep_interval=2.0, relay_interval=3.0,
        breaker_failures=5, breaker_rest=0.5, breaker_longest_rest=8.0, provider_key_window=key_window, pending_action=20.0, monitor_interval=10.0, fee_rate=FEE_RATE, release_delay=86_400,
        alert_after={"EXECUTING": 30, "PENDING": 60, "SUCCESS": 30}, retry={("", trouble): policy for trouble, policy in _POLICIES.items()},
        risk_blocked_accounts=frozenset(seller_of(team, "blocked") for team in TEAMS), seller_check_interval=10.0, payout_waiting_period=0.0, payout_approve_above={"EUR": 200_000},
        payout_alert_after={"MOVING": 30, "SUBMITTED": 60, "IN_TRANSIT": 60},
    )  # fmt: skip


class Cluster:
    """Starts the nodes in a world, and again when they have died. `urls`: each schema's database."""

    def __init__(self, world: World, urls: Mapping[str, str], engines: Engines, key_window: float) -> None:
        self._world = world
        self._urls = urls
        self._engines = engines
        self._settings = settings(key_window)
        self.network = Network(world)
        self._running: list[Service] = []  # of dead processes too: what they hold must not be collected
        self._ids = count()
        self._provider = Node(PROVIDER, world.chance.between("clock of the provider", 0, 1000))
        self.sandbox: Sandbox
        self.bank: SandboxPayouts
        world.died = self._died

    def start(self, alone: frozenset[str]) -> None:
        """Starts the provider, and two processes of each service, but one of those that are alone."""
        world = self._world
        world.loop.deliver(self._provider, 0, self._start_provider)
        for service in SERVICES:
            for number in (1,) if service in alone else (1, 2):
                self._boot(f"{service}-{number}", 1)

    def client(self, name: str, token: str) -> AsyncClient:
        """The SDK's client, for a caller with this token."""
        attempts = count()
        jitter = lambda: self._world.chance.number(f"jitter of {name} {next(attempts)}")  # noqa: E731
        return _Client(self.network, ClientSettings(token=token, attempts=6, deadlines={"CreatePayment": 8.0, "CreatePayout": 8.0}, jitter=jitter))

    def _id(self) -> UUID:
        return self._world.chance.id(f"id {next(self._ids)}")

    def _database(self, url: str, _connections: int, new_id: Callable[[], UUID]) -> SimulatedDatabase:
        return SimulatedDatabase(url, new_id, self._engines)

    def _start_provider(self) -> None:
        database = self._database(self._urls["sandbox"], 1, self._id)
        self.sandbox = Sandbox(database, window=self._settings.provider_key_window)
        self.sandbox.start()
        self.bank = SandboxPayouts(database, window=self._settings.provider_key_window)
        self.bank.start()

    def _boot(self, name: str, life: int) -> None:
        node = Node(name, self._world.chance.between(f"clock of {name} {life}", 0, 1000), life)
        self._world.loop.deliver(node, 0, self._start, node)

    def _start(self, node: Node) -> None:
        """What `serve` does, in the node."""
        name = node.name.partition("-")[0]
        self._world.tell(f"{node.name} starts")
        peers = Peers(self._settings.service_token, self.network.channel)
        provider = _Provider(self._world, lambda: self.sandbox, self._provider, self._settings.provider_key_window)
        bank = _Bank(self._world, lambda: self.bank, self._provider, self._settings.provider_key_window)
        ports = Ports(self._id, self._database, {provider.name: provider}, {bank.name: bank})
        addresses = {service: service for service in SERVICES}
        (service,) = Wiring(self._settings, self._urls, addresses, peers, ports).build([name])
        door, server = Door(BearerTokens(self._settings.callers)), Server()
        door.bind(server, service.descriptor, service.servicer, service.access)  # type: ignore[arg-type]
        service.start()
        self._running.append(service)
        self.network.servers.setdefault(name, {})[node] = server

    def _died(self, node: Node) -> None:
        self.network.servers.get(node.name.partition("-")[0], {}).pop(node, None)
        wait = self._world.chance.between(f"rest of {node.name} {node.life}", *_COMES_BACK)
        self._world.loop.deliver(self._world.loop.outside, wait, self._boot, node.name, node.life + 1)


class _Client(AsyncClient):
    """The SDK's client over the network of a world."""

    def __init__(self, network: Network, settings: ClientSettings) -> None:
        self._network = network
        super().__init__("payment", ledger="ledger", wallet="wallet", payout="payout", event="event", settings=settings)

    def _channel(self, target: str) -> Any:
        return self._network.channel(target)


class _Remote:
    """A provider as a process sees it over the network."""

    name = "sandbox"
    final_not_found: FinalNotFound | None = _FINAL

    def __init__(self, world: World, node: Node, key_window: float) -> None:
        self.key_window = key_window
        self._world = world
        self._node = node

    async def ask(
        self, verb: str, what: str, kinds: Mapping[Fault, float], work: Callable[[], Awaitable[T]], told: Callable[[T], str]
    ) -> T | NotSent | Unknown:
        """The answer, if it comes. What comes instead is an outcome."""
        place = f"{self._world.loop.node.name} asks to {verb} {what}"

        async def answer(_: Node) -> T:
            reply = await work()
            self._world.tell(f"provider answers to {verb} {what}: {told(reply)}")
            return reply

        try:
            return await exchange(self._world, place, kinds, self._find, answer, hears=False)
        except Unreached:
            return NotSent("the connection was refused")
        except Broken:
            return Unknown("the connection broke")

    def _find(self) -> Node | None:
        return None if self._world.is_away(PROVIDER) else self._node


class _Provider(_Remote):
    """The sandbox that charges; the adapter's own way from reply to outcome."""

    def __init__(self, world: World, sandbox: Callable[[], Sandbox], node: Node, key_window: float) -> None:
        super().__init__(world, node, key_window)
        self._sandbox = sandbox

    async def send(self, demand: ChargeDemand) -> Outcome:
        return await self._ask("charge", demand, lambda: self._sandbox().charge(demand), outcome)

    async def look_up(self, demand: ChargeDemand) -> Found:
        return await self._ask("look up", demand, lambda: self._sandbox().look_up(demand.charge_id), found)

    async def cancel(self, demand: ChargeDemand) -> Found:
        return await self._ask("cancel", demand, lambda: self._sandbox().cancel(demand.charge_id), found)

    async def _ask(self, verb: str, demand: ChargeDemand, work: Callable[[], Awaitable[Reply]], read: Callable[[Reply], R]) -> R | NotSent | Unknown:
        reply = await self.ask(verb, demand.charge_id, _kinds(demand.payment_token), work, _told)
        return read(reply) if isinstance(reply, Reply) else reply


class _Bank(_Remote):
    """The sandbox that pays out; the adapter's own way from reply to outcome."""

    most_at_once = MOST_AT_ONCE

    def __init__(self, world: World, bank: Callable[[], SandboxPayouts], node: Node, key_window: float) -> None:
        super().__init__(world, node, key_window)
        self._bank = bank

    async def submit(self, demands: Sequence[PayoutDemand]) -> Sequence[PayoutOutcome]:
        kinds = _ONCE if any(_kinds(demand.bank_account_token) is _ONCE for demand in demands) else CALL
        what = " ".join(demand.payout_id for demand in demands)
        replies = await self.ask("pay", what, kinds, lambda: self._bank().submit(demands), lambda found: ", ".join(map(_told, found)))
        return [replies] * len(demands) if isinstance(replies, NotSent | Unknown) else [payout_outcome(reply) for reply in replies]

    async def look_up(self, demand: PayoutDemand) -> PayoutFound:
        reply = await self.ask("look up payout", demand.payout_id, CALL, lambda: self._bank().look_up(demand.payout_id), _told)
        return payout_found(reply) if isinstance(reply, Reply) else reply

    async def verify(self, bank_account_token: str, currency: str) -> Verification:
        reply = await self.ask("verify", f"{bank_account_token} {currency}", CALL, lambda: self._bank().verify(bank_account_token), _told)
        return verification(reply) if isinstance(reply, Reply) else reply


def _kinds(token: str) -> Mapping[Fault, float]:
    """What can befall the way: what a refused connection never carried does not arrive a second time."""
    return _ONCE if "unreachable" in token else CALL


def _told(reply: Reply) -> str:
    return f"{reply.status} {reply.state or reply.code}"
