"""A bounded HTTP/1.1 server: connections, headers, bodies and their time are limited. It drains."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.errors import HttpError, rejection
from tallystick_server.http.request import BodyBudget, Request
from tallystick_server.http.routing import Route, Router
from tallystick_server.observability import names
from tallystick_server.observability.tracing import caller_trace, resume_trace

log = logging.getLogger(__name__)

_MAX_LINE_BYTES = 8 * 1024
_MAX_HEADERS = 64
_READ_BYTES = 16 * 1024
"""How much of a body is read ahead of its handler."""
_LINGER_SECONDS = 2.0  # in which the rest of a rejected body is read, so that its caller sees why
_UNREAD_SECONDS = 30  # after which a caller that does not read its response is disconnected
_STREAM_DRAIN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """`header_timeout_seconds`: for the headers of a request, also for the next one of an idle
    connection.
    """

    max_connections: int = 1000
    max_body_bytes: int = 1024 * 1024
    max_body_bytes_in_flight: int = 32 * 1024 * 1024
    header_timeout_seconds: float = 30.0
    body_timeout_seconds: float = 10.0


class HttpServer:
    """Answers requests by routes. `connect` is the protocol factory of its listener."""

    def __init__(self, routes: Sequence[Route], limits: HttpLimits) -> None:
        self._router = Router(routes)
        self._limits = limits
        self._budget = BodyBudget(limits.max_body_bytes_in_flight)
        self._closing = asyncio.Event()
        self._manager = web.Server(self._handle, handler_cancellation=True)
        self._loop = asyncio.get_running_loop()
        self.connection_count = 0
        self._request_count = 0
        """The number of requests in flight, with streams."""
        self._idle = asyncio.Event()
        self._idle.set()

    def connect(self) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _Connection(
            self,
            self._manager,
            loop=self._loop,
            access_log=None,  # a path may hold what must not be logged
            keepalive_timeout=self._limits.header_timeout_seconds,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            max_headers=_MAX_HEADERS,
            lingering_time=_LINGER_SECONDS,
            read_bufsize=_READ_BYTES,
            auto_decompress=False,
        )

    @property
    def is_full(self) -> bool:
        return self.connection_count >= self._limits.max_connections

    def close(self) -> None:
        """Ends idle connections and streams; each other connection ends with its response. Close
        the listener before.
        """
        self._closing.set()
        self._manager.pre_shutdown()

    async def wait_until_idle(self, timeout_seconds: float) -> None:
        """Waits up to `timeout_seconds` until no request is in flight."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()

    async def stop(self) -> None:
        """Ends every connection."""
        await self._manager.shutdown(_STREAM_DRAIN_SECONDS)

    async def _handle(self, http_request: web.BaseRequest) -> web.StreamResponse:
        request = Request(
            http_request,
            self._closing,
            self._budget,
            self._limits.max_body_bytes,
            self._limits.body_timeout_seconds,
        )
        self._request_count += 1
        self._idle.clear()
        try:
            with resume_trace(caller_trace(http_request.headers, is_authenticated=False)):
                response = await self._answer(request)
        finally:
            self._request_count -= 1
            if not self._request_count:
                self._idle.set()
            request.release_body()
        if self._closing.is_set() or response.headers.get("Connection") == "close":
            response.force_close()
        return response

    async def _answer(self, request: Request) -> web.StreamResponse:
        try:
            route, request.variables = self._router.find(
                request.http.method, request.http.rel_url.raw_path
            )
            return await route.handler(request)
        except HttpError as error:
            return rejection(error)
        except ConnectionError:
            raise
        except Exception:
            log.exception(
                "a %s request to the HTTP server failed",
                request.http.method,
                extra=names.CALL_FAILED.extra,
            )
            return rejection(
                HttpError(
                    ApiError(
                        ErrorReason.INTERNAL, "Internal error. Retrying with the same id is safe."
                    )
                )
            )


class _Connection(web.RequestHandler):
    """A connection. What it cannot parse is answered without an echo, and never logged."""

    def __init__(self, server: HttpServer, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._server = server
        self._is_counted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._server.is_full:
            transport.abort()  # type: ignore[attr-defined]
            return
        self._is_counted = True
        self._server.connection_count += 1
        _limit_unread_time(transport.get_extra_info("socket"))
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._is_counted:
            self._is_counted = False
            self._server.connection_count -= 1
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun")
        response = rejection(
            HttpError(
                ApiError(
                    ErrorReason.MESSAGE_MALFORMED,
                    "The request must be HTTP/1.1, with a request line and header fields of at "
                    f"most {_MAX_LINE_BYTES} bytes, and at most {_MAX_HEADERS} header fields.",
                )
            )
        )
        response.force_close()
        return response


def _limit_unread_time(connection: socket.socket | None) -> None:
    """Has the kernel end a connection whose peer does not read."""
    option: Callable[..., None] | None = getattr(connection, "setsockopt", None)
    if option is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        with suppress(OSError):
            option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_SECONDS * 1000)
