"""The platform in a simulation: two processes of each service, the provider and the callers.
Crashed processes are restarted.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import count
from typing import Any, TypeVar
from uuid import UUID

from tallystick import AsyncClient, ClientSettings
from tallystick_core.access import Caller, Role
from tallystick_core.payment.routing import RoutingRule
from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    FinalNotFound,
    NotSent,
    PayoutLookupOutcome,
    PayoutOutcome,
    RetryReason,
    Unknown,
    VerificationOutcome,
)
from tallystick_core.provider.payment_provider import ChargeRequest, PaymentProvider
from tallystick_core.provider.payout_provider import PayoutProvider, PayoutRequest
from tallystick_sandbox.payouts import SandboxPayouts
from tallystick_sandbox.rules import Reply
from tallystick_sandbox.sandbox import Sandbox
from tallystick_server.app.configuration import Settings
from tallystick_server.app.services import find_spec, service_names
from tallystick_server.app.wiring import Dependencies, Service, Wiring
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.providers.sandbox.charges import to_lookup_outcome, to_outcome
from tallystick_server.providers.sandbox.client import noted
from tallystick_server.providers.sandbox.payouts import (
    MAX_BATCH_SIZE,
    to_payout_lookup_outcome,
    to_payout_outcome,
    to_verification_outcome,
)
from tallystick_server.rpc.authentication import BearerTokens
from tallystick_server.rpc.server import RpcServer
from tallystick_server.rpc.service_client import ServiceClient
from tests.simulation.database import ConnectionCache, SimulatedDatabase
from tests.simulation.faults import CALL_FAULTS, HOUR_SECONDS, InjectedFault
from tests.simulation.loop import Node
from tests.simulation.network import (
    ConnectionBroken,
    SimulatedNetwork,
    SimulatedServer,
    Unreachable,
    exchange,
)
from tests.simulation.stripe import (
    PageAct,
    SimulatedTransport,
    StripeLookAlike,
    act_on_page,
    stripe_charges,
    stripe_payouts,
)
from tests.simulation.webhook_load import ParseEvent, WebhookLoad
from tests.simulation.world import PROVIDER_NODE, World
from tests.support.retry_policies import scaled_defaults

T = TypeVar("T")
R = TypeVar("R")

PAYMENT_PROVIDERS = ("sandbox", "sandbox_b", "sandbox_c")
"""The payment providers of a simulation with routing; otherwise only the first, which is Stripe in
some simulations.
"""
REPLACEABLE_PROVIDER = "sandbox_b"
"""The provider that an outage stops in a simulation with routing. Its charges have a fallback."""
_ROUTING = (
    RoutingRule(name="half", provider=REPLACEABLE_PROVIDER, fallback="sandbox_c", share=60),
    RoutingRule(name="eur", provider="sandbox_c", currencies=frozenset({"EUR"}), share=50),
)
TEAMS = ("team-1", "team-2")
"""Each is an owner with sellers of its own."""
OPERATOR = "operator"
LEASE_SECONDS = 6.0
_RESTART_DELAY_SECONDS = (0.05, 3.0)
_POLICIES = {
    **scaled_defaults(HOUR_SECONDS / 3600),
    RetryReason.POST_COMPLETION_POLL: RetryPolicy(RetryStrategy.FIXED, 1.5, 1.5, 4),
}
"""The default policies at the simulation's speed, except that the daily poll for a month is four
polls.
"""
_FINAL_NOT_FOUND = FinalNotFound(45.0, min_responses=2)
"""Longer than the delivery of a message plus a frozen process."""
_FAULTS_WITHOUT_REPEAT: Mapping[InjectedFault, float] = {
    fault: weight for fault, weight in CALL_FAULTS.items() if fault is not InjectedFault.REPEATED
}
SHOP = "https://shop.example"
"""Where hosted pages send buyers back."""
_PAGE_LIFETIME_SECONDS = (15.0, 40.0)
FEE_RATE = 25_000
"""In parts per million."""


def seller_of(team: str, name: str) -> str:
    """A seller that belongs to a team."""
    return f"seller-{name}-{team.partition('-')[2]}"


def other_team(team: str) -> str:
    return TEAMS[team == TEAMS[0]]


def settings(key_window: float, page_lifetime: float, *, routing: bool) -> Settings:
    """Settings with short intervals: a simulated minute is a long time. `routing`: rules choose
    among several payment providers.
    """
    callers = {name: Caller(name, frozenset({Role.TEAM, Role.PAYOUTS})) for name in TEAMS}
    callers[OPERATOR] = Caller(OPERATOR, frozenset({Role.OPERATOR, Role.AUDITOR}))
    callers["service"] = Caller("service", frozenset({Role.SERVICE}))
    return Settings().replace(
        environment="sim",
        routing=_ROUTING if routing else (),
        authentication="tokens",
        callers=callers,
        service_token="service",
        worker__lease_duration=LEASE_SECONDS,
        providers__timeout=3.0,
        worker__scan_interval=2.0,
        worker__relay_interval=3.0,
        breaker__failure_threshold=5,
        breaker__reset_timeout=0.5,
        breaker__max_reset_timeout=8.0,
        providers__key_window=key_window,
        payment__buyer_action_timeout=20.0,
        payment__hosted_page_lifetime=page_lifetime,
        payment__return_origins=dict.fromkeys(TEAMS, frozenset({SHOP})),
        worker__monitor_interval=10.0,
        payment__fee_rate=FEE_RATE,
        release_delay=86_400,
        payment__alert_after={"EXECUTING": 30, "PENDING": 60, "SUCCESS": 30},
        retry={("", reason): policy for reason, policy in _POLICIES.items()},
        risk__blocked_accounts=frozenset(seller_of(team, "blocked") for team in TEAMS),
        payment__seller_owner_max_age=10.0,
        payout__destination_cooldown=0.0,
        payout__approval_threshold={"EUR": 200_000},
        payout__alert_after={"MOVING": 30, "SUBMITTED": 60, "IN_TRANSIT": 60},
        reconciliation__posting_interval=4.0,
        reconciliation__lookup_interval=5.0,
        monitoring__record_interval=0,
    )


class Cluster:
    """Starts the nodes of a simulation, and restarts them after a crash. `urls`: each schema's
    database.
    """

    def __init__(
        self,
        world: World,
        urls: Mapping[str, str],
        connection_cache: ConnectionCache,
        key_window: float,
        webhooks: WebhookLoad,
        *,
        routing: bool,
        stripe: bool,
    ) -> None:
        self._world = world
        self._webhooks = webhooks
        self._has_stripe = stripe
        self._urls = urls
        self._connection_cache = connection_cache
        page_lifetime = world.seeded_random.uniform("lifetime of pages", *_PAGE_LIFETIME_SECONDS)
        self._settings = settings(key_window, page_lifetime, routing=routing)
        self._payment_providers = PAYMENT_PROVIDERS if routing else PAYMENT_PROVIDERS[:1]
        self.network = SimulatedNetwork(world)
        # Includes crashed processes: their objects must not be garbage-collected.
        self._services: list[Service] = []
        self._id_counter = count()
        self._request_counter = count()
        self._provider_node = Node(
            PROVIDER_NODE, world.seeded_random.uniform("clock of the provider", 0, 1000)
        )
        self.sandboxes: dict[str, Sandbox] = {}
        self.sandbox_payouts: SandboxPayouts
        self._stripe: StripeLookAlike
        world.on_process_death = self._restart

    def start(self, single_process_services: frozenset[str]) -> None:
        """Starts the provider and two processes of each service, or one of each of
        `single_process_services`.
        """
        world = self._world
        world.loop.deliver(self._provider_node, 0, self._start_provider)
        for service in service_names():
            for number in (1,) if service in single_process_services else (1, 2):
                self._start_process(f"{service}-{number}", 1)

    def client(self, name: str, token: str) -> AsyncClient:
        """The SDK's client for a caller with this token."""
        attempts = count()
        jitter = lambda: self._world.seeded_random.number(f"jitter of {name} {next(attempts)}")  # noqa: E731
        return _SimulatedClient(
            self.network,
            ClientSettings(
                token=token,
                tries=6,
                deadlines={
                    "CreatePayment": 8.0,
                    "CreatePayout": 8.0,
                    "ReconcileStatementFile": 60.0,  # a lost answer is noticed by nothing else
                },
                jitter=jitter,
            ),
        )

    async def act_on_page(self, session_id: str, act: PageAct) -> None:
        """A buyer does something on a page of Stripe. Raises Unreachable, ConnectionBroken."""
        is_down = self._world.is_unavailable(PROVIDER_NODE)
        node = None if is_down else self._provider_node
        await act_on_page(self._world, lambda: node, self._stripe.sandbox, session_id, act)

    def _new_id(self) -> UUID:
        return self._world.seeded_random.uuid(f"id {next(self._id_counter)}")

    def _new_request_id(self) -> UUID:
        return self._world.seeded_random.uuid(f"request {next(self._request_counter)}")

    def _database(
        self, url: str, _connections: int, new_id: Callable[[], UUID]
    ) -> SimulatedDatabase:
        return SimulatedDatabase(url, new_id, self._connection_cache)

    def _start_provider(self) -> None:
        database = self._database(self._urls["sandbox"], 1, self._new_id)
        for name in self._payment_providers:
            self.sandboxes[name] = Sandbox(
                database,
                name=name,
                key_window_seconds=self._settings.providers.key_window,
                new_id=self._new_request_id,
            )
            self.sandboxes[name].start()
        self.sandbox_payouts = SandboxPayouts(
            database,
            key_window_seconds=self._settings.providers.key_window,
            new_id=self._new_request_id,
        )
        self.sandbox_payouts.start()
        if self._has_stripe:
            self._stripe = StripeLookAlike(
                self._world,
                PAYMENT_PROVIDERS[0],
                database,
                self._new_id,
                self._settings.providers.key_window,
                self._report_signed if self._webhooks.is_used else None,
            )
            self._stripe.start()

    def _start_process(self, name: str, incarnation: int) -> None:
        node = Node(
            name,
            self._world.seeded_random.uniform(f"clock of {name} {incarnation}", 0, 1000),
            incarnation,
        )
        self._world.loop.deliver(node, 0, self._run_service, node)

    def _run_service(self, node: Node) -> None:
        """Does in the node what `serve` does in a process."""
        name = node.name.partition("-")[0]
        self._world.log(f"{node.name} starts")
        service_client = ServiceClient(self._settings.service_token, self.network.channel)
        providers = {name: self._payment_provider(name) for name in self._payment_providers}
        payout_provider = self._payout_provider()
        dependencies = Dependencies(
            self._new_id,
            self._database,
            providers,
            {payout_provider.name: payout_provider},
        )
        addresses = {service: service for service in service_names()}
        (service,) = Wiring(
            self._settings, self._urls, addresses, service_client, dependencies
        ).build([find_spec(name)])
        rpc_server, server = RpcServer(BearerTokens(self._settings.callers)), SimulatedServer()
        rpc_server.add_service(server, service.descriptor, service.servicer, service.access)  # type: ignore[arg-type]
        service.start()
        self._services.append(service)
        self.network.servers.setdefault(name, {})[node] = server

    def _payment_provider(self, name: str) -> PaymentProvider:
        """A provider as a process has it."""
        remote = _RemoteChargeProvider(
            self._world,
            self.sandboxes,
            self._provider_node,
            self._settings.providers.key_window,
            self._report,
            name,
            has_outages=len(self._payment_providers) == 1 or name == REPLACEABLE_PROVIDER,
        )
        if not self._has_stripe or name != PAYMENT_PROVIDERS[0]:
            return remote
        transport = self._stripe_transport(remote)
        return stripe_charges(self._settings.providers.terms(name), transport, _FINAL_NOT_FOUND)

    def _payout_provider(self) -> PayoutProvider:
        """The payout provider as a process has it."""
        remote = _RemotePayoutProvider(
            self._world,
            lambda: self.sandbox_payouts,
            self._provider_node,
            self._settings.providers.key_window,
            self._report,
        )
        if not self._has_stripe:
            return remote
        return stripe_payouts(
            self._settings.providers.terms(remote.name),
            self._stripe_transport(remote),
            _FINAL_NOT_FOUND.min_seconds_since_sent,
        )

    def _stripe_transport(self, remote: _RemoteProvider) -> SimulatedTransport:
        return SimulatedTransport(self._world, remote.find_node, lambda: self._stripe.sandbox)

    def _report_signed(self, event_id: str, parse: ParseEvent) -> None:
        """Stripe reports an event by webhook."""
        client = self.client(f"webhooks of {event_id}", "service")
        self._webhooks.report_signed(client, event_id, parse)

    def _report(self, provider: str, service: str, subject_id: str, reply: Reply) -> None:
        """The provider reports an answer by webhook too."""
        client = self.client(f"webhooks of {subject_id}", "service")
        self._webhooks.report(client, provider, service, subject_id, reply)

    def _restart(self, node: Node) -> None:
        self.network.servers.get(node.name.partition("-")[0], {}).pop(node, None)
        delay_seconds = self._world.seeded_random.uniform(
            f"rest of {node.name} {node.incarnation}", *_RESTART_DELAY_SECONDS
        )
        self._world.loop.deliver(
            self._world.loop.outside,
            delay_seconds,
            self._start_process,
            node.name,
            node.incarnation + 1,
        )


class _SimulatedClient(AsyncClient):
    """The SDK's client over the simulated network."""

    def __init__(self, network: SimulatedNetwork, settings: ClientSettings) -> None:
        self._network = network
        super().__init__(
            "payment",
            ledger="ledger",
            wallet="wallet",
            payout="payout",
            event="event",
            reconciliation="reconciliation",
            monitoring="monitoring",
            settings=settings,
        )

    def _channel(self, target: str) -> Any:
        return self._network.channel(target)


_Report = Callable[[str, str, str, Reply], None]
"""Reports an answer by webhook, with the service and the id of what it is about."""


class _RemoteProvider:
    """A provider that a process calls over the simulated network."""

    name = "sandbox"
    final_not_found: FinalNotFound | None = _FINAL_NOT_FOUND
    hosts_pages: bool = False

    def __init__(
        self,
        world: World,
        node: Node,
        key_window: float,
        report: _Report,
        *,
        has_outages: bool = True,
    ) -> None:
        self.key_window = key_window
        self._has_outages = has_outages
        self._world = world
        self._node = node
        self._report = report

    async def call(
        self,
        verb: str,
        subject: str,
        fault_weights: Mapping[InjectedFault, float],
        work: Callable[[], Awaitable[T]],
        describe: Callable[[T], str],
    ) -> T | NotSent | Unknown:
        """The provider's answer, if it arrives; otherwise the outcome that the failure implies."""
        call_name = f"{self._world.loop.current_node.name} asks to {verb} {subject}"

        async def serve(_: Node) -> T:
            reply = await work()
            self._world.log(f"provider answers to {verb} {subject}: {describe(reply)}")
            return reply

        try:
            return await exchange(
                self._world,
                call_name,
                fault_weights,
                self.find_node,
                serve,
                propagate_cancel=False,
            )
        except Unreachable:
            return NotSent("the connection was refused")
        except ConnectionBroken:
            return Unknown("the connection broke")

    def find_node(self) -> Node | None:
        """The provider's node; None: it has an outage."""
        is_down = self._has_outages and self._world.is_unavailable(PROVIDER_NODE)
        return None if is_down else self._node


class _RemoteChargeProvider(_RemoteProvider):
    """The charging sandbox; the real adapter maps replies to outcomes."""

    def __init__(
        self,
        world: World,
        sandboxes: Mapping[str, Sandbox],
        node: Node,
        key_window: float,
        report: _Report,
        name: str,
        *,
        has_outages: bool,
    ) -> None:
        super().__init__(world, node, key_window, report, has_outages=has_outages)
        self.name = name
        self._sandboxes = sandboxes

    def _sandbox(self) -> Sandbox:
        return self._sandboxes[self.name]

    def reject_amount(self, amount: int, currency: str, method: str) -> str | None:
        return None

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        return await self._call(
            "charge", request, lambda: self._sandbox().charge(request), to_outcome
        )

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return await self._call(
            "look up",
            request,
            lambda: self._sandbox().look_up(request.charge_id),
            to_lookup_outcome,
        )

    async def cancel(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return await self._call(
            "cancel", request, lambda: self._sandbox().cancel(request.charge_id), to_lookup_outcome
        )

    async def _call(
        self,
        verb: str,
        request: ChargeRequest,
        work: Callable[[], Awaitable[Reply]],
        parse: Callable[[Reply], R],
    ) -> R | NotSent | Unknown:
        async def answer() -> Reply:
            reply = await work()
            self._report(self.name, "payment", request.charge_id, reply)
            return reply

        where = verb if self.name == PAYMENT_PROVIDERS[0] else f"{verb} at {self.name}"
        reply = await self.call(
            where, request.charge_id, _fault_weights(request.payment_token), answer, _describe_reply
        )
        return parse(noted(reply)) if isinstance(reply, Reply) else reply


class _RemotePayoutProvider(_RemoteProvider):
    """The payout sandbox; the real adapter maps replies to outcomes."""

    max_batch_size = MAX_BATCH_SIZE

    def __init__(
        self,
        world: World,
        sandbox_payouts: Callable[[], SandboxPayouts],
        node: Node,
        key_window: float,
        report: _Report,
    ) -> None:
        super().__init__(world, node, key_window, report)
        self._sandbox_payouts = sandbox_payouts

    def reject_amount(self, amount: int, currency: str) -> str | None:
        return None

    async def submit(self, requests: Sequence[PayoutRequest]) -> Sequence[PayoutOutcome]:
        fault_weights = (
            _FAULTS_WITHOUT_REPEAT
            if any(
                _fault_weights(request.bank_account_token) is _FAULTS_WITHOUT_REPEAT
                for request in requests
            )
            else CALL_FAULTS
        )
        payout_ids = " ".join(request.payout_id for request in requests)

        async def answer() -> Sequence[Reply]:
            answers = await self._sandbox_payouts().submit(requests)
            for request, reply in zip(requests, answers, strict=True):
                self._report(self.name, "payout", request.payout_id, reply)
            return answers

        replies = await self.call(
            "pay",
            payout_ids,
            fault_weights,
            answer,
            lambda batch_replies: ", ".join(map(_describe_reply, batch_replies)),
        )
        return (
            [replies] * len(requests)
            if isinstance(replies, NotSent | Unknown)
            else [to_payout_outcome(noted(reply)) for reply in replies]
        )

    async def look_up(self, request: PayoutRequest) -> PayoutLookupOutcome:
        async def answer() -> Reply:
            reply = await self._sandbox_payouts().look_up(request.payout_id)
            self._report(self.name, "payout", request.payout_id, reply)
            return reply

        reply = await self.call(
            "look up payout",
            request.payout_id,
            CALL_FAULTS,
            answer,
            _describe_reply,
        )
        return to_payout_lookup_outcome(noted(reply)) if isinstance(reply, Reply) else reply

    async def verify(self, bank_account_token: str, currency: str) -> VerificationOutcome:
        reply = await self.call(
            "verify",
            f"{bank_account_token} {currency}",
            CALL_FAULTS,
            lambda: self._sandbox_payouts().verify(bank_account_token),
            _describe_reply,
        )
        return to_verification_outcome(reply) if isinstance(reply, Reply) else reply


def _fault_weights(token: str) -> Mapping[InjectedFault, float]:
    """The faults that are possible on this path. A request whose connection was refused is not
    delivered a second time.
    """
    return _FAULTS_WITHOUT_REPEAT if "unreachable" in token else CALL_FAULTS


def _describe_reply(reply: Reply) -> str:
    return f"{reply.status} {reply.state or reply.code}"
