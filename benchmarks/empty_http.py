"""The baseline for whatever is one HTTP request: an empty handler on the platform's HTTP server.

python -m benchmarks.empty_http HOST:PORT
"""

from __future__ import annotations

import asyncio
import signal
import sys

from aiohttp import web

from tallystick_server.app.serve import run
from tallystick_server.http.request import Request
from tallystick_server.http.routing import Route
from tallystick_server.http.server import HttpLimits, HttpServer

PATH = "/empty"


async def _read(request: Request) -> web.StreamResponse:
    await request.read_body()
    return web.Response(body=b"{}", content_type="application/json")


async def _serve(address: str) -> None:
    host, _, port = address.rpartition(":")
    server = HttpServer([Route("POST", PATH, _read)], HttpLimits())
    listener = await asyncio.get_running_loop().create_server(server.connect, host, int(port))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    listener.close()
    await server.stop()


if __name__ == "__main__":
    run(_serve(sys.argv[1]))
