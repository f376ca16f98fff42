"""Streams the versions of a resource, and a numbered sequence from a cursor. All streams of a
process that have reached the end of a sequence share one poller.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

from google.protobuf.message import Message

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.rpc.fair_semaphore import FairSemaphore
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection

R = TypeVar("R")
M = TypeVar("M", bound=Message)

_MAX_READ_ITEMS = 200  # per read
# The range of numbers that one read scans, so that a rare filter reads in bounded steps.
_MAX_READ_RANGE = 5_000
_POLL_SECONDS = 0.25
_MAX_BUFFER_BYTES = 4 * 1024 * 1024
_MAX_READ_AHEAD_BYTES = 128 * 1024  # per stream; one item always fits


async def stream_resource(
    items: AsyncGenerator[R, None], to_response: Callable[[R], M]
) -> AsyncIterator[M]:
    """Yields the response for each version of a resource, or each item of a sequence. Its end, also
    an early one, ends their generator.
    """
    async with aclosing(items):
        async for item in items:
            yield to_response(item)


@dataclass(frozen=True, slots=True)
class SequenceSource(Generic[R]):
    """A sequence that grows only at its end."""

    last: Callable[[Connection], int]
    """The last number."""
    read_after: Callable[[Connection, int, int, int], Sequence[R]]
    """The first items after one number and up to another, in order, up to a limit."""
    position: Callable[[R], int]
    size_of: Callable[[R], int]
    """The approximate size of an item in bytes."""
    horizon: Callable[[Connection], int] | None = None
    """The number up to which items were deleted; None: none ever are."""


@dataclass(frozen=True, slots=True)
class StreamFilter(Generic[R]):
    """What one stream reads of a sequence."""

    read_after: Callable[[Connection, int, int, int], Sequence[R]]
    """As in SequenceSource, for the items that match."""
    matches: Callable[[R], bool]
    owner: str
    """The stream's owner. Streams that are catching up read round robin by owner."""
    is_indexed: bool = False
    """Whether `read_after` finds matches without scanning the rest."""


class SequenceTail(Generic[R]):
    """The end of a sequence, shared by all streams of this process. New items are read once, and no
    stream polls by itself.
    """

    def __init__(self, database: Database, source: SequenceSource[R]) -> None:
        self._database = database
        self._source = source
        # Streams that are catching up share one connection; the others are for payments and
        # payouts.
        self._read_semaphore = FairSemaphore(1)
        self._buffer: deque[R] = deque()
        self._buffer_bytes = 0
        self._buffer_start = 0  # the buffer holds all items after this number
        self._buffer_end = -1
        self._growth_task: asyncio.Task[None] | None = None
        self._waiter_count = 0

    @property
    def waiting_stream_count(self) -> int:
        """The number of streams that wait for new items."""
        return self._waiter_count

    @property
    def waiting_read_count(self) -> int:
        """The number of reads of streams that wait for other reads."""
        return self._read_semaphore.waiting_count()

    async def stream(
        self, stream_filter: StreamFilter[R], after: int, field: str, *, follow: bool
    ) -> AsyncGenerator[R, None]:
        """Yields the matching items after a cursor, in order; with `follow` also new ones. Raises
        FIELD_INVALID for the cursor's field, or CURSOR_EXPIRED if items after it were deleted.
        """
        if after < 0:
            raise ApiError(ErrorReason.FIELD_INVALID, f"{field} must not be negative.", field=field)
        while True:
            if self._buffer_start <= after <= self._buffer_end and follow:
                buffered_items, after = self._read_buffered(after)
                for item in filter(stream_filter.matches, buffered_items):
                    yield item
                await self._wait_for_growth(after)
                continue
            horizon, end, until, items = await self._read_page(stream_filter, after)
            if after > end:
                raise _cursor_beyond_end_error(field, end)
            if after < horizon:
                raise _cursor_expired_error(field, horizon)
            for item in items:
                yield item
            after = until
            if after < end:
                continue
            if not follow:
                return
            await self._wait_for_growth(after)

    def _read_buffered(self, after: int) -> tuple[list[R], int]:
        """The next buffered items after a number, in order, and the number up to which they are
        complete.
        """
        items = []
        for item in reversed(self._buffer):
            if self._source.position(item) <= after:
                break
            items.append(item)
        page = self._limit_read_ahead(items[::-1])
        return page, self._buffer_end if len(page) == len(items) else self._source.position(
            page[-1]
        )

    def _limit_read_ahead(self, items: Sequence[R]) -> list[R]:
        """Limits the items to what one stream may read ahead, so that a stalled reader keeps no
        more in memory.
        """
        sizes = accumulate(map(self._source.size_of, items))
        return [
            item
            for index, (item, size) in enumerate(zip(items, sizes, strict=True))
            if not index or size <= _MAX_READ_AHEAD_BYTES
        ]

    async def _read_page(
        self, stream_filter: StreamFilter[R], after: int
    ) -> tuple[int, int, int, Sequence[R]]:
        """One bounded read: the horizon and the end of the sequence, the number up to which it
        scanned, and the matching items.
        """

        def read(connection: Connection) -> tuple[int, int, int, Sequence[R]]:
            # Read the end before the items, so that no item added in between is skipped.
            end = self._source.last(connection)
            until = end if stream_filter.is_indexed else min(after + _MAX_READ_RANGE, end)
            candidates = stream_filter.read_after(connection, after, until, _MAX_READ_ITEMS)
            items = self._limit_read_ahead(candidates)
            is_complete = len(items) == len(candidates) < _MAX_READ_ITEMS
            # Read the horizon after the items, so that items deleted in between are noticed.
            horizon = 0 if self._source.horizon is None else self._source.horizon(connection)
            return horizon, end, until if is_complete else self._source.position(items[-1]), items

        async with self._read_semaphore.permit(stream_filter.owner):
            return await self._database.read(read)

    async def _wait_for_growth(self, after: int) -> None:
        """Waits until the end differs from `after`."""
        # For this stream it has grown already; other streams may wait for more.
        if self._buffer_end > after:
            return
        if self._growth_task is None or self._growth_task.done():
            if self._buffer_end < after:
                self.reset_buffer(after)
            self._growth_task = asyncio.create_task(self._poll_growth(), name="tail")
        self._waiter_count += 1
        try:
            await asyncio.shield(self._growth_task)
        finally:
            self._waiter_count -= 1
            if not self._waiter_count and self._growth_task is not None:
                # No stream polls now. A restore may change the items in the buffer.
                if self._growth_task.cancel():
                    self.reset_buffer(-1)
                self._growth_task = None

    async def _poll_growth(self) -> None:
        """Polls until the sequence has grown, and buffers the new items."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            end = await self._database.read(self._source.last)
            if end == self._buffer_end:
                continue
            # The sequence was restored, or is far ahead: each stream reads for itself.
            if not self._buffer_end < end <= self._buffer_end + _MAX_READ_RANGE:
                self.reset_buffer(end)
                return
            await self.extend_buffer(end)
            return

    async def extend_buffer(self, end: int) -> None:
        while self._buffer_end < end:
            start = self._buffer_end

            def read(connection: Connection, start: int = start) -> Sequence[R]:
                return self._source.read_after(connection, start, end, _MAX_READ_ITEMS)

            for item in await self._database.read(read):
                self._buffer.append(item)
                self._buffer_bytes += self._source.size_of(item)
                self._buffer_end = self._source.position(item)
            if self._buffer_end == start:
                self._buffer_end = end
            while self._buffer_bytes > _MAX_BUFFER_BYTES:
                oldest = self._buffer.popleft()
                self._buffer_bytes -= self._source.size_of(oldest)
                self._buffer_start = self._source.position(oldest)

    def reset_buffer(self, end: int) -> None:
        self._buffer.clear()
        self._buffer_bytes = 0
        self._buffer_start = self._buffer_end = end


def _cursor_expired_error(field: str, horizon: int) -> ApiError:
    return ApiError(
        ErrorReason.CURSOR_EXPIRED,
        f"{field} must be at least {horizon}, the oldest that is available; what came before was "
        "deleted at the end of its retention.",
        field=field,
        metadata={"oldest": str(horizon)},
    )


def _cursor_beyond_end_error(field: str, end: int) -> ApiError:
    return ApiError(
        ErrorReason.FIELD_INVALID,
        f"{field} must be at most {end}, the last number; later numbers do not exist, or were "
        "lost when the database was restored.",
        field=field,
        metadata={"last": str(end)},
    )
