"""Asks for every page of the console, on a database that is seeded once for each size and kept.

First one process serves everything and counts: the statements of all services, and the calls that
they received. Then another process serves the same, and the pages are timed.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp

from benchmarks.console.paths import SEEDED_IDS, paths_of, seeded_queries
from benchmarks.growth.plans import QueryPlans, StatementRecorders, count_statements
from benchmarks.measure import StatusPrinter, quantile_ms
from benchmarks.processes import (
    database_environment,
    read_cpu_seconds,
    read_postgres_pid,
    run_services,
)
from benchmarks.seed.kept import DEFAULT_PENDING_FRACTION, QUIET_SETTINGS, open_kept_database
from tallystick_server.app import serve
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.errors import StartupError
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.http.console.links import SIGN_IN, path_of
from tallystick_server.http.console.pages.table import PAGES
from tallystick_server.observability import metrics
from tests.support.platform import free_address

DEFAULT_PAYMENTS = 20_000
DEFAULT_REPETITIONS = 20
MAX_STATEMENTS = 20
"""The statements that a page may cause in all services together."""
PAGE_WITHOUT_STATEMENTS = path_of("search")
QUIET_REQUESTS = 20
"""How often that page is asked for, to see that nothing else runs statements."""
_MAX_QUIET_TRIES = 100
MAX_P99_MS = 300.0
"""How long a page may take."""
_CONSOLE_SETTINGS = {
    **QUIET_SETTINGS,
    "console__enabled": True,
    "console__session_key": "the-session-key-of-the-benchmark-aaaaa",
}


class PageCost(NamedTuple):
    """What a page causes."""

    statements: int
    calls: int


def bench(payments: int, repetitions: int, print_status: StatusPrinter) -> dict[str, Any]:
    """Returns the figures that `--json` prints. `repetitions`: how often each page is timed."""
    paths = list(paths_of(PAGES, SEEDED_IDS, seeded_queries()))
    with open_kept_database(payments, DEFAULT_PENDING_FRACTION, print_status) as database:
        costs = serve.run(_count_costs(database.urls, paths))
        print_status(f"Counted the statements of {len(paths)} pages")
        address, http_address = free_address(), free_address()
        with run_services(["all"], _environment(database.urls, http_address), address) as pid:
            pids = {pid, read_postgres_pid(database.folder)}
            times = serve.run(_measure(http_address, paths, repetitions, pids, print_status))
    rows = {path: _figures(costs[path], times[path]) for path in paths}
    slowest = max(row["p99_ms"] for row in rows.values())
    statement_count = max(cost.statements for cost in costs.values())
    failures = sum(row["failures"] for row in rows.values())
    for path, row in rows.items():
        print_status(f"| {path} | {' | '.join(map(str, row.values()))} |")
    return {
        "bench": "console",
        "payments": payments,
        "repetitions": repetitions,
        "pages": len(paths),
        "slowest_p99_ms": slowest,
        "max_p99_ms": MAX_P99_MS,
        "statements": statement_count,
        "max_statements": MAX_STATEMENTS,
        "failures": failures,
        "passed": slowest <= MAX_P99_MS and statement_count <= MAX_STATEMENTS and not failures,
        "rows": rows,
    }


class PageTime(NamedTuple):
    """How long a page took, and the processor time of the services and of PostgreSQL meanwhile, in
    seconds. `failed`: it showed an error of the server.
    """

    seconds: float
    cpu_seconds: float
    failed: bool


def _figures(cost: PageCost, times: Sequence[PageTime]) -> dict[str, float]:
    """`times`: of each time that the page was asked for. The first fills the caches."""
    first, *others = (time.seconds for time in times)
    return {
        "p50_ms": round(quantile_ms(others, 0.5), 1),
        "p99_ms": round(quantile_ms(others, 0.99), 1),
        "max_ms": round(max(others) * 1000, 1),
        "first_ms": round(first * 1000, 1),
        "failures": sum(time.failed for time in times),
        "cpu_ms": round(statistics.mean(time.cpu_seconds for time in times[1:]) * 1000, 1),
        "statements": cost.statements,
        "calls": cost.calls,
    }


async def _count_costs(database_urls: DatabaseUrls, paths: Sequence[str]) -> dict[str, PageCost]:
    recorders = StatementRecorders()
    http_address = free_address()
    settings = Settings().replace(
        server__listen=free_address(), http__listen=http_address, **_CONSOLE_SETTINGS
    )
    server = await serve.start(
        (*service_names(), HTTP_SERVER), settings, database_urls.all(), recorders.dependencies
    )
    costs = {}
    try:
        async with _sign_in(http_address) as browser:
            await _wait_until_quiet(browser, recorders)
            for path in paths:
                plans, calls = QueryPlans(), count_calls()
                with plans.capture(*recorders.all):
                    await _ask(browser, path)
                costs[path] = PageCost(count_statements(plans), count_calls() - calls)
    finally:
        await server.stop(5.0)
    return costs


async def _wait_until_quiet(browser: aiohttp.ClientSession, recorders: StatementRecorders) -> None:
    """Waits until the platform has run what it runs at its start: until a page without statements
    is asked for many times without any.
    """
    for _ in range(_MAX_QUIET_TRIES):
        plans = QueryPlans()
        with plans.capture(*recorders.all):
            for _ in range(QUIET_REQUESTS):
                await _ask(browser, PAGE_WITHOUT_STATEMENTS)
        if not plans.statements:
            return
    raise StartupError("The platform runs statements though no page is asked for.")


def count_calls() -> int:
    """The calls that the services of this process have answered."""
    return sum(sum(series.bucket_counts) for series in metrics.RPC_SERVER_CALLS.observe().values())


def _environment(database_urls: DatabaseUrls, http_address: str) -> dict[str, str]:
    settings = {
        f"TALLYSTICK_{name.upper()}": str(value) for name, value in _CONSOLE_SETTINGS.items()
    }
    return {
        **database_environment(database_urls),
        **settings,
        "TALLYSTICK_HTTP__LISTEN": http_address,
    }


async def _measure(
    http_address: str,
    paths: Sequence[str],
    repetitions: int,
    pids: Collection[int],
    print_status: StatusPrinter,
) -> dict[str, list[PageTime]]:
    """The times of each page, at first and then `repetitions` times. The pages take turns, so a
    moment in which the machine is busy does not hit one page only.
    """
    times: dict[str, list[PageTime]] = {path: [] for path in paths}
    async with _sign_in(http_address) as browser:
        for number in range(repetitions + 1):
            # in random order, so that none always follows the same one; no secret
            for path in sorted(paths, key=lambda _: random.random()):  # noqa: S311
                cpu, start = read_cpu_seconds(pids), time.perf_counter()
                failed = await _ask(browser, path)
                seconds = time.perf_counter() - start
                times[path].append(PageTime(seconds, read_cpu_seconds(pids) - cpu, failed))
            print_status(f"round {number} of {repetitions}")
    return times


@asynccontextmanager
async def _sign_in(http_address: str) -> AsyncIterator[aiohttp.ClientSession]:
    jar = aiohttp.CookieJar(unsafe=True)  # which keeps the cookies of an IP address
    async with aiohttp.ClientSession(f"http://{http_address}", cookie_jar=jar) as browser:
        response = await browser.post(SIGN_IN, data={"token": ""}, allow_redirects=False)
        if response.status != 303:
            raise StartupError(f"The console answered the sign-in with {response.status}.")
        yield browser


async def _ask(browser: aiohttp.ClientSession, path: str) -> bool:
    """Reads a page, or that a resource is missing. Returns whether it shows an error of the server,
    such as a timeout. Raises StartupError if the request is invalid.
    """
    async with browser.get(path, allow_redirects=False) as response:
        await response.read()
        is_answered = response.status in (200, 303, 404) or response.status >= 500
        if not is_answered or response.headers.get("Location", "").startswith(SIGN_IN):
            raise StartupError(f"The page {path} answered {response.status}.")
        return response.status >= 500
