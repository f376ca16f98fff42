"""An event loop in which time is a number: nodes stand for processes, each with a clock of its own,
and can be stopped and killed.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVarTuple, Unpack
from weakref import WeakSet

from tests.simulation.seeded_random import SeededRandom

Ts = TypeVarTuple("Ts")
_NODE: contextvars.ContextVar[Node] = contextvars.ContextVar("node")


class Node:
    """A process. What runs in its context belongs to it."""

    def __init__(self, name: str, clock_offset: float = 0.0, incarnation: int = 1) -> None:
        self.name = name
        self.incarnation = incarnation
        """How often it has been started."""
        self.clock_offset = clock_offset
        """What its clock shows more than the time is, in seconds."""
        self.is_alive = True
        self.is_paused = False
        self.on_death: list[Callable[[], None]] = []
        self.ready_handles: deque[asyncio.Handle] = deque()
        self.tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._context = contextvars.Context()
        self._context.run(_NODE.set, self)

    def context(self) -> contextvars.Context:
        """A new context that belongs to it."""
        return self._context.copy()


class SimulationDeadlock(Exception):
    """Nothing is left that could ever happen."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs whatever is ready, in an order of chance among nodes and in its own order within each;
    then time moves on to what comes next.

    What `run_in_executor` is given goes to `port_call`, which runs it at one moment and then
    completes the future.
    """

    def __init__(
        self,
        seeded_random: SeededRandom,
        port_call: Callable[[Node, Callable[[], Any], asyncio.Future[Any]], None],
    ) -> None:
        super().__init__()
        self._seeded_random = seeded_random
        self._port_call = port_call
        self._now = 0.0
        self._sequence = 0
        self.outside = Node("outside")
        """Where nothing dies: the run itself."""
        self._current_node = self.outside
        # those with something ready, in the order in which they got it
        self._ready_nodes: dict[Node, None] = {}
        self._timers: list[tuple[float, int, Node, asyncio.Handle]] = []
        # what belonged to dead nodes, kept: a coroutine that is collected runs its `finally`
        self._dead_objects: list[object] = []
        self.set_task_factory(self._new_task)  # type: ignore[arg-type]

    @property
    def now(self) -> float:
        """Seconds since the beginning, by no node's clock."""
        return self._now

    @property
    def current_node(self) -> Node:
        """Whose step runs now."""
        return self._current_node

    def time(self) -> float:
        """What the present node's clock shows."""
        return self._now + self._current_node.clock_offset

    def kill(self, node: Node) -> None:
        """Nothing of the node happens any more."""
        node.is_alive = False
        self._dead_objects += [*node.tasks, *node.ready_handles]
        node.ready_handles.clear()
        self._ready_nodes.pop(node, None)
        for callback in node.on_death:
            callback()

    def deliver(
        self, node: Node, delay_seconds: float, callback: Callable[..., object], *arguments: object
    ) -> None:
        """Calls back in a context of the node, after so many seconds of anybody's time."""
        self._schedule(
            self._now + delay_seconds,
            node,
            asyncio.Handle(callback, arguments, self, node.context()),
        )

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        node = self._current_node if context is None else context.get(_NODE, self.outside)
        assert node is not None
        self._make_ready(node, handle)
        return handle

    call_soon_threadsafe = call_soon

    def _make_ready(self, node: Node, handle: asyncio.Handle) -> None:
        if node.is_alive:
            node.ready_handles.append(handle)
            self._ready_nodes[node] = None
        else:
            self._dead_objects.append(handle)

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._schedule(
            max(when - self._current_node.clock_offset, self._now), self._current_node, handle
        )
        return handle

    def _schedule(self, when: float, node: Node, handle: asyncio.Handle) -> None:
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, node, handle))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is dropped when its time comes."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        self._port_call(self._current_node, lambda: func(*args), future)
        return future

    def _run_once(self) -> None:
        runnable = [node for node in self._ready_nodes if not node.is_paused]
        if not runnable:
            self._advance_time()
            return
        node = runnable[0]
        if len(runnable) > 1:
            self._sequence += 1
            node = self._seeded_random.choice(f"turn/{self._sequence}", runnable)
        self._current_node = node
        for _ in range(len(node.ready_handles)):
            if not node.is_alive or node.is_paused:
                break
            handle = node.ready_handles.popleft()
            if not handle.cancelled():
                handle._run()
        if not node.ready_handles:
            self._ready_nodes.pop(node, None)
        self._current_node = self.outside

    def _advance_time(self) -> None:
        """To the next moment at which something is to happen."""
        while self._timers:
            when, _, node, handle = heapq.heappop(self._timers)
            if handle.cancelled():
                continue
            self._make_ready(node, handle)
            if node.is_alive:
                self._now = max(self._now, when)
                return
        raise SimulationDeadlock

    def _new_task(
        self,
        loop: Any,
        coroutine: Coroutine[Any, Any, Any],
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, context=context)
        node = self._current_node if context is None else context.get(_NODE, self.outside)
        assert node is not None
        node.tasks.add(task)
        if not node.is_alive:
            self._dead_objects.append(task)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        return task

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody else wakes it."""
