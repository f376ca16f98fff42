"""A semaphore whose waiting callers are served owner by owner."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSemaphore:
    """Lets so many callers in at a time; those that wait are served round robin by owner, and first come, first served within one.

    Whatever the others ask for, each owner that waits is served once before any other is served twice.
    """

    def __init__(self, permits: int) -> None:
        self._free = permits
        self._waiting: OrderedDict[str, OrderedDict[asyncio.Future[None], None]] = OrderedDict()
        """The waiting callers of each owner; the first owner is the next."""

    @asynccontextmanager
    async def permit(self, owner: str) -> AsyncIterator[None]:
        """Waits for a permit, and has it until the block ends."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(owner)
        try:
            yield
        finally:
            self._pass_on()

    def waiting(self) -> int:
        """How many callers wait."""
        return sum(map(len, self._waiting.values()))

    async def _wait(self, owner: str) -> None:
        permit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, OrderedDict())[permit] = None
        try:
            await permit
        except asyncio.CancelledError:
            if permit.done() and not permit.cancelled():  # it came at the same moment
                self._pass_on()
            else:
                self._forget(owner, permit)
            raise

    def _forget(self, owner: str, permit: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(owner, OrderedDict())
        waiting.pop(permit, None)
        if not waiting:
            self._waiting.pop(owner, None)

    def _pass_on(self) -> None:
        """Gives a permit to the next who waits, if anybody does."""
        while self._waiting:
            owner, waiting = next(iter(self._waiting.items()))
            permit, _ = waiting.popitem(last=False)
            if waiting:
                self._waiting.move_to_end(owner)
            else:
                del self._waiting[owner]
            if not permit.done():
                permit.set_result(None)
                return
        self._free += 1
