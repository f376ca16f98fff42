"""Wakes calls of this process that wait for something to change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


class Waiter(Generic[M]):
    """One call's wait for a resource. A change is a hint to look again, but for `closed`: the resource at its end, as committed."""

    def __init__(self, *, only_rest: bool) -> None:
        self.closed: M | None = None
        self._only_rest = only_rest
        self._changed = asyncio.Event()

    def happened(self, *, rest: bool, closed: M | None) -> None:
        self.closed = closed or self.closed
        if rest or not self._only_rest:
            self._changed.set()

    async def wait(self, seconds: float) -> None:
        """Waits for a change, or for so many seconds."""
        end = asyncio.get_running_loop().call_later(seconds, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            end.cancel()
        self._changed.clear()


class Changes(Generic[M]):
    """Who waits for which resource, by its id."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[Waiter[M]]] = {}

    @contextmanager
    def of(self, key: str, *, only_rest: bool = False) -> Iterator[Waiter[M]]:
        """Hears of each change of the resource until the block ends, or only of those that bring a demand for it to rest."""
        waiter = Waiter[M](only_rest=only_rest)
        waiters = self._waiting.setdefault(key, set())
        waiters.add(waiter)
        try:
            yield waiter
        finally:
            waiters.discard(waiter)
            if not waiters:
                self._waiting.pop(key, None)

    def happened(self, key: str, *, rest: bool, closed: M | None = None) -> None:
        """Wakes those who wait for the resource. `rest`: a demand for it has come to rest; `closed`: so have all."""
        for waiter in self._waiting.get(key, ()):
            waiter.happened(rest=rest, closed=closed)
