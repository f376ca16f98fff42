"""Services of others beside the door, health and reflection: open to all, but what cannot be read is refused by name, and streams are bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from tallystick_core.refusal import Reason, Refused
from tallystick_server.runtime.errors import refuse

Context = Any  # of grpc.aio, which has no types
Run = Callable[[Any, Context], Awaitable[Any]]

_MOST_STREAMS = 1000


class Beside:
    """What such services are added to as if it were the server."""

    def __init__(self, server: grpc.aio.Server, most_streams: int = _MOST_STREAMS) -> None:
        self._server = server
        self._most_streams = most_streams
        self._streams = 0

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(tuple(_Careful(handler, self._careful) for handler in handlers))

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """The same once more, for servers that look methods up by name; the generic ones serve here."""

    def _careful(self, handler: Any) -> Any:
        """The same method, asked only what it can read, and only by so many at a time."""
        parse = _lenient(handler.request_deserializer)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(self._bounded(_written(handler.stream_stream)), parse, handler.response_serializer)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._bounded(_answered(handler.unary_stream)), parse, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(_answered(handler.unary_unary), parse, handler.response_serializer)

    def _bounded(self, run: Run) -> Run:
        async def stream(request: Any, context: Context) -> None:
            if self._streams >= self._most_streams:
                await refuse(context, Refused(Reason.OVERLOADED, "The process has as many streams in hand as it takes.", retry_after=0.5))
            self._streams += 1
            try:
                await run(request, context)
            finally:
                self._streams -= 1

        return stream


class _Careful(grpc.GenericRpcHandler):
    def __init__(self, handlers: grpc.GenericRpcHandler, careful: Callable[[Any], Any]) -> None:
        self._handlers = handlers
        self._careful = careful

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = self._handlers.service(handler_call_details)
        return None if handler is None else self._careful(handler)


def _lenient(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """The same, but None for what cannot be read: gRPC would answer an error here by its text."""

    def lenient(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError:
            return None

    return lenient


def _answered(run: Run) -> Run:
    """A method of one request, which returns its response, or writes what it streams."""

    async def method(request: Any, context: Context) -> Any:
        return await run(await _read(request, context), context)

    return method


def _written(run: Callable[[Any, Context], AsyncIterator[Any]]) -> Run:
    """A method of many requests, which yields its responses."""

    async def method(requests: AsyncIterator[Any], context: Context) -> None:
        async for response in run(_readable(requests, context), context):
            await context.write(response)

    return method


async def _readable(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async for request in requests:
        yield await _read(request, context)


async def _read(request: Any, context: Context) -> Any:
    """The request, if it could be read; else the call ends with MESSAGE_MALFORMED."""
    if request is None:
        await refuse(context, Refused(Reason.MESSAGE_MALFORMED, "The bytes are no message of this method."))
    return request
