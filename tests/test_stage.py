"""Stages: batches that form by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tallystick_server.runtime.stage import Stage, by_halves, once_per_key
from tallystick_storage.database import DataRefused


def test_items_gather_while_a_batch_runs() -> None:
    """What comes while a batch runs is one batch; each submitter gets its own result or its own error."""
    sizes: list[int] = []

    async def main() -> None:
        gate = asyncio.Event()

        async def run(items: Sequence[int]) -> Sequence[int | Exception]:
            sizes.append(len(items))
            await gate.wait()
            return [ValueError(str(i)) if i == 3 else i * 2 for i in items]

        stage: Stage[int, int] = Stage("test", run)
        stage.start()
        first = stage.submit(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        others = [stage.submit(n) for n in range(1, 6)]
        gate.set()
        results = await asyncio.gather(first, *others, return_exceptions=True)
        assert [r if isinstance(r, int) else str(r) for r in results] == [0, 2, 4, "3", 8, 10]
        assert stage.idle
        await stage.stop()

    asyncio.run(main())
    assert sizes == [1, 5]


def test_a_batch_holds_so_much_weight_and_always_one_item() -> None:
    """Items go into a batch in order while there is room for their weight; one that is heavier than a batch goes alone."""
    batches: list[list[int]] = []

    async def main() -> None:
        async def run(items: Sequence[int]) -> Sequence[int]:
            batches.append(list(items))
            return items

        stage: Stage[int, int] = Stage("test", run, most=10, weight=lambda item: item)
        futures = [stage.submit(item) for item in (4, 6, 1, 25, 10, 3, 7, 1)]
        stage.start()
        await asyncio.gather(*futures)
        await stage.stop()

    asyncio.run(main())
    assert batches == [[4, 6], [1], [25], [10], [3, 7], [1]]


def test_a_submitter_that_goes_away_changes_nothing() -> None:
    """A cancelled submitter takes neither its own work nor the others' results with it."""
    done: list[int] = []

    async def main() -> None:
        async def run(items: Sequence[int]) -> Sequence[int]:
            await asyncio.sleep(0)
            done.extend(items)
            return items

        stage: Stage[int, int] = Stage("test", run)
        stage.start()
        gone, stays = stage.submit(1), stage.submit(2)
        gone.cancel()
        assert await stays == 2
        await stage.stop()

    asyncio.run(main())
    assert done == [1, 2]


def test_a_batch_that_fails_fails_for_all_and_the_stage_goes_on() -> None:
    """An error of the batch reaches every submitter; the next batch runs all the same."""

    async def main() -> None:
        async def run(items: Sequence[int]) -> Sequence[int]:
            if 0 in items:
                raise RuntimeError("boom")
            return items

        stage: Stage[int, int] = Stage("test", run)
        stage.start()
        failed = await asyncio.gather(stage.submit(0), stage.submit(1), return_exceptions=True)
        assert [str(error) for error in failed] == ["boom", "boom"]
        assert await stage.submit(2) == 2
        await stage.stop()

    asyncio.run(main())


@pytest.mark.parametrize("culprits", [set(), {0}, {7}, {3, 4}, set(range(10))])
def test_the_culprit_is_found_by_halving(culprits: set[int]) -> None:
    """An item that breaks its batch is alone in the end with its error; all others succeed, each once."""
    stored: list[int] = []

    async def run(items: Sequence[int]) -> Sequence[int | Exception]:
        if culprits & set(items):
            raise DataRefused("23514", "c", "m")
        stored.extend(items)
        return list(items)

    results = asyncio.run(by_halves(run, range(10)))
    assert [isinstance(r, DataRefused) for r in results] == [n in culprits for n in range(10)]
    assert sorted(stored) == [n for n in range(10) if n not in culprits]


@dataclass(frozen=True)
class Said:
    """What a batch makes of an item."""

    text: str
    replayed: bool = False


def test_a_key_runs_once_at_a_time() -> None:
    """Equal items share the first one's result; others of the same key run after it."""
    batches: list[list[tuple[str, str]]] = []

    async def run(items: Sequence[tuple[str, str]]) -> Sequence[Said | Exception]:
        batches.append(list(items))
        assert len({key for key, _ in items}) == len(items)
        return [Said(f"{key}{body}") for key, body in items]

    items = [("a", "1"), ("b", "1"), ("a", "1"), ("a", "2"), ("a", "2")]
    results = asyncio.run(once_per_key(items, lambda i: (i[0], i[1].encode()), run))
    assert results == [Said("a1"), Said("b1"), Said("a1", replayed=True), Said("a2"), Said("a2", replayed=True)]
    assert batches == [[("a", "1"), ("b", "1")], [("a", "2")]]
