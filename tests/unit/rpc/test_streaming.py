"""Streams of a numbered sequence: each sends all matching items, in order and once, independent of
other streams of the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.rpc.streaming import SequenceSource, SequenceTail, StreamFilter
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection

KIBIBYTE = 1024


class FakeSequence:
    """A sequence whose items are their numbers, of given sizes, and the numbers that each read
    returned.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.reads: list[Sequence[int]] = []

    def between(self, _connection: Connection, after: int, until: int, limit: int) -> Sequence[int]:
        self.reads.append(range(after + 1, until + 1)[:limit])
        return self.reads[-1]

    def source(self) -> SequenceSource[int]:
        return SequenceSource(
            last=lambda _: len(self.sizes),
            read_after=self.between,
            position=int,
            size_of=lambda number: self.sizes[number - 1],
        )

    def filtered(self, modulus: int = 1) -> StreamFilter[int]:
        return StreamFilter(
            read_after=self.between, matches=lambda number: number % modulus == 0, owner="t"
        )


def test_a_slower_stream_does_not_wait_for_buffered_items(database: DatabaseUrls) -> None:
    """A stream that starts to wait after the sequence has grown sends the new items, even if a
    faster stream already waits for more.
    """

    async def main() -> tuple[int, int]:
        sequence = FakeSequence([1])
        db = Database(database.service("event"), connections=1)
        tail = SequenceTail(db, sequence.source())
        fast, slow = (tail.stream(sequence.filtered(), 1, "after", follow=True) for _ in range(2))
        pending_items = [asyncio.ensure_future(anext(stream)) for stream in (fast, slow)]
        await asyncio.sleep(0.05)
        sequence.sizes.append(1)
        assert await asyncio.gather(*pending_items) == [2, 2]
        third = asyncio.ensure_future(anext(fast))
        await asyncio.sleep(0.05)
        sequence.sizes.append(1)
        items = await third
        fourth = asyncio.ensure_future(anext(fast))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            behind = await anext(slow)
        fourth.cancel()
        await asyncio.gather(fourth, return_exceptions=True)
        await fast.aclose()
        await slow.aclose()
        await asyncio.to_thread(db.close)
        return items, behind

    assert asyncio.run(main()) == (3, 3)


def test_items_without_followers_are_read_again(database: DatabaseUrls) -> None:
    """After the last follower has left, nothing is sent from memory: the database may have been
    restored, and have grown again, since.
    """

    async def main() -> tuple[int, int]:
        sequence = FakeSequence([1])
        db = Database(database.service("event"), connections=1)
        tail = SequenceTail(db, sequence.source())
        first = tail.stream(sequence.filtered(), 1, "after", follow=True)
        pending_items = asyncio.ensure_future(anext(first))
        await asyncio.sleep(0.05)
        sequence.sizes.append(1)
        assert await pending_items == 2
        next_item = asyncio.ensure_future(anext(first))
        await asyncio.sleep(0.05)
        next_item.cancel()
        await asyncio.gather(next_item, return_exceptions=True)
        reads = len(sequence.reads)
        second = tail.stream(sequence.filtered(), 1, "after", follow=True)
        items = await anext(second)
        await second.aclose()
        await asyncio.to_thread(db.close)
        return items, len(sequence.reads) - reads

    assert asyncio.run(main()) == (2, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 400 * KIBIBYTE), max_size=40), st.integers(0, 40), st.booleans())
def test_items_of_any_size_are_sent_once_in_order(
    database: DatabaseUrls, sizes: list[int], after: int, follows: bool
) -> None:
    """For items of any size, a stream sends each item after its cursor once, in order, from the
    database and from the process's buffer.
    """
    after = min(after, len(sizes))

    async def take_items(stream: AsyncGenerator[int, None]) -> list[int]:
        async with aclosing(stream):
            if not follows:
                return [number async for number in stream]
            return [await anext(stream) for _ in range(len(sizes) - after)]

    async def main() -> list[int]:
        sequence = FakeSequence(sizes)
        db = Database(database.service("event"), connections=1)
        tail = SequenceTail(db, sequence.source())
        tail.reset_buffer(after)  # new items are buffered
        if follows:
            await tail.extend_buffer(len(sizes))
        received = await take_items(
            tail.stream(sequence.filtered(), after, "after", follow=follows)
        )
        await asyncio.to_thread(db.close)
        return received

    assert asyncio.run(main()) == list(range(after + 1, len(sizes) + 1))


def test_a_stream_reads_ahead_by_bytes(database: DatabaseUrls) -> None:
    """A stream without a reader buffers 128 KiB or one item, though one read of the database finds
    200 items: large ones are read again.
    """

    async def main() -> list[int]:
        sequence = FakeSequence([100 * KIBIBYTE] * 10)
        db = Database(database.service("event"), connections=1)
        stream = SequenceTail(db, sequence.source()).stream(
            sequence.filtered(), 0, "after", follow=False
        )
        items = [await anext(stream)]
        assert len(sequence.reads) == 1
        items.append(await anext(stream))
        assert len(sequence.reads) == 2
        items += [number async for number in stream]
        await asyncio.to_thread(db.close)
        return items

    assert asyncio.run(main()) == list(range(1, 11))
