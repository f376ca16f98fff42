"""The server processes of a benchmark."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.errors import StartupError
from tallystick_server.app.services import find_spec
from tests.support.health import is_serving

DATABASE_FOLDER = Path(".data/bench")
_LOG_FILE = Path(".data/bench.log")
_DOWNSTREAM_SERVICES = find_spec("payment").dependencies
DOWNSTREAM_ADDRESS = "unix:.data/bench.sock"
"""The address of the services that PaymentService and PayoutService call, on the same machine."""
DOWNSTREAM_ENVIRONMENT = {
    "TALLYSTICK_SERVICE_ADDRESSES": ",".join(
        f"{name}={DOWNSTREAM_ADDRESS}" for name in _DOWNSTREAM_SERVICES
    )
}
"""The environment of a process that calls them."""
_STARTUP_TIMEOUT_SECONDS = 60
_STOP_TIMEOUT_SECONDS = 60
_POLL_SECONDS = 0.1
# Fields of /proc/PID/stat after the name, see proc(5): the parent's pid; ticks in user and system
# mode, of the process and of its children that have ended.
_PARENT_FIELD, _CPU_FIELDS = 1, slice(11, 15)


def database_environment(database_urls: DatabaseUrls) -> dict[str, str]:
    """The environment of a process that uses these databases."""
    urls = ",".join(f"{name}={url}" for name, url in database_urls.all().items())
    return {"TALLYSTICK_DATABASE__SERVICE_URLS": urls}


def _accepts_connections(address: str) -> bool:
    is_unix = address.startswith("unix:")
    host, _, port = address.rpartition(":")
    with closing(socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)) as probe:
        try:
            probe.connect(address.removeprefix("unix:") if is_unix else (host, int(port)))
        except OSError:
            return False
    return True


def run_services(
    names: Sequence[str], environment: dict[str, str], address: str, *, kill: bool = False
) -> AbstractContextManager[int]:
    """Serves services in a process of their own while the block runs, see `run_process`."""
    return run_process(
        ["-m", "tallystick_server.cli.main", "serve", *names],
        {
            "TALLYSTICK_HTTP__LISTEN": "",
            **environment,
            "TALLYSTICK_SERVER__LISTEN": address,
        },
        address,
        kill=kill,
        is_ready=is_serving,
    )


def run_downstream_services(environment: dict[str, str]) -> AbstractContextManager[int]:
    """Serves the services that PaymentService and PayoutService call, see `run_process`."""
    return run_services(_DOWNSTREAM_SERVICES, environment, DOWNSTREAM_ADDRESS)


def run_http_server(
    environment: dict[str, str], payment_address: str, http_address: str
) -> AbstractContextManager[int]:
    """Serves HTTP in a process of its own, see `run_process`."""
    addresses = dict.fromkeys(_DOWNSTREAM_SERVICES, DOWNSTREAM_ADDRESS)
    addresses |= dict.fromkeys(("payment", "payout"), payment_address)
    return run_process(
        ["-m", "tallystick_server.cli.main", "serve", "http"],
        {
            **environment,
            "TALLYSTICK_SERVICE_ADDRESSES": ",".join(
                f"{name}={address}" for name, address in addresses.items()
            ),
            "TALLYSTICK_HTTP__LISTEN": http_address,
        },
        http_address,
    )


def run_baseline(address: str) -> AbstractContextManager[int]:
    """Serves the baseline, see `run_process`."""
    return run_process(["-m", "benchmarks.baseline", address], {}, address)


@contextmanager
def run_process(
    arguments: Sequence[str],
    environment: dict[str, str],
    address: str,
    *,
    kill: bool = False,
    is_ready: Callable[[str], bool] = _accepts_connections,
) -> Iterator[int]:
    """Runs Python with these arguments, and yields the pid once the address is ready. When
    the block ends, the process is stopped by SIGTERM, or by SIGKILL if `kill`.

    Raises StartupError if it does not answer.
    """
    with _LOG_FILE.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], env={**os.environ, **environment}, stderr=log
        )
    try:
        _wait_until_ready(address, process, is_ready)
        yield process.pid
    finally:
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_ready(
    address: str, process: subprocess.Popen[bytes], is_ready: Callable[[str], bool]
) -> None:
    deadline = time.monotonic() + _STARTUP_TIMEOUT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if is_ready(address):
            return
        time.sleep(_POLL_SECONDS)
    raise StartupError(f"The server at {address} did not start. Its log is {_LOG_FILE}.")


def read_peak_mb(pid: int) -> int:
    """The peak resident memory of a process in MB."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) // 1024 if match else 0


def read_cpu_seconds(pids: Collection[int]) -> float:
    """The processor time so far of these processes and of their children, ended ones included."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(") ")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        if int(path.parent.name) in pids or int(fields[_PARENT_FIELD]) in pids:
            ticks += sum(map(int, fields[_CPU_FIELDS]))
    return ticks / os.sysconf("SC_CLK_TCK")


def read_postgres_pid(folder: Path = DATABASE_FOLDER) -> int:
    """The pid of the embedded PostgreSQL of a benchmark, whose database is in `folder`."""
    return int((folder / "postgres" / "data" / "postmaster.pid").read_text().split()[0])


def require_embedded_postgres(settings: Settings, benchmark: str) -> None:
    """Raises StartupError if the database of a benchmark is not the embedded one, whose processor
    time it measures.
    """
    if settings.database.url or settings.database.service_urls:
        raise StartupError(
            f"{benchmark} measures the embedded PostgreSQL: unset TALLYSTICK_DATABASE__URL and "
            "TALLYSTICK_DATABASE__SERVICE_URLS."
        )
