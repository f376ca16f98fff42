"""Checks regularly for conditions that an operator must know of. One process does it for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from tallystick_server.operations import alerts
from tallystick_server.operations.periodic import Periodic
from tallystick_storage import alerts as alert_store
from tallystick_storage import leader_lease
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection, Row

_LEASE_INTERVALS = 3


class Monitor:
    """Raises and ends the alerts of a service. `holder_id`: the id of this process."""

    def __init__(
        self,
        service: str,
        database: Database,
        holder_id: UUID,
        alert_queries: Sequence[alert_store.AlertQuery],
        interval_seconds: float,
    ) -> None:
        self._database = database
        self._holder_id = holder_id
        self._alert_queries = alert_queries
        self._interval_seconds = interval_seconds
        self._periodic_task = Periodic(f"{service}.monitor", interval_seconds, self.run_once)

    def start(self) -> None:
        self._periodic_task.start()

    async def stop(self) -> None:
        await self._periodic_task.stop()

    async def run_once(self) -> None:
        """Runs the checks once, if this process has the leader lease."""

        def refresh_alerts(connection: Connection) -> Sequence[Row[Any]]:
            if not leader_lease.try_acquire_lease(
                connection, "monitor", self._holder_id, self._interval_seconds * _LEASE_INTERVALS
            ):
                return ()
            return alerts.reconcile(connection, self._alert_queries)

        alerts.announce(await self._database.transact(refresh_alerts))
