"""Health and reflection services: no authentication, strict parsing, bounded streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.rpc.errors import Context, abort_with_error

Handler = Callable[[Any, Context], Awaitable[Any]]

_MAX_STREAMS = 1000


class AuxiliaryServices:
    """Replaces the server as the target when these services are added."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server
        self._open_streams = 0

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers(
            tuple(_StrictHandler(handler, self._wrap_method) for handler in handlers)
        )

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """Does nothing. It registers the same methods for servers that look them up by name; the
        generic handlers suffice.
        """

    def _wrap_method(self, handler: Any) -> Any:
        """Wraps a method with strict parsing and a limit on concurrent calls."""
        parse = _make_tolerant(handler.request_deserializer)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._limit_streams(_wrap_request_stream(handler.stream_stream)),
                parse,
                handler.response_serializer,
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._limit_streams(_wrap_single_request(handler.unary_stream)),
                parse,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            _wrap_single_request(handler.unary_unary), parse, handler.response_serializer
        )

    def _limit_streams(self, handler: Handler) -> Handler:
        async def stream(request: Any, context: Context) -> None:
            if self._open_streams >= _MAX_STREAMS:
                await abort_with_error(
                    context,
                    ApiError(
                        ErrorReason.OVERLOADED,
                        "Too many streams are open; retry after 0.5 s.",
                        retry_after=0.5,
                    ),
                )
            self._open_streams += 1
            try:
                await handler(request, context)
            finally:
                self._open_streams -= 1

        return stream


class _StrictHandler(grpc.GenericRpcHandler):
    def __init__(self, handlers: grpc.GenericRpcHandler, wrap: Callable[[Any], Any]) -> None:
        self._handlers = handlers
        self._wrap = wrap

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = self._handlers.service(handler_call_details)
        return None if handler is None else self._wrap(handler)


def _make_tolerant(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Makes a parser return None for malformed bytes. gRPC would reply with the text of the
    exception.
    """

    def parse_or_none(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError:
            return None

    return parse_or_none


def _wrap_single_request(handler: Handler) -> Handler:
    """Wraps a method with one request, which returns its response or writes a stream."""

    async def method(request: Any, context: Context) -> Any:
        return await handler(await _check_request(request, context), context)

    return method


def _wrap_request_stream(handler: Callable[[Any, Context], AsyncIterator[Any]]) -> Handler:
    """Wraps a method with a stream of requests, which yields its responses."""

    async def method(requests: AsyncIterator[Any], context: Context) -> None:
        async for response in handler(_check_requests(requests, context), context):
            await context.write(response)

    return method


async def _check_requests(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
    async for request in requests:
        yield await _check_request(request, context)


async def _check_request(request: Any, context: Context) -> Any:
    """Returns a well-formed request. Otherwise aborts the call with MESSAGE_MALFORMED."""
    if request is None:
        await abort_with_error(
            context,
            ApiError(
                ErrorReason.MESSAGE_MALFORMED, "The message must be a request of this method."
            ),
        )
    return request
