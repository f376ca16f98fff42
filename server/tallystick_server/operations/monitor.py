"""Checks regularly for conditions that an operator must know of. One process does it for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from uuid import UUID

from tallystick_server.observability import metrics
from tallystick_server.operations import alerts
from tallystick_server.operations.periodic import Periodic
from tallystick_storage import alerts as alert_store
from tallystick_storage import leader_lease
from tallystick_storage.database import Database
from tallystick_storage.gauges import GaugeQuery, read_gauges
from tallystick_storage.sql import Connection

_LEASE_INTERVALS = 3


class Monitor:
    """Raises and ends the alerts of a service, and reads the metrics that are in its database.
    `holder_id`: the id of this process.
    """

    def __init__(
        self,
        service: str,
        database: Database,
        holder_id: UUID,
        alert_queries: Sequence[alert_store.AlertQuery],
        interval_seconds: float,
        gauge_queries: Sequence[GaugeQuery] = (),
    ) -> None:
        self._service = service
        self._gauge_queries = gauge_queries
        self._gauge_values: Mapping[str, Mapping[tuple[str, ...], float]] = {}
        self._database = database
        self._holder_id = holder_id
        self._alert_queries = alert_queries
        self._interval_seconds = interval_seconds
        self._periodic_task = Periodic(f"{service}.monitor", interval_seconds, self.run_once)

    def start(self) -> None:
        for query in self._gauge_queries:
            metrics.STORED_GAUGES[query.metric].track(self, partial(_observe, query.metric))
        self._periodic_task.start()

    async def stop(self) -> None:
        await self._periodic_task.stop()
        for query in self._gauge_queries:
            metrics.STORED_GAUGES[query.metric].untrack(self)

    async def run_once(self) -> None:
        """Runs the checks once, if this process has the leader lease."""

        def refresh_alerts(connection: Connection) -> Sequence[alert_store.AlertRow] | None:
            if not leader_lease.try_acquire_lease(
                connection, "monitor", self._holder_id, self._interval_seconds * _LEASE_INTERVALS
            ):
                return None
            return alerts.reconcile(connection, self._alert_queries)

        gauge_values: Mapping[str, Mapping[tuple[str, ...], float]] = {}
        try:
            new_alerts = await self._database.transact(refresh_alerts)
            if new_alerts is not None:
                alerts.announce(new_alerts)
                gauge_values = await self._read_gauges()
        finally:  # what is not known now is not exported
            self._gauge_values = gauge_values

    async def _read_gauges(self) -> Mapping[str, Mapping[tuple[str, ...], float]]:
        if not self._gauge_queries:
            return {}
        return await self._database.load(
            lambda connection: read_gauges(connection, self._gauge_queries)
        )

    def observe(self, metric: str) -> Mapping[tuple[str, ...], float]:
        """The values of a metric as last read; none if another process reads them."""
        values = self._gauge_values.get(metric, {})
        return {(self._service, *attributes): number for attributes, number in values.items()}


def _observe(metric: str, monitor: Monitor) -> Mapping[tuple[str, ...], float]:
    return monitor.observe(metric)
