"""scripts/torture --minutes M [--seed S] [--json]: real processes and a real PostgreSQL under a seeded nemesis, while a checker writes down what is told."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tallystick_server.process.configuration import Settings
from tallystick_server.process.databases import Databases
from tallystick_server.process.embedded import EmbeddedPostgres
from tallystick_server.process.migrate import Passwords, migrate
from tests.interrupts import interruptible

from .check import at_rest, check
from .load import Load
from .platform import LEASE_SECONDS, Platform
from .proxy import Proxy

_FOLDER = Path(".data/torture")
_FIRST_PORT = 7_601
_BETWEEN = 4.0  # seconds between two strokes
_FREEZES = (4.0, 12.0)  # seconds for which PostgreSQL stands still
_DATABASE_EVERY = 30.0
_MAX_SECONDS_TO_REST = 60.0
_PATIENCE = 180.0  # seconds after which waiting for rest is given up


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Nemesis:
    """Strikes at times and places that its seed gives."""

    def __init__(self, platform: Platform, proxy: Proxy, seed: int) -> None:
        self._platform = platform
        self._proxy = proxy
        self._random = random.Random(f"{seed}/nemesis")
        self.kills = self.stops = self.database_crashes = self.database_freezes = self._connection_freezes = 0

    async def run(self, seconds: float) -> None:
        began = time.monotonic()
        next_crash = began + _DATABASE_EVERY / 2
        while (now := time.monotonic()) < began + seconds:
            if now >= next_crash:
                next_crash += _DATABASE_EVERY
                await self._strike_database()
            else:
                await self._strike()
            say(
                f"{now - began:5.0f} s: {self.kills} kills, {self.stops} stops, {self._proxy.cuts} cuts, {self._proxy.frozen} frozen connections, "
                f"{self.database_crashes} database crashes, {self.database_freezes} freezes"
            )
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * _BETWEEN)

    async def _strike_database(self) -> None:
        """Crashes PostgreSQL, or has it stand still, or freezes the connections to it; in turns, so that a minute sees one and three minutes see all."""
        turn = (self.database_crashes + self.database_freezes + self._connection_freezes) % 3
        if turn == 0:
            self.database_crashes += 1
            await asyncio.to_thread(self._platform.crash_database)
        elif turn == 1:
            self._connection_freezes += 1
            self._proxy.freeze()
        else:
            self.database_freezes += 1
            go_on = self._platform.freeze_database()
            try:
                await asyncio.sleep(self._random.uniform(*_FREEZES))
            finally:
                go_on()

    async def _strike(self) -> None:
        for _ in range(self._random.randint(0, 3)):
            self._proxy.arm(self._random.choice(["before", "after"]))
        victim = self._random.choice([process for process in self._platform.processes if not process.stopped])
        if self._random.random() < 0.15 and not any(process.stopped for process in self._platform.processes):
            self.stops += 1
            victim.signal(signal.SIGSTOP)
            asyncio.get_running_loop().call_later(LEASE_SECONDS * 1.5, victim.signal, signal.SIGCONT)
            return
        for one in dict.fromkeys([victim, *self._random.sample(self._platform.processes, self._random.randint(0, 1))]):
            self.kills += 1
            one.signal(signal.SIGKILL)


async def _keep_up(platform: Platform) -> None:
    while True:
        platform.keep_up()
        await asyncio.sleep(0.3)


async def _torture(platform: Platform, postgres: EmbeddedPostgres, minutes: float, seed: int, callers: int) -> dict[str, Any]:
    proxy = Proxy(postgres._sockets / ".s.PGSQL.5432")
    platform.set_up(await proxy.start(), _FIRST_PORT)
    keeper = asyncio.create_task(_keep_up(platform))
    load = Load(platform.address, platform.payout_address, seed, callers)
    nemesis = Nemesis(platform, proxy, seed)
    try:
        await asyncio.sleep(5)
        loading = asyncio.create_task(load.run())
        await nemesis.run(minutes * 60)
        say("Healing")
        proxy.disarm()
        for process in platform.processes:
            process.signal(signal.SIGCONT)
        load.stop()
        healed = time.monotonic()
        await loading
        rests = False
        while not rests and time.monotonic() < healed + _PATIENCE:
            await asyncio.sleep(0.5)
            rests = await asyncio.to_thread(at_rest, platform.databases.admin)
        seconds_to_rest = time.monotonic() - healed
    finally:
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        platform.end()
        await proxy.stop()
    say("Checking")
    found = check(platform.databases, load.told, load.paid_out)
    if not rests:
        found["violations"].append(f"no rest within {_PATIENCE:g} s")
    if seconds_to_rest > _MAX_SECONDS_TO_REST:
        found["violations"].append(f"at rest only after {seconds_to_rest:.0f} s")
    return {
        "seed": seed, "minutes": minutes, "kills": nemesis.kills, "stops": nemesis.stops, "cuts": proxy.cuts, "frozen_connections": proxy.frozen,
        "database_crashes": nemesis.database_crashes, "database_freezes": nemesis.database_freezes,
        "calls": load.calls, "payments": len(load.told), "payouts": len(load.paid_out), **found, "seconds_to_rest": round(seconds_to_rest, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/torture", description="Kills, stops and cuts what it can, and checks that no cent is lost or doubled."
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="how long; by default 10")
    parser.add_argument("--seed", type=int, default=1, help="what the nemesis and the load draw from; by default 1")
    parser.add_argument("--callers", type=int, default=24, help="how many call at a time; by default 24")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    options = parser.parse_args()
    if not 0 < options.minutes < 1e5 or options.callers < 1:
        parser.error("--minutes and --callers must be above 0: nothing would be proved")
    with interruptible():
        result = _run(options)
    for line in result["violations"][:20]:
        say(f"violation: {line}")
    print(json.dumps({**result, "violations": len(result["violations"])}) if options.json else "\n".join(f"{k:>17}: {v}" for k, v in result.items()))
    sys.exit(1 if result["violations"] else 0)


def _run(options: argparse.Namespace) -> dict[str, Any]:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    postgres = EmbeddedPostgres(_FOLDER / "postgres")
    passwords = Passwords(_FOLDER / "passwords.json")
    try:
        admin = postgres.start(say)
        migrate(admin, passwords)
        databases = Databases(admin, passwords, Settings().service_database_url)
        return asyncio.run(_torture(Platform(_FOLDER, postgres, databases), postgres, options.minutes, options.seed, options.callers))
    finally:
        postgres.stop()


main()
