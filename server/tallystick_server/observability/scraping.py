"""A bounded HTTP server with one resource: the metrics, in the text format of Prometheus."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST

from tallystick_server.observability import names

log = logging.getLogger(__name__)

PATH = "/metrics"
MAX_CONNECTIONS = 8
"""Further connections are closed at once."""
READ_SECONDS, WRITE_SECONDS = 5.0, 10.0
_MAX_REQUEST_BYTES = 8 * 1024
_MAX_AGE_SECONDS = 1.0
"""Scrapes within this time of another get the same metrics."""


class ScrapeServer:
    """Answers `GET /metrics`, one request per connection. `render` runs in a thread, one at a time.

    Scrapers cannot exhaust the process: connections are limited, and each has a time to send its
    request and a time to read its response.
    """

    def __init__(
        self,
        render: Callable[[], bytes],
        *,
        read_seconds: float = READ_SECONDS,
        write_seconds: float = WRITE_SECONDS,
    ) -> None:
        self._render = render
        self._read_seconds = read_seconds
        self._write_seconds = write_seconds
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._render_lock = asyncio.Lock()
        self._body, self._body_expiry = b"", 0.0

    async def start(self, host: str, port: int) -> None:
        """Raises OSError if the address cannot be bound."""
        self._server = await asyncio.start_server(
            self._accept, host, port, limit=_MAX_REQUEST_BYTES, backlog=MAX_CONNECTIONS
        )

    async def stop(self) -> None:
        """Closes the listener, and every connection without waiting for its scraper."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # a scraper that is slow, gone, or sends no HTTP
        with suppress(
            TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            try:
                async with asyncio.timeout(self._read_seconds):
                    head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._respond(head))
                async with asyncio.timeout(self._write_seconds):
                    writer.close()
                    await writer.wait_closed()
            finally:
                writer.transport.abort()

    async def _respond(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path != PATH.encode():
            return _response(HTTPStatus.NOT_FOUND, f"The metrics are at {PATH}.\n".encode())
        if method != b"GET":
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, b"Use GET.\n")
        try:
            return _response(HTTPStatus.OK, await self._current_metrics())
        except Exception:
            log.exception(
                "the metrics of this process cannot be rendered", extra=names.SCRAPE_FAILED.extra
            )
            return _response(HTTPStatus.INTERNAL_SERVER_ERROR, b"See the log.\n")

    async def _current_metrics(self) -> bytes:
        loop = asyncio.get_running_loop()
        async with self._render_lock:
            if loop.time() >= self._body_expiry:
                self._body = await asyncio.to_thread(self._render)
                self._body_expiry = loop.time() + _MAX_AGE_SECONDS
            return self._body


def _response(status: HTTPStatus, body: bytes) -> bytes:
    content_type = CONTENT_TYPE_LATEST if status is HTTPStatus.OK else "text/plain; charset=utf-8"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
