"""Watch: payouts at rest whose provider may still tell something, because banks send money back days later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Connection

from tallystick_core.payout import WATCHED
from tallystick_core.provider import Answer, NotFound, NotSent, Trouble, Unknown
from tallystick_core.recovery import Step
from tallystick_core.refusal import Refused
from tallystick_server.payout.payout import Payout, stored_payouts
from tallystick_server.runtime.execute import Execute, HeldBack
from tallystick_server.runtime.flow import is_anothers_money
from tallystick_server.runtime.retry import Policies
from tallystick_storage.database import Database, DataRefused
from tallystick_storage.payout import payouts as store

log = logging.getLogger(__name__)

_MOST_WATCHED = 200


def _answered(outcome: Answer | HeldBack) -> bool:
    """Whether the provider has said something, be it that it knows nothing of the payout."""
    match outcome:
        case HeldBack() | NotSent():
            return False
        case Unknown():
            return outcome.trouble is Trouble.REJECTED
        case _:
            return True


class Watch:
    """Asks what became of payouts, as often as the policy for what is watched says. Asking is harmless, so it needs no lease.

    `is_ours`: whether it is this process's turn to ask.
    """

    def __init__(
        self,
        database: Database,
        execute: Execute,
        policies: Policies,
        record: Callable[[Payout, object], Awaitable[object]],
        note_anothers: Callable[[Payout, Any], Awaitable[object]],
        is_ours: Callable[[Connection], bool],
    ) -> None:
        self._database = database
        self._execute = execute
        self._policies = policies
        self._record = record
        self._note_anothers = note_anothers
        self._is_ours = is_ours

    async def turn(self) -> None:
        """Asks once about each that is due, if it is this process's turn."""

        def read(connection: Connection) -> list[tuple[Payout, int]]:
            looks = store.to_watch(connection, _MOST_WATCHED)
            items = stored_payouts(store.to_do(connection, list(looks)), {}, "") if looks else ()
            return [(item, looks[item.payout_id]) for item in items]

        watched = await self._database.load(read)
        if not watched or not await self._database.transact(self._is_ours):
            return
        again = await asyncio.gather(*(self.look(item, looks) for item, looks in watched))

        def note(connection: Connection) -> None:
            store.watch_again(connection, again)

        await self._database.transact(note)

    async def look(self, item: Payout, looks: int) -> store.Look:  # noqa: PLR0911 - one for each that can come of it
        """When it is looked at again, and how often it has been; what is not answered counts for nothing."""
        policy = self._policies.of(item.provider, Trouble.WATCHED)
        if item.state not in WATCHED:
            return store.Look(item.payout_id, None, looks)
        try:
            outcome = await self._execute.ask(item, Step.LOOK_UP)
        except Exception:  # what is wrong with one payout keeps no other from being looked at
            log.exception("%s cannot be looked up; it is asked again", item.subject)
            return store.Look(item.payout_id, policy.delay(looks + 1, item.demand_id), looks)
        if not _answered(outcome):
            return store.Look(item.payout_id, policy.delay(looks + 1, item.demand_id), looks)
        if isinstance(outcome, NotFound):  # which says nothing of its money
            return store.Look(item.payout_id, policy.delay(looks + 2, item.demand_id), looks + 1)
        try:
            await self._recorded(item, outcome)
        except Exception as error:  # what one payout's answer does keeps no other from being looked at
            if isinstance(error, Refused) and error.retry_after is not None:  # the database is away, as the end of this turn will tell
                return store.Look(item.payout_id, 0.0, looks)
            log.exception("what %s came to cannot be recorded; it is asked again", item.subject)
            return store.Look(item.payout_id, policy.delay(looks + 1, item.demand_id), looks)
        return store.Look(item.payout_id, policy.delay(looks + 2, item.demand_id), looks + 1)

    async def _recorded(self, item: Payout, outcome: Answer | HeldBack) -> None:
        """Records an answer, or for an operator that its reference is another payout's transfer."""
        try:
            await self._record(item, outcome)
        except DataRefused as error:
            if not is_anothers_money(error):
                raise
            await self._note_anothers(item, outcome)
