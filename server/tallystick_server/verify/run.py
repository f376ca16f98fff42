"""`tallystick verify`: recomputes every invariant from stored rows, and names the rows that violate
one.

It reads each service with that service's read-only role and merges sorted streams: no join crosses
a service boundary.

It may run while the platform serves, if the services share a database. It then reads one snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg

from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.errors import StartupError, first_line
from tallystick_server.app.services import SERVICES, stop_order
from tallystick_server.verify.events import check_operations
from tallystick_server.verify.report import Check, QueryRunner, Report
from tallystick_server.verify.seals import check_derived, check_seals
from tallystick_storage.verify import Reader

_MAX_CONCURRENT_CHECKS = 5
"""The database does most of the work; each check has its own connection."""


def verify(
    database_urls: DatabaseUrls, on_check: Callable[[Check], None] = lambda _: None
) -> Report:
    """Runs every check over the whole database. Calls `on_check` after each, in the check's thread.
    Raises StartupError if the database cannot be read.
    """
    reader = Reader(database_urls.reader, load_queries())
    try:
        with reader.open_snapshot() as read:
            return run_checks(read, concurrency=_MAX_CONCURRENT_CHECKS, on_check=on_check)
    except psycopg.Error as error:
        raise StartupError(f"The database cannot be read: {first_line(error)}") from error
    finally:
        reader.close()


def load_queries() -> dict[str, Mapping[str, str]]:
    """The queries of each schema, in the order in which their snapshots are taken: the snapshot of
    events is the last, so that it contains every event relayed before another snapshot.
    """
    return {spec.name: spec.load_queries() for spec in stop_order(SERVICES)}


def run_checks(
    read: QueryRunner,
    *,
    concurrency: int = 1,
    checks: Sequence[Callable[[QueryRunner], Check]] | None = None,
    on_check: Callable[[Check], None] = lambda _: None,
) -> Report:
    """Runs checks, by default all, with the connections of `read`, in `concurrency` threads. The
    costly ones are last in the list and start first.
    """
    run_check = partial(_run_check, read=read, on_check=on_check)
    with ThreadPoolExecutor(concurrency) as executor:
        return Report(
            [*executor.map(run_check, reversed(CHECKS if checks is None else checks))][::-1]
        )


def _run_check(
    check: Callable[[QueryRunner], Check], read: QueryRunner, on_check: Callable[[Check], None]
) -> Check:
    """Runs a check and returns its result. Content that no rule accepts is a violation too: its row
    is corrupt, and `check_seals` and other checks name it.
    """
    try:
        result = check(read)
    except (
        psycopg.DataError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        result = Check(check.__name__.removeprefix("check_"), "")
        result.fail(
            f"check {result.name}",
            f"stopped at a row that it cannot read: {type(error).__name__}: {first_line(error)}",
        )
    on_check(result)
    return result


_SHARED_CHECKS = (check_operations, check_derived, check_seals)
"""The checks of what every service has."""
CHECKS: list[Callable[[QueryRunner], Check]] = [
    *(check for spec in SERVICES for check in spec.load_checks()),
    *_SHARED_CHECKS,
]
