"""Postpone: demands that did not come on, given back to the table of due work or given up, as their policies say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Generic, TypeVar

from sqlalchemy import Connection

from tallystick_core.provider import (
    Answer,
    Declined,
    FailureReason,
    InTransit,
    NotFound,
    NotSent,
    Pending,
    Returned,
    Submitted,
    Succeeded,
    Trouble,
    Unknown,
    Verified,
)
from tallystick_core.recovery import Resort, Step, resort
from tallystick_server.runtime.dead_letters import tell_changed
from tallystick_server.runtime.demand import InHand
from tallystick_server.runtime.retry import Policies
from tallystick_server.runtime.stage import by_halves
from tallystick_storage import dead_letter, due
from tallystick_storage.database import Database

H = TypeVar("H", bound=InHand)
G = TypeVar("G")

_LONGEST_DETAIL = 255


@dataclass(frozen=True, slots=True)
class Troubled(Generic[H]):
    """A demand that did not come on, and why."""

    item: H
    trouble: Trouble
    detail: str
    step: Step
    """What was tried."""
    retry_after: float = 0.0
    """Seconds before which the provider wants to hear nothing."""
    not_found: bool = False
    """Whether the provider does not know it."""
    give_up: FailureReason | None = None
    """Surely nothing was charged, and it is not wanted any more: why it is to fail."""

    @property
    def is_decided(self) -> bool:
        """Whether what became of it is stored already: only what follows from that is still to be done."""
        return self.item.to_settle or self.step is Step.JUDGE


def troubled(item: H, outcome: Answer, step: Step, *, key_honoured: bool) -> Troubled[H] | None:
    """What an outcome means for a demand that it does not bring to an end. `key_honoured`: whether the demand may be sent again."""
    match outcome:
        case Pending():
            return Troubled(item, Trouble.WAITING, f"the provider waits: {outcome.reason}", step)
        case Submitted() | InTransit():
            return Troubled(item, Trouble.WAITING, f"the provider works on it: {type(outcome).__name__}", step)
        case NotSent():
            return Troubled(item, trouble_of(item, Trouble.NOT_SENT, step, key_honoured=key_honoured), outcome.detail, step)
        case Unknown():
            return Troubled(item, trouble_of(item, outcome.trouble, step, key_honoured=key_honoured), outcome.detail, step, outcome.retry_after)
        case Succeeded() | Declined() | Returned() | Verified() | NotFound():
            return None


def trouble_of(item: InHand, trouble: Trouble, step: Step, *, key_honoured: bool) -> Trouble:
    """What a trouble is: that of a look-up, or a cancellation, is mostly that it tells nothing, whatever the reason."""
    if step is Step.SEND or trouble is Trouble.MISDIRECTED:
        return trouble
    if item.waits:
        return Trouble.WAITING
    if not key_honoured:
        return Trouble.UNRESOLVED
    return trouble if trouble is Trouble.NOT_FOUND else Trouble.UNANSWERED


class Postpone(Generic[H, G]):
    """The postpone stage's work. Each demand is taken up again later, fails, or becomes a dead letter.

    `lock_undecided`: which demands nobody has an answer to, so that none is written down meanwhile, with the due work of them and of others locked;
    `fail`: fails those that surely moved nothing.
    """

    def __init__(
        self,
        database: Database,
        policies: Policies,
        lock_undecided: Callable[[Connection, list[str], Sequence[str]], set[str]],
        fail: Callable[[Connection, Sequence[Troubled[H]]], G],
    ) -> None:
        self._database = database
        self._policies = policies
        self._lock_undecided = lock_undecided
        self._fail = fail

    async def run(self, items: Sequence[Troubled[H]]) -> Sequence[G | Exception]:
        """What `fail` made of the batch, for each of it."""
        return await by_halves(self._postpone, items)

    async def _postpone(self, items: Sequence[Troubled[H]]) -> Sequence[G | Exception]:
        now = asyncio.get_running_loop().time()
        decided = [(one, self._decide(one, now)) for one in items]
        again = [decision for _, decision in decided if isinstance(decision, due.Again)]
        given_up = [one for one, decision in decided if decision is Resort.FAIL]
        aside = [one for one, decision in decided if decision is Resort.SET_ASIDE]

        def postpone(connection: Connection) -> G:
            # an answer that another holder wrote down meanwhile stands: it is judged when this lease ends
            undecided = [one.item.demand_id for one in (*given_up, *aside) if not one.is_decided]
            open_ = self._lock_undecided(connection, undecided, [one.item.demand_id for one in items]) if given_up or aside else set()
            failed = self._fail(connection, [one for one in given_up if one.item.demand_id in open_])
            if again:
                due.again_later(connection, again)
            if aside:
                self._set_aside(connection, [one for one in aside if one.is_decided or one.item.demand_id in open_], now)
            return failed

        failed = await self._database.transact(postpone)
        return [failed] * len(items)

    def _decide(self, one: Troubled[H], now: float) -> due.Again | Resort:
        """When it is taken up again, at this time of the loop, or its last resort."""
        item = one.item
        if one.give_up is not None:
            return Resort.FAIL
        if one.trouble is Trouble.HELD_BACK:
            return _again(one, _in_time(one.retry_after, item.look_by - now), looking=item.looking)
        policy = self._policies.of(item.provider, one.trouble)
        delay = policy.delay(item.tries.get(one.trouble, 0) + 1, item.demand_id)
        if delay is None:
            last = resort(one.trouble, maybe_sent=item.maybe_sent)
            if last is Resort.LOOK_UP:
                return _again(one, one.retry_after, looking=True)
            if last is not Resort.GO_ON:
                return last
            delay = policy.rest
        return _again(one, max(_in_time(delay, item.look_by - now), one.retry_after), looking=False)

    def _set_aside(self, connection: Connection, troubled: Sequence[Troubled[H]], now: float) -> None:
        """Makes dead letters of demands whose leases still hold. One whose cancellation came meanwhile is not set aside: it is due."""
        aside = due.again_later(connection, [_aside(one, now) for one in troubled])
        subjects = {one.item.subject: one for one in troubled if aside.get(one.item.demand_id, False)}
        new = [
            dead_letter.NewDeadLetter(subject, one.trouble, _why(one, now), sum(_tries(one).values()), one.item.provider)
            for subject, one in sorted(subjects.items())
        ]
        tell_changed(
            connection, dead_letter.insert(connection, new), lambda row: (subjects[row.subject].item.caller, subjects[row.subject].item.traceparent)
        )


def _in_time(delay: float, left: float) -> float:
    """A wait that does not go past the time that is left; none, if that has passed since the demand was taken up."""
    return min(delay, max(left, 0.0))


def _aside(one: Troubled[H], now: float) -> due.Again:
    """A demand that nobody takes up again before its time is up. Where that has passed since it was taken up, it is ended at once."""
    left = one.item.look_by - now
    return replace(_again(one, None, looking=one.item.looking), recheck_after=max(left, 0.0) if left < inf else None)


def _why(one: Troubled[H], now: float) -> str:
    """What a dead letter says: also that its demand is to end."""
    ending = one.item.ending(now)
    return _detail(one.detail if ending is None else f"{ending}, and not ended: {one.detail}")


def _again(one: Troubled[H], delay: float | None, *, looking: bool) -> due.Again:
    item = one.item
    sent = one.step is Step.SEND and one.trouble not in (Trouble.NOT_SENT, Trouble.HELD_BACK)
    not_found = 0 if sent else item.not_found + one.not_found
    return due.Again(item.demand_id, item.lease_token, delay, sent, not_found, looking, _tries(one), one.trouble, _detail(one.detail), item.phase)


def _detail(text: str) -> str:
    """What can be stored of a text that may hold whatever a provider sent."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:_LONGEST_DETAIL])


def _tries(one: Troubled[H]) -> dict[str, int]:
    """How often each kind of trouble has come, this one included; to be held back is no try."""
    tries = {str(trouble): count for trouble, count in one.item.tries.items()}
    if one.trouble is not Trouble.HELD_BACK:
        tries[str(one.trouble)] = tries.get(str(one.trouble), 0) + 1
    return tries
