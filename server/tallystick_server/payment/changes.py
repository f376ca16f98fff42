"""Wakes calls of this process that wait for a payment. A hint only: what they answer is read from the database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class Changes:
    """Who waits for which checkout."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def of(self, checkout_id: str) -> Iterator[asyncio.Event]:
        """An event that is set with each change of the checkout until the block ends."""
        changed = asyncio.Event()
        self._waiting.setdefault(checkout_id, set()).add(changed)
        try:
            yield changed
        finally:
            self._waiting[checkout_id].discard(changed)
            if not self._waiting[checkout_id]:
                del self._waiting[checkout_id]

    def happened(self, checkout_ids: Iterable[str]) -> None:
        """Wakes those who wait for the checkouts."""
        for checkout_id in checkout_ids:
            for changed in self._waiting.get(checkout_id, ()):
                changed.set()


async def wait(changed: asyncio.Event, seconds: float) -> None:
    """Waits for a change, or for so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return
    changed.clear()
