"""scripts/mutation [--only WORDS] [--new] [--part K/N]: applies one mutant at a time to a copy of
the code and reports whether the tests or the simulation kill it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.mutation.mutants import MUTANTS, Mutant, apply_mutant, fingerprint_of
from tests.support.cancellation import exit_on_interrupt
from tests.support.options import RunPart, parse_part

_ROOT = Path.cwd()
_TREE_COPY = Path(".data/mutation/tree")
_RESULTS_PAGE = Path("tests/mutation/KILLED.md")
_PAGE_HEADER = (
    "# Mutants, and what killed them\n\n"
    "Written by `scripts/mutation`. The mark is the fingerprint of the mutant. A row whose mark "
    "differs\nfrom that of its mutant is out of date.\n\n"
    "| mutant | where | killed by | first sign | mark |\n|---|---|---|---|---|\n"
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
_TIMEOUT_SECONDS = 900.0


@dataclass(frozen=True)
class Detection:
    """Which check detected a mutant, and its first finding."""

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
    except KeyboardInterrupt:  # SIGTERM: the command unwinds, and stops what it started
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()
        raise


def _detect(mutant: Mutant) -> Detection | None:
    """The check that kills the mutant, or None: its own tests, then the simulation. Raises
    RuntimeError if a run is inconclusive.
    """
    return (_run_tests(mutant.tests) if mutant.tests else None) or _run_simulation()


def _run_simulation() -> Detection | None:
    exit_code, output = _run_command(_SIMULATION_COMMAND)
    if exit_code == 0:
        return None
    sign = next((line for line in output.splitlines() if line.startswith("seed ")), None)
    if sign is None:
        raise RuntimeError(f"the simulation did not finish:\n{output[-2000:]}")
    return Detection("simulation", sign.partition(": ")[2])


def _run_tests(tests: str) -> Detection | None:
    exit_code, output = _run_command([*_PYTEST_COMMAND, *tests.split()])
    if exit_code == 0:
        return None
    signs = (
        line for line in output.splitlines() if line.startswith(("FAILED tests/", "ERROR tests/"))
    )
    if (sign := next(signs, None)) is None:
        raise RuntimeError(f"the tests did not finish:\n{output[-2000:]}")
    return Detection("tests", sign.split(" - ")[0].removeprefix("FAILED ").removeprefix("ERROR "))


def _require_no_detection(mutants: list[Mutant]) -> None:
    """Exits if one of the checks fails without a mutant."""
    checks: list[Callable[[], Detection | None]] = [
        partial(_run_tests, tests) for tests in sorted({mutant.tests for mutant in mutants} - {""})
    ]
    if not all(mutant.tests for mutant in mutants):
        checks.append(_run_simulation)
    for detect in checks:
        if (detection := detect()) is not None:
            sys.exit(f"without a mutant this fails: {detection.detector}: {detection.sign}")
    print("without a mutant everything passes", flush=True)


def _read_rows() -> dict[str, str]:
    """The rows of the present table, by mutant."""
    lines = _RESULTS_PAGE.read_text().splitlines(keepends=True) if _RESULTS_PAGE.exists() else []
    return {
        line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")
    }


def _render_row(mutant: Mutant, detection: Detection) -> str:
    sign = detection.sign[:110].replace("|", "/")
    mark = fingerprint_of(mutant)
    return f"| {mutant.name} | `{mutant.file}` | {detection.detector} | {sign} | {mark} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/mutation", description="Applies mutants, and checks that each is killed."
    )
    parser.add_argument(
        "--part",
        type=parse_part,
        default=RunPart(1, 1),
        metavar="K/N",
        help="only the K-th of N parts of the mutants",
    )
    parser.add_argument("--only", default="", help="only mutants whose names contain these words")
    parser.add_argument("--new", action="store_true", help="only mutants without a current result")
    options = parser.parse_args()
    start_time = time.monotonic()
    killed_count = 0
    existing_rows = "".join(_read_rows().values())
    selected_mutants = [
        mutant
        for mutant in MUTANTS[options.part.number - 1 :: options.part.total]
        if options.only in mutant.name
        and not (options.new and fingerprint_of(mutant) in existing_rows)
    ]
    if not selected_mutants:
        sys.exit("no mutant meets the options")
    _copy_tree()
    _require_no_detection(selected_mutants)
    rows, survivors = _read_rows(), []
    for mutant in selected_mutants:
        path = _TREE_COPY / mutant.file
        original_source = path.read_text()
        path.write_text(apply_mutant(mutant, original_source))
        try:
            detection = _detect(mutant)
        finally:
            path.write_text(original_source)
        print(
            f"{time.monotonic() - start_time:5.0f} s: {mutant.name}: "
            f"{f'{detection.detector}: {detection.sign[:150]}' if detection else 'SURVIVED'}",
            flush=True,
        )
        if detection is None:
            survivors.append(mutant.name)
        else:
            killed_count += 1
            rows[mutant.name] = _render_row(mutant, detection)
    print(
        f"{killed_count} of {killed_count + len(survivors)} mutants were killed in "
        f"{time.monotonic() - start_time:.0f} s"
    )
    if options.part.total == 1:  # a part is a sample, and changes no file of the repository
        _RESULTS_PAGE.write_text(
            _PAGE_HEADER
            + "".join(
                rows[mutant.name]
                for mutant in MUTANTS
                if mutant.name in rows and mutant.name not in survivors
            )
        )
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    with exit_on_interrupt():
        main()
