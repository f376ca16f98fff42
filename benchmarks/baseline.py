"""The baseline for whatever is one call per payment: an empty gRPC server that echoes messages.

python -m benchmarks.baseline ADDRESS
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import grpc

from benchmarks.measure import Call
from tallystick_server.app.grpc_servers import PENDING_REQUEST_OPTIONS
from tallystick_server.app.serve import run

_SERVICE, _METHOD = "bench.Echo", "Echo"


def echo_call(channel: grpc.aio.Channel, message: bytes) -> Call:
    """A call that sends the message to the server at the other end of the channel."""
    echo = channel.unary_unary(f"/{_SERVICE}/{_METHOD}")  # type: ignore[var-annotated]

    async def call(_number: int) -> None:
        await echo(message)

    return call


async def _echo(message: bytes, _context: Any) -> bytes:
    return message


async def _serve(address: str) -> None:
    server = grpc.aio.server(options=PENDING_REQUEST_OPTIONS)
    method = grpc.unary_unary_rpc_method_handler(_echo)  # type: ignore[var-annotated]
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: method}),)
    )
    server.add_insecure_port(address)
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(1)


if __name__ == "__main__":
    run(_serve(sys.argv[1]))
