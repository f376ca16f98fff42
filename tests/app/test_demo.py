"""The demo as a process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallystick import new_order
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import open_databases
from tests.support.platform import ROOT, free_address
from tests.support.platform import serve_platform as platform_of
from tests.support.processes import wait_for_line


def run_demo(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment_without_database = {
        k: v for k, v in os.environ.items() if k != "TALLYSTICK_DATABASE__URL"
    }
    return subprocess.run(
        [sys.executable, "-m", "tallystick_server.cli.demo", "--once"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={
            **environment_without_database,
            "TALLYSTICK_DATA_DIR": str(folder),
            "TALLYSTICK_SERVER__LISTEN": free_address(),
            "TALLYSTICK_HTTP__LISTEN": free_address(),
            **environment,
        },
    )


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """The demo's private folder, which other users may not enter."""
    folder = Path(tempfile.mkdtemp(prefix="demo-", dir=ROOT / ".data"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_the_demo_runs_twice_on_the_same_data(short_folder: Path) -> None:
    """A first run, and a second on the data of the first, both exit 0; as root nothing outside the
    demo's folder changes permissions.
    """
    before = {p: p.stat().st_mode for p in (short_folder, *short_folder.parents)}
    first = run_demo(short_folder)
    folder = Settings().replace(data_dir=short_folder)
    with (
        open_databases(folder, lambda _: None) as local_databases,
        platform_of(local_databases, Settings().replace(release_delay=604_800)) as platform,
        platform.client() as client,
    ):
        # as README's first call; it stays pending
        sale = new_order("order-1", "buyer-ada", "seller-books", "24.90", "EUR")
        client.create_payment("checkout-1", [sale], credit_card_info="tok_visa")
    second = run_demo(short_folder)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    for run in (first, second):
        assert "PAID, is_payment_done = true" in run.stdout
        assert "trial balance of the whole ledger: 0.00 EUR" in run.stdout
        assert "verify: passed" in run.stdout
        assert "PAYOUT_RETURN" in run.stdout
    assert "0.00 available, 0.00 pending → 0.00 available, 23.65 pending" in first.stdout
    assert "0.00 available, 24.90 pending → 0.00 available, 48.55 pending" in second.stdout
    assert "8.77 available, 0.00 pending → 8.77 available, 9.02 pending" in second.stdout
    assert {p: p.stat().st_mode for p in before} == before


def test_the_demo_names_each_failure_in_one_sentence(short_folder: Path) -> None:
    """A killed run's server is taken over. Two concurrent runs, a port in use and broken data each
    end in one clear sentence.
    """
    assert run_demo(short_folder).returncode == 0
    environment = {
        **{k: v for k, v in os.environ.items() if k != "TALLYSTICK_DATABASE__URL"},
        "TALLYSTICK_DATA_DIR": str(short_folder),
        "TALLYSTICK_SERVER__LISTEN": free_address(),
        "TALLYSTICK_HTTP__LISTEN": free_address(),
    }
    idle_process = subprocess.Popen(
        [sys.executable, "-m", "tallystick_server.cli.demo"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    wait_for_line(idle_process, idle_process.stdout, "until Ctrl-C")
    two = run_demo(short_folder)
    assert two.returncode == 1
    assert "Another process uses" in two.stderr
    idle_process.send_signal(signal.SIGKILL)
    idle_process.communicate(timeout=60)
    assert run_demo(short_folder).returncode == 0, (
        "a killed run's PostgreSQL is stopped, and the next run succeeds"
    )
    with socket.create_server(("127.0.0.1", 0)) as occupied_socket:
        busy = run_demo(
            short_folder, TALLYSTICK_SERVER__LISTEN=f"127.0.0.1:{occupied_socket.getsockname()[1]}"
        )
    assert busy.returncode == 1
    assert "address already in use" in busy.stderr
    (short_folder / "postgres" / "data" / "PG_VERSION").unlink()
    demo_result = run_demo(short_folder)
    assert demo_result.returncode == 1
    assert "is not a complete PostgreSQL cluster" in demo_result.stderr
    assert "Traceback" not in demo_result.stderr + busy.stderr + two.stderr


@pytest.mark.parametrize("section", ["server", "http"])
def test_the_demo_is_reachable_from_this_machine_only(short_folder: Path, section: str) -> None:
    """The demo has no authentication, so it does not start where other machines could reach it."""
    token = "0123456789abcdef"
    variable = f"TALLYSTICK_{section.upper()}"
    completed = run_demo(
        short_folder,
        TALLYSTICK_AUTHENTICATION="tokens",
        TALLYSTICK_CALLERS=f"a:service:{token}",
        TALLYSTICK_SERVICE_TOKEN=token,
        **{f"{variable}__LISTEN": "0.0.0.0:7070", f"{variable}__TLS_TERMINATED_BY_PROXY": "true"},
    )
    assert completed.returncode == 1
    assert completed.stderr.strip() == (
        f"demo: {section}.listen ({variable}__LISTEN) must be a loopback address for the demo, "
        "which has no authentication and no TLS."
    )
