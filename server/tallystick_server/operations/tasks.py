"""The tasks of a worker: its operations in flight, and work that survives its caller."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Generic, Protocol, TypeVar

from tallystick_core.errors import overloaded_error
from tallystick_server.operations.operation import LeasedOperation
from tallystick_storage.operation_key import OperationKey

Op = TypeVar("Op", bound=LeasedOperation)
R = TypeVar("R")

MAX_TEAM_DETACHED_TASKS = 1_000


class DetachedRunner(Protocol):
    """Runs work in a task that survives the cancellation of its caller."""

    async def __call__(
        self, work: Callable[[], Coroutine[Any, Any, R]], *, is_team_call: bool = False
    ) -> R: ...


class WorkerTasks(Generic[Op]):
    """The tasks of one worker. `run`: advances an operation. `on_operation_done`: called after it.

    `is_stopping`: operations that are started from now on only wait for `cancel`.
    """

    def __init__(
        self,
        run: Callable[[Op], Coroutine[Any, Any, None]],
        on_operation_done: Callable[[], None],
    ) -> None:
        self.is_stopping = False
        self._run = run
        self._on_operation_done = on_operation_done
        self._operations: dict[asyncio.Task[None], Op] = {}
        self._count_by_provider: Counter[str] = Counter()
        self._detached_tasks: set[asyncio.Task[Any]] = set()
        self._team_detached_tasks: set[asyncio.Task[Any]] = set()
        self._unstarted_operations: list[Op] = []  # claimed while the worker stops

    @property
    def is_idle(self) -> bool:
        """Whether no operation is in flight and no detached task runs."""
        return not self._operations and not self._detached_tasks

    @property
    def operation_count(self) -> int:
        """The number of operations in flight."""
        return len(self._operations)

    @property
    def tasks(self) -> Collection[asyncio.Task[None]]:
        """The tasks of the operations in flight."""
        return self._operations.keys()

    def count_of(self, provider: str) -> int:
        """The number of a provider's operations in flight."""
        return self._count_by_provider[provider]

    def start(self, operation: Op) -> None:
        """Starts an operation that this process leases."""
        if self.is_stopping:
            self._unstarted_operations.append(operation)
            return
        task = asyncio.create_task(self._run(operation))
        self._operations[task] = operation
        self._count_by_provider[operation.provider] += 1
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._count_by_provider[self._operations.pop(task).provider] -= 1
        self._on_operation_done()

    async def run_detached(
        self, work: Callable[[], Coroutine[Any, Any, R]], *, is_team_call: bool = False
    ) -> R:
        """Runs `work`, which commits leases and starts operations, in a task of the worker. So a
        lease keeps its holder even if the task that waits for it is cancelled.

        `is_team_call`: a team's call waits for the work. Such calls are limited, and do not limit
        the platform or operators. Raises OVERLOADED for them.
        """
        if is_team_call and len(self._team_detached_tasks) >= MAX_TEAM_DETACHED_TASKS:
            raise overloaded_error("changes wait for the database")
        task = asyncio.create_task(work())
        for task_set in (
            (self._detached_tasks, self._team_detached_tasks)
            if is_team_call
            else (self._detached_tasks,)
        ):
            task_set.add(task)
            task.add_done_callback(task_set.discard)
        return await asyncio.shield(task)

    async def cancel(self) -> dict[OperationKey, int]:
        """Cancels all tasks. Returns the lease tokens of the unfinished operations."""
        self.is_stopping = True
        unfinished_operations = dict(self._operations)
        for task in (*unfinished_operations, *self._detached_tasks):
            task.cancel()
        await asyncio.gather(*unfinished_operations, *self._detached_tasks, return_exceptions=True)
        return {
            operation.key: operation.lease_token
            for operation in (*unfinished_operations.values(), *self._unstarted_operations)
        }
