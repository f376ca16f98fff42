"""Streams that read a numbered sequence from a cursor on. All streams of a process that have reached its end share one poller."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

from sqlalchemy import Connection

from tallystick_core.refusal import Reason, Refused
from tallystick_server.runtime.fair_semaphore import FairSemaphore
from tallystick_storage.database import Database

R = TypeVar("R")

_AT_ONCE = 200  # items of one read
_WINDOW = 5_000  # numbers that one read looks at, so that a rare filter reads everything in bounded turns
_LOOK_AGAIN = 0.25  # seconds
_KEPT_BYTES = 4 * 1024 * 1024
_READ_AHEAD_BYTES = 128 * 1024  # what one stream reads ahead; one item always fits


@dataclass(frozen=True, slots=True)
class Numbered(Generic[R]):
    """A sequence that grows at its end alone."""

    end: Callable[[Connection], int]
    """Its last number."""
    between: Callable[[Connection, int, int, int], Sequence[R]]
    """The first items behind one number and up to another, in order, at most so many."""
    number: Callable[[R], int]
    size: Callable[[R], int]
    """About how many bytes an item takes."""


@dataclass(frozen=True, slots=True)
class Wanted(Generic[R]):
    """What one stream shows of a sequence."""

    between: Callable[[Connection, int, int, int], Sequence[R]]
    """As Numbered's, of the items that fit."""
    fits: Callable[[R], bool]
    owner: str
    """Whose stream it is: streams that are behind take their turns by owner."""
    indexed: bool = False
    """Whether `between` finds what fits without looking at the rest."""


class Tail(Generic[R]):
    """The end of a sequence, for all streams of this process: what came last is read once, and none of them polls."""

    def __init__(self, database: Database, numbered: Numbered[R]) -> None:
        self._database = database
        self._numbered = numbered
        self._catching_up = FairSemaphore(1)  # one connection for those that are behind, the others are for money
        self._kept: deque[R] = deque()
        self._kept_bytes = 0
        self._from = 0  # all items behind this number, and up to the end, are kept
        self._end = -1
        self._growth: asyncio.Task[None] | None = None
        self._waiting = 0

    async def follow(self, wanted: Wanted[R], after: int, field: str, *, on: bool) -> AsyncGenerator[R, None]:
        """What fits behind a cursor, in order, and with `on` also what comes. Raises FIELD_INVALID for the field that the cursor is of."""
        if after < 0:
            raise Refused(Reason.FIELD_INVALID, f"{field} must not be negative.", field=field)
        while True:
            if self._from <= after <= self._end and on:
                kept, after = self._since(after)
                for item in filter(wanted.fits, kept):
                    yield item
                await self._grown(after)
                continue
            end, until, items = await self._turn(wanted, after)
            if after > end:
                raise _beyond(field, end)
            for item in items:
                yield item
            after = until
            if after < end:
                continue
            if not on:
                return
            await self._grown(after)

    def _since(self, after: int) -> tuple[list[R], int]:
        """The next of what is kept behind a number, in order, and the number up to which that is all there is."""
        items = []
        for item in reversed(self._kept):
            if self._numbered.number(item) <= after:
                break
            items.append(item)
        first = self._first(items[::-1])
        return first, self._end if len(first) == len(items) else self._numbered.number(first[-1])

    def _first(self, items: Sequence[R]) -> list[R]:
        """As many of the items as one stream reads ahead: a reader that stands still keeps no more than those."""
        sizes = accumulate(map(self._numbered.size, items))
        return [item for place, (item, size) in enumerate(zip(items, sizes, strict=True)) if not place or size <= _READ_AHEAD_BYTES]

    async def _turn(self, wanted: Wanted[R], after: int) -> tuple[int, int, Sequence[R]]:
        """One bounded read: the end of the sequence, the number up to which it looked, and what fits up to there."""

        def read(connection: Connection) -> tuple[int, int, Sequence[R]]:
            end = self._numbered.end(connection)  # before the items: of what comes between, none is passed over
            until = end if wanted.indexed else min(after + _WINDOW, end)
            found = wanted.between(connection, after, until, _AT_ONCE)
            items = self._first(found)
            is_all = len(items) == len(found) < _AT_ONCE
            return end, until if is_all else self._numbered.number(items[-1]), items

        async with self._catching_up.permit(wanted.owner):
            return await self._database.read(read)

    async def _grown(self, after: int) -> None:
        """Waits until the end is another than a given one."""
        if self._end > after:  # it has grown already, though others may wait for it to grow more
            return
        if self._growth is None or self._growth.done():
            if self._end < after:
                self._restart(after)
            self._growth = asyncio.create_task(self._grow(), name="tail")
        self._waiting += 1
        try:
            await asyncio.shield(self._growth)
        finally:
            self._waiting -= 1
            if not self._waiting and self._growth is not None:
                if self._growth.cancel():  # nobody watches the end any more: a restore may change what is behind it
                    self._restart(-1)
                self._growth = None

    async def _grow(self) -> None:
        """Looks again and again until the sequence has grown, and reads what is new."""
        while True:
            await asyncio.sleep(_LOOK_AGAIN)
            end = await self._database.read(self._numbered.end)
            if end == self._end:
                continue
            if not self._end < end <= self._end + _WINDOW:  # it was restored, or is far ahead: who follows reads for itself
                self._restart(end)
                return
            await self._read(end)
            return

    async def _read(self, end: int) -> None:
        while self._end < end:
            last = self._end

            def read(connection: Connection, last: int = last) -> Sequence[R]:
                return self._numbered.between(connection, last, end, _AT_ONCE)

            for item in await self._database.read(read):
                self._kept.append(item)
                self._kept_bytes += self._numbered.size(item)
                self._end = self._numbered.number(item)
            if self._end == last:
                self._end = end
            while self._kept_bytes > _KEPT_BYTES:
                first = self._kept.popleft()
                self._kept_bytes -= self._numbered.size(first)
                self._from = self._numbered.number(first)

    def _restart(self, end: int) -> None:
        self._kept.clear()
        self._kept_bytes = 0
        self._from = self._end = end


def _beyond(field: str, end: int) -> Refused:
    return Refused(
        Reason.FIELD_INVALID,
        f"{field} must be at most {end}, the last one there is; what is beyond it was never numbered, or was lost when the database was restored.",
        field=field,
        metadata={"last": str(end)},
    )
