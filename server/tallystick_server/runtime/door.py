"""The door that every incoming call goes through, outermost first: telemetry, errors, deadline, authentication, authorization, limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import grpc
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.trace import Span

from tallystick_core.caller import Caller, Role, authorize
from tallystick_core.refusal import Reason, Refused, not_found
from tallystick_server.runtime.authentication import Authenticator
from tallystick_server.runtime.bulkhead import Bulkhead, CallLimits
from tallystick_server.runtime.errors import CODE, refuse
from tallystick_server.runtime.fair_semaphore import FairSemaphore
from tallystick_server.runtime.telemetry import failed, server_span, trace_id
from tallystick_server.runtime.wire import check_items, holds_items

log = logging.getLogger(__name__)

T = TypeVar("T")
Access = Mapping[str, frozenset[Role]]
Context = grpc.aio.ServicerContext[Any, Any]

DEFAULT_DEADLINE = 10.0
LONGEST_DEADLINE = 60.0
STREAM_TIME = 300.0
MESSAGE_BYTES = 64 * 1024
BATCH_BYTES = 4 * 1024 * 1024
_SMALL_BYTES = 4 * 1024  # messages up to here are not counted: as many as there are slots are nothing
_PARSED_AT_ONCE = 64 * 1024  # of larger messages one is parsed at a time, and other calls come between
_RESERVE = 0.5  # seconds before the deadline in which the answer still gets home
_LONGEST_WAIT = 30.0
_LOOK_AGAIN = 0.02
_CANCELLED = 0.1  # seconds in which gRPC says of a call without a message that its caller has cancelled it
_WRITERS = 2
_READERS = 32
"""Streams that write at a time: a write takes at least three turns of the loop and is one event, of which gRPC's poller hands over one a turn."""
_HAND_ON = 0.001  # seconds after which the next stream may write, though a reader has not taken what was written for it
_TEAMS = frozenset({Role.TEAM, Role.PAYOUTS})
_HURRIED = 1.0  # seconds in which calls that are ended by a drain refuse
_STREAMS_END = 1.0  # seconds that a drain gives streams, which resume from their cursors


@dataclass(slots=True)
class Call:
    """What a handler knows of its call, beside the request. `deadline` is in the loop's time."""

    caller: Caller
    deadline: float
    slots: tuple[Bulkhead, Bulkhead] | None = None
    """Where it has its slot, and where it takes one while it waits."""
    body: tuple[Bulkhead, int] | None = None
    """Where the bytes of its request are counted, and how many; None: nowhere, or no more."""
    metadata: dict[str, str] = field(default_factory=dict)
    """Sent with the answer."""

    @contextmanager
    def waiting(self) -> Iterator[bool]:
        """Gives up the call's slot for one of the waiting calls until the block ends. Whether there was one: without, the call answers at once."""
        if self.slots is None:
            yield True
            return
        (own, waiting), owner = self.slots, self.caller.owner
        if not waiting.try_take(owner):
            yield False
            return
        own.release(owner)
        self.release_body()
        try:
            yield True
        finally:
            own.take(owner)
            waiting.release(owner)

    def release_body(self) -> None:
        """Gives back the bytes of the request, which nothing needs any more."""
        if self.body is not None:
            counted, size = self.body
            counted.release(self.caller.owner, size)
            self.body = None

    def replayed(self) -> None:
        """Tells the caller that the answer is to a repeat."""
        self.metadata["tallystick-replayed"] = "true"

    def visible(self, found: T | None, what: str, name: str) -> T:
        """What was found, if the caller may see it. Raises NOT_FOUND for another's as well."""
        owned: Any = found
        if found is None or not self.caller.sees(owned.owner):
            raise not_found(what, name)
        return found

    @property
    def answers_by(self) -> float:
        """The loop's time at which the answer sets out, however things stand then."""
        return min(self.deadline - _RESERVE, asyncio.get_running_loop().time() + _LONGEST_WAIT)


@dataclass(frozen=True, slots=True)
class _Slots:
    """Where the calls of one method take their slots, by who calls."""

    teams: Bulkhead
    services: Bulkhead
    operators: Bulkhead

    def of(self, caller: Caller) -> Bulkhead:
        """By the role that the method admits the caller by; of several by a team's first, then by a service's, so that operators' slots stay free."""
        if not _TEAMS.isdisjoint(caller.roles):
            return self.teams
        return self.services if Role.SERVICE in caller.roles else self.operators

    @property
    def all(self) -> tuple[Bulkhead, Bulkhead, Bulkhead]:
        return self.teams, self.services, self.operators


@dataclass(frozen=True, slots=True)
class _Method:
    name: str
    run: Callable[[Any, Call], Any]
    shape: Descriptor
    request: type[Message]
    roles: frozenset[Role]
    most_bytes: int
    slots: _Slots


class Door:
    """Serves the methods of services. One for each server: its limits count the calls of all services together."""

    def __init__(self, authenticator: Authenticator, limits: CallLimits | None = None, *, stream_time: float = STREAM_TIME) -> None:
        limits = limits or CallLimits()
        self._authenticator = authenticator
        self._stream_time = stream_time
        share = limits.share
        services, operators = Bulkhead(limits.platform, 1.0), Bulkhead(limits.platform, share)
        self._writes = _Slots(Bulkhead(limits.writes, share), services, operators)
        self._reads = _Slots(Bulkhead(limits.reads, share), services, operators)
        self._streams = _Slots(*(Bulkhead(limits.streams, share) for _ in range(3)))
        self._waiting = Bulkhead(limits.waiting, share)
        self._message_bytes = Bulkhead(limits.message_bytes, share)
        self._parsing = FairSemaphore(1)
        self._writers = FairSemaphore(_WRITERS)
        self._readers = FairSemaphore(_READERS)
        self._closing = asyncio.Event()
        self._timeouts: set[asyncio.Timeout] = set()
        self._hurried = False

    def close(self) -> None:
        """From now on new calls are refused with SHUTTING_DOWN, and streams end."""
        self._closing.set()

    async def quiet(self, patience: float) -> None:
        """Waits until no call is in flight, so many seconds, and a second for streams; those calls that are left then end with SHUTTING_DOWN."""
        calls = (*self._writes.all, *self._reads.all, self._waiting)
        await asyncio.gather(_ended(calls, patience), _ended(self._streams.all, min(_STREAMS_END, patience)))
        self._hurried = True
        for timeout in self._timeouts:
            if not timeout.expired():
                timeout.reschedule(asyncio.get_running_loop().time())
        await _ended(calls, _HURRIED)

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
        most_bytes = BATCH_BYTES if "Batch" in method.name and holds_items(method.input_type) else MESSAGE_BYTES
        name = f"{method.containing_service.full_name}/{method.name}"
        known = _Method(name, run, method.input_type, GetMessageClass(method.input_type), roles, most_bytes, self._kind(method))
        if method.server_streaming:

            async def stream(_messages: object, context: Context) -> None:
                await self._stream(known, context)

            return grpc.stream_stream_rpc_method_handler(stream)

        async def unary(_messages: object, context: Context) -> bytes:
            return await self._unary(known, context)

        # a stream of one message is the same on the wire; a message that gRPC reads itself it keeps until the call ends
        return grpc.stream_unary_rpc_method_handler(unary)

    def _kind(self, method: MethodDescriptor) -> _Slots:
        """Which slots the calls of a method take."""
        if method.server_streaming:
            return self._streams
        return self._reads if method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS else self._writes

    async def _unary(self, method: _Method, context: Context) -> bytes:
        raw = await _message(context)
        metadata = _metadata(context)
        with server_span(method.name, metadata) as span:
            try:
                call = self._let_in(method, raw, context, metadata)
                run: Callable[[Any, Call], Awaitable[Message]] = method.run
                with self._taken(method, len(raw), call):
                    async with self._timed(call.deadline):
                        request = await self._parsed(method, raw, call.caller.owner)
                        async with self._turn(method, call.caller.owner):
                            answer = run(request, call)
                            del raw, request  # only the handler keeps the body, as long as it needs it
                            response = await answer
                context.set_trailing_metadata((("tallystick-trace-id", trace_id()), *call.metadata.items()))
                return response.SerializeToString()
            except Exception as error:  # noqa: BLE001 - every failure leaves by the closed list
                if isinstance(error, TimeoutError) and self._hurried:
                    error = _shutting_down()
                await _refuse(context, span, error, method.name)

    async def _stream(self, method: _Method, context: Context) -> None:
        raw = await _message(context)
        metadata = _metadata(context)
        with server_span(method.name, metadata) as span:
            try:
                call = self._let_in(method, raw, context, metadata)
                with self._taken(method, len(raw), call):
                    items = method.run(await self._parsed(method, raw, call.caller.owner), call)
                    del raw
                    call.release_body()  # handlers of streams decode the request in their first step, and drop it
                    expiry = asyncio.get_running_loop().time() + self._stream_time
                    async with aclosing(items) as messages:
                        stuck = await self._send(messages, context, expiry, call.caller.owner)
                    if stuck is not None:
                        await self._let_go(stuck, method.slots.of(call.caller), call.caller.owner)
            except Exception as error:  # noqa: BLE001 - every failure leaves by the closed list
                await _refuse(context, span, error, method.name)

    @contextmanager
    def _taken(self, method: _Method, size: int, call: Call) -> Iterator[None]:
        """The call's slot until the block ends, and the bytes of its message until it waits, or its stream begins. Raises OVERLOADED."""
        owner, slots = call.caller.owner, method.slots.of(call.caller)
        if not slots.try_take(owner):
            raise Refused(Reason.OVERLOADED, "Too many calls of this kind are in flight; retry after 0.5 s.", retry_after=0.5)
        call.slots = (slots, self._waiting)
        try:
            if size > _SMALL_BYTES:
                if not self._message_bytes.try_take(owner, size):
                    raise Refused(Reason.OVERLOADED, "Too many bytes of messages are in flight; retry after 0.5 s.", retry_after=0.5)
                call.body = (self._message_bytes, size)
            yield
        finally:
            slots.release(owner)
            call.release_body()

    def _turn(self, method: _Method, owner: str) -> AbstractAsyncContextManager[None]:
        """A read's turn among those of other owners, since all reads share a few connections; what changes something has no turns."""
        return self._readers.permit(owner) if method.slots is self._reads else nullcontext()

    @asynccontextmanager
    async def _timed(self, deadline: float) -> AsyncIterator[None]:
        """Ends the block with TimeoutError at the deadline, or when a drain is over before."""
        async with asyncio.timeout_at(deadline) as timeout:
            self._timeouts.add(timeout)
            try:
                yield
            finally:
                self._timeouts.discard(timeout)

    async def _parsed(self, method: _Method, raw: bytes, owner: str) -> Message:
        """The request. Raises TOO_MANY_ITEMS, MESSAGE_MALFORMED."""
        if len(raw) <= _PARSED_AT_ONCE:
            return _parse(method, raw)
        async with self._parsing.permit(owner):
            request = _parse(method, raw)
            await asyncio.sleep(0)
            return request

    async def _send(self, messages: AsyncIterator[Message], context: Context, expiry: float, owner: str) -> asyncio.Future[None] | None:
        """Sends a stream's messages. Returns the write that its reader had not taken when the stream was to end, or None at the end."""
        while (message := await self._next(messages, expiry)) is not None:
            async with self._writers.permit(owner):
                write = asyncio.ensure_future(context.write(message.SerializeToString()))
                write.add_done_callback(_heard)
                await asyncio.wait((write,), timeout=_HAND_ON)
            if not write.done():
                await self._until_closing(write, expiry)
            if not write.done():
                return write
            if write.exception() is not None:  # nobody is there any more
                break
        return None

    async def _let_go(self, write: asyncio.Future[None], slots: Bulkhead, owner: str) -> None:
        """A reader that stands still keeps no place here; should it go on, it hears why its stream has ended."""
        slots.release(owner)
        try:
            await asyncio.wait((write,))
        finally:
            slots.take(owner)
        if not write.cancelled() and write.exception() is None:  # else it has gone
            raise _shutting_down() if self._closing.is_set() else _expired()

    def _check_goes_on(self, expiry: float) -> None:
        """Raises STREAM_EXPIRED or SHUTTING_DOWN when a stream is to end."""
        if self._closing.is_set():
            raise _shutting_down()
        if asyncio.get_running_loop().time() >= expiry:
            raise _expired()

    async def _until_closing(self, step: asyncio.Future[Any], expiry: float) -> None:
        """Waits for a step of a stream: until it is done, the stream's time is up, or the process is being stopped."""
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            left = expiry - asyncio.get_running_loop().time()
            await asyncio.wait((step, closing), timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing.cancel()

    async def _next(self, messages: AsyncIterator[Message], expiry: float) -> Message | None:
        """The next message of a stream, or None at its end. Raises STREAM_EXPIRED or SHUTTING_DOWN."""
        self._check_goes_on(expiry)  # also where there is always a next message
        step = asyncio.ensure_future(anext(messages, None))
        try:
            await self._until_closing(step, expiry)
            if not step.done():
                self._check_goes_on(expiry)
                raise _expired()
            return step.result()
        finally:
            step.cancel()
            if not step.done():  # a generator that still runs cannot be closed
                await asyncio.wait((step,))

    def _let_in(self, method: _Method, raw: object, context: Context, metadata: Mapping[str, str]) -> Call:
        """All that is refused before the call takes a slot, in a fixed order. Raises Refused."""
        now = asyncio.get_running_loop().time()
        if self._closing.is_set():
            raise _shutting_down()
        if not isinstance(raw, bytes):  # gRPC's mark for the end
            raise Refused(Reason.MESSAGE_MALFORMED, "The call has no message; send one.")
        remaining = context.time_remaining()
        if remaining is not None and remaining <= 0:
            raise Refused(Reason.DEADLINE_EXCEEDED, "The deadline has passed already.")
        if len(raw) > method.most_bytes:
            raise Refused(Reason.MESSAGE_TOO_LARGE, f"The message must have at most {method.most_bytes} bytes.")
        caller = self._authenticator.authenticate(metadata, context.auth_context() or {})
        caller = authorize(caller, method.roles)
        time = DEFAULT_DEADLINE if remaining is None else min(remaining, LONGEST_DEADLINE)
        return Call(caller, now + time)

    async def _unknown(self, name: str, context: Context) -> NoReturn:
        with server_span("unknown", _metadata(context)) as span:
            await _refuse(
                context, span, Refused(Reason.METHOD_UNKNOWN, "There is no such method here; its service may be served at another address."), name
            )


async def _message(context: Context) -> Any:
    """The call's message, or gRPC's mark that there is none. A call that was cancelled before its message came ends here."""
    raw = await context.read()
    if not isinstance(raw, bytes):
        await asyncio.sleep(_CANCELLED)
    return raw


def _parse(method: _Method, raw: bytes) -> Message:
    check_items(raw, method.shape)
    try:
        return method.request.FromString(raw)
    except DecodeError:
        raise Refused(Reason.MESSAGE_MALFORMED, f"The bytes are no {method.shape.full_name}.") from None


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


async def _ended(places: Sequence[Bulkhead], patience: float) -> None:
    """Waits until nobody has a slot, so many seconds."""
    deadline = asyncio.get_running_loop().time() + patience
    while any(place.taken for place in places) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - calls end by many ways
        await asyncio.sleep(_LOOK_AGAIN)


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
