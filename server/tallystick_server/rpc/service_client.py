"""Calls between services: authenticated as this service, traced, with a deadline, and retried."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.observability import names
from tallystick_server.observability.tracing import client_span, traceparent, tracestate
from tallystick_server.rpc.errors import from_status
from tallystick_server.rpc.grpc_status import status_of
from tallystick_storage.database import in_transaction

log = logging.getLogger(__name__)

R = TypeVar("R")
T = TypeVar("T")

_MAX_TRIES = 4
_FIRST_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.05, 1.0  # between tries, doubled each time
_TIMEOUT_SECONDS = 15.0
_TLS_SCHEME = "https://"
_RETRYABLE_CODES = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
)
_CALLER_REJECTED_CODES = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


class ServiceCallRejected(Exception):
    """Another service rejected a call with a status that a retry does not change. `method`: such as
    "tallystick.wallet.v1.WalletService/BatchCredit"; `metadata`: of its ErrorInfo.
    """

    def __init__(
        self,
        method: str,
        status: str,
        message: str,
        *,
        rejects_caller: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{method} was rejected: {status} {message}")
        self.method = method
        self.status = status
        self.message = message
        self.metadata = metadata or {}
        self.rejects_caller = rejects_caller
        """The service rejects this caller, or does not know the method. Every item would be
        rejected, and none is at fault.
        """


SERVICE_CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 4 * 1024 * 1024),
    ("grpc.lb_policy_name", "round_robin"),  # over all addresses of the service's name
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2000),  # minimum timeout of a connection attempt
    # a service that returns is found quickly, however long it was down
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 10_000),  # detects a host that has vanished
    ("grpc.keepalive_timeout_ms", 5_000),
    # detects a frozen process, whose kernel still acknowledges
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


def open_channel(
    address: str, credentials: grpc.ChannelCredentials | None = None
) -> grpc.aio.Channel:
    """Opens a channel to another service: by TLS if its address begins with https://. Its message
    limit fits batches.
    """
    if address.startswith(_TLS_SCHEME):
        return grpc.aio.secure_channel(
            address.removeprefix(_TLS_SCHEME),
            credentials or grpc.ssl_channel_credentials(),
            options=SERVICE_CHANNEL_OPTIONS,
        )
    return grpc.aio.insecure_channel(address, options=SERVICE_CHANNEL_OPTIONS)


@dataclass(frozen=True, slots=True)
class _NamedMethod:
    """A stub's method. `name`: such as "tallystick.wallet.v1.WalletService/BatchCredit"."""

    name: str
    _call: Callable[..., Any]

    def __call__(self, request: Any, **options: Any) -> Any:
        return self._call(request, **options)


class _NamedChannel:
    """A channel whose methods have their names."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def unary_unary(self, path: str, *arguments: Any, **options: Any) -> _NamedMethod:
        return _NamedMethod(path[1:], self._channel.unary_unary(path, *arguments, **options))

    def unary_stream(self, path: str, *arguments: Any, **options: Any) -> _NamedMethod:
        return _NamedMethod(path[1:], self._channel.unary_stream(path, *arguments, **options))


def _name_of(method: Callable[..., Any]) -> str:
    """The name of a stub's method; of another function, that of the function."""
    return method.name if isinstance(method, _NamedMethod) else method.__name__


class ServiceClient:
    """The other services, as one service calls them. All these calls are idempotent, so each can be
    retried.
    """

    def __init__(
        self, token: str = "", connect: Callable[[str], grpc.aio.Channel] = open_channel
    ) -> None:
        self._token = token
        self._connect = connect
        self._channels: dict[str, grpc.aio.Channel] = {}

    def stub(self, stub_class: Callable[[grpc.aio.Channel], T], address: str) -> T:
        """A stub for the channel to an address."""
        return stub_class(cast("grpc.aio.Channel", _NamedChannel(self.channel(address))))

    def channel(self, address: str) -> grpc.aio.Channel:
        """The channel to an address. Services at one address share it."""
        if address not in self._channels:
            self._channels[address] = self._connect(address)
        return self._channels[address]

    async def call(self, method: Callable[..., Awaitable[R]], request: Any) -> R:
        """Calls a stub's method.

        Raises DEPENDENCY_UNAVAILABLE after several failed tries, and ServiceCallRejected if the
        call is rejected.
        """
        if in_transaction():
            raise RuntimeError("a service must not be called inside a transaction")
        name = _name_of(method)
        with client_span(names.SERVICE_CALL_SPAN.format(method=name)):
            try:
                return await self._call_with_retries(method, request)
            except grpc.aio.AioRpcError as error:
                if error.code() in _RETRYABLE_CODES:
                    raise ApiError(
                        ErrorReason.DEPENDENCY_UNAVAILABLE,
                        f"{name} does not answer.",
                        retry_after=1.0,
                    ) from error
                raise ServiceCallRejected(
                    name,
                    error.code().name,
                    error.details() or "",
                    rejects_caller=error.code() in _CALLER_REJECTED_CODES,
                    metadata=from_status(status_of(error)).metadata,
                ) from error

    async def _call_with_retries(self, method: Callable[..., Awaitable[R]], request: Any) -> R:
        wait_seconds = _FIRST_WAIT_SECONDS
        for _ in range(_MAX_TRIES - 1):
            try:
                return await method(request, timeout=_TIMEOUT_SECONDS, metadata=self._metadata())
            except grpc.aio.AioRpcError as error:
                if error.code() not in _RETRYABLE_CODES:
                    raise
            await asyncio.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, _MAX_WAIT_SECONDS)
        return await method(request, timeout=_TIMEOUT_SECONDS, metadata=self._metadata())

    async def read_stream(
        self, method: Callable[..., Any], request: Any, limit: int
    ) -> Sequence[Any]:
        """The first messages of a stub's stream, at most `limit`. Raises as `call`."""

        async def read(request: Any, **options: Any) -> Sequence[Any]:
            messages: list[Any] = []
            stream = method(request, **options)
            try:
                async for message in stream:
                    messages.append(message)
                    if len(messages) == limit:
                        break
            finally:
                stream.cancel()
            return messages

        return await self.call(_NamedMethod(_name_of(method), read), request)

    async def call_or_unavailable(self, method: Callable[..., Awaitable[R]], request: Any) -> R:
        """As `call`, for work that a caller waits for. A service that rejects this service as its
        caller counts as unavailable.
        """
        try:
            return await self.call(method, request)
        except ServiceCallRejected as error:
            if not error.rejects_caller:
                raise
            # a configuration error; callers are asked to retry
            log.warning("%s", error, extra=names.CALLER_REJECTED.extra)
            message = f"{error.method} does not accept this service's calls: {error.status}."
            raise ApiError(ErrorReason.DEPENDENCY_UNAVAILABLE, message, retry_after=1.0) from error

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        pairs = [("traceparent", traceparent()), ("tracestate", tracestate())]
        if self._token:
            pairs.append(("authorization", f"Bearer {self._token}"))
        return tuple(pair for pair in pairs if pair[1])

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
