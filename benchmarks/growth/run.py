"""Measures time, rows, blocks and indexes of each call, in a database that is seeded once for each
size and kept.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.growth.calls import BOUNDED_LIST_CALLS, LIST_CALLS
from benchmarks.growth.plans import (
    QueryPlans,
    StatementRecorders,
    blocks_read,
    flatten,
    rows_read,
    time_execution,
)
from benchmarks.growth.queries import HOUSEKEEPING, MONITOR_QUERIES, WORKER_QUERIES, DatabaseWork
from benchmarks.measure import StatusPrinter
from benchmarks.seed.kept import QUIET_SETTINGS, open_kept_database
from tallystick import AsyncClient
from tallystick_server.app import serve
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import service_names
from tallystick_server.verify.run import verify

DEFAULT_PAYMENTS = 1_000_000
_REPETITIONS = 5


def bench(payments: int, pending_fraction: float, print_status: StatusPrinter) -> dict[str, Any]:
    """Returns the figures that `--json` prints. `pending_fraction`: the part of the payments that
    waits for the provider.
    """
    with open_kept_database(payments, pending_fraction, print_status) as database:
        rows = _measure_all(database.urls, print_status)
    return {
        "bench": "growth",
        "payments": payments,
        "pending_fraction": pending_fraction,
        "seed": database.seed_result,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "rows": rows,
    }


def _measure_all(
    database_urls: DatabaseUrls, print_status: StatusPrinter
) -> dict[str, dict[str, Any]]:
    """The figures of each call and query, by its name."""
    with TemporaryDirectory() as folder:
        rows = asyncio.run(_measure_calls(database_urls, f"unix:{folder}/growth", print_status))
    for name, (schema, work) in {**MONITOR_QUERIES, **WORKER_QUERIES, **HOUSEKEEPING}.items():
        rows[name] = _summarize(
            [time_execution(database_urls, schema, work) for _ in range(_REPETITIONS)],
            _capture_plans(database_urls, schema, work),
        )
        print_status(_format_row(name, rows[name]))
    rows["verify"] = _measure_verify(database_urls)
    print_status(_format_row("verify", rows["verify"]))
    return rows


def _measure_verify(database_urls: DatabaseUrls) -> dict[str, Any]:
    start = time.perf_counter()
    report = verify(database_urls)
    return {"ms": round((time.perf_counter() - start) * 1000), "passed": report.passed}


async def _measure_calls(
    database_urls: DatabaseUrls, address: str, print_status: StatusPrinter
) -> dict[str, dict[str, Any]]:
    settings = Settings().replace(server__listen=address, **QUIET_SETTINGS)
    recorders = StatementRecorders()
    server = await serve.start(
        service_names(), settings, database_urls.all(), recorders.dependencies
    )
    client = AsyncClient(address)
    rows: dict[str, dict[str, Any]] = {}
    try:
        for name, call in {**LIST_CALLS, **BOUNDED_LIST_CALLS}.items():
            plans = QueryPlans()
            with plans.capture(*recorders.reads):
                await call(client)
            times = []
            for _ in range(_REPETITIONS):
                start = time.perf_counter()
                await call(client)
                times.append(time.perf_counter() - start)
            rows[name] = _summarize(times, plans)
            print_status(_format_row(name, rows[name]))
    finally:
        await client.close()
        await server.stop(5.0)
    return rows


def _capture_plans(database_urls: DatabaseUrls, schema: str, work: DatabaseWork) -> QueryPlans:
    plans = QueryPlans()
    time_execution(database_urls, schema, work, plans)
    return plans


def _summarize(times: Sequence[float], plans: QueryPlans) -> dict[str, Any]:
    """`times`: in seconds. A table that is scanned is listed among the indexes as "all of" it."""
    plan_trees = [plan for _, plan in plans.explain()]
    nodes = [node for plan in plan_trees for node in flatten(plan)]
    indexes = {node["Index Name"] for node in nodes if "Index Name" in node}
    scans = {f"all of {node['Relation Name']}" for node in nodes if node["Node Type"] == "Seq Scan"}
    return {
        "ms": round(statistics.median(times) * 1000, 1),
        "rows_read": max(map(rows_read, nodes), default=0),
        "blocks": sum(map(blocks_read, plan_trees)),
        "indexes": sorted(indexes | scans),
    }


def _format_row(name: str, figures: dict[str, Any]) -> str:
    return (
        f"| {name} | {figures['ms']} | {figures.get('rows_read', '')} | "
        f"{figures.get('blocks', '')} | {', '.join(figures.get('indexes', ()))} |"
    )
