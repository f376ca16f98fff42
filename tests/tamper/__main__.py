"""scripts/tamper [--edits N] [--seed S] [--every-cell] [--quick] [--json]: edits a database as its administrator, and shows what `tallystick verify` does not name."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from tallystick_server.process.databases import Databases
from tallystick_server.process.embedded import EmbeddedPostgres
from tallystick_server.process.migrate import Passwords, migrate
from tests.interrupts import interruptible

from .database import fill
from .run import Result, Tampering

_FOLDER = Path(".data/tamper")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/tamper", description="Edits a database as its administrator, and shows what verify does not name.")
    parser.add_argument("--edits", type=int, default=3000, help="how many edits, one at a time; by default 3000")
    parser.add_argument("--seed", type=int, default=1, help="what the edits are drawn from; by default 1")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument(
        "--every-cell", action="store_true", help="instead of edits at random, several edits of each cell of the tables without seals"
    )
    parser.add_argument(
        "--quick", action="store_true", help="no further check once one has named something: a check that would crash may not be seen"
    )
    options = parser.parse_args()
    if options.edits < 1:
        parser.error("--edits must be above 0: nothing would be proved")
    with interruptible():
        result = _run(options.edits, options.seed, every_cell=options.every_cell, quick=options.quick)
    for edit in result.missed:
        say(f"missed: {edit.table}.{edit.column}: {edit.what}")
    for edit, error in result.crashed:
        say(f"crashed: {edit.table}.{edit.column}: {edit.what}: {error}")
    found = result.as_dict()
    print(json.dumps(found) if options.json else "\n".join(f"{name:>12}: {value}" for name, value in found.items()))
    sys.exit(0 if result.found >= 0.99 * result.edits else 1)


def _run(edits: int, seed: int, *, every_cell: bool, quick: bool) -> Result:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    postgres = EmbeddedPostgres(_FOLDER / "postgres", fsync=False)
    passwords = Passwords(_FOLDER / "passwords.json")
    began = time.monotonic()
    try:
        admin = postgres.start(say)
        migrate(admin, passwords)
        fill(Databases(admin, passwords, {}))
        say(f"The database is filled after {time.monotonic() - began:.0f} s")
        tampering = Tampering(admin)
        if not (before := tampering.report()).passed:
            sys.exit(f"tamper: verify fails before the first edit.\n{before.as_text()}")

        def progress(number: int, result: Result) -> None:
            if number % 100 == 0:
                say(f"{time.monotonic() - began:5.0f} s: {number} edits, {len(result.missed)} missed, {len(result.crashed)} crashed")

        try:
            return tampering.run_every(progress) if every_cell else tampering.run(edits, seed, progress, quick=quick)
        finally:
            tampering.close()
    finally:
        postgres.stop()


main()
