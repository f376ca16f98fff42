"""An empty gRPC server: the ceiling for everything that is one call per payment. python -m
benchmarks.echo ADDRESS
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import grpc

from tallystick_server.app.serve import PENDING_REQUEST_OPTIONS, run


async def _echo(raw: bytes, _context: Any) -> bytes:
    return raw


async def main(address: str) -> None:
    server = grpc.aio.server(options=PENDING_REQUEST_OPTIONS)
    method = grpc.unary_unary_rpc_method_handler(_echo)  # type: ignore[var-annotated]
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Echo", {"Echo": method}),)
    )
    server.add_insecure_port(address)
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(1)


if __name__ == "__main__":
    run(main(sys.argv[1]))
