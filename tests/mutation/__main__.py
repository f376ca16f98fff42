"""scripts/mutation [--only WORDS] [--new]: plants one bug at a time in a copy of the code and
reports whether the simulation or the tests detect it.
"""

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

from tests.mutation.mutants import BUGS, PlantedBug, apply_bug, fingerprint_of

_ROOT = Path.cwd()
_TREE_COPY = Path(".data/mutation/tree")
_RESULTS_PAGE = Path("tests/mutation/KILLED.md")
_PAGE_HEADER = (
    "# Planted bugs, and who noticed them\n\nWritten by `scripts/mutation`.\n\n| bug | where | "
    "noticed by | first sign | mark |\n|---|---|---|---|---|\n"
)
_SIMULATION_COMMAND = [
    sys.executable,
    "-m",
    "tests.simulation",
    "--seeds",
    "30",
    "--payments",
    "25",
    "--stop",
]
_PYTEST_COMMAND = [
    sys.executable,
    "-m",
    "pytest",
    "-x",
    "-q",
    "-p",
    "no:cacheprovider",
    "-W",
    "ignore",
]
_TIMEOUT_SECONDS = 900.0  # seconds


@dataclass(frozen=True)
class Detection:
    """Which check detected a bug, and its first finding."""

    detector: str
    sign: str


def _copy_tree() -> None:
    """All files that belong to the repository, in their present version."""
    shutil.rmtree(_TREE_COPY, ignore_errors=True)
    file_names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in file_names:
        if Path(name).exists():
            (_TREE_COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, _TREE_COPY / name)


def _run_command(command: list[str]) -> tuple[int | None, str]:
    """The exit code (None after a timeout) and the output."""
    roots = [_TREE_COPY / part for part in ("server", "storage", "clients/python", ".")]
    environment = {
        **os.environ,
        "PYTHONPATH": ":".join(str((_ROOT / root).resolve()) for root in roots),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    process = subprocess.Popen(
        command,
        cwd=_TREE_COPY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=_TIMEOUT_SECONDS)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]


def _detect(bug: PlantedBug | None) -> Detection | None:
    """The check that detects the bug, or None. Raises RuntimeError if the run is inconclusive."""
    exit_code, output = _run_command(_SIMULATION_COMMAND)
    if exit_code != 0:
        sign = next((line for line in output.splitlines() if line.startswith("seed ")), None)
        if sign is None:
            raise RuntimeError(f"the simulation did not come to its end:\n{output[-2000:]}")
        return Detection("simulation", sign.partition(": ")[2])
    if bug is None or not bug.tests:
        return None
    exit_code, output = _run_command([*_PYTEST_COMMAND, *bug.tests.split()])
    if exit_code == 0:
        return None
    sign = next(
        (
            line
            for line in output.splitlines()
            if line.startswith(("FAILED tests/", "ERROR tests/"))
        ),
        None,
    )
    if sign is None:
        raise RuntimeError(f"the tests did not come to their end:\n{output[-2000:]}")
    return Detection("tests", sign.split(" - ")[0].removeprefix("FAILED ").removeprefix("ERROR "))


def _read_rows() -> dict[str, str]:
    """The rows of the present table, by bug."""
    lines = _RESULTS_PAGE.read_text().splitlines(keepends=True) if _RESULTS_PAGE.exists() else []
    return {
        line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")
    }


def _render_row(bug: PlantedBug, detection: Detection) -> str:
    sign = detection.sign[:110].replace("|", "/")
    return (
        f"| {bug.name} | `{bug.file}` | {detection.detector} | {sign} | {fingerprint_of(bug)} |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/mutation", description="Plants bugs, and checks that each is noticed."
    )
    parser.add_argument("--only", default="", help="only bugs whose names hold these words")
    parser.add_argument(
        "--new", action="store_true", help="only bugs that were not noticed yet as they are now"
    )
    options = parser.parse_args()
    start_time = time.monotonic()
    detected_count = 0
    _copy_tree()
    if (false_detection := _detect(None)) is not None:
        sys.exit(f"without any bug the {false_detection.detector} fails: {false_detection.sign}")
    existing_rows = "".join(_read_rows().values())
    selected_bugs = [
        bug
        for bug in BUGS
        if options.only in bug.name and not (options.new and fingerprint_of(bug) in existing_rows)
    ]
    for tests in sorted({bug.tests for bug in selected_bugs if bug.tests}):
        if _run_command([*_PYTEST_COMMAND, *tests.split()])[0] != 0:
            sys.exit(f"without any bug these fail: {tests}")
    print("nothing is planted: nothing is noticed", flush=True)
    rows, missed = _read_rows(), []
    for bug in selected_bugs:
        path = _TREE_COPY / bug.file
        original_source = path.read_text()
        path.write_text(apply_bug(bug, original_source))
        try:
            detection = _detect(bug)
        finally:
            path.write_text(original_source)
        print(
            f"{time.monotonic() - start_time:5.0f} s: {bug.name}: "
            f"{f'{detection.detector}: {detection.sign[:150]}' if detection else 'NOT NOTICED'}",
            flush=True,
        )
        if detection is None:
            missed.append(bug.name)
        else:
            detected_count += 1
            rows[bug.name] = _render_row(bug, detection)
    print(
        f"{detected_count} of {detected_count + len(missed)} planted bugs were noticed in "
        f"{time.monotonic() - start_time:.0f} s"
    )
    _RESULTS_PAGE.write_text(
        _PAGE_HEADER
        + "".join(rows[bug.name] for bug in BUGS if bug.name in rows and bug.name not in missed)
    )
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
