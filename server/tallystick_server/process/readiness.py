"""Whether the databases of a process answer: waiting for them at the start, and health that says so while it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sqlalchemy import Connection, make_url, text

from tallystick_core.refusal import Reason, Refused
from tallystick_server.process.failure import Failure
from tallystick_server.process.schema import DatabaseAway, check_schema
from tallystick_server.runtime.errors import refuse
from tallystick_storage.database import Database

log = logging.getLogger(__name__)

_LOOK_EVERY = 1.0  # seconds
_ANSWERS_WITHIN = 2.0  # seconds
_MISSED = 2  # answers in a row after which health says so: one may be late on a busy machine
_RETRY_AFTER = 1.0


async def await_databases(urls: Mapping[str, str], patience: float, stopped: asyncio.Event, say: Callable[[str], None]) -> None:
    """Returns once every database answers and has a schema that this code can work with, or when the process is told to stop.

    Raises Failure when waiting cannot help, or has lasted `patience` seconds.
    """
    end = asyncio.get_running_loop().time() + patience
    waiting = False
    for service, url in urls.items():
        while not stopped.is_set():
            try:
                await asyncio.to_thread(check_schema, url, service)
            except DatabaseAway as away:
                if asyncio.get_running_loop().time() >= end:
                    waited = f" It was waited for {patience:g} s (TALLYSTICK_DATABASE_PATIENCE)." if waiting else ""
                    raise Failure(f"The {service} service's database cannot be used: {str(away).rstrip('.')}.{waited}") from away
                if not waiting:
                    say(f"Waiting up to {patience:g} s for the {service} service's database: {str(away).rstrip('.')}")
                waiting = True
                try:
                    async with asyncio.timeout(_LOOK_EVERY):
                        await stopped.wait()
                except TimeoutError:
                    continue
            else:
                break


class _Unavailable(grpc.GenericRpcHandler):
    """Refuses every call with DEPENDENCY_UNAVAILABLE."""

    def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        async def refused(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            raise await refuse(
                context, Refused(Reason.DEPENDENCY_UNAVAILABLE, "The service waits for its database; retry.", retry_after=_RETRY_AFTER)
            )

        return grpc.stream_stream_rpc_method_handler(refused)


async def serve_not_ready(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Starts a server that has an address already: its health is NOT_SERVING, and every other call is refused."""
    monitor = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(monitor, server)
    server.add_generic_rpc_handlers((_Unavailable(),))
    for name in ("", *services):
        await monitor.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
    await server.start()


class DatabaseHealth:
    """Sets the health of services by whether their databases answer, on one connection of its own for each database."""

    def __init__(self, monitor: health.aio.HealthServicer, urls: Mapping[str, str], services: Mapping[str, str]) -> None:
        """`services`: by schema, the full name of the service that needs it."""
        self._monitor = monitor
        self._needed: dict[tuple[object, ...], set[str]] = {}
        self._databases: dict[tuple[object, ...], Database] = {}
        for schema, url in urls.items():
            parsed = make_url(url)
            key = (parsed.host, parsed.port, parsed.database, str(parsed.query))
            if key not in self._databases:
                self._databases[key] = Database(url, connections=1, readers=1, read_timeout=_ANSWERS_WITHIN, longest=_ANSWERS_WITHIN)
            if schema in services:
                self._needed.setdefault(key, set()).add(services[schema])
        self._missed = dict.fromkeys(self._databases, 0)
        self._said: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self._say()
        self._tasks = [asyncio.create_task(self._watch(key)) for key in self._databases]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for database in self._databases.values():
            await asyncio.to_thread(database.close)

    async def _watch(self, key: tuple[object, ...]) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                async with asyncio.timeout(_ANSWERS_WITHIN):
                    await self._databases[key].read(_ask)
            except (TimeoutError, Refused) as error:
                self._missed[key] += 1
                if self._missed[key] == _MISSED:
                    log.warning("the database does not answer (%s): health is NOT_SERVING until it does", str(error) or "no answer in time")
            else:
                if self._missed[key] >= _MISSED:
                    log.warning("the database answers again")
                self._missed[key] = 0
            await self._say()

    async def _say(self) -> None:
        """The process as a whole is healthy only if all of its databases answer."""
        status = health_pb2.HealthCheckResponse
        away = {key for key, missed in self._missed.items() if missed >= _MISSED}
        wanted = {"": status.NOT_SERVING if away else status.SERVING}
        for key, services in self._needed.items():
            wanted |= dict.fromkeys(services, status.NOT_SERVING if key in away else status.SERVING)
        for name, said in wanted.items():
            if self._said.get(name) != said:
                self._said[name] = said
                await self._monitor.set(name, said)


def _ask(connection: Connection) -> None:
    connection.execute(text("select 1"))
