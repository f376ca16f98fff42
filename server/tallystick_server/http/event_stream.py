"""A streaming call as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import orjson
from aiohttp import web
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from tallystick_server.http.errors import status_json
from tallystick_server.http.request import Request
from tallystick_server.http.responses import JSON_HEADERS
from tallystick_server.rpc.errors import shutting_down_error, to_status
from tallystick_server.rpc.grpc_status import status_of

HEARTBEAT_SECONDS = 15.0
"""The longest time without a byte."""
_FIRST_MESSAGE_SECONDS = 1.0
"""In which an error is still an HTTP status."""
_WRITE_SECONDS = 30.0
_END = "event: end\ndata: {}\n\n"


class EventStream:
    """The events of one call: each message is an event, whose id is its cursor. At its end comes
    the event `end`, or `error` with the status.
    """

    def __init__(
        self,
        call: Any,
        encode: Callable[[Any], dict[str, Any]],
        cursor: tuple[str, str] | None,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._call = call
        self._encode = encode
        self._cursor = cursor
        self._heartbeat_seconds = heartbeat_seconds

    async def respond(
        self,
        request: Request,
        message: Message,
        metadata: Sequence[tuple[str, str]],
        timeout: float | None,
    ) -> web.StreamResponse:
        """Sends events until the call ends, its caller leaves, or the process stops. Raises
        AioRpcError for a call that fails before the first event.
        """
        call = self._call(message, timeout=timeout, metadata=metadata)
        closing = asyncio.create_task(request.closing.wait())
        first_read = asyncio.create_task(call.read())
        try:
            await asyncio.wait(
                {first_read, closing},
                timeout=_FIRST_MESSAGE_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if first_read.done() and first_read.exception() is not None:
                first_read.result()
            response = web.StreamResponse(
                headers={**JSON_HEADERS, "Content-Type": "text/event-stream"}
            )
            await response.prepare(request.http)
            async for event in self._events(call, first_read, closing):
                async with asyncio.timeout(_WRITE_SECONDS):
                    await response.write(event.encode())
            await response.write_eof()
        except TimeoutError:
            raise ConnectionError("the caller does not read its events") from None
        finally:
            closing.cancel()
            first_read.cancel()
            call.cancel()
        response.force_close()
        return response

    async def _events(
        self, call: Any, read: asyncio.Task[Any], closing: asyncio.Task[Any]
    ) -> AsyncIterator[str]:
        """The text of each event, and a comment after each time without one."""
        try:
            while True:
                done, _ = await asyncio.wait(
                    {read, closing},
                    timeout=self._heartbeat_seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if read in done:
                    message = read.result()
                    if message is grpc.aio.EOF:
                        yield _END
                        return
                    yield self._event(message)
                    read = asyncio.create_task(call.read())
                elif closing in done:
                    yield _error_event(to_status(shutting_down_error()))
                    return
                else:
                    yield ":\n\n"
        except grpc.aio.AioRpcError as error:
            yield _error_event(status_of(error))
        finally:
            read.cancel()

    def _event(self, message: Any) -> str:
        value = self._encode(message)
        data = f"data: {orjson.dumps(value).decode()}\n\n"
        if self._cursor is None:
            return data
        part, name = self._cursor
        return f"id: {getattr(getattr(message, part), name)}\n{data}"


def _error_event(status: status_pb2.Status) -> str:
    """The last event of a stream that failed. `retry` tells a browser when to reconnect."""
    retry = error_details_pb2.RetryInfo()
    wait = ""
    for detail in status.details:
        if detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            wait = f"retry: {retry.retry_delay.ToMilliseconds()}\n"
    return f"{wait}event: error\ndata: {status_json(status)}\n\n"
