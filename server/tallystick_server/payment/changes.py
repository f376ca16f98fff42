"""Wakes calls of this process that wait for a payment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tallystick.payment.v1 import payment_pb2


class Waiter:
    """One call's wait for a payment. A change is a hint to look again, but for `closed`: the payment at its end, as committed."""

    def __init__(self, *, only_rest: bool) -> None:
        self.closed: payment_pb2.Payment | None = None
        self._only_rest = only_rest
        self._changed = asyncio.Event()

    def happened(self, *, rest: bool, closed: payment_pb2.Payment | None) -> None:
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


class Changes:
    """Who waits for which checkout."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[Waiter]] = {}

    @contextmanager
    def of(self, checkout_id: str, *, only_rest: bool = False) -> Iterator[Waiter]:
        """Hears of each change of the checkout until the block ends, or only of those that bring one of its charges to rest."""
        waiter = Waiter(only_rest=only_rest)
        waiters = self._waiting.setdefault(checkout_id, set())
        waiters.add(waiter)
        try:
            yield waiter
        finally:
            waiters.discard(waiter)
            if not waiters:
                self._waiting.pop(checkout_id, None)

    def happened(self, checkout_id: str, *, rest: bool, closed: payment_pb2.Payment | None = None) -> None:
        """Wakes those who wait for the checkout. `rest`: one of its charges has come to rest; `closed`: so have all."""
        for waiter in self._waiting.get(checkout_id, ()):
            waiter.happened(rest=rest, closed=closed)
