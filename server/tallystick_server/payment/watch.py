"""Watch: charges that failed though they may have been sent. What their providers charged after all is an unapplied charge."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from math import inf

from sqlalchemy import Connection

from tallystick_core.provider import NotSent, Outcome, Succeeded, Trouble, Unknown
from tallystick_core.recovery import Step
from tallystick_core.refusal import Refused
from tallystick_server.payment.charge import Charge, stored_charges
from tallystick_server.payment.unapplied import note_conflicts
from tallystick_server.runtime.execute import Execute, HeldBack
from tallystick_server.runtime.retry import Policies
from tallystick_storage.database import Database, DataRefused
from tallystick_storage.payment import orders as store

log = logging.getLogger(__name__)

_MOST_WATCHED = 200


def watch(connection: Connection, policies: Policies, failed: Iterable[Charge]) -> None:
    """Has charges watched that have just failed, as far as they may have been sent."""
    sent = [charge for charge in failed if charge.maybe_sent]
    looks = [store.Look(one.charge_id, policies.of(one.provider, Trouble.WATCHED).delay(1, one.charge_id), 0) for one in sent]
    if looks:
        store.watch(connection, looks)


class Watch:
    """Asks what became of failed charges, as often as the policy for what is watched says. Asking is harmless, so it needs no lease.

    `is_ours`: whether it is this process's turn to ask.
    """

    def __init__(
        self,
        database: Database,
        execute: Execute,
        policies: Policies,
        providers: Collection[str],
        record: Callable[[Charge, Outcome], Awaitable[object]],
        is_ours: Callable[[Connection], bool],
    ) -> None:
        self._database = database
        self._execute = execute
        self._policies = policies
        self._providers = sorted(providers)
        self._record = record
        self._is_ours = is_ours

    async def turn(self) -> None:
        """Asks once about each that is due, if it is this process's turn."""

        def read(connection: Connection) -> list[tuple[Charge, int]]:
            looks = store.to_watch(connection, self._providers, _MOST_WATCHED)
            rows = store.failed_charges(connection, list(looks)) if looks else ()
            return [(charge, looks[charge.charge_id]) for charge in stored_charges(rows, dict.fromkeys(looks, 0), 0.0, inf)]

        watched = await self._database.load(read)
        if not watched or not await self._database.transact(self._is_ours):
            return
        again = await asyncio.gather(*(self._guarded(charge, looks) for charge, looks in watched))
        await self._database.transact(lambda connection: store.watch(connection, again))

    async def _guarded(self, charge: Charge, looks: int) -> store.Look:
        """As `_look`; what is wrong with one charge keeps no other from being looked at."""
        try:
            return await self._look(charge, looks)
        except Exception:
            log.exception("%s cannot be looked up; it is asked again", charge.subject)
            return store.Look(charge.charge_id, self._policies.of(charge.provider, Trouble.WATCHED).delay(looks + 1, charge.charge_id), looks)

    async def _look(self, charge: Charge, looks: int) -> store.Look:
        """When it is looked at again, and how often it has been; what is not answered counts for nothing."""
        policy = self._policies.of(charge.provider, Trouble.WATCHED)
        outcome = await self._execute.ask(charge, Step.LOOK_UP)
        match outcome:
            case Succeeded():
                try:
                    await self._record(charge, outcome)
                except Refused:  # the database is away, as the end of this turn will tell
                    return store.Look(charge.charge_id, 0.0, looks)
                except DataRefused as error:
                    await self._database.transact(lambda connection: note_conflicts(connection, [(charge, outcome)]))
                    log.error("what was charged for %s after all cannot be stored: %s", charge.subject, error)  # noqa: TRY400 - where says nothing
                else:
                    return store.Look(charge.charge_id, None, looks)
            case HeldBack() | NotSent() | Unknown():
                return store.Look(charge.charge_id, policy.delay(looks + 1, charge.charge_id), looks)
            case _:  # which says nothing of money
                pass
        return store.Look(charge.charge_id, policy.delay(looks + 2, charge.charge_id), looks + 1)
