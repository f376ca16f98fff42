"""The gRPC servers of a process: their options and services, and the end of their connections."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from tallystick_server.app.configuration import Settings
from tallystick_server.app.listening import listen
from tallystick_server.app.wiring import Service
from tallystick_server.rpc.authentication import Authenticator
from tallystick_server.rpc.bulkhead import CallLimits
from tallystick_server.rpc.health import AuxiliaryServices
from tallystick_server.rpc.reflection import SymbolDescriptorPool
from tallystick_server.rpc.server import (
    MAX_BATCH_BYTES,
    MAX_DEADLINE_SECONDS,
    MAX_LONG_DEADLINE_SECONDS,
    RpcServer,
)

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
    (
        "grpc.max_connection_age_grace_ms",
        int(MAX_LONG_DEADLINE_SECONDS + MAX_DEADLINE_SECONDS) * 1000,
    ),
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
_DISCONNECT_TIMEOUT_SECONDS = 5.0  # within which gRPC closes ended connections
_POLL_INTERVAL_SECONDS = 0.01


def create_servers(
    listen_addresses: Sequence[str],
    services: Sequence[Service],
    settings: Settings,
    authenticator: Authenticator,
    health_servicer: health.aio.HealthServicer,
    credentials: grpc.ServerCredentials | None,
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
        listen(server, listen_address, credentials)
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


def _call_limits(settings: Settings) -> CallLimits:
    return CallLimits(
        writes=settings.server.max_concurrent_calls,
        reads=settings.server.max_concurrent_reads,
        platform=settings.server.max_concurrent_platform_calls,
        waiting=settings.server.max_waiting_calls,
        streams=settings.server.max_concurrent_streams,
        share=settings.server.max_owner_share,
        message_bytes=settings.server.max_message_bytes_in_flight,
    )


async def disconnect_clients(address: str) -> None:
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
