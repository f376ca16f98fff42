"""The way of a demand: execute → record → settle, or postpone. First try, retry and recovery all go this one way."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from sqlalchemy import Connection

from tallystick_core.provider import Answer, Declined, FailureReason, NotFound, NotSent, Trouble, Unknown
from tallystick_core.recovery import Step
from tallystick_core.refusal import Refused, overloaded
from tallystick_server.runtime.breaker import BreakerSettings
from tallystick_server.runtime.demand import InHand
from tallystick_server.runtime.execute import Execute, HeldBack
from tallystick_server.runtime.peers import PeerRefused
from tallystick_server.runtime.periodic import Periodic
from tallystick_server.runtime.postpone import Postpone, Troubled, trouble_of, troubled
from tallystick_server.runtime.retry import Policies, spread
from tallystick_server.runtime.stage import Stage
from tallystick_server.runtime.wire import MOST_ITEMS
from tallystick_storage import due, duty
from tallystick_storage.database import Database, DataRefused

log = logging.getLogger(__name__)

H = TypeVar("H", bound=InHand)
G = TypeVar("G")
R = TypeVar("R")

_MOST_CLAIMED = 200
_MAX_TEAM_HANDOVERS = 1_000
_WATCH_TURN = 5.0  # seconds after which another process asks what became of what has ended; two at a time would do no harm
_REFERENCES = frozenset({"provider_money_pkey", "transfer_pkey"})
"""Constraints by which what a provider moved, by its own name for it, is the money of one demand."""
TELLING_LANES = 4
"""Batches at a time of what is told to other services: most of that time goes by in waiting for them."""


class Apart(Protocol):
    """What runs work in a task that a cancelled caller does not end."""

    async def __call__(self, work: Callable[[], Coroutine[Any, Any, R]], *, of_team: bool = False) -> R: ...


class SettlingRefused(Exception):
    """Wallet or ledger refused what they were told, for ever."""


@dataclass(frozen=True, slots=True)
class FlowSettings:
    """Seconds and limits. `lease` outlasts a provider call by more than LEASE_MARGIN, in which its answer is recorded."""

    lease: float
    provider_timeout: float
    provider_calls: int
    sweep_interval: float
    policies: Policies
    breaker: BreakerSettings
    max_in_flight: int = 8_000
    owner_share: float = 0.5
    """The part of that which one owner's payments may take while they wait to be stored."""


class Flow(ABC, Generic[H, G]):
    """Takes demands on their way. What a process does not finish, a sweep of any process takes up.

    `providers`: the ports its demands are asked by; `G` is what a service makes of demands that failed.
    """

    def __init__(self, service: str, database: Database, providers: Mapping[str, Any], settings: FlowSettings) -> None:
        self.lease = settings.lease
        self.execute = Execute(providers, self._still_ours, most=settings.provider_calls, timeout=settings.provider_timeout, breaker=settings.breaker)
        self._database = database
        self._providers = providers
        self._postpone: Stage[Troubled[H], G] = Stage(
            f"{service}.postpone",
            Postpone(database, settings.policies, self.lock_undecided, self.fail).run,
            most=MOST_ITEMS,
            weight=lambda one: one.item.weight,
        )
        self._held: Stage[InHand, bool] = Stage(f"{service}.held", self._are_held)
        self._stages: list[Stage[Any, Any]] = [self._postpone, self._held]
        self._sweeping = Periodic(f"{service}.sweep", settings.sweep_interval, self.sweep)
        self._periodic = [self._sweeping]
        self._max_in_flight = settings.max_in_flight
        self._tasks: dict[asyncio.Task[None], H] = {}
        self._in_flight: Counter[str] = Counter()  # by provider
        self._handovers: set[asyncio.Task[Any]] = set()
        self._team_handovers: set[asyncio.Task[Any]] = set()  # those of teams' calls
        self._backlog = False
        self._stopping = False
        self._left: list[H] = []  # taken while stopping

    @abstractmethod
    def load(self, connection: Connection, tokens: dict[str, int], now: float) -> Sequence[H]:
        """The demands that were claimed under these lease tokens at this time of the loop."""

    @abstractmethod
    def demand_id(self, subject: str) -> str:
        """The id of the demand that a dead letter's subject names."""

    def lock_undecided(self, connection: Connection, demand_ids: list[str], others: Sequence[str] = ()) -> set[str]:
        """Those of the demands that nobody has an answer to, locked so that none is written down meanwhile; with the due work of all and others."""
        undecided = due.lock_open_attempts(connection, demand_ids)
        due.lock(connection, [*demand_ids, *others])
        return undecided

    @abstractmethod
    async def record(self, item: H, outcome: Any) -> H:  # of the answers of its port
        """Writes a provider's answer down; the demand as it stands after it."""

    @abstractmethod
    async def settle(self, item: H) -> None:
        """Tells wallet and ledger. Raises SettlingRefused, PeerRefused, DataRefused, or Refused for what may be tried again."""

    @abstractmethod
    def fail(self, connection: Connection, given_up: Sequence[Troubled[H]]) -> G:
        """Fails demands that surely moved nothing."""

    @abstractmethod
    def close(self, connection: Connection, item: H, operator: str, reason: str) -> G:
        """Fails a demand, as an operator has decided."""

    @abstractmethod
    def failed(self, item: H, made: G) -> None:
        """Says what was made of a demand in the batch in which it was given up, or postponed, or when it was closed."""

    def start(self) -> None:
        for stage in self._stages:
            stage.start()
        for work in self._periodic:
            work.start()

    async def drain(self, patience: float) -> None:
        """Takes up nothing more that is due, lets what is in flight end for so many seconds, and gives the leases of the rest back."""
        for work in self._periodic:
            await work.stop()
        deadline = asyncio.get_running_loop().time() + patience
        while not self.idle and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - idle is the sum of many parts
            await asyncio.sleep(0.02)
        self._stopping = True
        left = dict(self._tasks)
        for task in (*left, *self._handovers):
            task.cancel()
        await asyncio.gather(*left, *self._handovers, return_exceptions=True)
        tokens = {item.demand_id: item.lease_token for item in (*left.values(), *self._left)}
        if not tokens:
            return
        try:
            await self._database.transact(lambda connection: due.give_back(connection, tokens))
        except Refused as refused:  # the database is away: the leases end by themselves
            log.warning("The leases of %d operations could not be given back: %s", len(tokens), refused)

    async def stop(self) -> None:
        """Ends the stages; after `drain`."""
        for stage in self._stages:
            await stage.stop()

    @property
    def idle(self) -> bool:
        """Whether this process has nothing in hand."""
        return not self._tasks and not self._handovers and all(stage.idle for stage in self._stages)

    @property
    def in_hand(self) -> int:
        """How many demands this process works on."""
        return len(self._tasks)

    def take(self, item: H) -> None:
        """Takes a demand that this process holds the lease of on its way."""
        if self._stopping:
            self._left.append(item)
            return
        task = asyncio.create_task(self._guarded(item))
        self._tasks[task] = item
        self._in_flight[item.provider] += 1
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._in_flight[self._tasks.pop(task).provider] -= 1
        if self._backlog and not self._stopping and len(self._tasks) <= self._max_in_flight // 4:
            self._backlog = False
            self._sweeping.wake()

    def refuse_overload(self) -> None:
        """Raises OVERLOADED if as many operations are in flight as this process takes."""
        if len(self._tasks) >= self._max_in_flight:
            raise overloaded("operations are in flight in this process")

    async def apart(self, work: Callable[[], Coroutine[Any, Any, R]], *, of_team: bool = False) -> R:
        """Runs what commits a lease and takes the work up, in a task of the flow: a caller that goes away leaves no work leased to nobody.

        `of_team`: whether it is a team's call that waits. Such calls are bounded, and never refuse the platform's own work or an operator's. Raises
        OVERLOADED for a team's.
        """
        if of_team and len(self._team_handovers) >= _MAX_TEAM_HANDOVERS:
            raise overloaded("changes wait for the database")
        task = asyncio.create_task(work())
        for kept in (self._handovers, self._team_handovers) if of_team else (self._handovers,):
            kept.add(task)
            task.add_done_callback(kept.discard)
        return await asyncio.shield(task)

    def turn_to_watch(self, holder: UUID) -> Callable[[Connection], bool]:
        """Whether this process is to ask what became of what has ended: one of those with the same providers, as long as it comes back in time."""
        return lambda connection: duty.take_turn(connection, f"watch {','.join(sorted(self._providers))}", holder, _WATCH_TURN)

    def wake(self) -> None:
        """Has what is due taken up now."""
        self._sweeping.wake()

    async def sweep(self) -> None:
        """Takes up what is due and what a dead process left behind; again at once while a provider has more and there is room for it."""
        await self.apart(self._sweep)

    async def _sweep(self) -> None:
        # each provider has its own share, so the backlog of one keeps no other waiting; half of the room is left to new operations
        share = max(self._max_in_flight // 2 // max(len(self._providers), 1), 1)
        most = {provider: min(_MOST_CLAIMED, share - self._in_flight[provider]) for provider in sorted(self._providers)}
        now = asyncio.get_running_loop().time()

        def claim(connection: Connection) -> tuple[Sequence[H], list[str]] | None:
            tokens: dict[str, int] = {}
            full = []  # those that may have more
            for provider, count in most.items():
                claimed = due.claim(connection, provider, count, self.lease) if count > 0 else {}
                if len(claimed) == max(count, 0):
                    full.append(provider)
                tokens |= claimed
            for provider in due.providers(connection):
                if provider not in most:  # one that is not configured any more: what needs no provider goes on
                    tokens |= due.claim(connection, provider, _MOST_CLAIMED, self.lease)
            if not tokens and not full:
                return None
            return self.load(connection, tokens, now) if tokens else (), full

        claimed: tuple[Sequence[H], list[str]] | None = await self._database.transact(claim)
        items, full = claimed or ((), [])
        for item in items:
            self.take(item)
        self._backlog = bool(full)
        if any(most[provider] > 0 and share > self._in_flight[provider] for provider in full):
            self._sweeping.wake()

    async def _still_ours(self, item: InHand) -> bool:
        return await self._held.submit(item)

    async def _are_held(self, items: Sequence[InHand]) -> Sequence[bool]:
        held = await self._database.load(lambda connection: due.held(connection, [item.demand_id for item in items]))
        return [held.get(item.demand_id) == item.lease_token for item in items]

    async def _guarded(self, item: H) -> None:
        """What fails on its way keeps its lease until it ends; then the sweep takes it up."""
        try:
            await self.bring_on(item)
        except Refused as refused:
            log.warning("%s waits for the sweep: %s", item.subject, refused)
        except Exception:
            log.exception("%s failed on its way; it waits for the sweep", item.subject)

    async def bring_on(self, item: H) -> None:
        """Takes a demand as far as it comes now."""
        now, window = asyncio.get_running_loop().time(), self.execute.key_window(item.provider)
        step = item.step(now, window, self.lease)
        if step is Step.SETTLE:
            await self.settled(item)
            return
        ending = item.ending(now)
        if (unasked := _unasked(item, step, ending)) is not None:
            await self._postponed(unasked)
            return
        known = item.answer if step is Step.JUDGE else None
        step, outcome = (step, known) if known else await self._ask(item, step)
        if isinstance(outcome, HeldBack):
            wait = outcome.seconds + spread(outcome.seconds, item.demand_id)
            await self._postponed(Troubled(item, Trouble.HELD_BACK, outcome.why, step, wait))
            return
        if isinstance(outcome, Declined) and outcome.reason is FailureReason.CALLER_CANCELLED and ending is not None:
            outcome = replace(outcome, reason=ending)
        if isinstance(outcome, NotFound):
            await self._postponed(self._not_found(item, outcome, step, now))
            return
        trouble = troubled(item, outcome, step, key_honoured=item.key_honoured(window, self.lease))
        if trouble is None or step is Step.SEND or trouble.trouble is Trouble.WAITING:
            try:
                item = await self.record(item, outcome)
            except DataRefused as error:
                log.error("the answer to %s cannot be stored or applied: %s", item.subject, error)  # noqa: TRY400 - where it happened says nothing
                await self._postponed(_unstorable(item, outcome, step, error))
                return
        if item.to_settle:
            await self.settled(item)
        elif trouble is not None:
            await self._postponed(replace(trouble, item=item))

    async def _ask(self, item: H, step: Step) -> tuple[Step, Answer | HeldBack]:
        """What the provider says, and to which step: while its sends are held back, what may have been sent before is looked up instead."""
        outcome = await self.execute.ask(item, step)
        sends = step is Step.SEND and item.circuit(step) is not item.circuit(Step.LOOK_UP)
        if sends and item.maybe_sent and isinstance(outcome, HeldBack):
            found = await self.execute.ask(item, Step.LOOK_UP)
            if not isinstance(found, HeldBack | NotFound | NotSent | Unknown):
                return Step.LOOK_UP, found
        return step, outcome

    def _not_found(self, item: H, outcome: NotFound, step: Step, now: float) -> Troubled[H]:
        """What it means that the provider does not know a demand that was taken up at this time of the loop.

        One that is not wanted any more fails once that is proof that nothing was charged, and is taken up again as soon as it can be.
        """
        ending = item.ending(now)
        final = self.execute.final_not_found(item.provider) if ending is not None else None
        if ending is not None and final is not None and item.since_sent is not None:
            if final.proves(item.not_found + 1, item.since_sent):
                return Troubled(item, Trouble.NOT_FOUND, f"{outcome.detail}: {ending}", step, give_up=ending)
            if item.since_sent < final.seconds:
                item = replace(item, look_by=min(item.look_by, now + final.seconds - item.since_sent))
        again = replace(item, not_found=item.not_found + 1)
        key_honoured = again.key_honoured(self.execute.key_window(item.provider), self.lease)
        trouble = trouble_of(item, Trouble.NOT_FOUND, step, key_honoured=key_honoured)
        return Troubled(item, trouble, outcome.detail, step, not_found=True)

    async def settled(self, item: H) -> None:
        """Tells wallet and ledger, now or later."""
        await self.told(item, self.settle(item))

    async def told(self, item: H, telling: Awaitable[R]) -> R | None:
        """What wallet or ledger made of it; None: they did not answer, or refused it, and the demand is postponed.

        What they do not answer, to any caller, is tried without end; what they refuse of this one item alone is tried as often as its policy says.
        """
        try:
            return await telling
        except SettlingRefused as refused:
            await self._postponed(Troubled(item, Trouble.SETTLING_REFUSED, str(refused), Step.SETTLE))
        except PeerRefused as refused:
            trouble = Trouble.CALLER_REJECTED if refused.rejects_caller else Trouble.SETTLING_FAILED
            await self._postponed(Troubled(item, trouble, str(refused), Step.SETTLE))
        except DataRefused as error:
            await self._postponed(Troubled(item, Trouble.SETTLING_FAILED, str(error), Step.SETTLE))
        except Refused as unavailable:
            await self._postponed(Troubled(item, Trouble.UNSETTLED, unavailable.message, Step.SETTLE))
        return None

    async def _postponed(self, troubled: Troubled[H]) -> None:
        item = troubled.item
        log.info("%s does not come on: %s %s", item.subject, troubled.trouble, troubled.detail)
        self.failed(item, await self._postpone.submit(troubled, item.context))


def is_anothers_money(error: DataRefused) -> bool:
    """Whether an answer cannot be stored because its reference is the money of another demand."""
    return error.constraint in _REFERENCES


def _unstorable(item: H, outcome: Answer, step: Step, error: DataRefused) -> Troubled[H]:
    """What becomes of a demand whose answer the database refuses: a person has to look, whatever is wrong with it."""
    if is_anothers_money(error):
        reference = getattr(outcome, "reference", "")
        return Troubled(item, Trouble.MISDIRECTED, f"what its provider says it is, {reference}, is the money of another one", step)
    if step is Step.JUDGE:
        return Troubled(item, Trouble.APPLYING_FAILED, f"its answer is stored and cannot be applied: {type(outcome).__name__}", step)
    return Troubled(item, Trouble.REJECTED, f"its answer cannot be stored: {type(outcome).__name__}", step)


def _unasked(item: H, step: Step, ending: FailureReason | None) -> Troubled[H] | None:
    """What becomes of a demand of which no provider is asked; None: one is asked."""
    if step is Step.GIVE_UP and ending is not None:
        return Troubled(item, Trouble.NOT_SENT, f"it was never sent: {ending}", step, give_up=ending)
    return Troubled(item, Trouble.REJECTED, "risk has not passed it", step) if step is Step.RISK else None
