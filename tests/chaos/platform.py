"""The platform under test: two processes of each service and of the HTTP server, one more of
PayoutService, the sandbox, the Stripe look-alike, and a PostgreSQL with fsync behind a proxy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from tallystick_core.provider.outcome import RetryReason
from tallystick_sandbox.stripe.webhooks import ACCOUNT_SECRET, CONNECT_SECRET
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.embedded import EmbeddedPostgres
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tests.chaos.look_alike import API_KEY
from tests.chaos.page_load import PAGE_SELLER, SHOP
from tests.support.retry_policies import format_setting, scaled_defaults

_CLI = [sys.executable, "-m", "tallystick_server.cli.main"]
_RETRY_SCALE = 1 / 20
"""The default retry policies, sped up by a factor. The daily poll of completed payouts runs four
times within seconds instead of for a month.
"""
_FAST_SETTINGS = {
    "TALLYSTICK_SERVER__REUSE_PORT": "true",
    "TALLYSTICK_WORKER__LEASE_DURATION": "6",
    "TALLYSTICK_PROVIDERS__TIMEOUT": "3",
    "TALLYSTICK_WORKER__SCAN_INTERVAL": "0.3",
    "TALLYSTICK_BREAKER__RESET_TIMEOUT": "0.5",
    "TALLYSTICK_SERVER__SHUTDOWN_GRACE_PERIOD": "2",
    "TALLYSTICK_RETRY": format_setting(
        {
            **scaled_defaults(_RETRY_SCALE),
            RetryReason.POST_COMPLETION_POLL: RetryPolicy(RetryStrategy.FIXED, 1.0, 1.0, 4),
        }
    ),
    "TALLYSTICK_PAYOUT__DESTINATION_COOLDOWN": "0",
    "TALLYSTICK_ROUTING": (
        f"name=page;sellers={PAGE_SELLER};provider=stripe,name=half;share=50;provider=stripe"
    ),
    "TALLYSTICK_PAYMENT__RETURN_ORIGINS": f"dev={SHOP}",
    # each start of an HTTP process lists what it may have missed while it was down
    "TALLYSTICK_HTTP__WEBHOOK_CATCH_UP_WINDOW": "10",
    "TALLYSTICK_PROVIDERS__STRIPE__API_KEY": API_KEY,
    "TALLYSTICK_PROVIDERS__STRIPE__WEBHOOK_SECRETS": ACCOUNT_SECRET,
    "TALLYSTICK_PROVIDERS__STRIPE__CONNECT_WEBHOOK_SECRETS": CONNECT_SECRET,
}
_SEARCH_LAG_SECONDS = 1
LEASE_SECONDS = 6.0


@dataclass(eq=False)
class SupervisedProcess:
    """A process that is restarted whenever it ends."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    child: subprocess.Popen[bytes] | None = None
    is_stopped: bool = False
    """Whether the process is frozen by SIGSTOP."""

    def ensure_running(self) -> None:
        """Starts the process unless it runs."""
        if self.child is None or self.child.poll() is not None:
            with self.log.open("ab") as log:
                self.child = subprocess.Popen(
                    self.command, env={**os.environ, **self.environment}, stderr=log, stdout=log
                )
            self.is_stopped = False

    def send_signal(self, number: signal.Signals) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)
            self.is_stopped = number == signal.SIGSTOP or (
                self.is_stopped and number != signal.SIGCONT
            )

    def kill(self) -> None:
        if self.child is not None:
            self.send_signal(signal.SIGCONT)
            self.send_signal(signal.SIGKILL)
            self.child.wait(10)


class ProcessCluster:
    """Starts, restarts and stops the processes."""

    def __init__(self, folder: Path, postgres: EmbeddedPostgres, databases: DatabaseUrls) -> None:
        self.databases = databases
        self._folder = folder
        self._postgres = postgres
        self.processes: list[SupervisedProcess] = []
        self.address = self.http_address = self.look_alike_url = ""
        self.payout_addresses: list[str] = []
        """That of the processes whose new payouts the sandbox pays, and of the one with Stripe."""

    def configure(self, proxy_port: int, first_port: int, webhook_url: str) -> None:
        """Names the processes; they reach PostgreSQL at `proxy_port`. The look-alike delivers its
        webhooks below `webhook_url`.
        """
        self._log = self._folder / "processes.log"
        names = [*service_names(), HTTP_SERVER, "sandbox", "stripe", "stripe_payout"]
        addresses = {name: f"127.0.0.1:{first_port + index}" for index, name in enumerate(names)}
        self.address = addresses["payment"]
        self.payout_addresses = [addresses["payout"], addresses["stripe_payout"]]
        self.http_address = addresses[HTTP_SERVER]
        self.look_alike_url = f"http://{addresses['stripe']}"
        settings = {
            **_FAST_SETTINGS,
            "TALLYSTICK_SERVICE_ADDRESSES": ",".join(
                f"{name}={addresses[name]}" for name in service_names()
            ),
            "TALLYSTICK_PROVIDERS__SANDBOX__URL": f"http://{addresses['sandbox']}",
            "TALLYSTICK_PROVIDERS__STRIPE__URL": self.look_alike_url,
            "TALLYSTICK_DATA_DIR": str(self._folder),
        }
        for name in service_names():
            service_settings = {
                **settings,
                "TALLYSTICK_DATABASE__SERVICE_URLS": f"{name}={self._url(name, proxy_port)}",
                "TALLYSTICK_SERVER__LISTEN": addresses[name],
            }
            for number in range(2):
                self._add(f"{name}-{number}", ["serve", name], service_settings)
            if name == "payout":  # as while providers.payout is being changed
                environment = {
                    **service_settings,
                    "TALLYSTICK_SERVER__LISTEN": addresses["stripe_payout"],
                    "TALLYSTICK_PROVIDERS__PAYOUT": "stripe",
                }
                self._add("payout-2", ["serve", "payout"], environment)
        for number in range(2):
            environment = {**settings, "TALLYSTICK_HTTP__LISTEN": self.http_address}
            self._add(f"{HTTP_SERVER}-{number}", ["serve", HTTP_SERVER], environment)
        sandbox_environment = {
            "TALLYSTICK_DATABASE__SERVICE_URLS": f"sandbox={self._url('sandbox', proxy_port)}",
            "TALLYSTICK_DATA_DIR": str(self._folder),
        }
        look_alike = ["stripe-sandbox", "--port", addresses["stripe"].rpartition(":")[2]]
        look_alike += ["--search-lag", str(_SEARCH_LAG_SECONDS)]
        look_alike += ["--webhook-url", f"{webhook_url}/webhooks/stripe"]
        look_alike += ["--connect-webhook-url", f"{webhook_url}/webhooks/stripe/connect"]
        self._add("stripe", look_alike, sandbox_environment)
        sandbox = ["sandbox", "--port", addresses["sandbox"].rpartition(":")[2]]
        self.sandbox = self._new("sandbox", sandbox, sandbox_environment)

    def _add(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        """Adds a process that is killed and frozen."""
        self.processes.append(self._new(name, arguments, environment))

    def _new(
        self, name: str, arguments: list[str], environment: dict[str, str]
    ) -> SupervisedProcess:
        return SupervisedProcess(name, [*_CLI, *arguments], environment, self._log)

    def _url(self, name: str, port: int) -> str:
        """The URL of the service's login, through the proxy."""
        url = make_url(self.databases.service(name))
        return url.set(
            drivername="postgresql", host="127.0.0.1", port=port, query={}
        ).render_as_string(hide_password=False)

    def ensure_running(self) -> None:
        for process in (self.sandbox, *self.processes):
            process.ensure_running()

    def crash_database(self) -> None:
        """Stops PostgreSQL immediately, without closing sessions, and starts it again."""
        postmaster = self._postgres.process
        if postmaster is not None:
            postmaster.send_signal(signal.SIGQUIT)
            postmaster.wait(30)
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
        """Freezes every process of PostgreSQL with SIGSTOP; returns a function that resumes
        them.
        """
        return freeze_postgres(self._postgres)

    def kill(self) -> None:
        for process in (*self.processes, self.sandbox):
            process.kill()


def freeze_postgres(postgres: EmbeddedPostgres) -> Callable[[], None]:
    """Freezes every process of a PostgreSQL with SIGSTOP; returns a function that resumes them."""
    postmaster = postgres.process
    if postmaster is None or postmaster.poll() is not None:
        return lambda: None
    _signal_all([postmaster.pid], signal.SIGSTOP)  # the postmaster first: it starts no more
    children = _child_pids(postmaster.pid)
    _signal_all(children, signal.SIGSTOP)
    return lambda: _signal_all([*children, postmaster.pid], signal.SIGCONT)


def _child_pids(parent_pid: int) -> list[int]:
    """The child processes of a process."""
    pids = []
    for stat_file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended meanwhile
            if int(stat_file.read_text().rpartition(")")[2].split()[1]) == parent_pid:
                pids.append(int(stat_file.parent.name))
    return pids


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for process in pids:
        with suppress(ProcessLookupError):
            os.kill(process, number)
