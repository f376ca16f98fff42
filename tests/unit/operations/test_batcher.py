"""Batchers group concurrent items into batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.provider.outcome import PayoutOutcome, Succeeded, Unknown, VerificationOutcome
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_server.operations.batcher import Batcher, bisect_on_error, deduplicate_by_key
from tallystick_server.payout.batching_provider import BatchingPayoutProvider
from tallystick_storage.database import ConstraintViolation


def test_items_gather_while_a_batch_runs() -> None:
    """Items that arrive while a batch runs form one batch; each submitter gets its own result or
    its own error.
    """
    sizes: list[int] = []

    async def main() -> None:
        gate = asyncio.Event()

        async def run(items: Sequence[int]) -> Sequence[int | Exception]:
            sizes.append(len(items))
            await gate.wait()
            return [ValueError(str(i)) if i == 3 else i * 2 for i in items]

        batcher: Batcher[int, int] = Batcher("test", run)
        batcher.start()
        first = batcher.submit(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        other_batches = [batcher.submit(n) for n in range(1, 6)]
        gate.set()
        results = await asyncio.gather(first, *other_batches, return_exceptions=True)
        assert [r if isinstance(r, int) else str(r) for r in results] == [0, 2, 4, "3", 8, 10]
        assert batcher.is_idle
        await batcher.stop()

    asyncio.run(main())
    assert sizes == [1, 5]


def test_a_batch_has_a_maximum_weight_and_is_never_empty() -> None:
    """A batch takes items in order up to its maximum weight; an item that is heavier than a batch
    runs alone.
    """
    batches: list[list[int]] = []

    async def main() -> None:
        async def run(items: Sequence[int]) -> Sequence[int]:
            batches.append(list(items))
            return items

        batcher: Batcher[int, int] = Batcher("test", run, max_batch=10, size_of=lambda item: item)
        futures = [batcher.submit(item) for item in (4, 6, 1, 25, 10, 3, 7, 1)]
        batcher.start()
        await asyncio.gather(*futures)
        await batcher.stop()

    asyncio.run(main())
    assert batches == [[4, 6], [1], [25], [10], [3, 7], [1]]


def test_a_cancelled_submitter_cancels_no_work() -> None:
    """A cancelled submitter cancels neither its own work nor the others' results."""
    finished: list[int] = []

    async def main() -> None:
        async def run(items: Sequence[int]) -> Sequence[int]:
            await asyncio.sleep(0)
            finished.extend(items)
            return items

        batcher: Batcher[int, int] = Batcher("test", run)
        batcher.start()
        cancelled_future, kept_future = batcher.submit(1), batcher.submit(2)
        cancelled_future.cancel()
        assert await kept_future == 2
        await batcher.stop()

    asyncio.run(main())
    assert finished == [1, 2]


def test_a_failed_batch_fails_for_all_its_submitters() -> None:
    """An error of the batch reaches every submitter; the next batch still runs."""

    async def main() -> None:
        async def run(items: Sequence[int]) -> Sequence[int]:
            if 0 in items:
                raise RuntimeError("boom")
            return items

        batcher: Batcher[int, int] = Batcher("test", run)
        batcher.start()
        failed = await asyncio.gather(batcher.submit(0), batcher.submit(1), return_exceptions=True)
        assert [str(error) for error in failed] == ["boom", "boom"]
        assert await batcher.submit(2) == 2
        await batcher.stop()

    asyncio.run(main())


@pytest.mark.parametrize("culprits", [set(), {0}, {7}, {3, 4}, set(range(10))])
def test_a_failing_item_is_found_by_bisection(culprits: set[int]) -> None:
    """An item that fails its batch is finally alone with its error; all others succeed, each
    once.
    """
    stored_items: list[int] = []

    async def run(items: Sequence[int]) -> Sequence[int | Exception]:
        if culprits & set(items):
            raise ConstraintViolation("23514", "c", "m")
        stored_items.extend(items)
        return list(items)

    results = asyncio.run(bisect_on_error(run, range(10)))
    assert [isinstance(r, ConstraintViolation) for r in results] == [
        n in culprits for n in range(10)
    ]
    assert sorted(stored_items) == [n for n in range(10) if n not in culprits]


@dataclass(frozen=True)
class BatchResult:
    """The result of a batch for an item."""

    text: str
    replayed: bool = False


def test_items_of_one_key_run_one_at_a_time() -> None:
    """Equal items share the first one's result; others of the same key run after it."""
    batches: list[list[tuple[str, str]]] = []

    async def run(items: Sequence[tuple[str, str]]) -> Sequence[BatchResult | Exception]:
        batches.append(list(items))
        assert len({key for key, _ in items}) == len(items)
        return [BatchResult(f"{key}{body}") for key, body in items]

    items = [("a", "1"), ("b", "1"), ("a", "1"), ("a", "2"), ("a", "2")]
    results = asyncio.run(deduplicate_by_key(items, lambda i: (i[0], i[1].encode()), run))
    assert results == [
        BatchResult("a1"),
        BatchResult("b1"),
        BatchResult("a1", replayed=True),
        BatchResult("a2"),
        BatchResult("a2", replayed=True),
    ]
    assert batches == [[("a", "1"), ("b", "1")], [("a", "2")]]


def test_abandoned_items_are_dropped() -> None:
    """A batcher for callers drops items whose submitters left before their batch starts, releases
    them at once, and rejects more than the maximum number of waiting items.
    """
    finished: list[int] = []

    async def main() -> None:
        gate = asyncio.Event()

        async def run(items: Sequence[int]) -> Sequence[int]:
            await gate.wait()
            finished.extend(items)
            return items

        batcher: Batcher[int, int] = Batcher("test", run, drop_abandoned=True, max_queued=3)
        batcher.start()
        first_future = batcher.submit(0)
        await asyncio.sleep(0.01)
        for round_ in range(200):
            cancelled_future = [batcher.submit(10 * round_ + n) for n in (1, 2, 3)]
            with pytest.raises(ApiError) as error:
                batcher.submit(4)
            assert (error.value.reason, error.value.retry_after) == (ErrorReason.OVERLOADED, 1.0)
            for future in cancelled_future:
                future.cancel()
            await asyncio.sleep(0)
            assert batcher.queue_length == 0
        first_future.cancel()
        late_future = batcher.submit(7)
        just_gone = batcher.submit(8)
        just_gone.cancel()  # its batch starts in the same iteration of the loop
        gate.set()
        assert await late_future == 7
        await batcher.stop()

    asyncio.run(main())
    assert finished == [0, 7]


def test_a_wrong_number_of_results_fails_its_batch_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Too few results, or the end of the worker, reach every submitter of the batch as its own
    error; the next batch still runs.
    """

    async def main() -> None:
        async def run(items: Sequence[int]) -> Sequence[int]:
            if 1 in items:
                return items[:-1]
            if 2 in items:
                raise asyncio.CancelledError
            return items

        batcher: Batcher[int, int] = Batcher("test.short", run)
        batcher.start()
        with pytest.raises(RuntimeError, match=r"test.short returned 1 results for 2 items"):
            await asyncio.gather(batcher.submit(0), batcher.submit(1))
        with pytest.raises(RuntimeError, match=r"worker of batcher test.short ended"):
            await asyncio.wait_for(batcher.submit(2), 10)
        assert await asyncio.wait_for(batcher.submit(3), 10) == 3
        await batcher.stop()
        with pytest.raises(ApiError) as error:
            batcher.submit(4)
        assert error.value.reason is ErrorReason.SHUTTING_DOWN

    with caplog.at_level(logging.ERROR):
        asyncio.run(main())
    assert "Worker 0 of batcher test.short ended unexpectedly and is restarted." in caplog.text


def test_waiting_items_are_rejected_when_the_batcher_stops() -> None:
    """Submitters that wait for a batch, or for its result, when the batcher stops get SHUTTING_DOWN
    immediately.
    """

    async def main() -> None:
        async def run(items: Sequence[int]) -> Sequence[int]:
            await asyncio.Event().wait()
            return items

        batcher: Batcher[int, int] = Batcher("test", run, max_batch=1)
        batcher.start()
        futures = [batcher.submit(n) for n in range(3)]
        await asyncio.sleep(0.01)
        await batcher.stop()
        results = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 10)
        assert [getattr(result, "reason", None) for result in results] == [
            ErrorReason.SHUTTING_DOWN
        ] * 3

    asyncio.run(main())


class HangingPayoutProvider:
    """A payout provider that hangs until it is released, and then answers for all but
    `missing_results` of the payouts.
    """

    name = "slowbank"
    key_window = 86_400.0
    max_batch_size = 1

    def __init__(self) -> None:
        self.release_event = asyncio.Event()
        self.sent_payout_ids: list[str] = []
        self.missing_results = 0

    def reject_amount(self, amount: int, currency: str) -> str | None:
        return None

    async def submit(self, requests: Sequence[PayoutRequest]) -> Sequence[PayoutOutcome]:
        await self.release_event.wait()
        self.sent_payout_ids += [request.payout_id for request in requests]
        return [Succeeded("r", request.amount, request.currency) for request in requests][
            self.missing_results :
        ]

    async def look_up(self, request: PayoutRequest) -> PayoutOutcome:
        raise NotImplementedError

    async def verify(self, bank_account_token: str, currency: str) -> VerificationOutcome:
        raise NotImplementedError


def test_payouts_of_processes_that_gave_up_are_not_submitted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Payouts whose processes gave up are never submitted, the timeout frees the workers of a hung
    provider, and the error about too few results names the adapter.
    """

    async def main() -> None:
        bank = HangingPayoutProvider()
        port = BatchingPayoutProvider(bank, timeout_seconds=0.2)
        port.start()

        async def send(number: int, timeout_seconds: float) -> object:
            try:
                async with asyncio.timeout(timeout_seconds):
                    return await port.send(
                        PayoutRequest(f"k{number}", f"p{number}", 1, "EUR", "ba")
                    )
            except TimeoutError:
                return None

        # one for each worker
        first_calls = [asyncio.ensure_future(send(number, 10)) for number in range(8)]
        await asyncio.sleep(0.01)
        assert await asyncio.gather(*(send(number, 0.05) for number in range(8, 30))) == [None] * 22
        assert (
            await asyncio.gather(*first_calls)
            == [Unknown("the provider did not answer in time")] * 8
        )
        bank.release_event.set()
        assert await send(30, 10) == Succeeded("r", 1, "EUR")
        assert bank.sent_payout_ids == ["p30"]
        bank.missing_results = 1
        assert isinstance(await send(31, 10), Unknown)
        await port.stop()

    asyncio.run(main())
    assert "slowbank returned 0 results for 1 payouts" in caplog.text
