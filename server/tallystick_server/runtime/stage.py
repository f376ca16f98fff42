"""Stages: batches that form by themselves. While one batch is being committed the next one gathers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from tallystick_server.runtime.telemetry import SpanContext, batch_span, current_context
from tallystick_storage.database import DataRefused

T = TypeVar("T")
R = TypeVar("R")


class Stage(Generic[T, R]):
    """Gathers what is submitted, and runs one function over each batch.

    A lane rests as long as its last batch took, up to `longest_rest` seconds: nothing waits when idle, and batches grow under load. `run` returns
    one result per item in order; an exception among them is raised to that item's submitter, and one raised by `run` to all of them.
    `most`: how much a batch holds, by the items' `weight`; one item always fits. `lanes`: how many batches run at a time.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        *,
        most: int = 500,
        weight: Callable[[T], int] = lambda _: 1,
        lanes: int = 1,
        longest_rest: float = 0.2,
    ) -> None:
        self._name = name
        self._run = run
        self._most = most
        self._weight = weight
        self._lanes = lanes
        self._longest_rest = longest_rest
        self._waiting: deque[tuple[T, asyncio.Future[R], SpanContext]] = deque()
        self._work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._busy = 0

    def start(self) -> None:
        """Starts the lanes, in the running loop."""
        self._tasks = [asyncio.create_task(self._lane(), name=f"{self._name}-{n}") for n in range(self._lanes)]

    def submit(self, item: T, context: SpanContext | None = None) -> asyncio.Future[R]:
        """Puts an item into the next batch. A submitter that goes away takes nothing with it: the item is worked on all the same."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future, context or current_context()))
        self._work.set()
        return future

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._busy

    async def stop(self) -> None:
        """Ends the lanes. What waits is left undone: stop what submits first, and wait until idle."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _lane(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._work.wait()
            batch = self._take()
            if not self._waiting:
                self._work.clear()
            if not batch:
                continue
            started = loop.time()
            self._busy += 1
            try:
                await self._one(batch)
            finally:
                self._busy -= 1
            await asyncio.sleep(min(loop.time() - started, self._longest_rest))

    def _take(self) -> list[tuple[T, asyncio.Future[R], SpanContext]]:
        """What waits, as much as a batch holds."""
        batch: list[tuple[T, asyncio.Future[R], SpanContext]] = []
        room = self._most
        while self._waiting and ((needed := self._weight(self._waiting[0][0])) <= room or not batch):
            batch.append(self._waiting.popleft())
            room -= needed
        return batch

    async def _one(self, batch: list[tuple[T, asyncio.Future[R], SpanContext]]) -> None:
        try:
            with batch_span(self._name, [context for _, _, context in batch]):
                results = await self._run([item for item, _, _ in batch])
        except Exception as error:  # noqa: BLE001 - it is raised to every submitter
            results = [error] * len(batch)
        for (_, future, _), result in zip(batch, results, strict=True):
            if future.done():  # its submitter was cancelled; the work is done all the same
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


async def by_halves(run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]], items: Sequence[T]) -> Sequence[R | Exception]:
    """Runs a batch; when one item's data breaks it, halves it until the culprit is alone and gets the error to itself."""
    try:
        return await run(items)
    except DataRefused as error:
        if len(items) == 1:
            return [error]
        middle = len(items) // 2
        return [*await by_halves(run, items[:middle]), *await by_halves(run, items[middle:])]


async def once_per_key(
    items: Sequence[T],
    key: Callable[[T], tuple[Hashable, bytes]],
    run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
) -> Sequence[R | Exception]:
    """Runs a batch, by halves if need be, in which keys may stand several times, so that `run` sees each key once at a time.

    `key` gives the key and the fingerprint. Items equal to the first of their key share its result, with `replayed` set; others run after it, and
    find what it stored. A result is a dataclass with that field.
    """
    results: list[Any] = [None] * len(items)
    left = list(range(len(items)))
    while left:
        first: dict[Hashable, tuple[int, bytes]] = {}
        same: list[tuple[int, int]] = []
        other: list[tuple[int, int]] = []
        for index in left:
            name, print_ = key(items[index])
            leader, leaders_print = first.setdefault(name, (index, print_))
            if leader != index:
                (same if print_ == leaders_print else other).append((index, leader))
        leaders = [index for index, _ in first.values()]
        for index, result in zip(leaders, await by_halves(run, [items[index] for index in leaders]), strict=True):
            results[index] = result
        for index, leader in same:
            first_result = results[leader]
            results[index] = first_result if isinstance(first_result, Exception) else replace(first_result, replayed=True)
        left = [index for index, _ in other]
    return results


async def in_groups(groups: Sequence[Sequence[T]], run: Callable[[Sequence[T]], Awaitable[Sequence[R]]]) -> list[list[R]]:
    """Runs the items of all groups as one batch; the results in the same groups."""
    results = iter(await run([item for group in groups for item in group]))
    return [[next(results) for _ in group] for group in groups]
