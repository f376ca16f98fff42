"""What telemetry costs: the payments of pay-in on a platform without it, and on platforms that have
it as in production, with traces that are decided at their start (`head`) or at their end (`tail`).

Each platform has processes and a PostgreSQL of its own, and rounds of their payments alternate.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from statistics import median
from typing import Any, NamedTuple

import aiohttp
import grpc

from benchmarks.measure import LoadResult, StatusPrinter, measure_interleaved
from benchmarks.pay_in import ENVIRONMENT, PROVIDER_LATENCY_SECONDS, SELLERS, payment_call
from benchmarks.processes import (
    DATABASE_FOLDER,
    database_environment,
    read_cpu_seconds,
    read_postgres_pid,
    require_embedded_postgres,
    run_services,
)
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import open_databases
from tallystick_server.app.errors import StartupError
from tallystick_server.app.serve import run
from tallystick_server.app.services import find_spec

DEFAULT_IN_FLIGHT = 256
MAX_COST = 0.05
"""How much more processor time a payment may cost with head sampling: the target."""
_BASELINE = "off"
_STORED_TRACES = {
    "TALLYSTICK_LOGS__FORMAT": "json",
    "TALLYSTICK_TRACING__STORE_SPANS": "true",
}
_VARIANTS: Mapping[str, Mapping[str, str]] = {
    _BASELINE: {
        "TALLYSTICK_LOGS__FORMAT": "text",
        "TALLYSTICK_MONITORING__RECORD_INTERVAL": "0",
        "TALLYSTICK_TRACING__RATIO": "0",
    },
    "head": _STORED_TRACES,
    "tail": {**_STORED_TRACES, "TALLYSTICK_TRACING__TAIL_SAMPLING": "true"},
}
"""The settings of each platform. What is not set has its default, as in production."""
_DOWNSTREAM_SERVICES = (*find_spec("payment").dependencies, "monitoring")
_FIRST_PORT = 7281
_PORTS = 3
"""Of each platform: payments, and the metrics of its two processes."""
_SCRAPE_SECONDS = 15.0
"""As in deploy/prometheus/prometheus.yaml."""


class _Platform(NamedTuple):
    """A platform that serves. `pids`: of its processes, and of its PostgreSQL."""

    address: str
    metrics_addresses: Sequence[str]
    pids: Sequence[int]


def bench(seconds: float, in_flight: int, print_status: StatusPrinter) -> dict[str, Any]:
    """Returns the figures that `--json` prints. `seconds`: of each platform; `in_flight`: calls in
    flight. Raises StartupError if the database is not the embedded one.
    """
    require_embedded_postgres(Settings(), "telemetry")
    with ExitStack() as stack:
        platforms = {
            name: stack.enter_context(_run_platform(name, number, print_status))
            for number, name in enumerate(_VARIANTS)
        }
        loads = run(_measure(platforms, seconds, in_flight, print_status))
    baseline = loads[_BASELINE]
    costs = {name: _compare(baseline, load) for name, load in loads.items() if load is not baseline}
    return {
        "bench": "telemetry",
        "rate": round(baseline.calls_per_second, 1),
        "cpu_ms": round(baseline.cpu_ms_per_call, 3),
        **{f"{name}_{key}": value for name, cost in costs.items() for key, value in cost.items()},
        "passed": costs["head"]["cpu_cost"] <= MAX_COST,
        "rounds": len(baseline.rounds),
        "in_flight": in_flight,
        "seconds": seconds,
    }


@contextmanager
def _run_platform(name: str, number: int, print_status: StatusPrinter) -> Iterator[_Platform]:
    """Serves the platform of a variant, as two processes."""
    folder = DATABASE_FOLDER.with_name(f"bench-telemetry-{name}")
    shutil.rmtree(folder, ignore_errors=True)
    address, *metrics_addresses = (
        f"127.0.0.1:{_FIRST_PORT + number * _PORTS + offset}" for offset in range(_PORTS)
    )
    downstream_address = f"unix:{folder}.sock"
    with open_databases(Settings(), print_status, folder=folder) as database_urls:
        environment = {
            **ENVIRONMENT,
            **database_environment(database_urls),
            "TALLYSTICK_PROVIDERS__SANDBOX__LATENCY": str(PROVIDER_LATENCY_SECONDS),
            **_VARIANTS[name],
        }
        if name == _BASELINE:
            metrics_addresses = []
        listeners = [
            {"TALLYSTICK_METRICS__LISTEN": metrics_address} for metrics_address in metrics_addresses
        ] or [{}, {}]
        service_addresses = ",".join(
            f"{service}={downstream_address}" for service in _DOWNSTREAM_SERVICES
        )
        with (
            run_services(
                _DOWNSTREAM_SERVICES, {**environment, **listeners[0]}, downstream_address
            ) as downstream_pid,
            run_services(
                ["payment"],
                {**environment, **listeners[1], "TALLYSTICK_SERVICE_ADDRESSES": service_addresses},
                address,
            ) as payment_pid,
        ):
            pids = (payment_pid, downstream_pid, read_postgres_pid(folder))
            yield _Platform(address, metrics_addresses, pids)
    shutil.rmtree(folder, ignore_errors=True)


async def _measure(
    platforms: Mapping[str, _Platform],
    seconds: float,
    in_flight: int,
    print_status: StatusPrinter,
) -> dict[str, LoadResult]:
    async with AsyncExitStack() as stack:
        calls = {
            name: payment_call(
                await stack.enter_async_context(grpc.aio.insecure_channel(platform.address)),
                SELLERS,
            )
            for name, platform in platforms.items()
        }
        urls = [
            f"http://{address}/metrics"
            for platform in platforms.values()
            for address in platform.metrics_addresses
        ]
        scraping = asyncio.create_task(_scrape(urls))
        try:
            return await measure_interleaved(
                calls,
                in_flight,
                seconds,
                print_status,
                lambda name: read_cpu_seconds(platforms[name].pids),
            )
        finally:
            scraping.cancel()
            await asyncio.gather(scraping, return_exceptions=True)


async def _scrape(urls: Sequence[str]) -> None:
    """Reads the metrics as Prometheus does, until it is cancelled."""
    async with aiohttp.ClientSession() as session:
        while True:
            for url in urls:
                async with session.get(url) as response:
                    await response.read()
            await asyncio.sleep(_SCRAPE_SECONDS)


def _compare(baseline: LoadResult, load: LoadResult) -> dict[str, Any]:
    """What a payment costs more than on the platform without telemetry: the median of the rounds,
    and their lowest and highest value. 0.05: 5 %.
    """
    cpu_costs = _costs(_cpu_per_call(load), _cpu_per_call(baseline))
    rate_costs = _costs(_rates(baseline), _rates(load))
    return {
        "cpu_cost": round(median(cpu_costs), 4),
        "cpu_cost_spread": [round(min(cpu_costs), 4), round(max(cpu_costs), 4)],
        "rate_cost": round(median(rate_costs), 4),
        "rate_cost_spread": [round(min(rate_costs), 4), round(max(rate_costs), 4)],
    }


def _costs(values: Sequence[float], baselines: Sequence[float]) -> list[float]:
    return [value / baseline - 1 for value, baseline in zip(values, baselines, strict=True)]


def _rates(load: LoadResult) -> list[float]:
    """Payments in each round, which all have the same duration. Raises StartupError."""
    counts = [float(len(latencies)) for latencies in load.rounds]
    if not all(counts):
        raise StartupError("No payment ended in a round. Use a smaller --in-flight.")
    return counts


def _cpu_per_call(load: LoadResult) -> list[float]:
    return [cpu / count for cpu, count in zip(load.cpu_seconds, _rates(load), strict=True)]
