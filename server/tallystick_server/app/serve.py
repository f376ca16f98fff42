"""Runs all or some services in this process until it is stopped."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from tallystick_core.access import Role
from tallystick_server.app.configuration import SERVICES, Settings
from tallystick_server.app.errors import StartupError
from tallystick_server.app.listening import listen
from tallystick_server.app.readiness import DatabaseHealth, await_databases, serve_not_ready
from tallystick_server.app.wiring import Dependencies, Service, Wiring, full_names
from tallystick_server.observability import tracing
from tallystick_server.rpc.authentication import Authenticator, BearerTokens, NoAuthentication
from tallystick_server.rpc.bulkhead import CallLimits
from tallystick_server.rpc.health import AuxiliaryServices
from tallystick_server.rpc.reflection import SymbolDescriptorPool
from tallystick_server.rpc.server import (
    MAX_BATCH_BYTES,
    MAX_DEADLINE_SECONDS,
    MAX_STREAM_SECONDS,
    RpcServer,
)
from tallystick_server.rpc.service_client import ServiceClient

T = TypeVar("T")

_DATABASE_POLL_SECONDS = 1.0
_MAX_PENDING_REQUESTS = 10_000
# In seconds; longer than the maximum deadline of the server.
_MAX_PENDING_SECONDS = int(MAX_DEADLINE_SECONDS) + 15
PENDING_REQUEST_OPTIONS = [
    ("grpc.server.max_pending_requests", _MAX_PENDING_REQUESTS),
    ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_REQUESTS),
    ("grpc.server_max_unrequested_time_in_server", _MAX_PENDING_SECONDS),
]
"""Server options for calls that gRPC has not read yet. By default gRPC drops those beyond 1,000,
and those older than 30 s, without a reason.
"""
# Seconds after which a connection is renewed, so that its caller finds new processes.
_MAX_CONNECTION_AGE_SECONDS = 5 * 60
CONNECTIONS = [
    ("grpc.max_connection_age_ms", _MAX_CONNECTION_AGE_SECONDS * 1000),
    # no call takes longer, so none is cut off
    ("grpc.max_connection_age_grace_ms", int(MAX_STREAM_SECONDS + MAX_DEADLINE_SECONDS) * 1000),
    ("grpc.keepalive_time_ms", 30_000),  # detects a caller that has vanished
    ("grpc.keepalive_timeout_ms", 10_000),
    # detects a frozen process, whose kernel still acknowledges
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # callers ping every 10 s
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_concurrent_streams", 10_000),
]
"""Server options: the lifetime of a connection, and how often its caller may ping."""
_STOP_ORDER = ("payment", "payout", "wallet", "ledger", "event")
"""The order in which services stop: each before the services that it calls."""
_DISCONNECT_TIMEOUT_SECONDS = 5.0  # within which gRPC closes ended connections
_POLL_INTERVAL_SECONDS = 0.01
_MIN_WORKER_DRAIN_SECONDS = 5.0
"""Seconds reserved for work in progress after the calls, however long those take. The drain timeout
applies instead if it is shorter.
"""
_FLUSH_SECONDS = 0.05  # in which the last responses are written
# Seconds in which watchers receive NOT_SERVING before calls are rejected.
_HEALTH_NOTICE_SECONDS = 0.2


@dataclass
class RunningServer:
    """The services of this process. `address`: where they are reachable."""

    address: str
    _services: Sequence[Service]
    _grpc_servers: Sequence[grpc.aio.Server]
    _rpc_servers: Sequence[RpcServer]
    _health_servicer: health.aio.HealthServicer
    _service_client: ServiceClient
    _socket_folder: str | None
    _database_health: DatabaseHealth

    def service(self, name: str) -> Service:
        """The service of this name. Raises StopIteration if this process does not serve it."""
        return next(service for service in self._services if service.name == name)

    @property
    def rpc_server(self) -> RpcServer:
        """The server pipeline of `address`."""
        return self._rpc_servers[0]

    async def stop(self, drain_timeout_seconds: float) -> None:
        """Drains: sets the health to NOT_SERVING, rejects new calls, ends streams, then waits for
        calls in flight, then for work in progress.

        Streams end within a second, whether they are read or not: they resume from their cursors.

        Calls have `drain_timeout_seconds`. Work in progress has the remaining time, and at least 5
        s, or `drain_timeout_seconds` if that is shorter.
        """
        await self._health_servicer.enter_graceful_shutdown()
        await self._database_health.stop()
        await asyncio.sleep(_HEALTH_NOTICE_SECONDS)
        deadline = asyncio.get_running_loop().time() + drain_timeout_seconds
        # The gRPC server runs to the end, because a stopped one drops new calls without a reason.
        self.rpc_server.close()
        await self.rpc_server.wait_until_idle(drain_timeout_seconds)
        remaining_seconds = max(
            deadline - asyncio.get_running_loop().time(),
            min(_MIN_WORKER_DRAIN_SECONDS, drain_timeout_seconds),
            0.1,
        )
        # while the services that they call still run
        await asyncio.gather(*(service.drain(remaining_seconds) for service in self._services))
        for service in sorted(self._services, key=lambda s: _STOP_ORDER.index(s.name)):
            await service.stop()
        for rpc_server, grpc_server in zip(
            self._rpc_servers[1:], self._grpc_servers[1:], strict=True
        ):
            rpc_server.close()
            await grpc_server.stop(1)
        await asyncio.sleep(_FLUSH_SECONDS)
        await _disconnect_clients(self.address)
        await self._grpc_servers[0].stop(None)
        await self._service_client.close()
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)


async def start(
    names: Sequence[str],
    settings: Settings,
    urls: Mapping[str, str],
    dependencies: Dependencies | None = None,
) -> RunningServer:
    """Starts services. Together they call each other through a separate server on a Unix socket; a
    single service uses the configured addresses.
    """
    _check_payout_service(names, settings)
    authenticator: Authenticator = (
        BearerTokens(settings.callers)
        if settings.authentication == "tokens"
        else NoAuthentication()
    )
    service_client = ServiceClient(settings.service_token)
    socket_folder = tempfile.mkdtemp(prefix="tallystick-") if len(names) > 1 else None
    internal_address = f"unix:{Path(socket_folder) / 'inside'}" if socket_folder else ""
    addresses = {
        name: internal_address
        if name in names and socket_folder
        else settings.service_addresses.get(name, "")
        for name in SERVICES
    }
    _check_addresses(names, addresses)
    services = Wiring(settings, urls, addresses, service_client, dependencies).build(names)
    health_servicer = health.aio.HealthServicer()
    listen_addresses = [settings.server.listen, *([internal_address] if internal_address else [])]
    try:
        rpc_servers, servers = _create_servers(
            listen_addresses, services, settings, authenticator, health_servicer
        )
    except StartupError:
        if socket_folder is not None:
            shutil.rmtree(socket_folder, ignore_errors=True)
        raise
    for service in services:
        service.start()
    for server in reversed(servers):
        await server.start()
    database_health = DatabaseHealth(
        health_servicer,
        {name: urls[name] for name in names},
        {s.name: s.descriptor.full_name for s in services},
    )
    await database_health.start()
    return RunningServer(
        settings.server.listen,
        services,
        servers,
        rpc_servers,
        health_servicer,
        service_client,
        socket_folder,
        database_health,
    )


def _call_limits(settings: Settings) -> CallLimits:
    return CallLimits(
        writes=settings.server.max_concurrent_calls,
        reads=settings.server.max_concurrent_reads,
        platform=settings.server.max_concurrent_platform_calls,
        waiting=settings.server.max_waiting_calls,
        streams=settings.server.max_concurrent_streams,
        share=settings.server.max_caller_share,
        message_bytes=settings.server.max_message_bytes_in_flight,
    )


def _check_addresses(names: Sequence[str], addresses: Mapping[str, str]) -> None:
    booking_services = ("wallet", "ledger", "event")
    dependencies = {
        "payment": booking_services,
        "payout": booking_services,
        "ledger": ("event",),
        "wallet": ("event",),
    }
    for name in names:
        for dependency in dependencies.get(name, ()):
            if not addresses[dependency]:
                raise StartupError(
                    f"TALLYSTICK_SERVICE_ADDRESSES must say where {name} reaches {dependency}, "
                    f'such as "{dependency}=127.0.0.1:7071".'
                )


def _check_payout_service(names: Sequence[str], settings: Settings) -> None:
    """Rejects a configuration in which WalletService would reject the calls of PayoutService."""
    if settings.authentication == "none":
        return
    service_caller = settings.callers.get(settings.service_token)
    services = {caller.name for caller in settings.callers.values() if Role.SERVICE in caller.roles}
    if (
        "payout" in names
        and service_caller is not None
        and settings.payout_service not in ("", service_caller.name)
    ):
        raise StartupError(
            f"payout_service (TALLYSTICK_PAYOUT_SERVICE) must be {service_caller.name}, the "
            "caller of this PayoutService's service_token, or empty."
        )
    if (
        "wallet" in names
        and "payout" not in names
        and not settings.payout_service
        and len(services) > 1
    ):
        candidates = ", ".join(sorted(services))
        raise StartupError(
            "payout_service (TALLYSTICK_PAYOUT_SERVICE) must say which caller PayoutService is, "
            f"among those with the role service: {candidates}."
        )


def _create_servers(
    listen_addresses: Sequence[str],
    services: Sequence[Service],
    settings: Settings,
    authenticator: Authenticator,
    health_servicer: health.aio.HealthServicer,
) -> tuple[list[RpcServer], list[grpc.aio.Server]]:
    """Creates one server for each address, which listens and is not started yet. Raises
    StartupError.
    """
    rpc_servers, servers = [], []
    for listen_address in listen_addresses:
        rpc_server = RpcServer(authenticator, _call_limits(settings))
        server = _create_server(
            services, rpc_server, health_servicer, reuse_port=settings.server.reuse_port
        )
        listen(server, listen_address)
        rpc_servers.append(rpc_server)
        servers.append(server)
    return rpc_servers, servers


def _create_server(
    services: Sequence[Service],
    rpc_server: RpcServer,
    health_servicer: health.aio.HealthServicer,
    *,
    reuse_port: bool,
) -> grpc.aio.Server:
    # So this server, not gRPC, rejects large messages with their own reason.
    max_message_bytes = 2 * MAX_BATCH_BYTES
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.so_reuseport", int(reuse_port)),
            *PENDING_REQUEST_OPTIONS,
            *CONNECTIONS,
        ]
    )
    for service in services:
        rpc_server.add_service(server, service.descriptor, service.servicer, service.access)
    auxiliary_services: Any = AuxiliaryServices(server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, auxiliary_services)
    names = [s.descriptor.full_name for s in services]
    reflection_servicer = reflection.aio.ReflectionServicer(
        [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], pool=SymbolDescriptorPool()
    )
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
        reflection_servicer, auxiliary_services
    )  # type: ignore[no-untyped-call]
    rpc_server.add_fallback(server)
    return server


async def _disconnect_clients(address: str) -> None:
    """Closes the connections of a server that answers no more calls. Returns once gRPC has released
    them.

    Their callers see a lost connection. A call on a connection that is open while the server stops
    would be cancelled without a reason.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _DISCONNECT_TIMEOUT_SECONDS
    # gRPC says nothing when it closes one
    while _shut_down_sockets(address) and loop.time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_INTERVAL_SECONDS)


def _shut_down_sockets(address: str) -> bool:
    """Closes the listeners of an address, and stops reading from its connections. Returns whether
    there are any.
    """
    has_connections = False
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # not a socket, not connected, or closed
            has_connections |= _shut_down_socket(int(name), address)
    return has_connections


def _shut_down_socket(descriptor: int, address: str) -> bool:
    """Closes a listener of an address, or stops reading from one of its connections. Returns
    whether the descriptor is such a connection. Raises OSError if it is no socket.
    """
    copy = os.dup(descriptor)
    try:
        sock = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with sock:
        if not _is_bound_to(sock, address):
            return False
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            # a placeholder, so that gRPC does not report a closed socket
            with socket.socket() as placeholder:
                os.dup2(placeholder.fileno(), descriptor)
            return False
        sock.getpeername()
        with suppress(OSError):  # the connection may have just closed
            sock.shutdown(socket.SHUT_RD)  # pending writes still complete
    return True


def _is_bound_to(sock: socket.socket, address: str) -> bool:
    name = sock.getsockname()
    if address.startswith("unix:"):
        return sock.family == socket.AF_UNIX and bool(name == address.removeprefix("unix:"))
    return sock.family != socket.AF_UNIX and bool(name[1] == int(address.rpartition(":")[2]))


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine as the process's main work, on the fastest event loop available."""
    # messages and rows have no reference cycles, and the search for them was costly
    gc.set_threshold(100_000, 50, 1000)
    # threads of transactions wait less for the interpreter while the loop is busy
    sys.setswitchinterval(0.001)
    try:
        import uvloop  # noqa: PLC0415 - there is none for Windows

        factory = uvloop.new_event_loop
    except ImportError:
        factory = asyncio.new_event_loop  # type: ignore[assignment]
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


async def serve(
    names: Sequence[str],
    settings: Settings,
    urls: Mapping[str, str],
    print_status: Callable[[str], None],
    has_ended: Callable[[], bool],
) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Raises StartupError if the embedded database
    ends meanwhile (`has_ended`).
    """
    flush = tracing.configure(
        "tallystick-" + ("all" if len(names) > 1 else names[0]),
        settings.tracing.otlp_endpoint,
        settings.tracing.ratio,
    )
    stop_event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop_event.set)
    await _wait_until_ready(names, settings, urls, stop_event, print_status)
    if stop_event.is_set():
        return
    server = await start(names, settings, urls)
    print_status(f"Serving {', '.join(names)} on {server.address}")
    await wait_for_stop(stop_event, has_ended)
    print_status("Draining")
    await server.stop(0 if has_ended() else settings.server.shutdown_grace_period)
    await asyncio.to_thread(flush)
    if has_ended():
        raise StartupError(
            "The embedded PostgreSQL has ended, and with it every service here: see the log in "
            "its folder, and run the command again."
        )
    print_status("Stopped")


async def _wait_until_ready(
    names: Sequence[str],
    settings: Settings,
    urls: Mapping[str, str],
    stop_event: asyncio.Event,
    print_status: Callable[[str], None],
) -> None:
    """Waits for the databases. Until then the health is NOT_SERVING at the configured address.
    Raises StartupError.
    """
    server = grpc.aio.server(options=[("grpc.so_reuseport", int(settings.server.reuse_port))])
    listen(server, settings.server.listen)
    await serve_not_ready(server, full_names(names))
    try:
        await await_databases(urls, settings.database.startup_timeout, stop_event, print_status)
    finally:
        await server.stop(None)


async def wait_for_stop(stop_event: asyncio.Event, has_ended: Callable[[], bool]) -> None:
    """Waits until the process must stop, or the embedded database has ended."""
    while not stop_event.is_set() and not has_ended():
        try:
            async with asyncio.timeout(_DATABASE_POLL_SECONDS):
                await stop_event.wait()
        except TimeoutError:
            continue
