"""The way of a payment: accept → execute → record → settle, or postpone. First try, retry and recovery all go this one way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from tallystick.payment.v1 import payment_pb2
from tallystick_core.payment import FeeRates, PaymentEvent
from tallystick_core.provider import Declined, FailureReason, Outcome, PaymentProvider, Pending, PendingReason, Trouble
from tallystick_core.recovery import Step
from tallystick_core.refusal import Refused
from tallystick_core.risk import RiskCheck
from tallystick_server.payment.accept import Accept, Accepted, Arrival
from tallystick_server.payment.changes import Changes
from tallystick_server.payment.charge import Charge, stored_charges
from tallystick_server.payment.dead_letters import DeadLetters
from tallystick_server.payment.execute import Execute, HeldBack
from tallystick_server.payment.postpone import Postpone, Troubled, troubled
from tallystick_server.payment.record import Answered, Record, Recorded
from tallystick_server.payment.settle import Settle, SettlingRefused
from tallystick_server.payment.unapplied import BookUnapplied
from tallystick_server.runtime.breaker import BreakerSettings
from tallystick_server.runtime.fields import MOST_ITEMS
from tallystick_server.runtime.peers import Peers
from tallystick_server.runtime.periodic import Periodic
from tallystick_server.runtime.retry import Policies, spread
from tallystick_server.runtime.stage import Stage
from tallystick_server.runtime.telemetry import current_context, traceparent
from tallystick_storage import due
from tallystick_storage import payment as store
from tallystick_storage.database import Database

log = logging.getLogger(__name__)

_MOST_CLAIMED = 200


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """Names, seconds and limits. `lease` outlasts a provider call by more than LEASE_MARGIN, in which its answer is recorded."""

    environment: str
    provider: str
    lease: float
    provider_timeout: float
    provider_calls: int
    sweep_interval: float
    policies: Policies
    breaker: BreakerSettings
    waiting_depth: int
    """How many charges may wait for a provider that fails, before new ones are refused."""
    resolve_within: Mapping[PendingReason, float]
    """Seconds that a pending order has."""


class Flow:
    """The stages of pay-in, joined. What a process does not finish, a sweep of any process takes up."""

    def __init__(
        self,
        database: Database,
        risk: RiskCheck,
        fees: FeeRates,
        providers: Mapping[str, PaymentProvider],
        peers: Peers,
        wallet_address: str,
        ledger_address: str,
        settings: FlowSettings,
    ) -> None:
        self.changes = Changes()
        self._database = database
        self._settings = settings
        self._providers = providers
        self._execute = Execute(providers, most=settings.provider_calls, timeout=settings.provider_timeout, breaker=settings.breaker)
        accept = Accept(database, risk, fees, settings.provider, settings.environment, settings.lease, self.take, self._room)
        self._accept: Stage[Arrival, Accepted] = Stage("payment.accept", accept.run, most=MOST_ITEMS, weight=lambda one: len(one.event.orders))
        self._record: Stage[Answered, Recorded] = Stage(
            "payment.record", Record(database, settings.resolve_within).run, most=MOST_ITEMS, weight=lambda one: len(one.charge.orders)
        )
        settle = Settle(database, peers, wallet_address, ledger_address)
        self._settle: Stage[Charge, payment_pb2.Payment | None] = Stage(
            "payment.settle", settle.run, most=MOST_ITEMS, weight=lambda one: len(one.orders), lanes=2
        )
        self._postpone: Stage[Troubled, payment_pb2.Payment | None] = Stage(
            "payment.postpone", Postpone(database, settings.policies).run, most=MOST_ITEMS, weight=lambda one: len(one.charge.orders)
        )
        self.dead_letters = DeadLetters(database, self._execute, self._record, self.changes, settings.lease)
        self._stages = (self._accept, self._record, self._settle, self._postpone)
        unapplied = BookUnapplied(database, peers, ledger_address)
        self._periodic = (
            Periodic("payment.sweep", settings.sweep_interval, self.sweep),
            Periodic("payment.unapplied", settings.sweep_interval, unapplied.turn),
        )
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        for stage in self._stages:
            stage.start()
        for work in self._periodic:
            work.start()

    async def stop(self, patience: float) -> None:
        """Lets what is in hand come to rest for so many seconds, then leaves the rest to the sweep of another process."""
        for work in self._periodic:
            await work.stop()
        deadline = asyncio.get_running_loop().time() + patience
        while not self.idle and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - idle is the sum of many parts
            await asyncio.sleep(0.02)
        for task in self._tasks:
            task.cancel()
        for stage in self._stages:
            await stage.stop()

    @property
    def idle(self) -> bool:
        """Whether this process has nothing in hand."""
        return not self._tasks and all(stage.idle for stage in self._stages)

    async def accept(self, event: PaymentEvent) -> Accepted:
        """Stores a payment or finds it; its charges are under way when this returns. Raises KEY_REUSED, ID_TAKEN."""
        return await self._accept.submit(Arrival(event, event.fingerprint(), traceparent(), current_context()))

    def _room(self, connection: Connection) -> int | None:
        """How many more charges may wait, while the provider of new ones fails; None: any number."""
        provider = self._settings.provider
        if not self._execute.is_held_back(provider):
            return None
        depth = self._settings.waiting_depth
        return depth - due.backlog(connection, provider, depth)

    async def cancel(self, checkout_id: str, reason: str) -> str:
        """Cancels a payment that is open; the reason that stands, "" if it had ended before. Its charges are taken up at once."""
        stands = await self._database.transact(lambda connection: store.cancel(connection, checkout_id, reason))
        await self.sweep()
        return stands

    def take(self, charge: Charge) -> None:
        """Takes a charge that this process holds the lease of on its way."""
        task = asyncio.create_task(self._guarded(charge))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def sweep(self) -> None:
        """Takes up what is due and what a dead process left behind."""
        lease = self._settings.lease

        def claim(connection: Connection) -> dict[str, int]:
            tokens: dict[str, int] = {}
            for provider in sorted(self._providers):  # each by itself: the backlog of one keeps nobody else waiting
                tokens |= due.claim(connection, provider, _MOST_CLAIMED, lease)
            return tokens

        now = asyncio.get_running_loop().time()
        tokens = await self._database.transact(claim)
        if not tokens:
            return
        rows = await self._database.read(lambda connection: due.charges(connection, list(tokens)))
        for charge in stored_charges(rows, tokens, now, lease):
            self.take(charge)

    async def _guarded(self, charge: Charge) -> None:
        """A charge that fails on its way keeps its lease until it ends; then the sweep takes it up."""
        try:
            await self._brought_on(charge)
        except Refused as refused:
            log.warning("charge %s waits for the sweep: %s", charge.charge_id, refused)
        except Exception:
            log.exception("charge %s failed on its way; it waits for the sweep", charge.charge_id)

    async def _brought_on(self, charge: Charge) -> None:
        """As far as it comes now."""
        now = asyncio.get_running_loop().time()
        step = charge.step(now, self._providers[charge.provider].key_window, self._settings.lease)
        if step is Step.SETTLE:
            await self._settled(charge)
            return
        ending = charge.ending(now)
        if step is Step.GIVE_UP and ending is not None:
            await self._postponed(Troubled(charge, Trouble.NOT_SENT, f"it was never sent: {ending}", give_up=ending))
            return
        outcome = charge.answer if step is Step.JUDGE else await self._execute.charge(charge, step)
        if outcome is None:
            return
        if isinstance(outcome, HeldBack):
            wait = outcome.seconds + spread(outcome.seconds, charge.charge_id)
            await self._postponed(Troubled(charge, Trouble.HELD_BACK, "the provider fails too often to be asked now", wait))
            return
        if isinstance(outcome, Declined) and outcome.reason is FailureReason.CALLER_CANCELLED and ending is not None:
            outcome = replace(outcome, reason=ending)
        trouble = troubled(charge, outcome, step)
        if trouble is None or step is Step.SEND or trouble.trouble is Trouble.WAITING:
            charge = await self._recorded(charge, outcome)
        if charge.succeeded:
            await self._settled(charge)
        elif trouble is not None:
            await self._postponed(replace(trouble, charge=charge))

    async def _recorded(self, charge: Charge, outcome: Outcome) -> Charge:
        recorded = await self._record.submit(Answered(charge, outcome), charge.context)
        rests = isinstance(outcome, Declined | Pending) or recorded.closed is not None
        self.changes.happened(charge.checkout_id, rest=rests, closed=recorded.closed)
        return recorded.charge

    async def _settled(self, charge: Charge) -> None:
        try:
            closed = await self._settle.submit(charge, charge.context)
        except SettlingRefused as refused:
            await self._postponed(Troubled(charge, Trouble.SETTLING_REFUSED, str(refused)))
        except Refused as unavailable:
            await self._postponed(Troubled(charge, Trouble.UNSETTLED, unavailable.message))
        else:
            self.changes.happened(charge.checkout_id, rest=True, closed=closed)

    async def _postponed(self, troubled: Troubled) -> None:
        charge = troubled.charge
        log.info("charge %s does not come on: %s %s", charge.charge_id, troubled.trouble, troubled.detail)
        closed = await self._postpone.submit(troubled, charge.context)
        if closed is not None:
            self.changes.happened(charge.checkout_id, rest=True, closed=closed)
