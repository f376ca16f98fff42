"""Runs all or some services in this process until it is stopped."""

from __future__ import annotations

import asyncio
import gc
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health

from tallystick_core.access import Role
from tallystick_server.app.configuration import Settings
from tallystick_server.app.disk_meter import DiskMeter
from tallystick_server.app.errors import StartupError
from tallystick_server.app.event_loop import GC_THRESHOLDS, new_event_loop
from tallystick_server.app.grpc_servers import create_servers, disconnect_clients
from tallystick_server.app.http_serving import (
    HEALTH_NOTICE_SECONDS,
    HttpProcess,
    RunningHttpServer,
    start_http_process,
    start_http_server,
)
from tallystick_server.app.listening import listen
from tallystick_server.app.metrics_export import MetricsExport, start_metrics_export
from tallystick_server.app.metrics_recording import MetricsRecorder
from tallystick_server.app.readiness import DatabaseHealth, await_databases, serve_not_ready
from tallystick_server.app.services import (
    HTTP_SERVER,
    check_addresses,
    essential_names,
    find_spec,
    process_name,
    stop_order,
)
from tallystick_server.app.span_recording import SpanRecorder, check_span_store, create_recorders
from tallystick_server.app.tls import ServerCertificate, load_certificate, service_connector
from tallystick_server.app.wiring import Dependencies, Service, Wiring
from tallystick_server.observability import tracing
from tallystick_server.rpc.authentication import Authenticator, BearerTokens, NoAuthentication
from tallystick_server.rpc.server import RpcServer
from tallystick_server.rpc.service_client import ServiceClient

T = TypeVar("T")

_DATABASE_POLL_SECONDS = 1.0
_MIN_WORKER_DRAIN_SECONDS = 5.0
"""Seconds reserved for work in progress after the calls, however long those take. The drain timeout
applies instead if it is shorter.
"""
_FLUSH_SECONDS = 0.05  # in which the last responses are written


@dataclass
class RunningServer:
    """The services of this process. `address`: where they are reachable."""

    address: str
    _services: Sequence[Service]
    _grpc_servers: Sequence[grpc.aio.Server]
    _rpc_servers: Sequence[RpcServer]
    _health_servicer: health.aio.HealthServicer
    _service_client: ServiceClient
    _socket_folder: Path | None
    _database_health: DatabaseHealth
    _metrics_export: MetricsExport | None
    _recorders: Sequence[MetricsRecorder | SpanRecorder | DiskMeter]
    _certificate: ServerCertificate | None
    _http_server: RunningHttpServer | None = None

    @property
    def http_address(self) -> str:
        """Where the HTTP server is reachable; "": there is none."""
        return self._http_server.address if self._http_server else ""

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
        if self._http_server is not None:
            self._http_server.announce_stop()
        await self._database_health.stop()
        await asyncio.sleep(HEALTH_NOTICE_SECONDS)
        deadline = asyncio.get_running_loop().time() + drain_timeout_seconds
        # The gRPC server runs to the end, because a stopped one drops new calls without a reason.
        await asyncio.gather(
            self._drain_http(drain_timeout_seconds), self._drain_rpc(drain_timeout_seconds)
        )
        remaining_seconds = max(
            deadline - asyncio.get_running_loop().time(),
            min(_MIN_WORKER_DRAIN_SECONDS, drain_timeout_seconds),
            0.1,
        )
        # while the services that they call still run
        await asyncio.gather(
            *(service.drain(remaining_seconds) for service in self._services),
            self._stop_recorders(),
        )
        for spec in stop_order(service.spec for service in self._services):
            await self.service(spec.name).stop()
        for rpc_server, grpc_server in zip(
            self._rpc_servers[1:], self._grpc_servers[1:], strict=True
        ):
            rpc_server.close()
            await grpc_server.stop(1)
        await asyncio.sleep(_FLUSH_SECONDS)
        await disconnect_clients(self.address)
        await self._grpc_servers[0].stop(None)
        await self._service_client.close()
        if self._certificate is not None:
            await self._certificate.stop()
        if self._metrics_export is not None:  # last, so that the drain can be watched
            await self._metrics_export.stop()
        _remove_folder(self._socket_folder)

    async def _drain_http(self, timeout_seconds: float) -> None:
        if self._http_server is not None:
            await self._http_server.stop(timeout_seconds)

    async def _stop_recorders(self) -> None:
        for recorder in self._recorders:
            await recorder.stop()

    async def _drain_rpc(self, timeout_seconds: float) -> None:
        self.rpc_server.close()
        await self.rpc_server.wait_until_idle(timeout_seconds)


async def start(
    names: Sequence[str],
    settings: Settings,
    urls: Mapping[str, str],
    dependencies: Dependencies | None = None,
) -> RunningServer:
    """Starts services, and the HTTP server if it is named. Together services call each other
    through a separate server on a Unix socket; a single service uses the configured addresses.
    """
    folder = Path(tempfile.mkdtemp(prefix="tallystick-")) if len(names) > 1 else None
    try:
        return await _start(names, settings, urls, dependencies or Dependencies(), folder)
    except BaseException:
        _remove_folder(folder)
        raise


async def _start(
    names: Sequence[str],
    settings: Settings,
    urls: Mapping[str, str],
    dependencies: Dependencies,
    socket_folder: Path | None,
) -> RunningServer:
    """`socket_folder`: None: one service, which needs no socket of its own."""
    service_names = [name for name in names if name != HTTP_SERVER]
    specs = [find_spec(name) for name in service_names]
    _check_payout_service(service_names, settings)
    certificate, credentials = _load_certificate(settings)
    service_client = ServiceClient(
        settings.service_token, service_connector(settings.service_ca_file)
    )
    listen_addresses, addresses = [settings.server.listen], settings.service_addresses
    if len(specs) > 1:
        internal_address = f"unix:{socket_folder}/inside"
        listen_addresses.append(internal_address)
        addresses = {**addresses, **dict.fromkeys(service_names, internal_address)}
    for spec in specs:
        check_addresses(spec.name, spec.dependencies, addresses)
    check_span_store(settings, addresses)
    services = Wiring(settings, urls, addresses, service_client, dependencies).build(specs)
    health_servicer = health.aio.HealthServicer()
    rpc_servers, servers = create_servers(
        listen_addresses,
        services,
        settings,
        _authenticator(settings),
        health_servicer,
        credentials,
    )
    metrics_export = await start_metrics_export(process_name(names), settings)
    recorders = [
        DiskMeter(settings.data_dir),
        *create_recorders(process_name(names), settings, service_client, addresses),
    ]
    http_server = None
    if HTTP_SERVER in names and settings.http.listen:
        # the public server, with its limits, at an address that needs no TLS
        http_address = f"unix:{socket_folder}/http"
        listen(servers[0], http_address)
        http_server = await start_http_server(
            settings,
            {**settings.service_addresses, **dict.fromkeys(service_names, http_address)},
            dependencies.webhook_sources,
        )
    if certificate is not None:
        certificate.start()
    for service in services:
        service.start()
    for server in reversed(servers):
        await server.start()
    database_health = DatabaseHealth(
        health_servicer,
        {name: urls[name] for name in service_names},
        {s.name: s.descriptor.full_name for s in services},
        essential_names(service_names),
    )
    await database_health.start()
    for recorder in recorders:
        recorder.start()
    return RunningServer(
        settings.server.listen,
        services,
        servers,
        rpc_servers,
        health_servicer,
        service_client,
        socket_folder,
        database_health,
        metrics_export,
        recorders,
        certificate,
        http_server,
    )


def _remove_folder(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _authenticator(settings: Settings) -> Authenticator:
    if settings.authentication == "tokens":
        return BearerTokens(settings.callers)
    return NoAuthentication()


def _load_certificate(
    settings: Settings,
) -> tuple[ServerCertificate | None, grpc.ServerCredentials | None]:
    """The certificate of the gRPC server, if it has one, and the credentials with it. Raises
    StartupError.
    """
    certificate = load_certificate("server", settings.server)
    return certificate, None if certificate is None else certificate.grpc_credentials()


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


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine as the process's main work, on the fastest event loop available."""
    gc.set_threshold(*GC_THRESHOLDS)
    # threads of transactions wait less for the interpreter while the loop is busy
    sys.setswitchinterval(0.001)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def configure_tracing(name: str, settings: Settings) -> Callable[[], None]:
    """Starts the tracing of a process. Returns a function that flushes and stops it."""
    section = settings.tracing
    return tracing.configure(
        name,
        section.otlp_endpoint,
        section.ratio,
        stores_spans=section.store_spans,
        slow_seconds=section.slow_threshold if section.tail_sampling else None,
    )


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
    flush = configure_tracing(process_name(names), settings)
    stop_event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop_event.set)
    services = [name for name in names if name != HTTP_SERVER]
    server: RunningServer | HttpProcess
    if services:
        await _wait_until_ready(services, settings, urls, stop_event, print_status)
        if stop_event.is_set():
            return
        server = await start(names, settings, urls)
        print_status(f"Serving {', '.join(services)} on {server.address}")
    else:
        server = await start_http_process(settings)
    if server.http_address:
        print_status(f"Serving http on {server.http_address}")
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
    certificate, credentials = _load_certificate(settings)
    listen(server, settings.server.listen, credentials)
    await serve_not_ready(server, [find_spec(name).descriptor.full_name for name in names])
    if certificate is not None:
        certificate.start()
    try:
        await await_databases(
            urls,
            settings.database.startup_timeout,
            stop_event,
            print_status,
            urls.keys() - ({*names} - {*essential_names(names)}),
        )
    finally:
        await server.stop(None)
        if certificate is not None:
            await certificate.stop()


async def wait_for_stop(stop_event: asyncio.Event, has_ended: Callable[[], bool]) -> None:
    """Waits until the process must stop, or the embedded database has ended."""
    while not stop_event.is_set() and not has_ended():
        try:
            async with asyncio.timeout(_DATABASE_POLL_SECONDS):
                await stop_event.wait()
        except TimeoutError:
            continue
