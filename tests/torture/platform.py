"""The platform under torture: two processes of each service, the sandbox, and a PostgreSQL with fsync behind a proxy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import make_url

from tallystick_core.provider import Trouble
from tallystick_server.process.databases import Databases
from tallystick_server.process.embedded import EmbeddedPostgres
from tallystick_server.runtime.retry import Policy, Strategy
from tests.policies import as_setting, scaled_defaults

SERVICES = ("payment", "ledger", "wallet", "payout", "event")
_CLI = [sys.executable, "-m", "tallystick_server.process.cli"]
_SCALE = 1 / 20
"""The default retry policies, so many times as fast; but what is polled once a day for a month is polled four times within seconds."""
_QUICK = {
    "TALLYSTICK_REUSE_PORT": "true",
    "TALLYSTICK_LEASE": "6",
    "TALLYSTICK_PROVIDER_TIMEOUT": "3",
    "TALLYSTICK_SWEEP_INTERVAL": "0.3",
    "TALLYSTICK_BREAKER_REST": "0.5",
    "TALLYSTICK_DRAIN": "2",
    "TALLYSTICK_RETRY": as_setting({**scaled_defaults(_SCALE), Trouble.WATCHED: Policy(Strategy.FIXED, 1.0, 1.0, 4)}),
    "TALLYSTICK_PAYOUT_WAITING_PERIOD": "0",
}
LEASE_SECONDS = 6.0


@dataclass(eq=False)
class Process:
    """One process that is started again whenever it has ended."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    running: subprocess.Popen[bytes] | None = None
    stopped: bool = False
    """By SIGSTOP."""
    starts: int = field(default=0)

    def keep_up(self) -> None:
        """Starts it if it does not run."""
        if self.running is None or self.running.poll() is not None:
            with self.log.open("ab") as log:
                self.running = subprocess.Popen(self.command, env={**os.environ, **self.environment}, stderr=log, stdout=log)
            self.stopped = False
            self.starts += 1

    def signal(self, number: signal.Signals) -> None:
        if self.running is not None and self.running.poll() is None:
            self.running.send_signal(number)
            self.stopped = number == signal.SIGSTOP or (self.stopped and number != signal.SIGCONT)

    def end(self) -> None:
        if self.running is not None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            self.running.wait(10)


class Platform:
    """Starts, keeps and ends the processes."""

    def __init__(self, folder: Path, postgres: EmbeddedPostgres, databases: Databases) -> None:
        self.databases = databases
        self._folder = folder
        self._postgres = postgres
        self.processes: list[Process] = []
        self.address = self.payout_address = ""

    def set_up(self, proxy_port: int, first_port: int) -> None:
        """Names the processes; `proxy_port` is where they reach PostgreSQL."""
        addresses = {name: f"127.0.0.1:{first_port + place}" for place, name in enumerate(SERVICES)}
        sandbox = first_port + len(SERVICES)
        self.address, self.payout_address = addresses["payment"], addresses["payout"]
        reached = ",".join(f"{name}={address}" for name, address in addresses.items())
        log = self._folder / "processes.log"
        for name in SERVICES:
            environment = {
                **_QUICK,
                "TALLYSTICK_SERVICE_DATABASE_URL": f"{name}={self._url(name, proxy_port)}",
                "TALLYSTICK_LISTEN": addresses[name],
                "TALLYSTICK_ADDRESS": reached,
                "TALLYSTICK_SANDBOX_URL": f"http://127.0.0.1:{sandbox}",
                "TALLYSTICK_DATA": str(self._folder),
            }
            self.processes += [Process(f"{name}-{number}", [*_CLI, "serve", name], environment, log) for number in range(2)]
        own = {"TALLYSTICK_SERVICE_DATABASE_URL": f"sandbox={self._url('sandbox', proxy_port)}", "TALLYSTICK_DATA": str(self._folder)}
        self.sandbox = Process("sandbox", [*_CLI, "sandbox", "--port", str(sandbox)], own, log)

    def _url(self, name: str, port: int) -> str:
        """The service's login, by way of the proxy."""
        url = make_url(self.databases.service(name))
        return url.set(drivername="postgresql", host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)

    def keep_up(self) -> None:
        for process in (self.sandbox, *self.processes):
            process.keep_up()

    def crash_database(self) -> None:
        """Stops PostgreSQL at once, without a word to anybody, and starts it again."""
        running = self._postgres._process
        if running is not None:
            running.send_signal(signal.SIGQUIT)
            running.wait(30)
        self._postgres.stop()
        deadline = time.monotonic() + 60
        while True:
            try:
                self._postgres.start()
                return
            except Exception:
                if time.monotonic() > deadline:
                    raise

    def freeze_database(self) -> Callable[[], None]:
        """Stops every process of PostgreSQL by SIGSTOP; returns what lets them go on."""
        return freeze(self._postgres)

    def end(self) -> None:
        for process in (*self.processes, self.sandbox):
            process.end()


def freeze(postgres: EmbeddedPostgres) -> Callable[[], None]:
    """Stops every process of a PostgreSQL by SIGSTOP; returns what lets them go on."""
    server = postgres._process
    if server is None or server.poll() is not None:
        return lambda: None
    _signal_all([server.pid], signal.SIGSTOP)  # first, so that it starts none that is missed
    children = _children(server.pid)
    _signal_all(children, signal.SIGSTOP)
    return lambda: _signal_all([*children, server.pid], signal.SIGCONT)


def _children(parent: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            if int(status.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(status.parent.name))
    return found


def _signal_all(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)
