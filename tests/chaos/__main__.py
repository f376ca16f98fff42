"""scripts/chaos --minutes M [--seed S] [--json]: runs real processes and a real PostgreSQL under
seeded faults, while a checker records every answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.embedded import EmbeddedPostgres
from tallystick_server.app.database.migrate import migrate
from tallystick_server.app.database.roles import Passwords
from tallystick_server.app.services import HTTP_SERVER
from tests.chaos.check import check, format_open_work, open_work
from tests.chaos.load import ChaosLoad
from tests.chaos.look_alike import LookAlike
from tests.chaos.platform import LEASE_SECONDS, ProcessCluster, SupervisedProcess
from tests.chaos.proxy import PostgresProxy
from tests.chaos.webhook_check import check_coverage, check_webhooks, open_deliveries
from tests.chaos.webhook_proxy import WebhookProxy
from tests.support.cancellation import exit_on_interrupt
from tests.support.options import print_progress

_FOLDER = Path(".data/chaos")
_FIRST_PORT = 7_601
_STRIKE_INTERVAL_SECONDS = 4.0  # seconds between two faults
_FREEZE_SECONDS = (4.0, 12.0)  # seconds for which PostgreSQL is frozen
_DATABASE_STRIKE_SECONDS = 30.0
_MAX_SECONDS_UNTIL_IDLE = 60.0
_MAX_WAIT_SECONDS = 180.0  # seconds to wait until nothing is due


class Nemesis:
    """Injects faults at times and places that follow from its seed."""

    def __init__(self, platform: ProcessCluster, proxy: PostgresProxy, seed: int) -> None:
        self._platform = platform
        self._proxy = proxy
        self._random = random.Random(f"{seed}/nemesis")
        self.kills: Counter[str] = Counter()
        """By the name of the process, without its number."""
        self._next_victims: list[SupervisedProcess] = []
        """Each process is killed once before any is killed again."""
        self.process_freezes = self.database_crashes = self.database_freezes = (
            self._connection_freezes
        ) = 0

    async def run(self, seconds: float) -> None:
        start_time = time.monotonic()
        next_crash = start_time + _DATABASE_STRIKE_SECONDS / 2
        while (now := time.monotonic()) < start_time + seconds:
            if now >= next_crash:
                next_crash += _DATABASE_STRIKE_SECONDS
                await self._strike_database()
            else:
                await self._strike()
            print_progress(
                f"{now - start_time:5.0f} s: {self.kills.total()} kills, "
                f"{self.process_freezes} frozen processes, "
                f"{self._proxy.cut_count} cuts, {self._proxy.frozen_count} frozen connections, "
                f"{self.database_crashes} database crashes, {self.database_freezes} freezes"
            )
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * _STRIKE_INTERVAL_SECONDS)

    async def _strike_database(self) -> None:
        """Crashes PostgreSQL, freezes it, or freezes its open connections. The kinds alternate: one
        minute covers one, three minutes cover all.
        """
        strike_kind = (self.database_crashes + self.database_freezes + self._connection_freezes) % 3
        if strike_kind == 0:
            self.database_crashes += 1
            await asyncio.to_thread(self._platform.crash_database)
        elif strike_kind == 1:
            self._connection_freezes += 1
            self._proxy.freeze()
        else:
            self.database_freezes += 1
            unfreeze = self._platform.freeze_database()
            try:
                await asyncio.sleep(self._random.uniform(*_FREEZE_SECONDS))
            finally:
                unfreeze()

    async def _strike(self) -> None:
        for _ in range(self._random.randint(0, 3)):
            self._proxy.arm(self._random.choice(["before", "after"]))
        processes = self._platform.processes
        if self._random.random() < 0.15 and not any(process.is_stopped for process in processes):
            self.process_freezes += 1
            victim = self._random.choice(processes)
            victim.send_signal(signal.SIGSTOP)
            asyncio.get_running_loop().call_later(
                LEASE_SECONDS * 1.5, victim.send_signal, signal.SIGCONT
            )
            return
        for _ in range(self._random.randint(1, 2)):
            if not self._next_victims:
                self._next_victims = self._random.sample(processes, len(processes))
            victim = self._next_victims.pop()
            self.kills[victim.name.partition("-")[0]] += 1
            victim.send_signal(signal.SIGKILL)


async def _restart_processes(platform: ProcessCluster) -> None:
    while True:
        platform.ensure_running()
        await asyncio.sleep(0.3)


async def _wait_until_empty(count_work: Callable[[], dict[str, int]]) -> dict[str, int]:
    """Waits until no work is counted. Returns what remains after the limit."""
    start_time, reported_work = time.monotonic(), None
    while True:
        remaining_work = await asyncio.to_thread(count_work)
        seconds = time.monotonic() - start_time
        if remaining_work != reported_work:
            print_progress(
                f"{seconds:5.1f} s: {format_open_work(remaining_work) or 'all work is final'}"
            )
            reported_work = remaining_work
        if not remaining_work or seconds > _MAX_WAIT_SECONDS:
            return remaining_work
        await asyncio.sleep(0.5)


async def _run_chaos(
    platform: ProcessCluster, postgres: EmbeddedPostgres, minutes: float, seed: int, callers: int
) -> dict[str, Any]:
    proxy = PostgresProxy(postgres.socket_folder / ".s.PGSQL.5432")
    webhook_proxy = WebhookProxy(seed)
    platform.configure(await proxy.start(), _FIRST_PORT, await webhook_proxy.start())
    webhook_proxy.address = platform.http_address
    restarter = asyncio.create_task(_restart_processes(platform))
    load = ChaosLoad(
        platform.address, platform.payout_addresses, platform.http_address, seed, callers
    )
    nemesis = Nemesis(platform, proxy, seed)
    look_alike = LookAlike(platform.look_alike_url)
    fault_switch = asyncio.create_task(look_alike.keep_webhook_faults())
    admin = platform.databases.admin
    try:
        await look_alike.fund()
        await asyncio.sleep(5)
        load_task = asyncio.create_task(load.run())
        await nemesis.run(minutes * 60)
        print_progress("Healing")
        proxy.disarm()
        webhook_proxy.heal()
        for process in platform.processes:
            process.send_signal(signal.SIGCONT)
        load.stop()
        healed_time = time.monotonic()
        await load_task
        remaining_work = await _wait_until_empty(lambda: open_work(admin))
        seconds_until_idle = time.monotonic() - healed_time
        remaining_work = remaining_work or await _wait_until_empty(
            lambda: {**open_deliveries(admin), **open_work(admin)}
        )
        seconds_until_delivered = time.monotonic() - healed_time
    finally:
        for task in (restarter, fault_switch):
            task.cancel()
        await asyncio.gather(restarter, fault_switch, return_exceptions=True)
        platform.kill()
        await look_alike.close()
        await webhook_proxy.stop()
        await proxy.stop()
    print_progress("Checking")
    summary = check(platform.databases, load.payment_calls, load.payout_calls)
    webhook_summary = check_webhooks(admin, webhook_proxy.log)
    violations = summary.pop("violations") + webhook_summary.pop("violations")
    if remaining_work:
        violations.append(
            f"not final within {_MAX_WAIT_SECONDS:g} s: {format_open_work(remaining_work)}"
        )
    if seconds_until_idle > _MAX_SECONDS_UNTIL_IDLE:
        violations.append(f"idle only after {seconds_until_idle:.0f} s")
    http_kills = nemesis.kills[HTTP_SERVER]
    violations += check_coverage(minutes, http_kills, webhook_summary["webhooks_delivered"])
    return {
        "seed": seed,
        "minutes": minutes,
        "kills": nemesis.kills.total(),
        "http_kills": http_kills,
        "stripe_kills": nemesis.kills["stripe"],
        "process_freezes": nemesis.process_freezes,
        "cuts": proxy.cut_count,
        "frozen_connections": proxy.frozen_count,
        "database_crashes": nemesis.database_crashes,
        "database_freezes": nemesis.database_freezes,
        "calls": load.call_count,
        "json_calls": load.json_call_count,
        "json_retries": load.json_retry_count,
        "page_visits": load.visit_count,
        "payments": len(load.payment_calls),
        "payouts": len(load.payout_calls),
        **webhook_summary,
        **summary,
        "violations": violations,
        "seconds_until_idle": round(seconds_until_idle, 1),
        "seconds_until_delivered": round(seconds_until_delivered, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description=(
            "Kills processes, cuts connections, and checks that no money is lost or doubled."
        ),
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="duration in minutes; default 10"
    )
    parser.add_argument(
        "--seed", type=int, default=1, help="seed of the nemesis and the load; default 1"
    )
    parser.add_argument(
        "--callers", type=int, default=24, help="number of concurrent callers; default 24"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    options = parser.parse_args()
    if not 0 < options.minutes < 1e5 or options.callers < 1:
        parser.error("--minutes and --callers must be above 0")
    with exit_on_interrupt():
        result = _run(options)
    for line in result["violations"][:20]:
        print_progress(f"violation: {line}")
    print(
        json.dumps({**result, "violations": len(result["violations"])})
        if options.json
        else "\n".join(f"{name:>23}: {value}" for name, value in result.items())
    )
    sys.exit(1 if result["violations"] else 0)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    postgres = EmbeddedPostgres(_FOLDER / "postgres")
    passwords = Passwords(_FOLDER / "passwords.json")
    try:
        admin = postgres.start(print_progress)
        migrate(admin, passwords)
        databases = DatabaseUrls(admin, passwords, Settings().database.service_urls)
        return asyncio.run(
            _run_chaos(
                ProcessCluster(_FOLDER, postgres, databases),
                postgres,
                options.minutes,
                options.seed,
                options.callers,
            )
        )
    finally:
        postgres.stop()


main()
