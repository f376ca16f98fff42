"""scripts/planted-bugs [--only WORDS] [--new]: plants one bug at a time in a copy of the code, and sees whether the simulation or the tests notice it."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .bugs import BUGS, Bug, mark, planted

_ROOT = Path.cwd()
_COPY = Path(".data/planted/tree")
_TABLE = Path("tests/planted/CAUGHT.md")
_HEAD = "# Planted bugs, and who noticed them\n\nWritten by `scripts/planted-bugs`.\n\n| bug | where | noticed by | first sign | mark |\n|---|---|---|---|---|\n"
_SIMULATE = [sys.executable, "-m", "tests.simulation", "--seeds", "30", "--payments", "25", "--stop"]
_PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
_PATIENCE = 900.0  # seconds


@dataclass(frozen=True)
class Caught:
    """By whom a bug was noticed, and what showed first."""

    by: str
    sign: str


def _copy() -> None:
    """All files that belong to the repository, as they are now."""
    shutil.rmtree(_COPY, ignore_errors=True)
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True).stdout.splitlines()
    for name in listed:
        if Path(name).exists():
            (_COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, _COPY / name)


def _run(command: list[str]) -> tuple[int | None, str]:
    """The exit code, None if it did not end in time, and what was printed."""
    roots = [_COPY / part for part in ("server", "storage", "clients/python", ".")]
    environment = {**os.environ, "PYTHONPATH": ":".join(str((_ROOT / root).resolve()) for root in roots), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command,
        cwd=_COPY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=_PATIENCE)
        return process.returncode, printed
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


def _look(bug: Bug | None) -> Caught | None:
    """Who notices; None: nobody. Raises RuntimeError if that cannot be said."""
    code, printed = _run(_SIMULATE)
    if code != 0:
        sign = next((line for line in printed.splitlines() if line.startswith("seed ")), None)
        if sign is None:
            raise RuntimeError(f"the simulation did not come to its end:\n{printed[-2000:]}")
        return Caught("simulation", sign.partition(": ")[2])
    if bug is None or not bug.tests:
        return None
    code, printed = _run([*_PYTEST, *bug.tests.split()])
    if code == 0:
        return None
    sign = next((line for line in printed.splitlines() if line.startswith(("FAILED tests/", "ERROR tests/"))), None)
    if sign is None:
        raise RuntimeError(f"the tests did not come to their end:\n{printed[-2000:]}")
    return Caught("tests", sign.split(" - ")[0].removeprefix("FAILED ").removeprefix("ERROR "))


def _rows() -> dict[str, str]:
    """The rows of the table as it stands, by bug."""
    lines = _TABLE.read_text().splitlines(keepends=True) if _TABLE.exists() else []
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}


def _row(bug: Bug, caught: Caught) -> str:
    sign = caught.sign[:110].replace("|", "/")
    return f"| {bug.name} | `{bug.file}` | {caught.by} | {sign} | {mark(bug)} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/planted-bugs", description="Plants bugs, and checks that each is noticed.")
    parser.add_argument("--only", default="", help="only bugs whose names hold these words")
    parser.add_argument("--new", action="store_true", help="only bugs that were not noticed yet as they are now")
    options = parser.parse_args()
    began = time.monotonic()
    noticed = 0
    _copy()
    if (found := _look(None)) is not None:
        sys.exit(f"without any bug the {found.by} fails: {found.sign}")
    known = "".join(_rows().values())
    wanted = [bug for bug in BUGS if options.only in bug.name and not (options.new and mark(bug) in known)]
    for tests in sorted({bug.tests for bug in wanted if bug.tests}):
        if _run([*_PYTEST, *tests.split()])[0] != 0:
            sys.exit(f"without any bug these fail: {tests}")
    print("nothing is planted: nothing is noticed", flush=True)
    rows, missed = _rows(), []
    for bug in wanted:
        path = _COPY / bug.file
        whole = path.read_text()
        path.write_text(planted(bug, whole))
        try:
            caught = _look(bug)
        finally:
            path.write_text(whole)
        print(f"{time.monotonic() - began:5.0f} s: {bug.name}: {f'{caught.by}: {caught.sign[:150]}' if caught else 'NOT NOTICED'}", flush=True)
        if caught is None:
            missed.append(bug.name)
        else:
            noticed += 1
            rows[bug.name] = _row(bug, caught)
    print(f"{noticed} of {noticed + len(missed)} planted bugs were noticed in {time.monotonic() - began:.0f} s")
    _TABLE.write_text(_HEAD + "".join(rows[bug.name] for bug in BUGS if bug.name in rows and bug.name not in missed))
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
