"""Watch: payouts at rest whose provider may still tell something, because banks send money back days later."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from sqlalchemy import Connection

from tallystick_core.payout import PayoutState
from tallystick_core.provider import Trouble
from tallystick_core.recovery import Step
from tallystick_server.payout.payout import Payout, stored_payouts
from tallystick_server.runtime.execute import Execute, HeldBack
from tallystick_server.runtime.retry import Policies
from tallystick_storage import payout as store
from tallystick_storage.database import Database

_MOST_WATCHED = 200
_UNANSWERED = 60.0  # seconds; no look is spent on it


class Watch:
    """Asks what became of payouts, as often as the policy for what is watched says. Asking is harmless, so it needs no lease."""

    def __init__(self, database: Database, execute: Execute, policies: Policies, record: Callable[[Payout, object], Awaitable[object]]) -> None:
        self._database = database
        self._execute = execute
        self._policies = policies
        self._record = record

    async def turn(self) -> None:
        """Asks once about each that is due."""

        def read(connection: Connection) -> tuple[dict[str, int], list[Payout]]:
            looks = store.to_watch(connection, _MOST_WATCHED)
            return looks, stored_payouts(store.to_do(connection, list(looks)), {}, "") if looks else []

        looks, items = await self._database.read(read)
        if not items:
            return
        next_looks = await asyncio.gather(*(self._look(item, looks[item.payout_id]) for item in items))
        delays = {item.payout_id: delay for item, delay in zip(items, next_looks, strict=True)}
        await self._database.transact(lambda connection: store.watch_again(connection, delays))

    async def _look(self, item: Payout, looks: int) -> float | None:
        """Seconds until the next look; None: there is none."""
        if item.state not in (PayoutState.PAID, PayoutState.FAILED):
            return None
        outcome = await self._execute.ask(item, Step.LOOK_UP)
        if outcome is None or isinstance(outcome, HeldBack):
            return _UNANSWERED
        await self._record(item, outcome)
        return self._policies.of(item.provider, Trouble.WATCHED).delay(looks + 2, item.demand_id)
