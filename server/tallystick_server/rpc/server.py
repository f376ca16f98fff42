"""gRPC server pipeline, outermost first: authentication, tracing, errors, deadline and size of the
message, authorization, slots, parsing, and the turn of a read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.trace import Span

from tallystick_core.access import Caller, Role, authorize
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.observability import names
from tallystick_server.observability.metrics import CallMeasurement
from tallystick_server.observability.tracing import server_span, set_error, trace_id
from tallystick_server.rpc.authentication import Authenticator
from tallystick_server.rpc.bulkhead import Bulkhead, CallLimits, MethodSlots
from tallystick_server.rpc.call import Access, Call
from tallystick_server.rpc.errors import (
    CODE_BY_REASON,
    Context,
    abort_with_error,
    shutting_down_error,
)
from tallystick_server.rpc.fair_semaphore import FairSemaphore
from tallystick_server.rpc.message_limits import check_items, has_items
from tallystick_server.rpc.stream_sender import StreamSender

log = logging.getLogger(__name__)

DEFAULT_DEADLINE_SECONDS = 10.0
MAX_DEADLINE_SECONDS = 60.0
MAX_LONG_DEADLINE_SECONDS = 600.0
_LONG_METHODS = frozenset({"ReconcileStatementFile"})  # a million lines take minutes
MAX_STREAM_SECONDS = 300.0
MAX_MESSAGE_BYTES = 64 * 1024
MAX_BATCH_BYTES = 4 * 1024 * 1024
# Messages up to this size are not counted: even one for every slot needs little memory.
_SMALL_MESSAGE_BYTES = 4 * 1024
# Larger messages are parsed one at a time, and other calls run in between.
_SERIAL_PARSE_BYTES = 64 * 1024
_POLL_SECONDS = 0.02
# Seconds in which gRPC reports that a call without a message was cancelled by its caller.
_CANCELLATION_GRACE_SECONDS = 0.1
_MAX_READS = 32
_MAX_STREAM_WRITES = 2
"""Maximum concurrent stream writes. A write takes at least three iterations of the loop. gRPC's
poller delivers one event per iteration.
"""
_DRAIN_ABORT_SECONDS = 1.0  # for calls that a drain aborts to return their error
_STREAM_DRAIN_SECONDS = 1.0  # for streams in a drain; they resume from their cursors


@dataclass(frozen=True, slots=True)
class _Method:
    name: str
    handler: Callable[[Any, Call], Any]
    request_descriptor: Descriptor
    request_type: type[Message]
    roles: frozenset[Role]
    max_bytes: int
    max_seconds: float
    slots: MethodSlots


class RpcServer:
    """Serves the methods of services. One instance per server: its limits count the calls of all
    its services.
    """

    def __init__(
        self,
        authenticator: Authenticator,
        limits: CallLimits | None = None,
        *,
        max_stream_seconds: float = MAX_STREAM_SECONDS,
    ) -> None:
        limits = limits or CallLimits()
        self._authenticator = authenticator
        self._max_stream_seconds = max_stream_seconds
        share = limits.share
        services, operators = Bulkhead(limits.platform, 1.0), Bulkhead(limits.platform, share)
        self._writes = MethodSlots(Bulkhead(limits.writes, share), services, operators)
        self._reads = MethodSlots(Bulkhead(limits.reads, share), services, operators)
        self._streams = MethodSlots(*(Bulkhead(limits.streams, share) for _ in range(3)))
        self._waiting = Bulkhead(limits.waiting, share)
        self._message_bytes = Bulkhead(limits.message_bytes, share)
        self._parse_semaphore = FairSemaphore(1)
        self._read_semaphore = FairSemaphore(_MAX_READS)
        self._closing = asyncio.Event()
        self._sender = StreamSender(FairSemaphore(_MAX_STREAM_WRITES), self._closing)
        self._timeouts: set[asyncio.Timeout] = set()
        self._aborting = False

    @property
    def call_count(self) -> int:
        """The number of calls in flight, without streams."""
        return len(self._timeouts)

    @property
    def stream_count(self) -> int:
        """The number of open streams."""
        return sum(bulkhead.used for bulkhead in self._streams.all)

    @property
    def waiting_read_count(self) -> int:
        """The number of reads that wait for other reads."""
        return self._read_semaphore.waiting_count()

    def close(self) -> None:
        """Rejects new calls with SHUTTING_DOWN and ends streams."""
        self._closing.set()

    async def wait_until_idle(self, timeout_seconds: float) -> None:
        """Waits until no call is in flight: up to `timeout_seconds`, and one second for streams.
        Aborts the remaining calls with SHUTTING_DOWN.
        """
        bulkheads = (*self._writes.all, *self._reads.all, self._waiting)
        await asyncio.gather(
            _wait_until_free(bulkheads, timeout_seconds),
            _wait_until_free(self._streams.all, min(_STREAM_DRAIN_SECONDS, timeout_seconds)),
        )
        self._aborting = True
        for timeout in self._timeouts:
            if not timeout.expired():
                timeout.reschedule(asyncio.get_running_loop().time())
        await _wait_until_free(bulkheads, _DRAIN_ABORT_SECONDS)

    def add_service(
        self, server: grpc.aio.Server, service: ServiceDescriptor, servicer: object, access: Access
    ) -> None:
        """Adds a service. Raises TypeError for a method without an explicit access rule or without
        a handler.
        """
        handlers = {}
        for method in service.methods:
            if not access.get(method.name):
                raise TypeError(
                    f"{method.full_name} has no access rule; the server does not start without one"
                )
            handlers[method.name] = self._build_handler(
                method, getattr(servicer, method.name), access[method.name]
            )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service.full_name, handlers),)
        )

    def add_fallback(self, server: grpc.aio.Server) -> None:
        """Rejects every method that was not added before with METHOD_UNKNOWN."""
        server.add_generic_rpc_handlers((_Unknown(self._reject_unknown),))

    def _build_handler(
        self,
        descriptor: MethodDescriptor,
        handler: Callable[[Any, Call], Any],
        roles: frozenset[Role],
    ) -> Any:
        max_bytes = (
            MAX_BATCH_BYTES
            if "Batch" in descriptor.name and has_items(descriptor.input_type)
            else MAX_MESSAGE_BYTES
        )
        name = f"{descriptor.containing_service.full_name}/{descriptor.name}"
        method = _Method(
            name,
            handler,
            descriptor.input_type,
            GetMessageClass(descriptor.input_type),
            roles,
            max_bytes,
            MAX_LONG_DEADLINE_SECONDS if descriptor.name in _LONG_METHODS else MAX_DEADLINE_SECONDS,
            self._slots_for(descriptor),
        )
        # Requests are declared as streams of one message, the same on the wire, and read by
        # _read_message. A message that gRPC reads itself is kept until the call ends.
        if descriptor.server_streaming:

            async def stream(_messages: object, context: Context) -> None:
                await self._serve_stream(method, context)

            return grpc.stream_stream_rpc_method_handler(stream)

        async def unary(_messages: object, context: Context) -> bytes:
            return await self._serve_unary(method, context)

        return grpc.stream_unary_rpc_method_handler(unary)

    def _slots_for(self, descriptor: MethodDescriptor) -> MethodSlots:
        """The bulkheads for the calls of a method."""
        if descriptor.server_streaming:
            return self._streams
        return (
            self._reads
            if descriptor.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
            else self._writes
        )

    async def _serve_unary(self, method: _Method, context: Context) -> bytes:
        raw = await _read_message(context)
        metadata = _read_metadata(context)
        identity = self._identify(context, metadata)
        span_name = names.CALLER_SPAN.format(method=method.name)
        is_authenticated = isinstance(identity, Caller)
        with (
            CallMeasurement(method.name) as measurement,
            server_span(span_name, metadata, is_authenticated=is_authenticated) as span,
        ):
            try:
                call = self._admit(method, raw, context, identity)
                handler: Callable[[Any, Call], Awaitable[Message]] = method.handler
                with self._hold_slots(method, len(raw), call):
                    async with self._enforce_deadline(call.deadline):
                        request = await self._parse_request(method, raw, call.caller.owner)
                        async with self._read_permit(method, call.caller.owner):
                            handler_coroutine = handler(request, call)
                            # Only the coroutine keeps the message, and only while it needs it.
                            del raw, request
                            response = await handler_coroutine
                context.set_trailing_metadata(
                    (("tallystick-trace-id", trace_id()), *call.metadata.items())
                )
                return response.SerializeToString()
            except Exception as error:  # noqa: BLE001 - every error becomes an error reason
                if isinstance(error, TimeoutError) and self._aborting:
                    error = shutting_down_error()
                await _abort_call(context, span, measurement, error, method.name)

    async def _serve_stream(self, method: _Method, context: Context) -> None:
        raw = await _read_message(context)
        metadata = _read_metadata(context)
        identity = self._identify(context, metadata)
        span_name = names.CALLER_SPAN.format(method=method.name)
        is_authenticated = isinstance(identity, Caller)
        with (
            CallMeasurement(method.name) as measurement,
            server_span(span_name, metadata, is_authenticated=is_authenticated) as span,
        ):
            try:
                call = self._admit(method, raw, context, identity)
                with self._hold_slots(method, len(raw), call):
                    responses = await method.handler(
                        await self._parse_request(method, raw, call.caller.owner), call
                    )
                    del raw
                    call.release_body()  # the stream does not need the request any more
                    expiry = asyncio.get_running_loop().time() + self._max_stream_seconds
                    async with aclosing(responses) as messages:
                        pending_write = await self._sender.send(
                            messages, context, expiry, call.caller.owner
                        )
                    if pending_write is not None:
                        await self._sender.wait_for_reader(
                            pending_write, method.slots.for_caller(call.caller), call.caller.owner
                        )
            except Exception as error:  # noqa: BLE001 - every error becomes an error reason
                await _abort_call(context, span, measurement, error, method.name)

    @contextmanager
    def _hold_slots(self, method: _Method, size: int, call: Call) -> Iterator[None]:
        """Holds the call's slot until the block ends. Holds the bytes of its message until it waits
        or its stream begins.

        Raises OVERLOADED.
        """
        owner, slots = call.caller.owner, method.slots.for_caller(call.caller)
        if not slots.try_acquire(owner):
            raise ApiError(
                ErrorReason.OVERLOADED,
                "Too many calls of this kind are in flight; retry after 0.5 s.",
                retry_after=0.5,
            )
        call.slots = (slots, self._waiting)
        try:
            if size > _SMALL_MESSAGE_BYTES:
                if not self._message_bytes.try_acquire(owner, size):
                    raise ApiError(
                        ErrorReason.OVERLOADED,
                        "Too many bytes of messages are in flight; retry after 0.5 s.",
                        retry_after=0.5,
                    )
                call.body_permit = (self._message_bytes, size)
            yield
        finally:
            slots.release(owner)
            call.release_body()

    def _read_permit(self, method: _Method, owner: str) -> AbstractAsyncContextManager[None]:
        """Reads share a few connections, so they are served round robin by owner. Calls that change
        something need no permit.
        """
        return self._read_semaphore.permit(owner) if method.slots is self._reads else nullcontext()

    @asynccontextmanager
    async def _enforce_deadline(self, deadline: float) -> AsyncIterator[None]:
        """Ends the block with TimeoutError at the deadline, or earlier at the end of a drain."""
        async with asyncio.timeout_at(deadline) as timeout:
            self._timeouts.add(timeout)
            try:
                yield
            finally:
                self._timeouts.discard(timeout)

    async def _parse_request(self, method: _Method, raw: bytes, owner: str) -> Message:
        """Parses the request. Raises TOO_MANY_ITEMS, MESSAGE_MALFORMED."""
        if len(raw) <= _SERIAL_PARSE_BYTES:
            return _parse(method, raw)
        async with self._parse_semaphore.permit(owner):
            request = _parse(method, raw)
            await asyncio.sleep(0)
            return request

    def _identify(self, context: Context, metadata: Mapping[str, str]) -> Caller | Exception:
        """The caller, or why it is rejected or cannot be identified. Its trace depends on it, so
        it comes first; the error is raised in its turn.
        """
        try:
            return self._authenticator.authenticate(metadata, context.auth_context() or {})
        except Exception as error:  # noqa: BLE001 - every error becomes an error reason
            return error

    def _admit(
        self, method: _Method, raw: object, context: Context, identity: Caller | Exception
    ) -> Call:
        """Makes every check before the call takes a slot, in a fixed order. Raises ApiError, and
        the error of an identity.
        """
        now = asyncio.get_running_loop().time()
        if self._closing.is_set():
            raise shutting_down_error()
        if not isinstance(raw, bytes):  # gRPC's marker for the end
            raise ApiError(ErrorReason.MESSAGE_MALFORMED, "The call has no message; send one.")
        remaining_seconds = context.time_remaining()
        if remaining_seconds is not None and remaining_seconds <= 0:
            raise ApiError(ErrorReason.DEADLINE_EXCEEDED, "The deadline has already passed.")
        if len(raw) > method.max_bytes:
            raise ApiError(
                ErrorReason.MESSAGE_TOO_LARGE,
                f"The message must have at most {method.max_bytes} bytes.",
            )
        if isinstance(identity, Exception):
            raise identity
        caller = authorize(identity, method.roles)
        timeout_seconds = (
            DEFAULT_DEADLINE_SECONDS
            if remaining_seconds is None
            else min(remaining_seconds, method.max_seconds)
        )
        return Call(caller, now + timeout_seconds)

    async def _reject_unknown(self, name: str, context: Context) -> NoReturn:
        span_name = names.UNKNOWN_METHOD_SPAN.format()
        with (
            CallMeasurement(span_name) as measurement,
            server_span(span_name, _read_metadata(context), is_authenticated=False) as span,
        ):
            await _abort_call(
                context,
                span,
                measurement,
                ApiError(
                    ErrorReason.METHOD_UNKNOWN,
                    "This address does not serve the method; its service may have another address.",
                ),
                name,
            )


async def _read_message(context: Context) -> Any:
    """Returns the call's message, or gRPC's marker for none. A call that was cancelled before its
    message arrived ends here.
    """
    raw = await context.read()
    if not isinstance(raw, bytes):
        await asyncio.sleep(_CANCELLATION_GRACE_SECONDS)
    return raw


def _parse(method: _Method, raw: bytes) -> Message:
    check_items(raw, method.request_descriptor)
    try:
        return method.request_type.FromString(raw)
    except DecodeError:
        raise ApiError(
            ErrorReason.MESSAGE_MALFORMED,
            f"The message must be a {method.request_descriptor.full_name}.",
        ) from None


async def _abort_call(
    context: Context,
    span: Span,
    measurement: CallMeasurement,
    exception: Exception,
    method: str,
) -> NoReturn:
    """Aborts the call with the error, or with INTERNAL and only the trace id."""
    if isinstance(exception, TimeoutError):
        error = ApiError(
            ErrorReason.DEADLINE_EXCEEDED,
            "The deadline passed before the result was known; retry with the same id.",
        )
    elif isinstance(exception, ApiError):
        error = exception
    else:
        log.error("%s failed", method, exc_info=exception, extra=names.CALL_FAILED.extra)
        error = ApiError(
            ErrorReason.INTERNAL,
            "Internal error. Retrying with the same id is safe.",
            metadata={"trace_id": trace_id()},
        )
    status = CODE_BY_REASON[error.reason].name
    measurement.fail(status, error.reason)
    span.set_attribute("rpc.response.status_code", status)
    set_error(span, error)
    await abort_with_error(context, error, [("tallystick-trace-id", trace_id())])


async def _wait_until_free(bulkheads: Sequence[Bulkhead], timeout_seconds: float) -> None:
    """Waits up to `timeout_seconds` until no slot is taken."""
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    # Calls end in many places, and no event tells when the last one has ended.
    while (  # noqa: ASYNC110
        any(bulkhead.used for bulkhead in bulkheads)
        and asyncio.get_running_loop().time() < deadline
    ):
        await asyncio.sleep(_POLL_SECONDS)


def _read_metadata(context: Context) -> dict[str, str]:
    return {
        key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
    }


class _Unknown(grpc.GenericRpcHandler):
    """The last handler: rejects unknown methods."""

    def __init__(self, abort: Callable[[str, Context], Awaitable[NoReturn]]) -> None:
        self._abort = abort

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def unknown(_raw: bytes, context: Context) -> bytes:
            await self._abort(handler_call_details.method, context)

        return grpc.unary_unary_rpc_method_handler(unknown)
