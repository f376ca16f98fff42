"""`tallystick verify`: recomputes everything that stored rows can show, and names the rows that are wrong.

It reads each service with that service's read-only role and merges sorted streams: no join crosses a wall. It may run beside a platform at work
whose services share a database, which is then seen as it stood at one moment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
from sqlalchemy.exc import DataError, SQLAlchemyError

from tallystick_server.process.checks.book import check_book, check_causes
from tallystick_server.process.checks.events import check_due, check_events, check_versions
from tallystick_server.process.checks.payments import (
    check_charges,
    check_checkouts,
    check_deliveries,
    check_orders,
    check_settlement,
    check_unapplied,
)
from tallystick_server.process.checks.payouts import check_facts, check_holds, check_payouts, check_transfers
from tallystick_server.process.checks.report import Check, Read, Report
from tallystick_server.process.checks.seals import check_derived, check_seals
from tallystick_server.process.checks.wallets import check_wallets, check_wallets_against_ledger
from tallystick_server.process.databases import Databases
from tallystick_server.process.failure import Failure
from tallystick_server.process.migrate import first_line
from tallystick_storage.verification import Reader

_CHECKS_AT_ONCE = 5
"""The database does most of the work, each check in a connection's process of its own."""


def verify(databases: Databases) -> Report:
    """Runs every check over the whole database. Raises Failure if it cannot be read."""
    reader = Reader(databases.reader)
    try:
        with reader.at_one_moment() as read:
            return verify_by(read, at_once=_CHECKS_AT_ONCE)
    except SQLAlchemyError as error:
        raise Failure(f"The database cannot be read: {first_line(error)}") from error
    finally:
        reader.close()


def verify_by(read: Read, *, at_once: int = 1, checks: Sequence[Callable[[Read], Check]] | None = None) -> Report:
    """Runs checks, by default all, over what `read` gives, `at_once` of them in threads of their own. The costly ones are last, and begun first."""
    with ThreadPoolExecutor(at_once) as threads:
        return Report([*threads.map(partial(_run, read=read), reversed(CHECKS if checks is None else checks))][::-1])


def _run(check: Callable[[Read], Check], read: Read) -> Check:
    """A check's findings; content that no rule can take is a finding, for its row is broken too: `check_seals` and the other checks name it."""
    try:
        return check(read)
    except (DataError, psycopg.DataError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        stopped = Check(check.__name__.removeprefix("check_"), "")
        stopped.fail(f"check {stopped.name}", f"stopped at content that it cannot take: {type(error).__name__}: {first_line(error)}")
        return stopped


CHECKS: list[Callable[[Read], Check]] = [
    check_book,
    check_causes,
    check_wallets,
    check_wallets_against_ledger,
    check_orders,
    check_charges,
    check_due,
    check_unapplied,
    check_deliveries,
    check_checkouts,
    check_settlement,
    check_payouts,
    check_holds,
    check_transfers,
    check_facts,
    check_events,
    check_versions,
    check_derived,
    check_seals,
]
