"""Wakes calls of this process that wait for something to change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from tallystick_core.refusal import Reason, Refused

M = TypeVar("M", bound=Message)

_LOOK_AGAIN = 0.5  # seconds; another process may have made the change


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

    async def outlast(
        self,
        moves: Callable[[M], bool],
        look: Callable[[], Awaitable[M | None]],
        until: float,
        *,
        look_first: bool = True,
        every: float = _LOOK_AGAIN,
    ) -> M | None:
        """The resource once it does not move any more, or as it stands when the time (the loop's) is up; None if there is none.

        `look_first`: whether it may be so already. `every`: how long to wait for a change, in seconds, before looking all the same.
        """
        loop = asyncio.get_running_loop()
        while True:
            if look_first:
                found = await look()
                if found is None or not moves(found) or loop.time() >= until:
                    return found
            look_first = True
            await self.wait(max(min(until - loop.time(), every), 0))
            if self.closed is not None:
                return self.closed


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

    async def versions(
        self, key: str, look: Callable[[], Awaitable[Any]], after_version: int, moves: Callable[[Any], bool]
    ) -> AsyncGenerator[Any, None]:
        """Each version of the resource that is seen after a given one, until it does not move any more. Raises FIELD_INVALID."""
        if after_version < 0:
            raise Refused(Reason.FIELD_INVALID, "after_version must not be negative.", field="after_version")
        seen = after_version
        with self.of(key) as waiter:
            while True:
                found = await look()
                if found.version > seen:
                    seen = found.version
                    yield found
                if not moves(found):
                    return
                await waiter.wait(_LOOK_AGAIN)
