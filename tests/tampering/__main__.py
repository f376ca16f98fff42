"""scripts/tamper [--edits N] [--seed S] [--every-cell] [--quick] [--json]: edits a database as its
administrator, and shows the edits that `tallystick verify` does not report.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.embedded import EmbeddedPostgres
from tallystick_server.app.database.migrate import migrate
from tallystick_server.app.database.roles import Passwords
from tests.support.cancellation import exit_on_interrupt
from tests.support.options import print_progress
from tests.tampering.database import fill_database
from tests.tampering.run import Tampering, TamperingResult

_FOLDER = Path(".data/tamper")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/tamper",
        description="Edits a database as its administrator, and reports what verify misses.",
    )
    parser.add_argument(
        "--edits", type=int, default=3000, help="number of edits, one at a time; default 3000"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the edits; default 1")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument(
        "--every-cell",
        action="store_true",
        help="instead of edits at random, several edits of each cell of the tables without seals",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=(
            "no further check once one has named something: a check that would crash may not be "
            "seen"
        ),
    )
    options = parser.parse_args()
    if options.edits < 1:
        parser.error("--edits must be above 0")
    with exit_on_interrupt():
        result = _run(
            options.edits, options.seed, every_cell=options.every_cell, quick=options.quick
        )
    for edit in result.missed:
        print_progress(f"missed: {edit.table}.{edit.column}: {edit.description}")
    for edit, error in result.crashed:
        print_progress(f"crashed: {edit.table}.{edit.column}: {edit.description}: {error}")
    summary = result.as_dict()
    print(
        json.dumps(summary)
        if options.json
        else "\n".join(f"{name:>12}: {value}" for name, value in summary.items())
    )
    sys.exit(0 if result.found_count >= 0.99 * result.edit_count else 1)


def _run(edits: int, seed: int, *, every_cell: bool, quick: bool) -> TamperingResult:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    postgres = EmbeddedPostgres(_FOLDER / "postgres", fsync=False)
    passwords = Passwords(_FOLDER / "passwords.json")
    start_time = time.monotonic()
    try:
        admin = postgres.start(print_progress)
        migrate(admin, passwords)
        fill_database(DatabaseUrls(admin, passwords, {}))
        print_progress(f"The database is filled after {time.monotonic() - start_time:.0f} s")
        tampering = Tampering(admin)
        if not (initial_report := tampering.report()).passed:
            sys.exit(f"tamper: verify fails before the first edit.\n{initial_report.as_text()}")

        def progress(number: int, result: TamperingResult) -> None:
            if number % 100 == 0:
                print_progress(
                    f"{time.monotonic() - start_time:5.0f} s: {number} edits, "
                    f"{len(result.missed)} missed, {len(result.crashed)} crashed"
                )

        try:
            return (
                tampering.run_every_cell(progress)
                if every_cell
                else tampering.run(edits, seed, progress, stop_at_first=quick)
            )
        finally:
            tampering.close()
    finally:
        postgres.stop()


main()
