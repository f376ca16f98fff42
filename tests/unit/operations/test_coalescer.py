"""Concurrent calls about the same key share one that begins after all of them."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from tallystick_server.operations.coalescer import Coalescer


class Provider:
    """Answers a call when its gate opens, with the number of the call."""

    def __init__(self) -> None:
        self.gates: list[asyncio.Event] = []

    async def look_up(self) -> int:
        number = len(self.gates)
        self.gates.append(asyncio.Event())
        await self.gates[number].wait()
        return number


async def run_tasks() -> None:
    """Lets every task run as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_call_that_comes_while_another_runs_waits_for_a_new_one() -> None:
    """The running call may have read its answer before the others came, so they share the next
    one; calls about other keys do not wait.
    """

    async def scenario() -> None:
        provider, coalescer = Provider(), Coalescer[str, int]()
        first = asyncio.ensure_future(coalescer.run("pi_1", provider.look_up))
        await run_tasks()
        others = [asyncio.ensure_future(coalescer.run("pi_1", provider.look_up)) for _ in range(5)]
        await run_tasks()
        assert len(provider.gates) == 1
        unrelated = asyncio.ensure_future(coalescer.run("pi_2", provider.look_up))
        await run_tasks()
        assert len(provider.gates) == 2
        provider.gates[0].set()
        assert await first == 0
        await run_tasks()
        assert len(provider.gates) == 3
        provider.gates[1].set()
        provider.gates[2].set()
        assert await asyncio.gather(*others) == [2] * 5
        assert await unrelated == 1

    asyncio.run(scenario())


def test_an_error_is_raised_to_those_who_share_the_call_and_ends_with_it() -> None:
    """The next call about the key is a new one."""

    async def fail() -> int:
        raise ValueError("no answer")

    async def answer() -> int:
        return 7

    async def scenario() -> None:
        coalescer = Coalescer[str, int]()
        both = await asyncio.gather(
            coalescer.run("pi_1", fail), coalescer.run("pi_1", fail), return_exceptions=True
        )
        assert [str(error) for error in both] == ["no answer"] * 2
        assert await coalescer.run("pi_1", answer) == 7

    asyncio.run(scenario())


def test_a_cancelled_caller_does_not_end_a_call_that_others_share() -> None:
    """One of two callers leaves; the other gets the answer."""

    async def scenario() -> None:
        provider, coalescer = Provider(), Coalescer[str, int]()
        leaver = asyncio.ensure_future(coalescer.run("pi_1", provider.look_up))
        stayer = asyncio.ensure_future(coalescer.run("pi_1", provider.look_up))
        await run_tasks()
        leaver.cancel()
        await run_tasks()
        provider.gates[0].set()
        assert await stayer == 0
        with pytest.raises(asyncio.CancelledError):
            await leaver

    asyncio.run(scenario())


def test_a_failure_that_nobody_awaits_is_not_reported() -> None:
    """The callers have been cancelled, as when each has a timeout of its own, and then the shared
    call fails. The event loop reports no exception that was never retrieved.
    """
    reported: list[dict[str, Any]] = []

    async def fail(started: asyncio.Event, ending: asyncio.Event) -> None:
        started.set()
        await ending.wait()
        raise TimeoutError

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: reported.append(context)
        )
        coalescer: Coalescer[str, None] = Coalescer()
        started, ending = asyncio.Event(), asyncio.Event()
        caller = asyncio.create_task(coalescer.run("key", lambda: fail(started, ending)))
        await started.wait()
        caller.cancel()
        await asyncio.wait([caller])
        ending.set()
        with pytest.raises(ValueError, match="later"):
            await coalescer.run("key", _fail_later)  # begins once the other has ended

    asyncio.run(run())
    gc.collect()
    assert reported == []


async def _fail_later() -> None:
    raise ValueError("later")
