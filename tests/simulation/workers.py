"""Processes that run plans, each on its own database in one shared PostgreSQL."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.queues import Queue
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.embedded import EmbeddedPostgres
from tallystick_server.app.database.migrate import migrate
from tallystick_server.app.database.roles import Passwords
from tests.simulation.crash_points import CrashResults, run_with_crashes
from tests.simulation.run import Simulation, SimulationPlan, SimulationResult
from tests.simulation.shrink import shrink
from tests.support.memory import memory_folder

_SHRINK_SECONDS = 60.0
_POSTGRES_SETTINGS = {
    "autovacuum": "off",  # automatic garbage collection would run at another moment each time
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "synchronize_seqscans": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "scram_iterations": "1",
}

simulation: Simulation
"""The runner of this process; set when the process starts."""


def run_plan(plan: SimulationPlan) -> SimulationResult:
    """Runs a plan in a worker; a failing plan is returned as short as it could be made in time."""
    result = simulation.run(plan)
    if result.violations:
        return shrink(simulation.run, result, _SHRINK_SECONDS)
    result.trace = []  # nobody reads it
    return result


def run_crash_plans(plan: SimulationPlan) -> CrashResults:
    """Runs a plan with one crash, and with every second crash, in a worker."""
    return run_with_crashes(simulation.run, plan)


def run_traced(plan: SimulationPlan) -> SimulationResult:
    """Runs a plan in a worker and keeps its complete result."""
    return simulation.run(plan)


def _start_worker(urls: Queue[str], passwords: Path) -> None:
    global simulation  # noqa: PLW0603 - a worker has one database for its whole life
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    simulation = Simulation(DatabaseUrls(urls.get(timeout=60), Passwords(passwords), {}))


@contextmanager
def worker_pool(folder: Path, count: int) -> Iterator[ProcessPoolExecutor]:
    """The given number of processes, in which the functions above run plans."""
    with memory_folder(folder) as memory:
        yield from _worker_pool(memory, count)


def _worker_pool(folder: Path, count: int) -> Iterator[ProcessPoolExecutor]:
    postgres = EmbeddedPostgres(folder / "postgres", fsync=False)
    context = multiprocessing.get_context("spawn")
    urls: Queue[str] = context.Queue()
    passwords = folder / "passwords.json"
    # For the workers: nothing may depend on the order of a process's sets.
    os.environ["PYTHONHASHSEED"] = "0"
    try:
        admin = postgres.start()
        with psycopg.connect(admin, autocommit=True) as connection:
            for name, value in _POSTGRES_SETTINGS.items():
                connection.execute(f"alter system set {name} = '{value}'")
            connection.execute("select pg_reload_conf()")
        for index in range(count):
            urls.put(_create_database(admin, f"simulation_{index}", passwords))
        with ProcessPoolExecutor(count, context, _start_worker, (urls, passwords)) as pool:
            try:
                yield pool
            except BaseException:
                # The results of the workers are not needed any more.
                for worker in multiprocessing.active_children():
                    worker.kill()
                raise
    finally:
        postgres.stop()


def _create_database(admin: str, name: str, passwords: Path) -> str:
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"drop database if exists {name} with (force)")
        connection.execute(f"create database {name}")
    url = make_url(admin).set(database=name).render_as_string(hide_password=False)
    migrate(url, Passwords(passwords))
    return url
