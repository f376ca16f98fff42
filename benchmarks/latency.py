"""What a payment costs under light load: one caller, then 16 and 64 callers, with a provider that
answers at once and with one that takes 20 ms. Every commit is durable.

The payments and processes are those of pay-in. Rounds of payments alternate with rounds of a gRPC
echo of the same message.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from typing import Any

from benchmarks.measure import LoadResult, StatusPrinter, measure_interleaved
from benchmarks.pay_in import open_calls, run_platform
from benchmarks.processes import (
    DATABASE_FOLDER,
    read_cpu_seconds,
    read_postgres_pid,
    require_embedded_postgres,
)
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import open_databases
from tallystick_server.app.serve import run

_PROVIDER_LATENCIES_SECONDS = (0.0, 0.02)
_CALLERS = {"alone": 1, "sixteen": 16, "sixtyfour": 64}


def bench(seconds: float, print_status: StatusPrinter) -> dict[str, Any]:
    """Returns the figures that `--json` prints. `seconds`: of each part.

    Raises StartupError if the database is not the embedded one, whose processor time is measured.
    """
    settings = Settings()
    require_embedded_postgres(settings, "latency")
    shutil.rmtree(DATABASE_FOLDER, ignore_errors=True)
    rows: dict[str, dict[str, Any]] = {}
    with open_databases(settings, print_status, folder=DATABASE_FOLDER) as database_urls:
        for latency_seconds in _PROVIDER_LATENCIES_SECONDS:
            with run_platform(database_urls, latency_seconds) as pids:
                measured_pids = (*pids, read_postgres_pid())
                for name, callers in _CALLERS.items():
                    loads = run(_measure(callers, seconds, measured_pids, print_status))
                    key = f"{name}_provider_{latency_seconds * 1000:g}_ms"
                    rows[key] = _figures(callers, loads)
                    print_status(f"{key}: {rows[key]}")
    return {"bench": "latency", **_headline(rows), "seconds": seconds, "rows": rows}


async def _measure(
    callers: int, seconds: float, pids: Collection[int], print_status: StatusPrinter
) -> dict[str, LoadResult]:
    async with open_calls() as calls:
        return await measure_interleaved(
            {name: calls[name] for name in ("baseline", "spread")},
            callers,
            seconds,
            print_status,
            lambda _: read_cpu_seconds(pids),
        )


def _figures(callers: int, loads: dict[str, LoadResult]) -> dict[str, Any]:
    payment, echo = loads["spread"], loads["baseline"]
    return {
        "callers": callers,
        "rate": round(payment.calls_per_second, 1),
        "p50_ms": round(payment.quantile_ms(0.5), 2),
        "p99_ms": round(payment.quantile_ms(0.99), 2),
        "cpu_ms": round(payment.cpu_ms_per_call, 2),
        "echo_rate": round(echo.calls_per_second, 1),
        "echo_p50_ms": round(echo.quantile_ms(0.5), 3),
    }


def _headline(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures without provider latency that versions are compared by."""
    alone, sixteen, sixtyfour = (rows[f"{name}_provider_0_ms"] for name in _CALLERS)
    return {
        "echo_p50_ms": alone["echo_p50_ms"],
        "alone_p50_ms": alone["p50_ms"],
        "alone_over_echo": round(alone["p50_ms"] / alone["echo_p50_ms"], 1),
        "alone_cpu_ms": alone["cpu_ms"],
        "sixteen_rate": sixteen["rate"],
        "sixteen_p50_ms": sixteen["p50_ms"],
        "sixtyfour_rate": sixtyfour["rate"],
        "sixtyfour_p50_ms": sixtyfour["p50_ms"],
    }
