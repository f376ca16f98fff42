"""Runs services in this process: all of them, or some by name, until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
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

from tallystick_core.caller import Role
from tallystick_server.process.configuration import SERVED, Settings
from tallystick_server.process.failure import Failure
from tallystick_server.process.readiness import DatabaseHealth, await_databases, serve_not_ready
from tallystick_server.process.wiring import Ports, Service, Wiring, full_names
from tallystick_server.runtime import telemetry
from tallystick_server.runtime.authentication import Authenticator, BearerTokens, Development
from tallystick_server.runtime.beside import Beside
from tallystick_server.runtime.bulkhead import CallLimits
from tallystick_server.runtime.door import BATCH_BYTES, LONGEST_DEADLINE, STREAM_TIME, Door
from tallystick_server.runtime.peers import Peers
from tallystick_server.runtime.reflected import Symbols

T = TypeVar("T")
log = logging.getLogger(__name__)

_LOOK_AT_DATABASE = 1.0  # seconds
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
_MOST_UNREAD = 10_000
_LONGEST_UNREAD = int(LONGEST_DEADLINE) + 15  # seconds; the longest deadline that the door grants ends before
UNREAD = [
    ("grpc.server.max_pending_requests", _MOST_UNREAD),
    ("grpc.server.max_pending_requests_hard_limit", _MOST_UNREAD),
    ("grpc.server_max_unrequested_time_in_server", _LONGEST_UNREAD),
]
"""Options of a server: of calls it has not read yet gRPC drops those beyond 1,000, and those that have waited for 30 s, without a reason."""
_AGE = 5 * 60  # seconds after which a connection is renewed, so that its caller finds processes that are new
CONNECTIONS = [
    ("grpc.max_connection_age_ms", _AGE * 1000),
    ("grpc.max_connection_age_grace_ms", int(STREAM_TIME + LONGEST_DEADLINE) * 1000),  # no call of ours takes longer, so none is cut
    ("grpc.keepalive_time_ms", 30_000),  # a caller that has vanished is noticed
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # while the kernel of a process that is frozen still acknowledges
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),  # callers ping each 10 s
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_concurrent_streams", 10_000),
]
"""Options of a server: how long a connection lives, and how often its caller may ping."""
_CALLERS_FIRST = ("payment", "payout", "wallet", "ledger", "event")
"""The order in which services stop: each before those that it calls."""
_LETTING_GO = 5.0  # seconds within which gRPC closes connections that have ended
_LOOK_AGAIN = 0.01
_WORKERS = 5.0
"""Seconds that work in progress has after the calls, however long these take; the drain's own time, where that is shorter."""
_FAREWELL = 0.05  # seconds in which the last answers are written
_HEALTH_NOTICE = 0.2  # seconds in which watchers hear of NOT_SERVING before calls are refused


@dataclass
class Running:
    """Services that are being served; `address` is the one they are reached at."""

    address: str
    _services: Sequence[Service]
    _servers: Sequence[grpc.aio.Server]
    _doors: Sequence[Door]
    _health: health.aio.HealthServicer
    _peers: Peers
    _folder: str | None
    _database_health: DatabaseHealth

    async def stop(self, patience: float) -> None:
        """Drains: health goes NOT_SERVING, no call is taken any more, streams end, then the calls in flight, then the work in progress.

        Streams end within a second, whether they are read or not: they resume from their cursors. Calls have `patience` seconds; work in progress has
        what they leave of it, and at least a reserve of 5 s, or of `patience` if that is shorter.
        """
        await self._health.enter_graceful_shutdown()
        await self._database_health.stop()
        await asyncio.sleep(_HEALTH_NOTICE)
        deadline = asyncio.get_running_loop().time() + patience
        self._doors[0].close()  # the server itself goes on, to the last, since one that is stopped drops new calls without a reason
        await self._doors[0].quiet(patience)
        left = max(deadline - asyncio.get_running_loop().time(), min(_WORKERS, patience), 0.1)
        await asyncio.gather(*(service.drain(left) for service in self._services))  # while the services that they call still run
        for service in sorted(self._services, key=lambda one: _CALLERS_FIRST.index(one.name)):
            await service.stop()
        for door, server in zip(self._doors[1:], self._servers[1:], strict=True):
            door.close()
            await server.stop(1)
        await asyncio.sleep(_FAREWELL)
        await _hang_up(self.address)
        await self._servers[0].stop(None)
        await self._peers.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


async def start(names: Sequence[str], settings: Settings, urls: Mapping[str, str], ports: Ports | None = None) -> Running:
    """Starts services. Together they reach each other over a unix socket with a door of its own, alone at the configured addresses."""
    _check_payout_service(names, settings)
    authenticator: Authenticator = BearerTokens(settings.callers) if settings.authentication == "tokens" else Development()
    peers = Peers(settings.service_token)
    folder = tempfile.mkdtemp(prefix="tallystick-") if len(names) > 1 else None
    inside = f"unix:{Path(folder) / 'inside'}" if folder else ""
    addresses = {name: inside if name in names and folder else settings.address.get(name, "") for name in SERVED}
    _check_addresses(names, addresses)
    services = Wiring(settings, urls, addresses, peers, ports).build(names)
    doors, servers = [], []
    monitor = health.aio.HealthServicer()
    for listen in (settings.listen, *([inside] if inside else [])):
        door = Door(authenticator, _limits(settings))
        servers.append(_server(services, door, monitor, reuse_port=settings.reuse_port))
        doors.append(door)
        try:
            _listen(servers[-1], listen)
        except Failure:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    for service in services:
        service.start()
    for server in reversed(servers):
        await server.start()
    database_health = DatabaseHealth(monitor, {name: urls[name] for name in names}, {s.name: s.descriptor.full_name for s in services})
    await database_health.start()
    return Running(settings.listen, services, servers, doors, monitor, peers, folder, database_health)


def _limits(settings: Settings) -> CallLimits:
    return CallLimits(
        writes=settings.most_calls,
        reads=settings.most_reads,
        platform=settings.most_platform_calls,
        waiting=settings.most_waiting,
        streams=settings.most_streams,
        share=settings.caller_share,
        message_bytes=settings.message_bytes,
    )


def _check_addresses(names: Sequence[str], addresses: Mapping[str, str]) -> None:
    of_flow = ("wallet", "ledger", "event")
    needs = {"payment": of_flow, "payout": of_flow, "ledger": ("event",), "wallet": ("event",)}
    for name in names:
        for other in needs.get(name, ()):
            if not addresses[other]:
                raise Failure(f'TALLYSTICK_ADDRESS must say where {name} reaches {other}, such as "{other}=127.0.0.1:7071".')


def _check_payout_service(names: Sequence[str], settings: Settings) -> None:
    """Refuses to start a WalletService that would refuse the calls of PayoutService, or a PayoutService whose calls would be refused."""
    if settings.authentication == "none":
        return
    own = settings.callers.get(settings.service_token)
    services = {caller.name for caller in settings.callers.values() if Role.SERVICE in caller.roles}
    if "payout" in names and own is not None and settings.payout_service not in ("", own.name):
        raise Failure(f"payout_service (TALLYSTICK_PAYOUT_SERVICE) must be {own.name}, the caller of this PayoutService's service_token, or empty.")
    if "wallet" in names and "payout" not in names and not settings.payout_service and len(services) > 1:
        known = ", ".join(sorted(services))
        raise Failure(
            f"payout_service (TALLYSTICK_PAYOUT_SERVICE) must say which caller PayoutService is, among those with the role service: {known}."
        )


def _server(services: Sequence[Service], door: Door, monitor: health.aio.HealthServicer, *, reuse_port: bool) -> grpc.aio.Server:
    received = 2 * BATCH_BYTES  # so that it is the door that refuses what is too large, by its name
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", received), ("grpc.so_reuseport", int(reuse_port)), *UNREAD, *CONNECTIONS])
    for service in services:
        door.bind(server, service.descriptor, service.servicer, service.access)
    beside: Any = Beside(server)
    health_pb2_grpc.add_HealthServicer_to_server(monitor, beside)
    names = [s.descriptor.full_name for s in services]
    told = reflection.aio.ReflectionServicer([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], pool=Symbols())
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(told, beside)  # type: ignore[no-untyped-call]
    door.bind_unknown(server)
    return server


async def _hang_up(address: str) -> None:
    """Ends the connections of a server that answers nobody any more, and returns once gRPC has let go of them.

    Their callers see a lost connection; a call on a connection that is open while the server stops would be cancelled without a reason.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _LETTING_GO
    while _end_connections(address) and loop.time() < deadline:  # noqa: ASYNC110 - gRPC says nothing when it closes one
        await asyncio.sleep(_LOOK_AGAIN)


def _end_connections(address: str) -> bool:
    """Takes no more connections at an address, and reads no more from those there are. Whether there are any."""
    path = address.removeprefix("unix:") if address.startswith("unix:") else ""
    found = False
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # it is no socket, is not connected, or has been closed
            copy = os.dup(int(name))
            try:
                one = socket.socket(fileno=copy)
            except OSError:
                os.close(copy)
                raise
            with one:
                if one.family == socket.AF_UNIX:
                    ours = path and one.getsockname() == path
                else:
                    ours = not path and one.getsockname()[1] == int(address.rpartition(":")[2])
                if not ours:
                    continue
                if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    with socket.socket() as idle:  # in its place, so that gRPC finds no closed one and complains
                        os.dup2(idle.fileno(), int(name))
                    continue
                one.getpeername()
                found = True
                one.shutdown(socket.SHUT_RD)  # so that what is being written is written
    return found


def _listen(server: grpc.aio.Server, address: str) -> None:
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if not bound:
        raise Failure(
            f"Nothing can listen on {address}: another program does, the address is not this machine's, or its folder is not there. "
            "Set TALLYSTICK_LISTEN to another."
        )


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine as the process's work, on the fastest loop there is."""
    gc.set_threshold(100_000, 50, 1000)  # messages and rows hold no cycles, and looking for some was costly
    sys.setswitchinterval(0.001)  # transactions' threads wait less for the interpreter beside a busy loop
    try:
        import uvloop  # noqa: PLC0415 - there is none for Windows

        factory = uvloop.new_event_loop
    except ImportError:
        factory = asyncio.new_event_loop  # type: ignore[assignment]
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


async def serve(names: Sequence[str], settings: Settings, urls: Mapping[str, str], say: Callable[[str], None], has_ended: Callable[[], bool]) -> None:
    """Serves until SIGTERM or SIGINT, then drains. Raises Failure if the embedded database `has_ended` meanwhile."""
    flush = telemetry.configure("tallystick-" + ("all" if len(names) > 1 else names[0]), settings.otlp_endpoint, settings.trace_ratio)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await _until_ready(names, settings, urls, stopped, say)
    if stopped.is_set():
        return
    running = await start(names, settings, urls)
    say(f"Serving {', '.join(names)} on {running.address}")
    await until(stopped, has_ended)
    say("Draining")
    await running.stop(0 if has_ended() else settings.drain)
    await asyncio.to_thread(flush)
    if has_ended():
        raise Failure("The embedded PostgreSQL has ended, and with it every service here: see the log in its folder, and run the command again.")
    say("Stopped")


async def _until_ready(names: Sequence[str], settings: Settings, urls: Mapping[str, str], stopped: asyncio.Event, say: Callable[[str], None]) -> None:
    """Waits for the databases; meanwhile health is NOT_SERVING at the configured address. Raises Failure."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", int(settings.reuse_port))])
    _listen(server, settings.listen)
    await serve_not_ready(server, full_names(names))
    try:
        await await_databases(urls, settings.database_patience, stopped, say)
    finally:
        await server.stop(None)


async def until(stopped: asyncio.Event, has_ended: Callable[[], bool]) -> None:
    """Waits until the process is told to stop, or the embedded database has ended."""
    while not stopped.is_set() and not has_ended():
        try:
            async with asyncio.timeout(_LOOK_AT_DATABASE):
                await stopped.wait()
        except TimeoutError:
            continue
