"""What every benchmark needs: server processes, a load of calls, and figures."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from tallystick_server.app.errors import StartupError

_STARTUP_TIMEOUT_SECONDS = 60
_ROUND_SECONDS = 5.0

Call = Callable[[int], Awaitable[None]]
"""Makes the call of a number; no number comes twice."""


@dataclass(frozen=True)
class LoadResult:
    """What a load of calls measured: latencies in seconds, those of each turn for themselves."""

    seconds: float
    rounds: list[list[float]]

    @property
    def rate(self) -> float:
        return sum(map(len, self.rounds)) / self.seconds

    def quantile(self, fraction: float) -> float:
        """Milliseconds."""
        return _quantile([latency for latencies in self.rounds for latency in latencies], fraction)


def _quantile(latencies: list[float], fraction: float) -> float:
    ordered = sorted(latencies)
    return ordered[min(int(len(ordered) * fraction), len(ordered) - 1)] * 1000 if ordered else 0.0


def figures(
    name: str,
    spread: LoadResult,
    hot: LoadResult,
    upper_bound: tuple[str, float],
    items_per_call: float,
    **extra: object,
) -> dict[str, object]:
    """What `--json` prints.

    `upper_bound`: its name and rate a second; `items_per_call`: how many of what is counted one
    call holds; `extra`: further figures.
    """
    rate = spread.rate * items_per_call
    return {
        "bench": name,
        "rate": round(rate, 1),
        "ceiling": {"name": upper_bound[0], "rate": round(upper_bound[1], 1)},
        "ratio": round(rate / upper_bound[1], 4),
        "hot_rate": round(hot.rate * items_per_call, 1),
        "hot_ratio": round(hot.rate / spread.rate, 4),
        "p50_ms": round(spread.quantile(0.5), 1),
        "p99_ms": round(spread.quantile(0.99), 1),
        "p50_ms_start": round(_quantile(spread.rounds[0], 0.5), 1),
        "p50_ms_end": round(_quantile(spread.rounds[-1], 0.5), 1),
        **extra,
    }


async def measure_interleaved(
    calls: dict[str, Call], in_flight: int, seconds: float, print_status: Callable[[str], None]
) -> dict[str, LoadResult]:
    """Measures the calls alternately for `seconds` each: a machine that changes its pace meanwhile
    changes it for all of them.
    """
    numbers = itertools.count()
    rounds = max(round(seconds / _ROUND_SECONDS), 1)
    loads: dict[str, LoadResult] = {name: LoadResult(seconds, []) for name in calls}
    for number in range(1, rounds + 1):
        # no secret; none always comes behind the same one
        for name, call in sorted(calls.items(), key=lambda _: random.random()):  # noqa: S311
            loads[name].rounds.append(
                await _measure_round(call, numbers, in_flight, seconds / rounds)
            )
        rates = ", ".join(
            f"{name} {len(load.rounds[-1]) * rounds / seconds:.1f}/s"
            for name, load in loads.items()
        )
        print_status(f"turn {number} of {rounds}: {rates}")
    return loads


async def _measure_round(
    call: Call, numbers: Iterator[int], in_flight: int, seconds: float, warm_up_seconds: float = 3.0
) -> list[float]:
    """Keeps `in_flight` calls under way, and returns the latencies of those that end after the
    warm-up and within the time.
    """
    begin = time.perf_counter() + warm_up_seconds
    end = begin + seconds
    latencies: list[float] = []

    async def worker() -> None:
        while (started := time.perf_counter()) < end:
            await call(next(numbers))
            finished = time.perf_counter()
            if begin <= finished < end:
                latencies.append(finished - started)

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return latencies


@contextmanager
def server(
    arguments: list[str], environment: dict[str, str], address: str, *, kill: bool = False
) -> Iterator[int]:
    """A server process of its own, up when the block begins and drained, or killed, when it ends;
    yields its pid.
    """
    with Path(".data/bench.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], env={**os.environ, **environment}, stderr=log
        )
    try:
        _wait_for(address, process)
        yield process.pid
    finally:
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    with grpc.insecure_channel(address) as channel:
        deadline = time.monotonic() + _STARTUP_TIMEOUT_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                grpc.channel_ready_future(channel).result(timeout=0.5)
                return
            except grpc.FutureTimeoutError:
                continue
    raise StartupError(f"the server for {address} did not start: {process.args!r}")


def peak_mb(pid: int) -> int:
    """The most memory a process has had resident, in MB."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) // 1024 if match else 0
