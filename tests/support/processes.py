"""Helpers for tests of processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from tallystick_server.app.database.connections import DatabaseUrls
from tests.support.health import is_serving
from tests.support.platform import eventually

CLI = [sys.executable, "-m", "tallystick_server.cli.main"]


@contextmanager
def running_process(
    arguments: list[str], environment: dict[str, str], address: str, *, command: list[str] = CLI
) -> Iterator[subprocess.Popen[str]]:
    """A command that serves; it is ready when the block begins."""
    subprocess_ = subprocess.Popen(
        [*command, *arguments], env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True
    )
    try:
        eventually(lambda: is_serving(address) or subprocess_.poll() is not None, 30)
        assert subprocess_.poll() is None, subprocess_.stderr.read() if subprocess_.stderr else ""
        assert is_serving(address)
        yield subprocess_
    finally:
        subprocess_.terminate()
        subprocess_.communicate(timeout=60)


def wait_for_line(
    process: subprocess.Popen[str], output: IO[str] | None, text: str, timeout_seconds: float = 60
) -> list[str]:
    """Reads the output of a process until a line contains `text`, and returns the lines. Kills a
    process that does not write it within the timeout.
    """
    assert output is not None
    timer = threading.Timer(timeout_seconds, process.kill)
    timer.start()
    try:
        lines = []
        for line in output:
            lines.append(line)
            if text in line:
                return lines
        raise AssertionError(f"the process wrote {lines} without {text!r}")
    finally:
        timer.cancel()


def environment_of(databases: DatabaseUrls) -> dict[str, str]:
    return {
        "TALLYSTICK_DATABASE__URL": databases.admin,
        "TALLYSTICK_DATA_DIR": str(databases.passwords.path.parent),
        "TALLYSTICK_HTTP__LISTEN": "",  # tests run in parallel
    }


def expect_startup_error(arguments: list[str], environment: dict[str, str]) -> str:
    """The error line of a command that must fail, and must not log an error besides."""
    completed = subprocess.run(
        [*CLI, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert completed.returncode == 1, completed.stderr
    assert "Traceback" not in completed.stderr
    assert "ERROR" not in completed.stderr
    return completed.stderr.strip().splitlines()[-1]


UNREACHABLE_URL = "postgresql://nobody:secret@127.0.0.1:1/none"
