"""In-memory messages between nodes. Requests and answers are delayed, lost and repeated. Both sides
run the real stubs, server and handlers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import grpc
from google.protobuf import descriptor_pool, message_factory

from tests.simulation.faults import CALL_FAULTS, CALLER_FAULTS, InjectedFault
from tests.simulation.loop import Node
from tests.simulation.world import World, complete_future

T = TypeVar("T")
Metadata = Sequence[tuple[str, str | bytes]]


class Unreachable(Exception):
    """The connection was refused, so the request was guaranteed not to be processed."""


class ConnectionBroken(Exception):
    """The connection broke before an answer arrived."""


async def exchange(
    world: World,
    call_id: str,
    fault_weights: Mapping[InjectedFault, float],
    find_node: Callable[[], Node | None],
    work: Callable[[Node], Awaitable[T]],
    *,
    propagate_cancel: bool,
) -> T:
    """Runs some work on a node that is found, and returns its answer. Raises Unreachable or
    ConnectionBroken; never returns if the answer is lost. `propagate_cancel`: the other side stops
    when the caller is cancelled.
    """
    loop, caller = world.loop, world.loop.current_node
    call_id = world.faults.next_call_id(call_id)
    world.calls.append(call_id)
    fault = world.inject_fault(caller, call_id, fault_weights)
    request_delay, response_delay, repeat_delay, _ = world.delays(call_id)
    if fault is InjectedFault.CRASH_BEFORE:
        loop.deliver(caller, 0, world.kill, caller)
        return await loop.create_future()  # type: ignore[no-any-return]
    server = find_node()
    if fault is InjectedFault.CONNECTION_REFUSED or server is None:
        await asyncio.sleep(request_delay)
        raise Unreachable
    if fault is InjectedFault.SLOW:
        request_delay += world.slow_delay(call_id)
    future: asyncio.Future[T] = loop.create_future()
    tasks: list[asyncio.Task[T]] = []

    def break_connection() -> None:
        loop.deliver(caller, response_delay, complete_future, future, None, ConnectionBroken())

    def on_done(task: asyncio.Task[T]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if fault is InjectedFault.CRASH_AFTER:
            loop.deliver(caller, response_delay, world.kill, caller)
        elif fault is InjectedFault.RESET or isinstance(error, asyncio.CancelledError):
            break_connection()
        elif fault is not InjectedFault.RESPONSE_LOST:
            loop.deliver(
                caller,
                response_delay,
                complete_future,
                future,
                None if error else task.result(),
                error,
            )

    def serve(*, is_first: bool) -> None:
        task: asyncio.Task[T] = loop.create_task(work(server))  # type: ignore[arg-type]
        if is_first:
            tasks.append(task)
            task.add_done_callback(on_done)
            if fault is InjectedFault.CANCELLED:
                loop.deliver(
                    server,
                    10 ** world.seeded_random.uniform(f"cancels {call_id}", -4, 0.5),
                    task.cancel,
                )
        else:
            task.add_done_callback(_ignore_result)

    def arrive(*, is_first: bool) -> None:
        if server.is_alive:
            loop.deliver(server, 0, lambda: serve(is_first=is_first))
        elif is_first:
            break_connection()

    if fault is not InjectedFault.REQUEST_LOST:
        loop.deliver(loop.outside, request_delay, lambda: arrive(is_first=True))
    if fault is InjectedFault.REPEATED:
        loop.deliver(
            loop.outside,
            request_delay + repeat_delay + world.slow_delay(call_id),
            lambda: arrive(is_first=False),
        )
    if fault is not InjectedFault.RESPONSE_LOST:
        server.on_death.append(break_connection)
    try:
        return await future
    except asyncio.CancelledError:
        for task in tasks if propagate_cancel else ():
            loop.deliver(server, response_delay, task.cancel)
        raise
    finally:
        if fault is not InjectedFault.RESPONSE_LOST and server.is_alive:
            server.on_death.remove(break_connection)


def _ignore_result(task: asyncio.Task[Any]) -> None:
    """Discards the answer to a duplicate request."""
    if not task.cancelled():
        task.exception()


@dataclass
class _SimulatedContext:
    """The call as the handler sees it: its metadata, and the trailing metadata and status that the
    handler sets.
    """

    world: World
    metadata: Metadata
    request_bytes: bytes
    deadline: float | None
    """In simulated time."""
    send_message: Callable[[bytes], Awaitable[None]] | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    trailing_metadata: Metadata = ()

    async def read(self) -> bytes:
        return self.request_bytes

    def invocation_metadata(self) -> Metadata:
        return self.metadata

    def time_remaining(self) -> float | None:
        return None if self.deadline is None else self.deadline - self.world.loop.now

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        return {}

    def set_trailing_metadata(self, trailing: Metadata) -> None:
        self.trailing_metadata = trailing

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing: Metadata = ()
    ) -> None:
        self.code, self.details, self.trailing_metadata = code, details, trailing
        raise grpc.aio.AbortError

    async def write(self, message: bytes) -> None:
        assert self.send_message is not None
        await self.send_message(message)


@dataclass
class SimulatedServer:
    """The handlers that a node serves; the server registers them here as it does with gRPC."""

    handlers: list[grpc.GenericRpcHandler] = field(default_factory=list)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self.handlers += handlers

    def find_handler(self, method: str, metadata: Metadata) -> Any:
        details = cast("grpc.HandlerCallDetails", _SimulatedCallDetails(method, metadata))
        return next(
            method_handler
            for handler in self.handlers
            if (method_handler := handler.service(details)) is not None
        )


@dataclass
class _SimulatedCallDetails:
    method: str
    invocation_metadata: Metadata


class SimulatedNetwork:
    """The nodes that serve each service, and the channels to them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.servers: dict[str, dict[Node, SimulatedServer]] = {}
        """Running nodes, by service."""
        self._pick_count = 0

    def channel(self, service: str) -> grpc.aio.Channel:
        """The channel interface that a stub needs, connected to any node of a service."""
        return cast("grpc.aio.Channel", _SimulatedChannel(self, self._world, service))

    def pick_node(self, service: str) -> Node | None:
        """A random node of the service; None during an outage, or if none runs."""
        self._pick_count += 1
        nodes = [] if self._world.is_unavailable(service) else list(self.servers.get(service, ()))
        return (
            self._world.seeded_random.choice(f"node {self._pick_count}", nodes) if nodes else None
        )

    async def handle(
        self, node: Node, service: str, method: str, context: _SimulatedContext
    ) -> bytes | None:
        handler = self.servers[service][node].find_handler(method, context.metadata)
        run = handler.stream_stream if handler.response_streaming else handler.stream_unary
        try:
            return cast("bytes | None", await run(None, context))
        except grpc.aio.AbortError:
            return None


class _SimulatedChannel:
    def __init__(self, network: SimulatedNetwork, world: World, service: str) -> None:
        self._network = network
        self._world = world
        self._service = service

    def unary_unary(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        **_: Any,
    ) -> Any:
        async def call(request: Any, timeout: float | None = None, metadata: Metadata = ()) -> Any:
            request_bytes = request_serializer(request) if request_serializer else request
            try:
                async with asyncio.timeout(timeout):
                    context, response_bytes = await self._exchange(
                        method, request_bytes, timeout, metadata
                    )
            except TimeoutError:
                raise _rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
            except Unreachable:
                raise _rpc_error(grpc.StatusCode.UNAVAILABLE, "failed to connect") from None
            except ConnectionBroken:
                raise _rpc_error(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer") from None
            if context.code is not grpc.StatusCode.OK:
                raise _rpc_error(context.code, context.details, context.trailing_metadata)
            return response_deserializer(response_bytes)

        return call

    async def _exchange(
        self, method: str, request_bytes: bytes, timeout: float | None, metadata: Metadata
    ) -> tuple[_SimulatedContext, bytes | None]:
        world = self._world
        caller = world.loop.current_node
        deadline = None if timeout is None else world.loop.now + timeout
        name = method.rpartition("/")[2]

        async def work(server: Node) -> tuple[_SimulatedContext, bytes | None]:
            context = _SimulatedContext(world, metadata, request_bytes, deadline)
            poison = world.active_poison(self._service)
            if poison is not None and (
                items := [
                    item
                    for item in _item_keys(method, request_bytes)
                    if world.seeded_random.number(f"poison {item}") < poison.item_rate
                ]
            ):
                world.log(f"{server.name} fails on {caller.name} {name}: {', '.join(items)}")
                context.code, context.details = (
                    grpc.StatusCode[poison.status],
                    f"poisoned by {items[0]}",
                )
                return context, None
            response_bytes = await self._network.handle(server, self._service, method, context)
            world.log(
                f"{server.name} answers {caller.name} {name}: {context.code.name} {context.details}"
            )
            return context, response_bytes

        fault_weights = CALLER_FAULTS if caller.name.startswith("caller") else CALL_FAULTS
        return await exchange(
            world,
            f"{caller.name} calls {name}",
            fault_weights,
            lambda: self._network.pick_node(self._service),
            work,
            propagate_cancel=True,
        )

    def unary_stream(
        self,
        method: str,
        request_serializer: Any = None,
        response_deserializer: Any = None,
        **_: Any,
    ) -> Any:
        def call(
            request: Any, timeout: float | None = None, metadata: Metadata = ()
        ) -> _SimulatedStream:
            request_bytes = request_serializer(request) if request_serializer else request
            message_queue: asyncio.Queue[bytes | grpc.aio.AioRpcError | None] = asyncio.Queue()
            return _SimulatedStream(
                lambda: self._open_stream(method, request_bytes, timeout, metadata, message_queue),
                message_queue,
                response_deserializer,
            )

        return call

    def _open_stream(
        self,
        method: str,
        request_bytes: bytes,
        timeout: float | None,
        metadata: Metadata,
        message_queue: asyncio.Queue[Any],
    ) -> Callable[[], None]:
        """Opens a stream and returns the function that closes it. The messages, and then the end,
        are put into `message_queue` in order. The stream breaks when its server crashes.
        """
        world, loop = self._world, self._world.loop
        caller = loop.current_node
        name = method.rpartition("/")[2]
        server = self._network.pick_node(self._service)
        call_id = world.faults.next_call_id(f"{caller.name} opens {name}")
        if server is None or world.inject_fault(
            caller, call_id, {InjectedFault.CONNECTION_REFUSED: 1.0}
        ):
            message_queue.put_nowait(_rpc_error(grpc.StatusCode.UNAVAILABLE, "failed to connect"))
            return lambda: None
        request_delay, response_delay, _, _ = world.delays(call_id)

        async def write(message: bytes) -> None:
            loop.deliver(caller, response_delay, message_queue.put_nowait, message)

        def break_stream() -> None:
            loop.deliver(
                caller,
                response_delay,
                message_queue.put_nowait,
                _rpc_error(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer"),
            )

        async def work() -> None:
            context = _SimulatedContext(
                world,
                metadata,
                request_bytes,
                None if timeout is None else loop.now + timeout,
                write,
            )
            await self._network.handle(server, self._service, method, context)
            last_message = (
                None
                if context.code is grpc.StatusCode.OK
                else _rpc_error(context.code, context.details, context.trailing_metadata)
            )
            server.on_death.remove(break_stream)
            loop.deliver(caller, response_delay, message_queue.put_nowait, last_message)

        tasks: list[asyncio.Task[None]] = []
        server.on_death.append(break_stream)
        loop.deliver(server, request_delay, lambda: tasks.append(loop.create_task(work())))
        return lambda: loop.deliver(
            server, response_delay, lambda: [task.cancel() for task in tasks]
        )

    async def close(self, grace: float | None = None) -> None:
        return None


class _SimulatedStream:
    """The responses of a stream, which opens when the first is awaited."""

    def __init__(
        self,
        open_stream: Callable[[], Callable[[], None]],
        message_queue: asyncio.Queue[bytes | grpc.aio.AioRpcError | None],
        deserialize: Callable[[bytes], Any],
    ) -> None:
        self._open_stream = open_stream
        self._message_queue = message_queue
        self._deserialize = deserialize
        self._close: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Closes the stream, if it is open."""
        if self._close is not None:
            self._close()
            self._close = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        self._close = self._open_stream()
        try:
            while (message := await self._message_queue.get()) is not None:
                if isinstance(message, grpc.aio.AioRpcError):
                    raise message
                yield self._deserialize(message)
        finally:
            self.cancel()


def _rpc_error(
    code: grpc.StatusCode, details: str, trailing: Metadata = ()
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


_BATCH_METHODS = frozenset(
    {
        "BatchCredit",
        "BatchRelease",
        "BatchDebit",
        "BatchPlaceHold",
        "BatchCaptureHold",
        "BatchReleaseHold",
        "BatchPost",
        "BatchPublish",
    }
)
"""Internal requests that have items, each of which must finally succeed."""
_ITEM_KEY_FIELDS = ("event_id", "hold_id", "source_id")


def _item_keys(method: str, request_bytes: bytes) -> list[str]:
    """Identifiers of the items of a batch, the same for every repeat."""
    _, service, name = method.split("/")
    if name not in _BATCH_METHODS:
        return []
    request_type = (
        descriptor_pool.Default().FindServiceByName(service).methods_by_name[name].input_type
    )
    request = message_factory.GetMessageClass(request_type).FromString(request_bytes)
    items = getattr(request, request_type.fields[0].name)
    return [
        item
        if isinstance(item, str)
        else next(
            getattr(item, key) for key in _ITEM_KEY_FIELDS if key in item.DESCRIPTOR.fields_by_name
        )
        for item in items
    ]
