"""An event loop with virtual time. Nodes represent processes; each has its own clock and can be
stopped and killed.
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
    """A simulated process. Everything that runs in its context belongs to it."""

    def __init__(self, name: str, clock_offset: float = 0.0, incarnation: int = 1) -> None:
        self.name = name
        self.incarnation = incarnation
        """The number of times that it was started."""
        self.clock_offset = clock_offset
        """The offset of its clock from the real time, in seconds."""
        self.is_alive = True
        self.is_paused = False
        self.on_death: list[Callable[[], None]] = []
        self.ready_handles: deque[asyncio.Handle] = deque()
        self.tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._context = contextvars.Context()
        self._context.run(_NODE.set, self)

    def context(self) -> contextvars.Context:
        """A new context that belongs to the node."""
        return self._context.copy()


class SimulationDeadlock(Exception):
    """No event is scheduled any more."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs ready callbacks, in random order among nodes and in order within each node, then
    advances time to the next event. `port_call` receives the functions that are given to
    `run_in_executor`; it runs each at one moment and then completes the future.
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
        """The node of the run itself, which never crashes."""
        self._current_node = self.outside
        # Nodes with ready callbacks, in the order in which they became ready.
        self._ready_nodes: dict[Node, None] = {}
        self._timers: list[tuple[float, int, Node, asyncio.Handle]] = []
        # Objects of crashed nodes are kept: a coroutine that is garbage-collected runs its
        # `finally`.
        self._dead_objects: list[object] = []
        self.set_task_factory(self._new_task)  # type: ignore[arg-type]

    @property
    def now(self) -> float:
        """Seconds since the start, independent of the nodes' clocks."""
        return self._now

    @property
    def current_node(self) -> Node:
        """The node whose step is running."""
        return self._current_node

    def time(self) -> float:
        """The time by the present node's clock."""
        return self._now + self._current_node.clock_offset

    def kill(self, node: Node) -> None:
        """Kills the node: none of its callbacks runs any more."""
        node.is_alive = False
        self._dead_objects += [*node.tasks, *node.ready_handles]
        node.ready_handles.clear()
        self._ready_nodes.pop(node, None)
        for callback in node.on_death:
            callback()

    def deliver(
        self, node: Node, delay_seconds: float, callback: Callable[..., object], *arguments: object
    ) -> None:
        """Schedules a callback in a context of the node after the given seconds of simulated
        time.
        """
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
        """Marks the handle as cancelled; it is dropped when its time comes."""

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
        """Advances time to the next scheduled event."""
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
