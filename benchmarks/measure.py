"""Measures the rate and the latencies of calls."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from tallystick_server.app.errors import StartupError

_ROUND_SECONDS = 5.0
_WARM_UP_SECONDS = 3.0

Call = Callable[[int], Awaitable[None]]
"""Makes the call with a number. Each number is used once."""
StatusPrinter = Callable[[str], None]


@dataclass(frozen=True)
class LoadResult:
    """The latencies of calls in seconds, by round. `seconds`: the duration of all rounds;
    `cpu_seconds`: the processor time of the measured processes, by round.
    """

    seconds: float
    rounds: list[list[float]] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def calls_per_second(self) -> float:
        return sum(map(len, self.rounds)) / self.seconds

    @property
    def cpu_ms_per_call(self) -> float:
        return sum(self.cpu_seconds) * 1000 / sum(map(len, self.rounds))

    def quantile_ms(self, fraction: float) -> float:
        return quantile_ms([latency for round_ in self.rounds for latency in round_], fraction)


def quantile_ms(latencies: list[float], fraction: float) -> float:
    """`latencies`: in seconds."""
    ordered = sorted(latencies)
    return ordered[min(int(len(ordered) * fraction), len(ordered) - 1)] * 1000 if ordered else 0.0


def rate_figures(rate: float, upper_bound_name: str, upper_bound_rate: float) -> dict[str, object]:
    """The figures that `--json` prints of each rate. Both rates are items a second."""
    return {
        "rate": round(rate, 1),
        "upper_bound": {"name": upper_bound_name, "rate": round(upper_bound_rate, 1)},
        "ratio": round(rate / upper_bound_rate, 4),
    }


def load_figures(spread: LoadResult, hot: LoadResult, items_per_call: int) -> dict[str, object]:
    """The figures that `--json` prints of a load with many sellers (`spread`) and of one with a
    single seller (`hot`).
    """
    return {
        "hot_rate": round(hot.calls_per_second * items_per_call, 1),
        "hot_ratio": round(hot.calls_per_second / spread.calls_per_second, 4),
        "p50_ms": round(spread.quantile_ms(0.5), 1),
        "p99_ms": round(spread.quantile_ms(0.99), 1),
        "p50_ms_start": round(quantile_ms(spread.rounds[0], 0.5), 1),
        "p50_ms_end": round(quantile_ms(spread.rounds[-1], 0.5), 1),
    }


async def measure_interleaved(
    calls: dict[str, Call],
    in_flight: int,
    seconds: float,
    print_status: StatusPrinter,
    read_cpu_seconds: Callable[[str], float] = lambda _: time.process_time(),
) -> dict[str, LoadResult]:
    """Measures each call for `seconds`, in short rounds that alternate. So a machine that changes
    its pace changes it for all of them.

    `in_flight`: calls in flight. `read_cpu_seconds`: the processor time so far of the processes
    whose cost is measured for a name. Raises StartupError if no call of one kind ends in time.
    """
    numbers = itertools.count()
    rounds = max(round(seconds / _ROUND_SECONDS), 1)
    loads: dict[str, LoadResult] = {name: LoadResult(seconds) for name in calls}
    for number in range(1, rounds + 1):
        # in random order, so that none always follows the same one; no secret
        for name, call in sorted(calls.items(), key=lambda _: random.random()):  # noqa: S311
            await _measure_round(
                loads[name],
                call,
                numbers,
                in_flight,
                seconds / rounds,
                partial(read_cpu_seconds, name),
            )
        rates = ", ".join(
            f"{name} {len(load.rounds[-1]) * rounds / seconds:.1f}/s"
            for name, load in loads.items()
        )
        print_status(f"round {number} of {rounds}: {rates}")
    for name, load in loads.items():
        if not load.calls_per_second:
            raise StartupError(
                f"No call of {name} ended within {seconds:g} s. Use a larger --seconds."
            )
    return loads


async def _measure_round(
    load: LoadResult,
    call: Call,
    numbers: Iterator[int],
    in_flight: int,
    seconds: float,
    read_cpu_seconds: Callable[[], float],
) -> None:
    """Keeps `in_flight` calls in flight. Adds to `load` the latencies of those that end after the
    warm-up and within the time, and the processor time that was used meanwhile.
    """
    begin = time.perf_counter() + _WARM_UP_SECONDS
    end = begin + seconds
    latencies: list[float] = []

    async def worker() -> None:
        while (start := time.perf_counter()) < end:
            await call(next(numbers))
            finish = time.perf_counter()
            if begin <= finish < end:
                latencies.append(finish - start)

    async def measure_cpu() -> float:
        await asyncio.sleep(begin - time.perf_counter())
        cpu_at_begin = read_cpu_seconds()
        await asyncio.sleep(end - time.perf_counter())
        return read_cpu_seconds() - cpu_at_begin

    cpu_seconds = asyncio.ensure_future(measure_cpu())
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    load.rounds.append(latencies)
    load.cpu_seconds.append(await cpu_seconds)
