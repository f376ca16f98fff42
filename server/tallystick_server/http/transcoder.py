"""JSON over HTTP for each call of the contract that has an HTTP rule. The calls go through the
ordinary gRPC channel, with the caller's own token and deadline.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import orjson
from aiohttp import web
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.binding import RequestBinder
from tallystick_server.http.errors import HttpError, error_response
from tallystick_server.http.event_stream import EventStream
from tallystick_server.http.http_rules import HttpRule
from tallystick_server.http.message_encoder import encoder
from tallystick_server.http.request import Request
from tallystick_server.http.responses import json_response
from tallystick_server.http.routing import Handler, Route
from tallystick_server.observability.tracing import is_traceparent
from tallystick_server.rpc.grpc_status import status_of

REQUEST_TIMEOUT = "Request-Timeout"
REPLAYED, TRACE_ID = "Idempotent-Replayed", "Trace-Id"
DEFAULT_TIMEOUTS: Mapping[str, float] = {
    "CreatePayment": 30.0,
    "CreatePayout": 30.0,
    "CloseDeadLetter": 60.0,
    "CloseDeadLetters": 60.0,
    "BatchAddStatementItems": 60.0,
    "ReconcileStatementFile": 600.0,
}
"""In seconds, by method; those of the SDK."""
DEFAULT_TIMEOUT = 10.0
_SECONDS = re.compile(r"[0-9]{1,4}(\.[0-9]{1,3})?", re.ASCII)
VISIBLE_TEXT = re.compile(r"[ -~]{1,4096}", re.ASCII)


def transcoded_routes(
    rules: Sequence[HttpRule],
    channels: Mapping[str, grpc.aio.Channel],
    *,
    authenticates: bool = True,
) -> list[Route]:
    """A route for each rule. `channels`: by the full name of the service. If it does not
    authenticate callers, only requests to and from a loopback host are accepted: a web page could
    make calls, and one whose name leads to this machine could read the answers.
    """
    guard = (lambda handler: handler) if authenticates else require_loopback
    return [
        Route(
            rule.http_method,
            rule.path,
            guard(_Method(rule, channels[rule.method.containing_service.full_name]).handle),
        )
        for rule in rules
    ]


def require_loopback(handler: Handler) -> Handler:
    """A handler that rejects requests to the name of another host, and those of its web pages."""

    async def handle(request: Request) -> web.StreamResponse:
        if not _is_loopback_host(request.http.headers.get("Host", "")):
            raise _not_loopback("Host")
        origin = request.http.headers.get("Origin")
        if origin is not None and not _is_loopback_host(origin.partition("://")[2]):
            raise _not_loopback("Origin")
        return await handler(request)

    return handle


def _not_loopback(header: str) -> HttpError:
    return HttpError(
        ApiError(
            ErrorReason.PERMISSION_DENIED,
            f"The header {header} must have localhost or a loopback address while authentication "
            "is none.",
        )
    )


def _is_loopback_host(header: str) -> bool:
    host = re.sub(r":[0-9]*\Z", "", header).strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Method:
    """A call over HTTP."""

    def __init__(self, rule: HttpRule, channel: grpc.aio.Channel) -> None:
        method = rule.method
        self._binder = RequestBinder(rule)
        self._encode = encoder(method.output_type)
        self._timeout = DEFAULT_TIMEOUTS.get(method.name, DEFAULT_TIMEOUT)
        self._stream: EventStream | None = None
        self._unary: Any = None
        if method.server_streaming:
            cursor = rule.cursor[1:] if rule.cursor else None
            self._stream = EventStream(grpc_call(channel, method), self._encode, cursor)
        else:
            self._unary = grpc_call(channel, method)

    async def handle(self, request: Request) -> web.StreamResponse:
        """Makes the call. Raises HttpError for a request that is not sent."""
        try:
            message = await self._binder.bind(request)
            metadata = read_metadata(request.http.headers)
            timeout = _read_timeout(request.http.headers)
        except ApiError as error:
            raise HttpError(error) from None
        try:
            if self._stream is not None:
                return await self._stream.respond(request, message, metadata, timeout)
            return await self._respond(message, metadata, timeout or self._timeout)
        except grpc.aio.AioRpcError as error:
            return error_response(status_of(error), headers=_trace_header(error))

    async def _respond(
        self, message: Message, metadata: Sequence[tuple[str, str]], timeout: float
    ) -> web.Response:
        call = self._unary(message, timeout=timeout, metadata=metadata)
        response = await call
        trailing: dict[str, Any] = dict(await call.trailing_metadata())
        headers = {TRACE_ID: trailing.get("tallystick-trace-id", "")}
        if trailing.get("tallystick-replayed") == "true":
            headers[REPLAYED] = "true"
        return json_response(orjson.dumps(self._encode(response)), headers=headers)


def grpc_call(channel: grpc.aio.Channel, method: MethodDescriptor) -> Any:
    """The call of a method: of one response, or of a stream of them."""
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    return make(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )


def read_metadata(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """The caller's token and trace. Raises CREDENTIALS_INVALID."""
    metadata = []
    token = headers.get("Authorization")
    if token is not None:
        if VISIBLE_TEXT.fullmatch(token) is None:
            raise ApiError(
                ErrorReason.CREDENTIALS_INVALID,
                "The header Authorization must be Bearer and a token of the platform's setting "
                "callers.",
            )
        metadata.append(("authorization", token))
    parent = headers.get("traceparent", "")
    if is_traceparent(parent):
        metadata.append(("traceparent", parent))
    return metadata


def _read_timeout(headers: Mapping[str, str]) -> float | None:
    """The caller's timeout in seconds, or None. Raises FIELD_INVALID."""
    text = headers.get(REQUEST_TIMEOUT)
    if text is None:
        return None
    if _SECONDS.fullmatch(text) is None or not (seconds := float(text)):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"{REQUEST_TIMEOUT} must be seconds such as 2.5, more than 0.",
            field=REQUEST_TIMEOUT,
        )
    return seconds


def _trace_header(error: grpc.aio.AioRpcError) -> dict[str, str]:
    trace = dict(error.trailing_metadata() or ()).get("tallystick-trace-id")
    return {TRACE_ID: trace} if isinstance(trace, str) else {}
