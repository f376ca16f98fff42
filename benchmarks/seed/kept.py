"""The seeded databases that are kept for later runs, one for each size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import StatusPrinter
from benchmarks.seed.run import COUNTED_TABLES, seed
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls, open_databases

QUIET_SETTINGS: Mapping[str, Any] = {
    "worker__scan_interval": 3600,
    "worker__monitor_interval": 3600,
    "worker__relay_interval": 3600,
    "reconciliation__posting_interval": 3600,
    "reconciliation__check_interval": 3600,
    "reconciliation__lookup_interval": 3600,
    "monitoring__record_interval": 0,
}
"""The settings of a platform that leaves the seeded database as it is, and runs no statements by
itself.
"""
FOLDER = Path(".data/growth")
DEFAULT_PENDING_FRACTION = 0.3


class KeptDatabase(NamedTuple):
    """`seed_result`: what `seed` returned when it was seeded."""

    folder: Path
    urls: DatabaseUrls
    seed_result: Mapping[str, int | float]


@contextmanager
def open_kept_database(
    payments: int, pending_fraction: float, print_status: StatusPrinter
) -> Iterator[KeptDatabase]:
    """The embedded database of this size, which is seeded if it is missing, if its seeding did not
    complete, or if the seed has another content now. `pending_fraction`: the part of the payments
    that waits for the provider.
    """
    folder = FOLDER / f"{payments}-{pending_fraction:g}"
    seed_file = folder / "seeded.json"
    if not _has_all_tables(seed_file):
        shutil.rmtree(folder, ignore_errors=True)
    with open_databases(Settings(), print_status, folder=folder) as urls:
        if not seed_file.exists():
            result = seed(urls, payments, print_status, pending_fraction=pending_fraction)
            seed_file.write_text(json.dumps(result))
        yield KeptDatabase(folder, urls, json.loads(seed_file.read_text()))


def _has_all_tables(seed_file: Path) -> bool:
    return seed_file.exists() and json.loads(seed_file.read_text()).keys() >= {*COUNTED_TABLES}
