"""The HTTP server of a process, and how it reaches the services: by gRPC, as any caller does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

from tallystick_server.app.configuration import Settings
from tallystick_server.app.errors import StartupError
from tallystick_server.app.listening import listen_http
from tallystick_server.app.metrics_export import MetricsExport, start_metrics_export
from tallystick_server.app.services import SERVICES
from tallystick_server.http.health import health_route
from tallystick_server.http.routing import Route
from tallystick_server.http.server import HttpLimits, HttpServer
from tallystick_server.rpc.service_client import open_channel

HEALTH_NOTICE_SECONDS = 0.2
"""Seconds in which watchers of the health receive NOT_SERVING before calls are rejected."""


@dataclass
class RunningHttpServer:
    """The HTTP server of this process. `address`: where it is reachable."""

    address: str
    server: HttpServer
    _listener: asyncio.Server
    _channels: Sequence[grpc.aio.Channel]
    _stopping: asyncio.Event

    def announce_stop(self) -> None:
        """Sets the health to NOT_SERVING."""
        self._stopping.set()

    async def stop(self, drain_timeout_seconds: float) -> None:
        """Stops to accept connections, ends idle ones and streams, waits for requests in flight up
        to the timeout, and disconnects.
        """
        self._listener.close()
        self.server.close()
        await self.server.wait_until_idle(drain_timeout_seconds)
        await self.server.stop()
        await asyncio.gather(*(channel.close() for channel in self._channels))


@dataclass
class HttpProcess:
    """A process with the HTTP server alone."""

    _http_server: RunningHttpServer
    _metrics_export: MetricsExport | None

    @property
    def http_address(self) -> str:
        return self._http_server.address

    async def stop(self, drain_timeout_seconds: float) -> None:
        """Drains, see `RunningHttpServer.stop`."""
        self._http_server.announce_stop()
        await asyncio.sleep(HEALTH_NOTICE_SECONDS)
        await self._http_server.stop(drain_timeout_seconds)
        if self._metrics_export is not None:
            await self._metrics_export.stop()


async def start_http_process(settings: Settings) -> HttpProcess:
    """Starts the HTTP server alone. Raises StartupError."""
    if not settings.http.listen:
        raise StartupError(
            "TALLYSTICK_HTTP__LISTEN must be an address for serve http, such as 127.0.0.1:7080."
        )
    metrics_export = await start_metrics_export("tallystick-http", settings)
    return HttpProcess(
        await start_http_server(settings, settings.service_addresses), metrics_export
    )


async def start_http_server(settings: Settings, addresses: Mapping[str, str]) -> RunningHttpServer:
    """Starts the HTTP server. `addresses`: those of all services. Raises StartupError."""
    for spec in SERVICES:
        if not addresses.get(spec.name):
            raise StartupError(
                "TALLYSTICK_SERVICE_ADDRESSES must say where the HTTP server reaches "
                f'{spec.name}, such as "{spec.name}=127.0.0.1:7070".'
            )
    channels = {address: open_channel(address) for address in addresses.values()}
    stopping = asyncio.Event()
    http = settings.http
    server = HttpServer(
        _routes({name: channels[address] for name, address in addresses.items()}, stopping),
        HttpLimits(
            max_connections=http.max_connections,
            max_body_bytes=http.max_body_bytes,
            max_body_bytes_in_flight=http.max_body_bytes_in_flight,
            header_timeout_seconds=http.header_timeout,
            body_timeout_seconds=http.body_timeout,
        ),
    )
    listener = await listen_http(server.connect, http.listen, reuse_port=settings.server.reuse_port)
    return RunningHttpServer(http.listen, server, listener, [*channels.values()], stopping)


def _routes(channels: Mapping[str, grpc.aio.Channel], stopping: asyncio.Event) -> list[Route]:
    """Every route. `channels`: by service."""
    return [health_route([*dict.fromkeys(channels.values())], stopping)]
