"""HTTP servers in the test's process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from aiohttp import web

from tallystick_server.http.routing import Route
from tallystick_server.http.server import HttpLimits, HttpServer


@contextmanager
def serve_routes(make_routes: Callable[[], Sequence[Route]]) -> Iterator[str]:
    """Serves routes, which are made in the server's loop, until the block ends; the URL of the
    server.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[HttpServer, asyncio.Server]:
        server = HttpServer(make_routes(), HttpLimits())
        return server, await loop.create_server(server.connect, "127.0.0.1", 0)

    server, listener = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    host, port = listener.sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        loop.call_soon_threadsafe(listener.close)
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@asynccontextmanager
async def serve_app(app: web.Application) -> AsyncIterator[str]:
    """Serves on loopback until the block ends; its URL. Requests that run then are cut."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
