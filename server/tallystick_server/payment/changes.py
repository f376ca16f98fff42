"""Wakes calls of this process that wait for a payment. A hint only: what they answer is read from the database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Changes:
    """Who waits for which checkout: for every change, or only for one that brings a charge to rest."""

    def __init__(self) -> None:
        self._waiting: dict[str, dict[asyncio.Event, bool]] = {}

    @contextmanager
    def of(self, checkout_id: str, *, only_rest: bool = False) -> Iterator[asyncio.Event]:
        """An event that is set with each change of the checkout until the block ends."""
        changed = asyncio.Event()
        self._waiting.setdefault(checkout_id, {})[changed] = only_rest
        try:
            yield changed
        finally:
            del self._waiting[checkout_id][changed]
            if not self._waiting[checkout_id]:
                del self._waiting[checkout_id]

    def happened(self, checkout_id: str, *, rest: bool) -> None:
        """Wakes those who wait for the checkout; `rest`: one of its charges has come to rest."""
        for changed, only_rest in self._waiting.get(checkout_id, {}).items():
            if rest or not only_rest:
                changed.set()


async def wait(changed: asyncio.Event, seconds: float) -> None:
    """Waits for a change, or for so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await changed.wait()
    except TimeoutError:
        return
    changed.clear()
