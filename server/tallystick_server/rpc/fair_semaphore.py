"""A semaphore that serves waiting callers round robin by owner."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FairSemaphore:
    """Limits concurrent callers. Waiting callers are served round robin by owner, and in order of
    arrival within one owner.

    Each waiting owner is served once before another is served twice.
    """

    def __init__(self, permits: int) -> None:
        self._available = permits
        self._waiters: OrderedDict[str, OrderedDict[asyncio.Future[None], None]] = OrderedDict()
        """The waiting callers of each owner; the first owner is the next."""

    @asynccontextmanager
    async def permit(self, owner: str) -> AsyncIterator[None]:
        """Waits for a permit and holds it until the block ends."""
        if self._available:
            self._available -= 1
        else:
            await self._wait(owner)
        try:
            yield
        finally:
            self._release()

    def waiting_count(self) -> int:
        """The number of waiting callers."""
        return sum(map(len, self._waiters.values()))

    async def _wait(self, owner: str) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(owner, OrderedDict())[waiter] = None
        try:
            await waiter
        except asyncio.CancelledError:
            # The permit may have arrived together with the cancellation.
            if waiter.done() and not waiter.cancelled():
                self._release()
            else:
                self._remove_waiter(owner, waiter)
            raise

    def _remove_waiter(self, owner: str, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(owner, OrderedDict())
        waiters.pop(waiter, None)
        if not waiters:
            self._waiters.pop(owner, None)

    def _release(self) -> None:
        """Passes the permit to the next waiting caller, if there is one."""
        while self._waiters:
            owner, waiters = next(iter(self._waiters.items()))
            waiter, _ = waiters.popitem(last=False)
            if waiters:
                self._waiters.move_to_end(owner)
            else:
                del self._waiters[owner]
            if not waiter.done():
                waiter.set_result(None)
                return
        self._available += 1
