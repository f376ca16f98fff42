"""Monitor: looks now and then for what a person should know of. One process does it for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from tallystick_core.payment import Status
from tallystick_server.runtime import alerts
from tallystick_server.runtime.periodic import Periodic
from tallystick_storage import alert
from tallystick_storage import payment as store
from tallystick_storage.database import Database

ALERT_AFTER: Mapping[str, float] = {Status.EXECUTING: 600.0, Status.PENDING: 259_200.0, Status.SUCCESS: 600.0}
"""Seconds that an order may rest in a status; SUCCESS: until it is settled."""
_TURNS_MISSED = 3


class Monitor:
    """Raises alerts and ends them. `holder` names this process; `alert_after` stands over ALERT_AFTER."""

    def __init__(self, database: Database, holder: UUID, alert_after: Mapping[str, float], interval: float) -> None:
        self._database = database
        self._holder = holder
        self._alert_after = {**ALERT_AFTER, **alert_after}
        self._interval = interval
        self._periodic = Periodic("payment.monitor", interval, self.turn)

    def start(self) -> None:
        self._periodic.start()

    async def stop(self) -> None:
        await self._periodic.stop()

    async def turn(self) -> None:
        """Looks once, if it is this process's turn."""

        def look(connection: Connection) -> Sequence[Row[Any]]:
            if not alert.take_turn(connection, "monitor", self._holder, self._interval * _TURNS_MISSED):
                return ()
            return alerts.apply(connection, store.findings(self._alert_after))

        alerts.announce(await self._database.transact(look))
