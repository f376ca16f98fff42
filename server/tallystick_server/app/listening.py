"""The listening addresses of a process."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import grpc

from tallystick_server.app.errors import StartupError

_HANDSHAKE_TIMEOUT_SECONDS = 10.0


def listen(
    server: grpc.Server | grpc.aio.Server,
    address: str,
    credentials: grpc.ServerCredentials | None = None,
) -> None:
    """Binds the server to "host:port", with TLS if there are credentials, or in plain text to
    "unix:path". Raises StartupError with the cause.
    """
    try:
        if credentials is None or address.startswith("unix:"):
            bound = server.add_insecure_port(address)
        else:
            bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        raise StartupError(
            f"Cannot listen on {address}: {failure_cause(address)}. Set "
            "TALLYSTICK_SERVER__LISTEN to another address."
        )


async def listen_http(
    connect: Callable[[], asyncio.Protocol],
    address: str,
    context: ssl.SSLContext | None,
    *,
    reuse_port: bool,
) -> asyncio.Server:
    """Accepts HTTP connections at "host:port", with TLS if there is a context. Raises StartupError
    with the cause.
    """
    host, _, port = address.rpartition(":")
    try:
        return await asyncio.get_running_loop().create_server(
            connect,
            host.strip("[]"),
            int(port),
            ssl=context,
            ssl_handshake_timeout=None if context is None else _HANDSHAKE_TIMEOUT_SECONDS,
            reuse_port=reuse_port or None,
        )
    except OSError as error:
        raise StartupError(
            f"Cannot listen on {address}: {failure_cause(address)}. Set "
            "TALLYSTICK_HTTP__LISTEN to another address, or to nothing for no HTTP server."
        ) from error


def failure_cause(address: str) -> str:
    """Why the address cannot be bound. gRPC does not report it, so it is bound again."""
    try:
        if address.startswith("unix:"):
            _bind_path(address.removeprefix("unix:"))
        else:
            _bind_port(address)
    except socket.gaierror as error:
        return str(error.strerror).lower()
    except OSError as error:
        return (os.strerror(error.errno) if error.errno else str(error)).lower()
    return "the address is not available"


def _bind_path(path: str) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as unix_socket:
        unix_socket.bind(path)
    Path(path).unlink()


def _bind_port(address: str) -> None:
    host, _, port = address.rpartition(":")
    family, kind, protocol, _, socket_address = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM
    )[0]
    with closing(socket.socket(family, kind, protocol)) as tcp_socket:
        tcp_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp_socket.bind(socket_address)
