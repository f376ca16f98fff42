"""Streams of a numbered sequence: each shows all that fits, in order and once, whatever other streams of the process do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from tallystick_server.process.databases import Databases
from tallystick_server.runtime.follow import Numbered, Tail, Wanted
from tallystick_storage.database import Database

KILO = 1024


class Sequences:
    """A sequence whose items are their numbers, of given sizes, and the numbers that one read gave each time."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.reads: list[Sequence[int]] = []

    def between(self, _connection: Connection, after: int, until: int, most: int) -> Sequence[int]:
        self.reads.append(range(after + 1, until + 1)[:most])
        return self.reads[-1]

    def numbered(self) -> Numbered[int]:
        return Numbered(end=lambda _: len(self.sizes), between=self.between, number=int, size=lambda number: self.sizes[number - 1])

    def wanted(self, modulus: int = 1) -> Wanted[int]:
        return Wanted(between=self.between, fits=lambda number: number % modulus == 0, owner="t")


def test_a_stream_behind_another_does_not_wait_for_what_is_there(database: Databases) -> None:
    """A stream that comes to wait when the sequence has grown shows what is new, also while a faster stream waits for more already."""

    async def main() -> tuple[int, int]:
        sequence = Sequences([1])
        db = Database(database.service("event"), connections=1)
        tail = Tail(db, sequence.numbered())
        fast, slow = (tail.follow(sequence.wanted(), 1, "after", on=True) for _ in range(2))
        waiting = [asyncio.ensure_future(anext(stream)) for stream in (fast, slow)]
        await asyncio.sleep(0.05)
        sequence.sizes.append(1)
        assert await asyncio.gather(*waiting) == [2, 2]
        third = asyncio.ensure_future(anext(fast))
        await asyncio.sleep(0.05)
        sequence.sizes.append(1)
        shown = await third
        fourth = asyncio.ensure_future(anext(fast))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            behind = await anext(slow)
        fourth.cancel()
        await asyncio.gather(fourth, return_exceptions=True)
        await fast.aclose()
        await slow.aclose()
        await asyncio.to_thread(db.close)
        return shown, behind

    assert asyncio.run(main()) == (3, 3)


def test_what_nobody_followed_is_read_anew(database: Databases) -> None:
    """Once all who followed have gone, nothing is shown from memory: the database may have been set back, and have grown again, since."""

    async def main() -> tuple[int, int]:
        sequence = Sequences([1])
        db = Database(database.service("event"), connections=1)
        tail = Tail(db, sequence.numbered())
        first = tail.follow(sequence.wanted(), 1, "after", on=True)
        waiting = asyncio.ensure_future(anext(first))
        await asyncio.sleep(0.05)
        sequence.sizes.append(1)
        assert await waiting == 2
        more = asyncio.ensure_future(anext(first))
        await asyncio.sleep(0.05)
        more.cancel()
        await asyncio.gather(more, return_exceptions=True)
        reads = len(sequence.reads)
        second = tail.follow(sequence.wanted(), 1, "after", on=True)
        shown = await anext(second)
        await second.aclose()
        await asyncio.to_thread(db.close)
        return shown, len(sequence.reads) - reads

    assert asyncio.run(main()) == (2, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 400 * KILO), max_size=40), st.integers(0, 40), st.booleans())
def test_items_of_any_size_come_once_and_in_order(database: Databases, sizes: list[int], after: int, follows: bool) -> None:
    """However large the items are, a stream shows each behind its cursor once, in order, from the database as from what the process keeps."""
    after = min(after, len(sizes))

    async def shown(stream: AsyncGenerator[int, None]) -> list[int]:
        async with aclosing(stream):
            if not follows:
                return [number async for number in stream]
            return [await anext(stream) for _ in range(len(sizes) - after)]

    async def main() -> list[int]:
        sequence = Sequences(sizes)
        db = Database(database.service("event"), connections=1)
        tail = Tail(db, sequence.numbered())
        tail._restart(after)  # what comes is kept
        if follows:
            await tail._read(len(sizes))
        found = await shown(tail.follow(sequence.wanted(), after, "after", on=follows))
        await asyncio.to_thread(db.close)
        return found

    assert asyncio.run(main()) == list(range(after + 1, len(sizes) + 1))


def test_a_stream_reads_ahead_by_bytes(database: Databases) -> None:
    """A stream that nobody reads on keeps 128 KiB or one item, though one read of the database finds 200 items: large ones are read again."""

    async def main() -> list[int]:
        sequence = Sequences([100 * KILO] * 10)
        db = Database(database.service("event"), connections=1)
        stream = Tail(db, sequence.numbered()).follow(sequence.wanted(), 0, "after", on=False)
        shown = [await anext(stream)]
        assert len(sequence.reads) == 1
        shown.append(await anext(stream))
        assert len(sequence.reads) == 2
        shown += [number async for number in stream]
        await asyncio.to_thread(db.close)
        return shown

    assert asyncio.run(main()) == list(range(1, 11))
