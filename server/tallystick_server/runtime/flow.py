"""The way of a demand: execute → record → settle, or postpone. First try, retry and recovery all go this one way."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from tallystick_core.provider import Answer, Declined, FailureReason, NotFound, Trouble
from tallystick_core.recovery import Step
from tallystick_core.refusal import Refused
from tallystick_server.runtime.breaker import BreakerSettings
from tallystick_server.runtime.demand import InHand
from tallystick_server.runtime.execute import Execute, HeldBack
from tallystick_server.runtime.periodic import Periodic
from tallystick_server.runtime.postpone import Postpone, Troubled, trouble_of, troubled
from tallystick_server.runtime.retry import Policies, spread
from tallystick_server.runtime.stage import Stage
from tallystick_server.runtime.wire import MOST_ITEMS
from tallystick_storage import due
from tallystick_storage.database import Database, DataRefused

log = logging.getLogger(__name__)

H = TypeVar("H", bound=InHand)
G = TypeVar("G")
R = TypeVar("R")

_MOST_CLAIMED = 200
_REFERENCES = frozenset({"attempt_reference", "transfer_pkey"})
"""Constraints by which what a provider moved, by its own name for it, is the money of one demand."""
TELLING_LANES = 4
"""Batches at a time of what is told to other services: most of that time goes by in waiting for them."""


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
        self._periodic = [Periodic(f"{service}.sweep", settings.sweep_interval, self.sweep)]
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    def load(self, connection: Connection, tokens: dict[str, int], now: float) -> Sequence[H]:
        """The demands that were claimed under these lease tokens at this time of the loop."""

    @abstractmethod
    def demand_id(self, subject: str) -> str:
        """The id of the demand that a dead letter's subject names."""

    def lock_undecided(self, connection: Connection, demand_ids: list[str]) -> set[str]:
        """Those of the demands that nobody has an answer to, locked so that none is written down meanwhile."""
        return due.lock_open_attempts(connection, demand_ids)

    @abstractmethod
    async def record(self, item: H, outcome: Any) -> H:  # of the answers of its port
        """Writes a provider's answer down; the demand as it stands after it."""

    @abstractmethod
    async def settle(self, item: H) -> None:
        """Tells wallet and ledger. Raises SettlingRefused, or Refused for what may be tried again."""

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

    @property
    def in_hand(self) -> int:
        """How many demands this process works on."""
        return len(self._tasks)

    def take(self, item: H) -> None:
        """Takes a demand that this process holds the lease of on its way."""
        task = asyncio.create_task(self._guarded(item))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def sweep(self) -> None:
        """Takes up what is due and what a dead process left behind."""

        def claim(connection: Connection) -> dict[str, int]:
            tokens: dict[str, int] = {}
            for provider in sorted(self._providers):  # each by itself: the backlog of one keeps nobody else waiting
                tokens |= due.claim(connection, provider, _MOST_CLAIMED, self.lease)
            return tokens

        now = asyncio.get_running_loop().time()
        tokens = await self._database.transact(claim)
        if not tokens:
            return
        for item in await self._database.load(lambda connection: self.load(connection, tokens, now)):
            self.take(item)

    async def _still_ours(self, item: InHand) -> bool:
        return await self._held.submit(item)

    async def _are_held(self, items: Sequence[InHand]) -> Sequence[bool]:
        held = await self._database.read(lambda connection: due.held(connection, [item.demand_id for item in items]))
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
        outcome = known or await self.execute.ask(item, step)
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
                log.error("the answer to %s cannot be stored: %s", item.subject, error)  # noqa: TRY400 - where it happened says nothing
                await self._postponed(_unstorable(item, outcome, step, error))
                return
        if item.to_settle:
            await self.settled(item)
        elif trouble is not None:
            await self._postponed(replace(trouble, item=item))

    def _not_found(self, item: H, outcome: NotFound, step: Step, now: float) -> Troubled[H]:
        """What it means that the provider does not know a demand that was taken up at this time of the loop.

        One that is not wanted any more fails once that is proof that nothing was charged, and is taken up again as soon as it can be.
        """
        ending = item.ending(now)
        final = self.execute.final_not_found(item.provider) if ending is not None else None
        if ending is not None and final is not None and item.since_sent is not None:
            if final.proves(item.not_found + 1, item.since_sent):
                return Troubled(item, Trouble.NOT_FOUND, f"{outcome.detail}: {ending}", step, give_up=ending)
            item = replace(item, look_by=min(item.look_by, now + final.seconds - item.since_sent))
        key_honoured = item.key_honoured(self.execute.key_window(item.provider), self.lease)
        trouble = trouble_of(item, Trouble.NOT_FOUND, step, key_honoured=key_honoured)
        return Troubled(item, trouble, outcome.detail, step, not_found=True)

    async def settled(self, item: H) -> None:
        """Tells wallet and ledger, now or later."""
        await self.told(item, self.settle(item))

    async def told(self, item: H, telling: Awaitable[R]) -> R | None:
        """What wallet or ledger made of it; None: they did not answer, or refused it, and the demand is postponed."""
        try:
            return await telling
        except SettlingRefused as refused:
            await self._postponed(Troubled(item, Trouble.SETTLING_REFUSED, str(refused), Step.SETTLE))
        except Refused as unavailable:
            await self._postponed(Troubled(item, Trouble.UNSETTLED, unavailable.message, Step.SETTLE))
        return None

    async def _postponed(self, troubled: Troubled[H]) -> None:
        item = troubled.item
        log.info("%s does not come on: %s %s", item.subject, troubled.trouble, troubled.detail)
        self.failed(item, await self._postpone.submit(troubled, item.context))


def _unstorable(item: H, outcome: Answer, step: Step, error: DataRefused) -> Troubled[H]:
    """What becomes of a demand whose answer the database refuses: a person has to look, whatever is wrong with it."""
    if error.constraint in _REFERENCES:
        reference = getattr(outcome, "reference", "")
        return Troubled(item, Trouble.MISDIRECTED, f"what its provider says it is, {reference}, is the money of another one", step)
    return Troubled(item, Trouble.REJECTED, f"its answer cannot be stored: {type(outcome).__name__}", step)


def _unasked(item: H, step: Step, ending: FailureReason | None) -> Troubled[H] | None:
    """What becomes of a demand of which no provider is asked; None: one is asked."""
    if step is Step.GIVE_UP and ending is not None:
        return Troubled(item, Trouble.NOT_SENT, f"it was never sent: {ending}", step, give_up=ending)
    return Troubled(item, Trouble.REJECTED, "risk has not passed it", step) if step is Step.RISK else None
