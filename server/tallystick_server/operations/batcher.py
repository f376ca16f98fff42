"""Batchers: the next batch fills while the current one commits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from tallystick_core.errors import ApiError, ErrorReason, overloaded_error
from tallystick_server.observability import metrics, names
from tallystick_server.observability.tracing import SpanContext, batch_span, current_context
from tallystick_server.rpc.errors import shutting_down_error
from tallystick_server.rpc.service_client import ServiceCallRejected
from tallystick_storage.database import ConstraintViolation

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
MAX_QUEUED_CALLS = 10_000
"""Maximum waiting items of callers in a batcher."""
MAX_QUEUED_BATCHES = 1_000
"""Maximum waiting items that are batches themselves."""

_UNAVAILABLE_AFTER_REJECTIONS = 8


class Batcher(Generic[T, R]):
    """Gathers submitted items and runs one function for each batch.

    `run` returns one result per item, in order. An exception among them is raised to that item's
    submitter. An exception raised by `run` is raised to all of them.

    A worker lingers as long as its last batch took, at most `max_linger` seconds. So an idle
    batcher adds no delay, and batches grow under load.

    `max_batch`: the size of a batch, as the sum of `size_of` over its items. One item always fits.

    `concurrency`: the number of concurrent batches.

    `drop_abandoned`: drops an item whose submitter was cancelled before its batch started.
    Otherwise the item is processed.

    `max_queued`: further items are rejected with OVERLOADED, which promises that nothing was
    stored. None: where that may be false (a call that reads after its commit), or where submitters
    are limited.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        *,
        max_batch: int = 500,
        size_of: Callable[[T], int] = lambda _: 1,
        concurrency: int = 1,
        max_linger: float = 0.2,
        drop_abandoned: bool = False,
        max_queued: int | None = None,
    ) -> None:
        self._name = name
        self.run = run
        self._max_batch = max_batch
        self._size_of = size_of
        self._concurrency = concurrency
        self._max_linger = max_linger
        self._drop_abandoned = drop_abandoned
        self._max_queued = max_queued
        self._queue: OrderedDict[asyncio.Future[R], tuple[T, SpanContext]] = OrderedDict()
        self._work_event = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._running_batches = 0
        self._is_stopped = False

    def start(self) -> None:
        """Starts the workers in the running loop."""
        metrics.BATCH_QUEUE_LENGTH.track(self, Batcher._observe_queue)
        self._tasks = [self._start_worker(number) for number in range(self._concurrency)]

    def submit(self, item: T, context: SpanContext | None = None) -> asyncio.Future[R]:
        """Adds an item to the next batch.

        Raises OVERLOADED, or SHUTTING_DOWN once the batcher is stopped; the item is then not
        processed.
        """
        if self._is_stopped:
            raise shutting_down_error()
        if self._max_queued is not None and len(self._queue) >= self._max_queued:
            raise overloaded_error(f"items wait in {self._name}")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._queue[future] = (item, context or current_context())
        if self._drop_abandoned:
            future.add_done_callback(self._remove_abandoned)
        self._work_event.set()
        return future

    @property
    def is_idle(self) -> bool:
        """Whether no item waits and no batch runs."""
        return not self._queue and not self._running_batches

    @property
    def queue_length(self) -> int:
        """The number of items that wait for a batch."""
        return len(self._queue)

    async def stop(self) -> None:
        """Stops the workers. Waiting items are not processed, and their submitters get
        SHUTTING_DOWN. Stop the submitters first, and wait until idle.
        """
        self._is_stopped = True
        metrics.BATCH_QUEUE_LENGTH.untrack(self)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._queue:
            future, _ = self._queue.popitem(last=False)
            _fail(future, shutting_down_error())

    def _observe_queue(self) -> Mapping[tuple[str, ...], int]:
        return {(self._name,): len(self._queue)}

    def _remove_abandoned(self, future: asyncio.Future[R]) -> None:
        """Removes an item whose submitter was cancelled before its batch started."""
        self._queue.pop(future, None)

    def _start_worker(self, number: int) -> asyncio.Task[None]:
        task = asyncio.create_task(self._run_worker(), name=f"{self._name}-{number}")
        task.add_done_callback(lambda done_task: self._on_worker_done(number, done_task))
        return task

    def _on_worker_done(self, number: int, task: asyncio.Task[None]) -> None:
        """Restarts a worker that ended unexpectedly."""
        if self._is_stopped:
            return
        error = None if task.cancelled() else task.exception()
        log.error(
            "Worker %d of batcher %s ended unexpectedly and is restarted.",
            number,
            self._name,
            exc_info=error,
            extra=names.BATCHER_RESTARTED.extra,
        )
        self._tasks[number] = self._start_worker(number)

    async def _run_worker(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._work_event.wait()
            batch = self._next_batch()
            if not self._queue:
                self._work_event.clear()
            if not batch:
                continue
            start_time, precise_start_time = loop.time(), time.perf_counter()
            self._running_batches += 1
            try:
                await self._run_batch(batch)
            finally:
                metrics.record_batch(
                    self._name, len(batch), time.perf_counter() - precise_start_time
                )
                self._running_batches -= 1
                for _, future, _ in batch:  # whatever ended the worker, no submitter waits forever
                    _fail(
                        future,
                        shutting_down_error()
                        if self._is_stopped
                        else RuntimeError(f"A worker of batcher {self._name} ended unexpectedly."),
                    )
            await asyncio.sleep(min(loop.time() - start_time, self._max_linger))

    def _next_batch(self) -> list[tuple[T, asyncio.Future[R], SpanContext]]:
        """The waiting items, up to the size of a batch."""
        batch: list[tuple[T, asyncio.Future[R], SpanContext]] = []
        remaining = self._max_batch
        while self._queue:
            future, (item, context) = next(iter(self._queue.items()))
            is_abandoned = self._drop_abandoned and future.done()
            size = self._size_of(item)
            if not is_abandoned and size > remaining and batch:
                break
            self._queue.popitem(last=False)
            if not is_abandoned:
                batch.append((item, future, context))
                remaining -= size
        return batch

    async def _run_batch(self, batch: list[tuple[T, asyncio.Future[R], SpanContext]]) -> None:
        results: Sequence[R | Exception]
        try:
            span_name = names.BATCH_SPAN.format(batcher=self._name)
            with batch_span(span_name, [context for _, _, context in batch]):
                results = await self.run([item for item, _, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(  # noqa: TRY301 - raised to every submitter
                    f"{self._name} returned {len(results)} results for {len(batch)} items."
                )
        except Exception as error:  # noqa: BLE001 - it is raised to every submitter
            results = [error] * len(batch)
        for (_, future, _), result in zip(batch, results, strict=True):
            if future.done():  # the submitter was cancelled; the item was processed
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


async def bisect_on_error(
    run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]], items: Sequence[T]
) -> Sequence[R | Exception]:
    """Runs a batch. If one item breaks it, the batch is halved until that item is alone and gets
    the error.

    An item breaks a batch if it violates a database constraint, or if another service rejects the
    call. Other errors are raised.

    If a service rejects the first 8 items one by one and accepts none, all items get
    DEPENDENCY_UNAVAILABLE, as if it had not answered.
    """
    return await _Bisection(run).run_all(items)


class _Bisection(Generic[T, R]):
    """One batch that is bisected."""

    def __init__(self, run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]]) -> None:
        self._run = run
        self._rejections: list[ServiceCallRejected] = []
        self._any_succeeded = False

    async def run_all(self, items: Sequence[T]) -> Sequence[R | Exception]:
        try:
            return await self._run(items)
        except (ConstraintViolation, ServiceCallRejected) as error:
            if isinstance(error, ServiceCallRejected) and error.rejects_caller:
                raise  # the rejection concerns every item
            if len(items) == 1:
                return [error]
        results = await self._run_halves(items)
        if self._is_unavailable:
            return [
                self._unavailable_error() if isinstance(result, ServiceCallRejected) else result
                for result in results
            ]
        return results

    @property
    def _is_unavailable(self) -> bool:
        return not self._any_succeeded and len(self._rejections) >= _UNAVAILABLE_AFTER_REJECTIONS

    def _unavailable_error(self) -> ApiError:
        return ApiError(
            ErrorReason.DEPENDENCY_UNAVAILABLE,
            f"{self._rejections[0].method} rejects every item: {self._rejections[0].status}.",
            retry_after=1.0,
        )

    async def _run_halves(self, items: Sequence[T]) -> list[R | Exception]:
        middle = len(items) // 2
        return [*await self._run_part(items[:middle]), *await self._run_part(items[middle:])]

    async def _run_part(self, items: Sequence[T]) -> Sequence[R | Exception]:
        """Returns the results of a part. An error in one part does not affect the other."""
        if self._is_unavailable:
            return [self._unavailable_error()] * len(items)
        try:
            results = await self._run(items)
        except (ConstraintViolation, ServiceCallRejected) as error:
            if isinstance(error, ServiceCallRejected) and error.rejects_caller:
                return [error] * len(items)
            if len(items) > 1:
                return await self._run_halves(items)
            if isinstance(error, ServiceCallRejected):
                self._rejections.append(error)
            return [error]
        except ApiError as error:  # earlier parts keep their results
            return [error] * len(items)
        self._any_succeeded = True
        return results


async def deduplicate_by_key(
    items: Sequence[T],
    key_of: Callable[[T], tuple[Hashable, bytes]],
    run: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
) -> Sequence[R | Exception]:
    """Runs a batch in which keys may repeat, with bisection on errors. `run` sees each key once at
    a time.

    `key_of` returns the key and the fingerprint. Items equal to the first of their key share its
    result, with `replayed` set. Others run after it and find what it stored. A result is a
    dataclass with that field.
    """
    keys = [key_of(item) for item in items]
    results: list[Any] = [None] * len(items)
    remaining = list(range(len(items)))
    while remaining:
        first_by_key: dict[Hashable, int] = {}
        for index in remaining:
            first_by_key.setdefault(keys[index][0], index)
        first_indexes = list(first_by_key.values())
        first_results = await bisect_on_error(run, [items[index] for index in first_indexes])
        for index, result in zip(first_indexes, first_results, strict=True):
            results[index] = result
        others = []
        for index in remaining:
            key, fingerprint = keys[index]
            first = first_by_key[key]
            if index == first:
                continue
            if fingerprint == keys[first][1]:
                results[index] = _as_replay(results[first])
            else:
                others.append(index)
        remaining = others
    return results


def _as_replay(result: Any) -> Any:
    """The result of a repeated item; an error stays as it is."""
    return result if isinstance(result, Exception) else replace(result, replayed=True)


async def run_flattened(
    groups: Sequence[Sequence[T]], run: Callable[[Sequence[T]], Awaitable[Sequence[R]]]
) -> list[list[R]]:
    """Runs the items of all groups as one batch. Returns the results in the same groups."""
    results = iter(await run([item for group in groups for item in group]))
    return [[next(results) for _ in group] for group in groups]
