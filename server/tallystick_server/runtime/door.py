"""The door that every incoming call goes through, outermost first: telemetry, errors, deadline and limits, authentication, authorization."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.trace import Span

from tallystick_core.caller import Caller, Role, authorize
from tallystick_core.refusal import Reason, Refused, not_found
from tallystick_server.runtime.authentication import Authenticator
from tallystick_server.runtime.errors import CODE, refuse
from tallystick_server.runtime.telemetry import failed, server_span, trace_id

log = logging.getLogger(__name__)

T = TypeVar("T")
Access = Mapping[str, frozenset[Role]]
Context = grpc.aio.ServicerContext[Any, Any]

DEFAULT_DEADLINE = 10.0
LONGEST_DEADLINE = 60.0
STREAM_TIME = 300.0
MESSAGE_BYTES = 64 * 1024
BATCH_BYTES = 4 * 1024 * 1024
_RESERVE = 0.5  # seconds before the deadline in which the answer still gets home
_LONGEST_WAIT = 30.0
_LOOK_AGAIN = 0.02


@dataclass(slots=True)
class Call:
    """What a handler knows of its call, beside the request. `deadline` is in the loop's time."""

    caller: Caller
    deadline: float
    metadata: dict[str, str] = field(default_factory=dict)
    """Sent with the answer."""

    def replayed(self) -> None:
        """Tells the caller that the answer is to a repeat."""
        self.metadata["tallystick-replayed"] = "true"

    def visible(self, found: T | None, what: str) -> T:
        """What was found, if the caller may see it. Raises NOT_FOUND for another's as well."""
        owned: Any = found
        if found is None or not self.caller.sees(owned.caller):
            raise not_found(what)
        return found

    @property
    def answers_by(self) -> float:
        """The loop's time at which the answer sets out, however things stand then."""
        return min(self.deadline - _RESERVE, asyncio.get_running_loop().time() + _LONGEST_WAIT)


@dataclass(frozen=True, slots=True)
class _Method:
    name: str
    run: Callable[[Any, Call], Any]
    request: type[Message]
    roles: frozenset[Role]
    most_bytes: int


class Door:
    """Serves the methods of services. One for each process: its limits count all calls together."""

    def __init__(self, authenticator: Authenticator, *, most_calls: int, most_streams: int = 1000, stream_time: float = STREAM_TIME) -> None:
        self._authenticator = authenticator
        self._most_calls = most_calls
        self._most_streams = most_streams
        self._stream_time = stream_time
        self._calls = 0
        self._streams = 0
        self._closing = asyncio.Event()

    def close(self) -> None:
        """From now on new calls are refused with SHUTTING_DOWN, and streams end."""
        self._closing.set()

    async def quiet(self, patience: float) -> None:
        """Waits until no call is in hand, at most so many seconds."""
        deadline = asyncio.get_running_loop().time() + patience
        while (self._calls or self._streams) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - calls end by many ways
            await asyncio.sleep(_LOOK_AGAIN)

    def bind(self, server: grpc.aio.Server, service: ServiceDescriptor, servicer: object, access: Access) -> None:
        """Adds a service. Raises TypeError for a method without an explicit access rule or without a handler."""
        handlers = {}
        for method in service.methods:
            if not access.get(method.name):
                raise TypeError(f"{method.full_name} has no access rule; the server does not start without one")
            handlers[method.name] = self._handler(method, getattr(servicer, method.name), access[method.name])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))

    def bind_unknown(self, server: grpc.aio.Server) -> None:
        """Answers METHOD_UNKNOWN to everything that was not added before."""
        server.add_generic_rpc_handlers((_Unknown(self._unknown),))

    def _handler(self, method: MethodDescriptor, run: Callable[[Any, Call], Any], roles: frozenset[Role]) -> Any:
        most_bytes = BATCH_BYTES if "Batch" in method.name else MESSAGE_BYTES
        known = _Method(f"{method.containing_service.full_name}/{method.name}", run, GetMessageClass(method.input_type), roles, most_bytes)
        if method.server_streaming:

            async def stream(raw: bytes, context: Context) -> None:
                await self._stream(known, raw, context)

            return grpc.unary_stream_rpc_method_handler(stream)

        async def unary(raw: bytes, context: Context) -> bytes:
            return await self._unary(known, raw, context)

        return grpc.unary_unary_rpc_method_handler(unary)

    async def _unary(self, method: _Method, raw: bytes, context: Context) -> bytes:
        metadata = _metadata(context)
        with server_span(method.name, metadata) as span:
            self._calls += 1
            try:
                call, request = self._let_in(method, raw, context, metadata, self._calls > self._most_calls)
                run: Callable[[Any, Call], Awaitable[Message]] = method.run
                async with asyncio.timeout_at(call.deadline):
                    response = await run(request, call)
                context.set_trailing_metadata((("tallystick-trace-id", trace_id()), *call.metadata.items()))
                return response.SerializeToString()
            except Exception as error:  # noqa: BLE001 - every failure leaves by the closed list
                await _refuse(context, span, error, method.name)
            finally:
                self._calls -= 1

    async def _stream(self, method: _Method, raw: bytes, context: Context) -> None:
        metadata = _metadata(context)
        with server_span(method.name, metadata) as span:
            self._streams += 1
            try:
                call, request = self._let_in(method, raw, context, metadata, self._streams > self._most_streams)
                expiry = asyncio.get_running_loop().time() + self._stream_time
                async with aclosing(method.run(request, call)) as messages:
                    stuck = await self._send(messages, context, expiry)
                if stuck is not None:
                    await self._let_go(stuck)
            except Exception as error:  # noqa: BLE001 - every failure leaves by the closed list
                await _refuse(context, span, error, method.name)
            finally:
                self._streams -= 1

    async def _send(self, messages: AsyncIterator[Message], context: Context, expiry: float) -> asyncio.Future[None] | None:
        """Sends a stream's messages. Returns the write that its reader had not taken when the stream's time was up, or None at the end."""
        while (message := await self._next(messages, expiry)) is not None:
            write = asyncio.ensure_future(context.write(message.SerializeToString()))
            write.add_done_callback(_heard)
            await asyncio.wait((write,), timeout=max(expiry - asyncio.get_running_loop().time(), 0))
            if not write.done():
                return write
            if write.exception() is not None:  # nobody is there any more
                break
        return None

    async def _let_go(self, write: asyncio.Future[None]) -> NoReturn:
        """A reader that stands still keeps no place here; should it go on, it hears that its time was up."""
        self._streams -= 1
        try:
            await write
        finally:
            self._streams += 1
        raise _expired()

    async def _next(self, messages: AsyncIterator[Message], expiry: float) -> Message | None:
        """The next message of a stream, or None at its end. Raises STREAM_EXPIRED or SHUTTING_DOWN."""
        step = asyncio.ensure_future(anext(messages, None))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            left = expiry - asyncio.get_running_loop().time()
            await asyncio.wait((step, closing), timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
            if step.done():
                return step.result()
            if closing.done():
                raise _shutting_down()
            raise _expired()
        finally:
            closing.cancel()
            step.cancel()
            if not step.done():  # a generator that still runs cannot be closed
                await asyncio.wait((step,))

    def _let_in(self, method: _Method, raw: bytes, context: Context, metadata: Mapping[str, str], full: bool) -> tuple[Call, Message]:
        """All that is refused before the handler runs, in a fixed order. Raises Refused."""
        now = asyncio.get_running_loop().time()
        if self._closing.is_set():
            raise _shutting_down()
        if full:
            raise Refused(Reason.OVERLOADED, "The process has as many calls in hand as it takes.", retry_after=0.5)
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            raise Refused(Reason.DEADLINE_EXCEEDED, "The deadline has passed already.")
        if len(raw) > method.most_bytes:
            raise Refused(Reason.MESSAGE_TOO_LARGE, f"The message must have at most {method.most_bytes} bytes.")
        caller = self._authenticator.authenticate(metadata, context.auth_context() or {})
        caller = authorize(caller, method.roles)
        try:
            request = method.request.FromString(raw)
        except DecodeError:
            raise Refused(Reason.MESSAGE_MALFORMED, f"The bytes are no {method.request.DESCRIPTOR.full_name}.") from None
        time = DEFAULT_DEADLINE if remaining is None else min(remaining, LONGEST_DEADLINE)
        return Call(caller, now + time), request

    async def _unknown(self, name: str, context: Context) -> NoReturn:
        with server_span("unknown", _metadata(context)) as span:
            await _refuse(
                context, span, Refused(Reason.METHOD_UNKNOWN, "There is no such method here; its service may be served at another address."), name
            )


async def _refuse(context: Context, span: Span, error: Exception, method: str) -> NoReturn:
    """Ends the call with a refusal: the error's own, or INTERNAL with nothing but the trace id."""
    if isinstance(error, TimeoutError):
        refused = Refused(Reason.DEADLINE_EXCEEDED, "The time was up before the result was known; come back with the same id.")
    elif isinstance(error, Refused):
        refused = error
    else:
        log.error("%s failed (trace %s)", method, trace_id(), exc_info=error)
        refused = Refused(Reason.INTERNAL, "A fault of ours; the same id is safe.", metadata={"trace_id": trace_id()})
    failed(span, CODE[refused.reason].name, refused.reason)
    await refuse(context, refused, [("tallystick-trace-id", trace_id())])


def _heard(write: asyncio.Future[None]) -> None:
    """A write fails when its reader has gone away, which is no fault."""
    if not write.cancelled():
        write.exception()


def _expired() -> Refused:
    return Refused(Reason.STREAM_EXPIRED, "The stream has reached its time; open it again from where it ended.", retry_after=0.1)


def _shutting_down() -> Refused:
    return Refused(Reason.SHUTTING_DOWN, "The process is being stopped.", retry_after=0.5)


def _metadata(context: Context) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


class _Unknown(grpc.GenericRpcHandler):
    """The last handler: everything it is asked for is unknown."""

    def __init__(self, refuse: Callable[[str, Context], Awaitable[NoReturn]]) -> None:
        self._refuse = refuse

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def unknown(_raw: bytes, context: Context) -> bytes:
            await self._refuse(handler_call_details.method, context)

        return grpc.unary_unary_rpc_method_handler(unknown)
