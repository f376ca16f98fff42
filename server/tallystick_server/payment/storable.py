"""How many new charges may wait while their provider fails, and whether a new payment is refused before sellers are claimed for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sqlalchemy import Connection

from tallystick_core.payment import PaymentEvent, charge_id
from tallystick_core.refusal import Refused, id_taken
from tallystick_server.payment.accept import Room, provider_unavailable
from tallystick_server.runtime.execute import Execute
from tallystick_server.runtime.stage import CALLERS_WAITING, Stage
from tallystick_server.runtime.wire import MOST_ITEMS
from tallystick_storage import due
from tallystick_storage.database import Database
from tallystick_storage.payment import orders as store

_KEPT = 1.0
"""Seconds for which a count of the charges that wait answers those who only want to know whether to go on."""


class Storable:
    """The storable stage: one read, and at most one count in a second, for all payments that ask at once."""

    def __init__(self, database: Database, execute: Execute, provider: str, waiting_depth: int) -> None:
        self._database = database
        self._execute = execute
        self._provider = provider
        self._depth = waiting_depth
        self._counted: tuple[float, int] | None = None
        self.stage: Stage[PaymentEvent, None] = Stage(
            "payment.storable", self._answer, most=MOST_ITEMS, weight=lambda event: len(event.orders), for_callers=True, max_waiting=CALLERS_WAITING
        )

    async def require(self, event: PaymentEvent) -> None:
        """Raises the refusal of a payment that is not stored whoever its sellers belong to; one whose ids exist is answered by what is stored."""
        await self.stage.submit(event)

    def room(self, connection: Connection, now: float, *, kept: float = 0.0) -> Room | None:
        """What may be accepted at this time of the loop, while the provider of new charges fails; None: anything.

        `kept`: how many seconds old the count may be. Of those that wait perhaps none is to be sent soon, or at all: then a new one has to find out
        whether the provider answers again.
        """
        if not self._execute.is_held_back(self._provider):
            return None
        counted = self._counted
        if counted is None or now - counted[0] >= kept:
            counted = self._counted = (now, due.backlog(connection, self._provider, "", max(self._depth, 1)))
        waiting = counted[1]
        probe = self._execute.lacks_probe(self._provider, now, others_wait=waiting > 0)
        return Room(max(self._depth - waiting, 0), probe)

    async def _answer(self, events: Sequence[PaymentEvent]) -> Sequence[Refused | None]:
        now = asyncio.get_running_loop().time()
        checkouts = [event.checkout_id for event in events]
        orders = [order.payment_order_id for event in events for order in event.orders]

        def look(connection: Connection) -> tuple[set[tuple[str, str]], Room | None]:
            taken = {(row.what, row.id) for row in store.taken(connection, checkouts, orders)}
            return taken, self.room(connection, now, kept=_KEPT)

        taken, room = await self._database.load(look)
        return [_refusal(event, taken, room) for event in events]


def _refusal(event: PaymentEvent, taken: set[tuple[str, str]], room: Room | None) -> Refused | None:
    ids = {("checkout", event.checkout_id), *(("order", order.payment_order_id) for order in event.orders)}
    if ids & taken:
        return id_taken("checkout_id")
    charges = len({charge_id(event, order) for order in event.orders})
    return provider_unavailable() if room is not None and not room.probe and room.charges < charges else None
