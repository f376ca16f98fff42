"""Stages: batches that form by themselves. While one batch is being committed the next one gathers."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from tallystick_core.refusal import Reason, Refused, overloaded
from tallystick_server.runtime.peers import PeerRefused
from tallystick_server.runtime.telemetry import SpanContext, batch_span, current_context
from tallystick_storage.database import DataRefused

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
CALLERS_WAITING = 10_000
"""How many items of callers may wait in a stage."""
BATCHES_WAITING = 1_000
"""How many items may wait that are batches themselves."""

_BROKEN_AFTER = 8


class Stage(Generic[T, R]):
    """Gathers what is submitted, and runs one function over each batch.

    A lane rests as long as its last batch took, up to `longest_rest` seconds: nothing waits when idle, and batches grow under load. `run` returns
    one result per item in order; an exception among them is raised to that item's submitter, and one raised by `run` to all of them.
    `most`: how much a batch holds, by the items' `weight`; one item always fits. `lanes`: how many batches run at a time.
    `for_callers`: an item is dropped if its submitter has gone before its batch starts; without it the item is worked on all the same. `max_waiting`:
    more waiting items are refused with OVERLOADED, which says that nothing was stored. None: where that may be false, as for a call that reads after
    its commit, or where the submitters are bounded.
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
        for_callers: bool = False,
        max_waiting: int | None = None,
    ) -> None:
        self._name = name
        self._run = run
        self._most = most
        self._weight = weight
        self._lanes = lanes
        self._longest_rest = longest_rest
        self._for_callers = for_callers
        self._max_waiting = max_waiting
        self._waiting: OrderedDict[asyncio.Future[R], tuple[T, SpanContext]] = OrderedDict()
        self._work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._busy = 0
        self._stopped = False

    def start(self) -> None:
        """Starts the lanes, in the running loop."""
        self._tasks = [self._start_lane(number) for number in range(self._lanes)]

    def submit(self, item: T, context: SpanContext | None = None) -> asyncio.Future[R]:
        """Puts an item into the next batch. Raises OVERLOADED, or SHUTTING_DOWN once the stage was stopped; the item is then not worked on."""
        if self._stopped:
            raise _stopped()
        if self._max_waiting is not None and len(self._waiting) >= self._max_waiting:
            raise overloaded(f"items wait in {self._name}")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting[future] = (item, context or current_context())
        if self._for_callers:
            future.add_done_callback(self._drop)
        self._work.set()
        return future

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._busy

    @property
    def waiting(self) -> int:
        """How many items wait for a batch."""
        return len(self._waiting)

    async def stop(self) -> None:
        """Ends the lanes. What waits is left undone, and its submitters get SHUTTING_DOWN: stop what submits first, and wait until idle."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._waiting:
            future, _ = self._waiting.popitem(last=False)
            _fail(future, _stopped())

    def _drop(self, future: asyncio.Future[R]) -> None:
        """Forgets an item whose submitter has gone before its batch has started."""
        self._waiting.pop(future, None)

    def _start_lane(self, number: int) -> asyncio.Task[None]:
        task = asyncio.create_task(self._lane(), name=f"{self._name}-{number}")
        task.add_done_callback(lambda ended: self._lane_ended(number, ended))
        return task

    def _lane_ended(self, number: int, task: asyncio.Task[None]) -> None:
        """Starts a lane again that ended by itself."""
        if self._stopped:
            return
        error = None if task.cancelled() else task.exception()
        log.error("Lane %d of %s ended unexpectedly and is started again.", number, self._name, exc_info=error)
        self._tasks[number] = self._start_lane(number)

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
                for _, future, _ in batch:  # whatever ended the lane, nobody waits for ever
                    _fail(future, _stopped() if self._stopped else RuntimeError(f"A lane of {self._name} ended unexpectedly."))
            await asyncio.sleep(min(loop.time() - started, self._longest_rest))

    def _take(self) -> list[tuple[T, asyncio.Future[R], SpanContext]]:
        """What waits, as much as a batch holds."""
        batch: list[tuple[T, asyncio.Future[R], SpanContext]] = []
        room = self._most
        while self._waiting:
            future, (item, context) = next(iter(self._waiting.items()))
            abandoned = self._for_callers and future.done()
            needed = self._weight(item)
            if not abandoned and needed > room and batch:
                break
            self._waiting.popitem(last=False)
            if not abandoned:
                batch.append((item, future, context))
                room -= needed
        return batch

    async def _one(self, batch: list[tuple[T, asyncio.Future[R], SpanContext]]) -> None:
        results: Sequence[R | Exception]
        try:
            with batch_span(self._name, [context for _, _, context in batch]):
                results = await self._run([item for item, _, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{self._name} returned {len(results)} results for {len(batch)} items.")  # noqa: TRY301 - raised to all, as below
        except Exception as error:  # noqa: BLE001 - it is raised to every submitter
            results = [error] * len(batch)
        for (_, future, _), result in zip(batch, results, strict=True):
            if future.done():  # its submitter has gone; the work is done all the same
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


def _stopped() -> Refused:
    return Refused(Reason.SHUTTING_DOWN, "The process is being stopped.", retry_after=0.5)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


async def by_halves(run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]], items: Sequence[T]) -> Sequence[R | Exception]:
    """Runs a batch; when one item breaks it, halves it until that item is alone and gets the error to itself.

    An item breaks a batch when the database refuses its data, or another service refuses the call. A service that refuses the first 8 items one by
    one, and takes none, is broken as a whole: all items get DEPENDENCY_UNAVAILABLE, as if it had not answered. An error that is no item's is raised.
    """
    return await _Halving(run).all(items)


class _Halving(Generic[T, R]):
    """One batch that is being halved."""

    def __init__(self, run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]]) -> None:
        self._run = run
        self._refused: list[PeerRefused] = []
        self._any_passed = False

    async def all(self, items: Sequence[T]) -> Sequence[R | Exception]:
        try:
            return await self._run(items)
        except (DataRefused, PeerRefused) as error:
            if isinstance(error, PeerRefused) and error.rejects_caller:
                raise  # of all items
            if len(items) == 1:
                return [error]
        results = await self._halves(items)
        if self._broken:
            return [self._unavailable() if isinstance(result, PeerRefused) else result for result in results]
        return results

    @property
    def _broken(self) -> bool:
        return not self._any_passed and len(self._refused) >= _BROKEN_AFTER

    def _unavailable(self) -> Refused:
        return Refused(Reason.DEPENDENCY_UNAVAILABLE, f"{self._refused[0].method} refuses everything: {self._refused[0].status}.", retry_after=1.0)

    async def _halves(self, items: Sequence[T]) -> list[R | Exception]:
        middle = len(items) // 2
        return [*await self._part(items[:middle]), *await self._part(items[middle:])]

    async def _part(self, items: Sequence[T]) -> Sequence[R | Exception]:
        """What becomes of a part; the other part keeps its results whatever happens to this one."""
        if self._broken:
            return [self._unavailable()] * len(items)
        try:
            results = await self._run(items)
        except (DataRefused, PeerRefused) as error:
            if isinstance(error, PeerRefused) and error.rejects_caller:
                return [error] * len(items)
            if len(items) > 1:
                return await self._halves(items)
            if isinstance(error, PeerRefused):
                self._refused.append(error)
            return [error]
        except Refused as error:  # what was done before the service went away is done
            return [error] * len(items)
        self._any_passed = True
        return results


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
