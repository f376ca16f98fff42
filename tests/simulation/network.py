"""Messages between nodes, in memory: they are delayed, lost, repeated, and their answers too. Both sides run the real stubs, door and handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import grpc
from google.protobuf import descriptor_pool, message_factory

from .faults import CALL, CALLERS, Fault
from .loop import Node
from .world import World, settle

T = TypeVar("T")
Metadata = Sequence[tuple[str, str | bytes]]


class Unreached(Exception):
    """The connection was refused: surely nothing was done."""


class Broken(Exception):
    """The connection broke before an answer came."""


async def exchange(
    world: World, place: str, kinds: Mapping[Fault, float], find: Callable[[], Node | None], work: Callable[[Node], Awaitable[T]], *, hears: bool
) -> T:
    """Has a node that is found do some work, and returns its answer. Raises Unreached or Broken; waits for ever where the answer is lost.

    `hears`: the other side stops when the caller is cancelled.
    """
    loop, caller = world.loop, world.loop.node
    place = world.faults.numbered(place)
    world.calls.append(place)
    fault = world.befalls(caller, place, kinds)
    there, back, again, _ = world.delays(place)
    if fault is Fault.DIES_BEFORE:
        loop.deliver(caller, 0, world.kill, caller)
        return await loop.create_future()  # type: ignore[no-any-return]
    server = find()
    if fault is Fault.REFUSED or server is None:
        await asyncio.sleep(there)
        raise Unreached
    if fault is Fault.SLOW:
        there += world.slow(place)
    future: asyncio.Future[T] = loop.create_future()
    done: list[asyncio.Task[T]] = []

    def reset() -> None:
        loop.deliver(caller, back, settle, future, None, Broken())

    def answer(task: asyncio.Task[T]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if fault is Fault.DIES_AFTER:
            loop.deliver(caller, back, world.kill, caller)
        elif fault is Fault.RESET or isinstance(error, asyncio.CancelledError):
            reset()
        elif fault is not Fault.ANSWER_LOST:
            loop.deliver(caller, back, settle, future, None if error else task.result(), error)

    def serve(*, first: bool) -> None:
        task: asyncio.Task[T] = loop.create_task(work(server))  # type: ignore[arg-type]
        if first:
            done.append(task)
            task.add_done_callback(answer)
            if fault is Fault.CANCELLED:
                loop.deliver(server, 10 ** world.chance.between(f"cancels {place}", -4, 0.5), task.cancel)
        else:
            task.add_done_callback(_heard)

    def arrive(*, first: bool) -> None:
        if server.alive:
            loop.deliver(server, 0, lambda: serve(first=first))
        elif first:
            reset()

    if fault is not Fault.REQUEST_LOST:
        loop.deliver(loop.outside, there, lambda: arrive(first=True))
    if fault is Fault.REPEATED:
        loop.deliver(loop.outside, there + again + world.slow(place), lambda: arrive(first=False))
    if fault is not Fault.ANSWER_LOST:
        server.on_death.append(reset)
    try:
        return await future
    except asyncio.CancelledError:
        for task in done if hears else ():
            loop.deliver(server, back, task.cancel)
        raise
    finally:
        if fault is not Fault.ANSWER_LOST and server.alive:
            server.on_death.remove(reset)


def _heard(task: asyncio.Task[Any]) -> None:
    """Nobody waits for the answer to what came twice."""
    if not task.cancelled():
        task.exception()


@dataclass
class _Context:
    """What a handler is told of its call, and what it says beside its answer."""

    world: World
    metadata: Metadata
    raw: bytes
    deadline: float | None
    """In the world's time."""
    write_: Callable[[bytes], Awaitable[None]] | None = None
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    trailing: Metadata = ()

    async def read(self) -> bytes:
        return self.raw

    def invocation_metadata(self) -> Metadata:
        return self.metadata

    def time_remaining(self) -> float | None:
        return None if self.deadline is None else self.deadline - self.world.loop.now

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        return {}

    def set_trailing_metadata(self, trailing: Metadata) -> None:
        self.trailing = trailing

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing: Metadata = ()) -> None:
        self.code, self.details, self.trailing = code, details, trailing
        raise grpc.aio.AbortError

    async def write(self, message: bytes) -> None:
        assert self.write_ is not None
        await self.write_(message)


@dataclass
class Server:
    """What a node serves: the door binds its handlers to it as to gRPC's own server."""

    handlers: list[grpc.GenericRpcHandler] = field(default_factory=list)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self.handlers += handlers

    def handler(self, method: str, metadata: Metadata) -> Any:
        details = cast("grpc.HandlerCallDetails", _Details(method, metadata))
        return next(found for handler in self.handlers if (found := handler.service(details)) is not None)


@dataclass
class _Details:
    method: str
    invocation_metadata: Metadata


class Network:
    """Which nodes serve what, and the channels to them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.servers: dict[str, dict[Node, Server]] = {}
        """By service; those that are alive."""
        self._calls = 0

    def channel(self, service: str) -> grpc.aio.Channel:
        """What a stub asks of a channel, to whichever node of a service is there."""
        return cast("grpc.aio.Channel", _Channel(self, self._world, service))

    def find(self, service: str) -> Node | None:
        """One of a service's nodes, another each time; none while the service is away."""
        self._calls += 1
        alive = [] if self._world.is_away(service) else list(self.servers.get(service, ()))
        return self._world.chance.one_of(f"node {self._calls}", alive) if alive else None

    async def handle(self, node: Node, service: str, method: str, context: _Context) -> bytes | None:
        handler = self.servers[service][node].handler(method, context.metadata)
        run = handler.stream_stream if handler.response_streaming else handler.stream_unary
        try:
            return cast("bytes | None", await run(None, context))
        except grpc.aio.AbortError:
            return None


class _Channel:
    def __init__(self, network: Network, world: World, service: str) -> None:
        self._network = network
        self._world = world
        self._service = service

    def unary_unary(self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any) -> Any:
        async def call(request: Any, timeout: float | None = None, metadata: Metadata = ()) -> Any:
            raw = request_serializer(request) if request_serializer else request
            try:
                async with asyncio.timeout(timeout):
                    context, answer = await self._exchange(method, raw, timeout, metadata)
            except TimeoutError:
                raise _error(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
            except Unreached:
                raise _error(grpc.StatusCode.UNAVAILABLE, "failed to connect") from None
            except Broken:
                raise _error(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer") from None
            if context.code is not grpc.StatusCode.OK:
                raise _error(context.code, context.details, context.trailing)
            return response_deserializer(answer)

        return call

    async def _exchange(self, method: str, raw: bytes, timeout: float | None, metadata: Metadata) -> tuple[_Context, bytes | None]:
        world = self._world
        caller = world.loop.node
        deadline = None if timeout is None else world.loop.now + timeout
        name = method.rpartition("/")[2]

        async def work(server: Node) -> tuple[_Context, bytes | None]:
            context = _Context(world, metadata, raw, deadline)
            poison = world.poisons(self._service)
            if poison is not None and (items := [item for item in _items(method, raw) if world.chance.number(f"poison {item}") < poison.share]):
                world.tell(f"{server.name} fails on {caller.name} {name}: {', '.join(items)}")
                context.code, context.details = grpc.StatusCode[poison.status], f"poisoned by {items[0]}"
                return context, None
            answer = await self._network.handle(server, self._service, method, context)
            world.tell(f"{server.name} answers {caller.name} {name}: {context.code.name} {context.details}")
            return context, answer

        kinds = CALLERS if caller.name.startswith("caller") else CALL
        return await exchange(world, f"{caller.name} calls {name}", kinds, lambda: self._network.find(self._service), work, hears=True)

    def unary_stream(self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any) -> Any:
        async def call(request: Any, timeout: float | None = None, metadata: Metadata = ()) -> AsyncIterator[Any]:
            raw = request_serializer(request) if request_serializer else request
            waiting: asyncio.Queue[bytes | grpc.aio.AioRpcError | None] = asyncio.Queue()
            leave = self._stream(method, raw, timeout, metadata, waiting)
            try:
                while (message := await waiting.get()) is not None:
                    if isinstance(message, grpc.aio.AioRpcError):
                        raise message
                    yield response_deserializer(message)
            finally:
                leave()

        return call

    def _stream(self, method: str, raw: bytes, timeout: float | None, metadata: Metadata, waiting: asyncio.Queue[Any]) -> Callable[[], None]:
        """Opens a stream, and returns what leaves it. Its messages, then its end, come into the queue, in order. It breaks when its server dies."""
        world, loop = self._world, self._world.loop
        caller = loop.node
        name = method.rpartition("/")[2]
        server = self._network.find(self._service)
        place = world.faults.numbered(f"{caller.name} opens {name}")
        if server is None or world.befalls(caller, place, {Fault.REFUSED: 1.0}):
            waiting.put_nowait(_error(grpc.StatusCode.UNAVAILABLE, "failed to connect"))
            return lambda: None
        there, back, _, _ = world.delays(place)

        async def write(message: bytes) -> None:
            loop.deliver(caller, back, waiting.put_nowait, message)

        def broken() -> None:
            loop.deliver(caller, back, waiting.put_nowait, _error(grpc.StatusCode.UNAVAILABLE, "Connection reset by peer"))

        async def work() -> None:
            context = _Context(world, metadata, raw, None if timeout is None else loop.now + timeout, write)
            await self._network.handle(server, self._service, method, context)
            end = None if context.code is grpc.StatusCode.OK else _error(context.code, context.details, context.trailing)
            server.on_death.remove(broken)
            loop.deliver(caller, back, waiting.put_nowait, end)

        tasks: list[asyncio.Task[None]] = []
        server.on_death.append(broken)
        loop.deliver(server, there, lambda: tasks.append(loop.create_task(work())))
        return lambda: loop.deliver(server, back, lambda: [task.cancel() for task in tasks])

    async def close(self, grace: float | None = None) -> None:
        return None


def _error(code: grpc.StatusCode, details: str, trailing: Metadata = ()) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


_ITEMS = frozenset({
    "BatchCredit", "BatchRelease", "BatchDebit", "BatchPlaceHold", "BatchCaptureHold", "BatchReleaseHold", "BatchPost", "BatchPublish",
})  # fmt: skip
"""What services call each other with that has items, each of which must come through in the end."""
_KEYS = ("event_id", "hold_id", "cause_id", "cause")


def _items(method: str, raw: bytes) -> list[str]:
    """What the items of a batch are known by, the same each time they come."""
    _, service, name = method.split("/")
    if name not in _ITEMS:
        return []
    request_type = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name].input_type
    request = message_factory.GetMessageClass(request_type).FromString(raw)
    items = getattr(request, request_type.fields[0].name)
    return [item if isinstance(item, str) else next(getattr(item, key) for key in _KEYS if key in item.DESCRIPTOR.fields_by_name) for item in items]
