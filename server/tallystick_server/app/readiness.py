"""Readiness of a process's databases: waits for them at the start, and sets the health while it
serves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sqlalchemy import make_url

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.app.database.schema import DatabaseUnavailable, check_schema
from tallystick_server.app.errors import StartupError
from tallystick_server.observability import metrics, names
from tallystick_server.observability.metrics import AttributeValues
from tallystick_server.rpc.errors import Context, abort_with_error
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection, text

log = logging.getLogger(__name__)

_POLL_INTERVAL_SECONDS = 1.0
_QUERY_TIMEOUT_SECONDS = 2.0
_MAX_FAILURES = 2  # consecutive failures that change the health; one may be slow on a busy machine
_RETRY_AFTER_SECONDS = 1.0
_CLOCK = text("select cast(extract(epoch from clock()) as float8)")
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def await_databases(
    urls: Mapping[str, str],
    timeout_seconds: float,
    stop_event: asyncio.Event,
    print_status: Callable[[str], None],
    essential: Collection[str],
) -> None:
    """Returns once every database answers with a schema that this code can work with, or when the
    process must stop. Those of services that are not `essential` may be unavailable.

    Raises StartupError if waiting cannot help, or after `timeout_seconds`.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    is_waiting = False
    for service, url in urls.items():
        while not stop_event.is_set():
            error = await asyncio.to_thread(_find_error, url, service)
            if error is None or service not in essential:
                break
            cause = str(error).rstrip(".")
            if loop.time() >= deadline:
                timeout_note = (
                    f" It was waited for {timeout_seconds:g} s "
                    "(TALLYSTICK_DATABASE__STARTUP_TIMEOUT)."
                    if is_waiting
                    else ""
                )
                raise StartupError(
                    f"The {service} service's database cannot be used: {cause}.{timeout_note}"
                ) from error
            if not is_waiting:
                print_status(
                    f"Waiting up to {timeout_seconds:g} s for the {service} service's "
                    f"database: {cause}"
                )
            is_waiting = True
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_INTERVAL_SECONDS):
                    await stop_event.wait()


def _find_error(url: str, service: str) -> DatabaseUnavailable | None:
    """Why a service's database cannot be used yet. Raises StartupError if waiting cannot help."""
    try:
        check_schema(url, service)
    except DatabaseUnavailable as error:
        return error
    return None


class _UnavailableHandler(grpc.GenericRpcHandler):
    """Rejects every call with DEPENDENCY_UNAVAILABLE."""

    def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        async def reject(_requests: Any, context: Context) -> None:
            await abort_with_error(
                context,
                ApiError(
                    ErrorReason.DEPENDENCY_UNAVAILABLE,
                    "The service waits for its database; retry.",
                    retry_after=_RETRY_AFTER_SECONDS,
                ),
            )

        return grpc.stream_stream_rpc_method_handler(reject)


async def serve_not_ready(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Starts a server that has an address already. Its health is NOT_SERVING, and every other call
    is rejected.
    """
    health_servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    server.add_generic_rpc_handlers((_UnavailableHandler(),))
    for name in ("", *services):
        await health_servicer.set(name, _NOT_SERVING)
    await server.start()


class DatabaseHealth:
    """Sets the health of services according to their databases, and measures how far the clocks of
    those differ from that of this process. Uses one separate connection per database. `services`:
    for each schema, the full name of the service that needs it. `essential`: the schemas without
    which the process as a whole is not healthy.
    """

    def __init__(
        self,
        health_servicer: health.aio.HealthServicer,
        urls: Mapping[str, str],
        services: Mapping[str, str],
        essential: Collection[str],
    ) -> None:
        self._health_servicer = health_servicer
        self._services_by_database: dict[tuple[object, ...], set[str]] = {}
        self._databases: dict[tuple[object, ...], Database] = {}
        self._essential_databases: set[tuple[object, ...]] = set()
        for schema, url in urls.items():
            parsed = make_url(url)
            key = (parsed.host, parsed.port, parsed.database, str(parsed.query))
            if key not in self._databases:
                self._databases[key] = Database(
                    url,
                    connections=1,
                    readers=1,
                    read_timeout=_QUERY_TIMEOUT_SECONDS,
                    max_silence_seconds=_QUERY_TIMEOUT_SECONDS,
                )
            if schema in essential:
                self._essential_databases.add(key)
            if schema in services:
                self._services_by_database.setdefault(key, set()).add(services[schema])
        self._failure_counts = dict.fromkeys(self._databases, 0)
        self._clock_deviations: dict[tuple[object, ...], float] = {}
        self._last_statuses: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        metrics.CLOCK_DEVIATION.track(self, DatabaseHealth._observe_clocks)
        await self._publish()
        self._tasks = [asyncio.create_task(self._poll(key)) for key in self._databases]

    async def stop(self) -> None:
        metrics.CLOCK_DEVIATION.untrack(self)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for database in self._databases.values():
            await asyncio.to_thread(database.close)

    async def _poll(self, key: tuple[object, ...]) -> None:
        services = ", ".join(sorted(self._services_by_database.get(key, ())))
        while True:
            await asyncio.sleep(_POLL_INTERVAL_SECONDS)
            try:
                async with asyncio.timeout(_QUERY_TIMEOUT_SECONDS):
                    self._clock_deviations[key] = await self._databases[key].read(_compare_clocks)
            except (TimeoutError, ApiError) as error:
                self._clock_deviations.pop(key, None)
                self._failure_counts[key] += 1
                if self._failure_counts[key] == _MAX_FAILURES:
                    log.warning(
                        "the database of %s does not answer (%s): health is NOT_SERVING until it "
                        "does",
                        services,
                        str(error) or "no answer in time",
                        extra=names.DATABASE_UNAVAILABLE.extra,
                    )
            else:
                if self._failure_counts[key] >= _MAX_FAILURES:
                    log.warning(
                        "the database of %s answers again",
                        services,
                        extra=names.DATABASE_AVAILABLE.extra,
                    )
                self._failure_counts[key] = 0
            await self._publish()

    def _observe_clocks(self) -> Mapping[AttributeValues, float]:
        deviations = list(self._clock_deviations.values())
        return {(): max(deviations)} if deviations else {}

    async def _publish(self) -> None:
        """Sets each health that has changed. The process as a whole is healthy only if all of its
        essential databases answer.
        """
        unavailable = {
            key
            for key, failure_count in self._failure_counts.items()
            if failure_count >= _MAX_FAILURES
        }
        statuses = {"": _NOT_SERVING if unavailable & self._essential_databases else _SERVING}
        for key, services in self._services_by_database.items():
            statuses |= dict.fromkeys(services, _NOT_SERVING if key in unavailable else _SERVING)
        for name, new_status in statuses.items():
            if self._last_statuses.get(name) != new_status:
                self._last_statuses[name] = new_status
                await self._health_servicer.set(name, new_status)


def _compare_clocks(connection: Connection) -> float:
    """The seconds by which the clocks of this process and of a database differ, besides the time
    that the query takes.
    """
    start_time = time.time()
    database_time = float(connection.execute(_CLOCK).scalar_one())
    return max(start_time - database_time, database_time - time.time(), 0.0)
