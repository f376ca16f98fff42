"""Coalesces concurrent calls about the same key into one that begins after all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


class Coalescer(Generic[K, R]):
    """While a call about a key runs, one more waits for it, and all that come meanwhile share that
    one: its answer is at least as new as each of them.
    """

    def __init__(self) -> None:
        self._running: dict[K, asyncio.Task[R]] = {}
        self._waiting: dict[K, asyncio.Task[R]] = {}

    async def run(self, key: K, call: Callable[[], Awaitable[R]]) -> R:
        """The result of `call`, or of another call about the key that began after this one came.
        A cancelled caller does not end a call that others share.
        """
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = asyncio.ensure_future(self._run_after(self._running.get(key), key, call))
            waiting.add_done_callback(_retrieve_exception)
            self._waiting[key] = waiting
        return await asyncio.shield(waiting)

    async def _run_after(
        self, previous: asyncio.Task[R] | None, key: K, call: Callable[[], Awaitable[R]]
    ) -> R:
        if previous is not None:
            await asyncio.wait([previous])
        task = self._waiting.pop(key)
        self._running[key] = task
        try:
            return await call()
        finally:
            if self._running.get(key) is task:
                del self._running[key]


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    """Each caller may have been cancelled before. Then the loop would report the failure as one
    that nobody has seen.
    """
    if not task.cancelled():
        task.exception()
