"""Monitor: looks now and then for what a person should know of. One process does it for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row

from tallystick_server.runtime import alerts
from tallystick_server.runtime.periodic import Periodic
from tallystick_storage import alert, duty
from tallystick_storage.database import Database

_TURNS_MISSED = 3


class Monitor:
    """Raises the alerts of a service, and ends them. `holder` names this process."""

    def __init__(self, service: str, database: Database, holder: UUID, findings: Sequence[alert.Finding], interval: float) -> None:
        self._database = database
        self._holder = holder
        self._findings = findings
        self._interval = interval
        self._periodic = Periodic(f"{service}.monitor", interval, self.turn)

    def start(self) -> None:
        self._periodic.start()

    async def stop(self) -> None:
        await self._periodic.stop()

    async def turn(self) -> None:
        """Looks once, if it is this process's turn."""

        def look(connection: Connection) -> Sequence[Row[Any]]:
            if not duty.take_turn(connection, "monitor", self._holder, self._interval * _TURNS_MISSED):
                return ()
            return alerts.apply(connection, self._findings)

        alerts.announce(await self._database.transact(look))
