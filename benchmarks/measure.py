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

from tallystick_server.process.failure import Failure

_START_SECONDS = 60
_TURN_SECONDS = 5.0

Call = Callable[[int], Awaitable[None]]
"""Makes the call of a number; no number comes twice."""


@dataclass(frozen=True)
class Load:
    """What a load of calls measured: latencies in seconds, those of each turn for themselves."""

    seconds: float
    turns: list[list[float]]

    @property
    def rate(self) -> float:
        return sum(map(len, self.turns)) / self.seconds

    def quantile(self, part: float) -> float:
        """Milliseconds."""
        return _quantile([latency for turn in self.turns for latency in turn], part)


def _quantile(latencies: list[float], part: float) -> float:
    ordered = sorted(latencies)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)] * 1000 if ordered else 0.0


def figures(name: str, spread: Load, hot: Load, ceiling: tuple[str, float], of: float, **beside: object) -> dict[str, object]:
    """What `--json` prints. `ceiling`: its name and rate a second; `of`: how many of what is counted one call holds; `beside`: further figures."""
    rate = spread.rate * of
    return {
        "bench": name,
        "rate": round(rate, 1),
        "ceiling": {"name": ceiling[0], "rate": round(ceiling[1], 1)},
        "ratio": round(rate / ceiling[1], 4),
        "hot_rate": round(hot.rate * of, 1),
        "hot_ratio": round(hot.rate / spread.rate, 4),
        "p50_ms": round(spread.quantile(0.5), 1),
        "p99_ms": round(spread.quantile(0.99), 1),
        "p50_ms_start": round(_quantile(spread.turns[0], 0.5), 1),
        "p50_ms_end": round(_quantile(spread.turns[-1], 0.5), 1),
        **beside,
    }


async def by_turns(calls: dict[str, Call], in_flight: int, seconds: float, say: Callable[[str], None]) -> dict[str, Load]:
    """Measures each call for so many seconds, in turns: a machine that changes its pace meanwhile changes it for all of them."""
    numbers = itertools.count()
    rounds = max(round(seconds / _TURN_SECONDS), 1)
    loads: dict[str, Load] = {name: Load(seconds, []) for name in calls}
    for number in range(1, rounds + 1):
        for name, call in sorted(calls.items(), key=lambda _: random.random()):  # noqa: S311 - no secret; none always comes behind the same one
            loads[name].turns.append(await _turn(call, numbers, in_flight, seconds / rounds))
        rates = ", ".join(f"{name} {len(load.turns[-1]) * rounds / seconds:.1f}/s" for name, load in loads.items())
        say(f"turn {number} of {rounds}: {rates}")
    return loads


async def _turn(call: Call, numbers: Iterator[int], in_flight: int, seconds: float, warm_up: float = 3.0) -> list[float]:
    """Keeps so many calls under way; the latencies of those that end after the warm-up and within the time."""
    begin = time.perf_counter() + warm_up
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
def server(arguments: list[str], environment: dict[str, str], address: str, *, kill: bool = False) -> Iterator[int]:
    """A server process of its own, up when the block begins and drained, or killed, when it ends; yields its pid."""
    with Path(".data/bench.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, *arguments], env={**os.environ, **environment}, stderr=log)
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
        deadline = time.monotonic() + _START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            try:
                grpc.channel_ready_future(channel).result(timeout=0.5)
                return
            except grpc.FutureTimeoutError:
                continue
    raise Failure(f"the server for {address} did not start: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]


def peak_mb(pid: int) -> int:
    """The most memory a process has had resident, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) // 1024 if found else 0
