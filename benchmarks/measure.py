"""What every benchmark needs: server processes, a load of calls, and figures."""

from __future__ import annotations

import asyncio
import os
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


@dataclass
class Load:
    """What a load of calls measured. `slices`: the median latency in the first and in the last tenth, to see whether it grows."""

    calls: int
    seconds: float
    latencies: list[float]
    slices: tuple[float, float]

    @property
    def rate(self) -> float:
        return self.calls / self.seconds

    def quantile(self, part: float) -> float:
        """Milliseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(int(len(ordered) * part), len(ordered) - 1)] * 1000


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
        "p50_ms_start": round(spread.slices[0], 1),
        "p50_ms_end": round(spread.slices[1], 1),
        **beside,
    }


async def load(call: Callable[[int], Awaitable[None]], in_flight: int, seconds: float, warm_up: float = 3.0) -> Load:
    """Keeps so many calls under way; those that end after the warm-up and within the time count."""
    numbers = iter(range(10**12))
    begin = time.perf_counter() + warm_up
    end = begin + seconds
    done: list[tuple[float, float]] = []

    async def worker() -> None:
        while (started := time.perf_counter()) < end:
            await call(next(numbers))
            finished = time.perf_counter()
            if begin <= finished < end:
                done.append((finished, finished - started))

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    done.sort()
    tenth = max(len(done) // 10, 1)
    return Load(len(done), seconds, [latency for _, latency in done], (_median(done[:tenth]), _median(done[-tenth:])))


def _median(done: list[tuple[float, float]]) -> float:
    ordered = sorted(latency for _, latency in done)
    return ordered[len(ordered) // 2] * 1000 if ordered else 0.0


@contextmanager
def server(arguments: list[str], environment: dict[str, str], address: str) -> Iterator[int]:
    """A server process of its own, up when the block begins and drained when it ends; yields its pid."""
    with Path(".data/bench.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, *arguments], env={**os.environ, **environment}, stderr=log)
    try:
        _wait_for(address, process)
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
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
