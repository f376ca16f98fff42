"""Decide: what people do with payouts: approve, reject, cancel, and have them tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.dead_letter import DeadLetterState
from tallystick_core.payout import Cause, Happening, PayoutState, move, payout_demand, require_second_person
from tallystick_core.provider import Trouble
from tallystick_core.refusal import Reason, Refused, id_taken, key_reused
from tallystick_server.payout.move import Move, move_payouts
from tallystick_server.payout.payout import Payout, stored_payouts
from tallystick_server.payout.standing import Turn
from tallystick_server.runtime.dead_letters import resolve, tell_changed
from tallystick_server.runtime.flow import Apart
from tallystick_storage import dead_letter, due
from tallystick_storage.database import Database
from tallystick_storage.payout import payouts as store
from tallystick_storage.payout import reads


@dataclass(frozen=True, slots=True)
class Decision:
    """What somebody decides about a payout, and why. Its cause has the name of what happens to the payout."""

    cause: Cause
    actor: str
    reason: str
    second_person: bool = False
    """The creator must not decide it."""
    of_team: bool = False
    """A team decides it, not an operator."""


class Decide:
    """Carries decisions out, whoever works on the payout meanwhile. The payout is handed on, leased to this process."""

    def __init__(self, database: Database, environment: str, lease: float, hand_on: Callable[[Payout], None], apart: Apart) -> None:
        self._database = database
        self._environment = environment
        self._lease = lease
        self._hand_on = hand_on
        self._apart = apart

    async def decide(self, payout_id: str, decision: Decision) -> bool:
        """Whether it was decided now; the same was decided before, if not. Raises STATE_FORBIDS, SECOND_PERSON_REQUIRED, KEY_REUSED."""
        deadline = asyncio.get_running_loop().time() + self._lease

        def decide(connection: Connection) -> Payout | None:
            row = store.lock(connection, [payout_id])[payout_id]
            if _was_decided(reads.history(connection, payout_id), decision):
                return None
            happening = Happening(decision.cause)
            move(PayoutState(row.state), happening)  # what its state forbids comes before who forbids it
            if row.state == PayoutState.CREATED:
                _require_certain_hold(connection, payout_id)
            if decision.second_person:
                require_second_person(decision.actor, row.caller)
            tokens = due.take_over(connection, [payout_demand(payout_id)], self._lease)
            (item,) = stored_payouts(store.to_do(connection, [payout_id]), tokens, self._environment, deadline)
            resolve(connection, {item.subject: (decision.actor, item.traceparent)})
            turn = Turn(item.standing.after(happening), decision.cause, decision.actor, decision.reason)
            return move_payouts(connection, [Move(item, (turn,))])[payout_id]

        async def hand_over() -> bool:
            item = await self._database.transact(decide)
            if item is not None:
                self._hand_on(item)
            return item is not None

        return await self._apart(hand_over, of_team=decision.of_team)

    async def retry(self, payout_id: str, request_id: str, caller: str, reason: str) -> bool:
        """Makes a payout due again that was set aside; whether the retry was not made before. Raises STATE_FORBIDS, KEY_REUSED, ID_TAKEN."""

        def retry(connection: Connection) -> bool:
            row = store.lock(connection, [payout_id])[payout_id]  # the same call at once waits, and finds it made
            known = store.retried(connection, payout_id, request_id)
            if known is not None:
                if known.caller != caller:
                    raise id_taken("request_id")
                if known.reason != reason:
                    raise key_reused("reason")
                return False
            ended = dead_letter.end(connection, [f"payouts/{payout_id}"], DeadLetterState.RETRIED, caller, reason)
            if not ended:
                message = f"The payout is {row.state} and cannot be retried: it is no dead letter."
                raise Refused(Reason.STATE_FORBIDS, message, metadata={"state": row.state, "verb": "RETRY"})
            store.retry(connection, payout_id, request_id, caller, reason)
            tell_changed(connection, ended, lambda _: (caller, ""))
            due.revive(connection, [payout_demand(payout_id)])
            return True

        return await self._database.transact(retry)


def _require_certain_hold(connection: Connection, payout_id: str) -> None:
    """Raises STATE_FORBIDS for a locked payout, CREATED, whose hold may be another's, which must not be released.

    A retry ends the dead letter but places no hold by itself: the hold is in doubt until the payout leaves CREATED.
    """
    subject = f"payouts/{payout_id}"
    if dead_letter.is_open(connection, subject):
        raise _in_doubt("The payout is a dead letter whose hold is in doubt, and cannot be cancelled; retry it first.")
    refused = Trouble.SETTLING_REFUSED
    if dead_letter.exists(connection, subject, refused) or due.has_met(connection, payout_demand(payout_id), refused):
        raise _in_doubt("The wallet refused the payout's hold, which may be another's. The payout cannot be cancelled before it is held.")


def _in_doubt(message: str) -> Refused:
    return Refused(Reason.STATE_FORBIDS, message, metadata={"state": PayoutState.CREATED, "verb": "CANCEL"})


def _was_decided(history: Sequence[Row[Any]], decision: Decision) -> bool:
    """Whether the same was decided before. Raises KEY_REUSED for a cancellation with another reason."""
    before = [row for row in history if row.cause == decision.cause]
    if decision.cause is not Cause.CANCELLED:
        return any((row.actor, row.reason) == (decision.actor, decision.reason) for row in before)
    if before and before[0].reason != decision.reason:
        raise key_reused("reason")
    return bool(before)
