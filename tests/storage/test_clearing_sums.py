"""The clearing report and the gauge of expected entries, by the sums that triggers keep."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_storage.gauges import read_gauges
from tallystick_storage.reconciliation import postings
from tallystick_storage.sql import Connection, connect
from tests.support.platform import fresh_database

_NOW = datetime(2026, 3, 5, 10, 20, tzinfo=UTC)
_AGES = (1, 2, 3, 5, 10, 30)
_MICROSECOND = timedelta(microseconds=1)
_INSERT = """
    insert into reconciliation.open_item (book, sequence, entry_number, account, currency, amount,
        external_reference, effective_time, line_type)
    values ('main', %s, 1, %s, %s, %s, '', %s, 'CHARGE')
"""


@pytest.fixture
def databases(admin_url: str, tmp_path: Path) -> Iterator[DatabaseUrls]:
    """A database whose clock does not move."""
    with fresh_database(admin_url, tmp_path) as found:
        with psycopg.connect(found.admin) as admin:
            admin.execute(
                "create or replace function reconciliation.clock() returns timestamptz "
                f"language sql volatile as $$select timestamptz '{_NOW}'$$".encode()
            )
        yield found


def test_entries_are_summed_by_their_exact_age(databases: DatabaseUrls) -> None:
    """Also those of the hour in which an age ends, to the microsecond; and what is left when some
    are closed.
    """
    seeded_random = random.Random(1)
    ends = [_NOW - timedelta(days=days) for days in _AGES]
    times = [end + change for end in ends for change in (-_MICROSECOND, timedelta(), _MICROSECOND)]
    times += [
        seeded_random.choice([_NOW, *ends]) + timedelta(minutes=seeded_random.uniform(-90, 90))
        for _ in range(300)
    ]
    entries = [
        (
            number,
            seeded_random.choice(["psp/a/clearing", "banks/b"]),
            seeded_random.choice(["EUR", "USD"]),
            seeded_random.choice([-7, 1, 10**17]),
            time,
        )
        for number, time in enumerate(times, 1)
    ]
    with psycopg.connect(databases.admin) as admin, admin.cursor() as cursor:
        cursor.executemany(_INSERT, entries[:150])
        cursor.executemany(_INSERT, entries[150:])
    require_sums(databases, entries)
    with psycopg.connect(databases.admin) as admin:
        admin.execute("delete from reconciliation.open_item where sequence % 3 = 1")
    require_sums(databases, [entry for entry in entries if entry[0] % 3 != 1])
    with psycopg.connect(databases.admin) as admin:
        admin.execute("delete from reconciliation.open_item")
        assert admin.execute("select * from reconciliation.expected_sum").fetchall() == []
    require_sums(databases, [])


def require_sums(
    databases: DatabaseUrls, entries: list[tuple[int, str, str, int, datetime]]
) -> None:
    """The report of all accounts and of one, and the gauge, have the sums of these entries."""
    counts: Counter[tuple[str, str, int]] = Counter()
    amounts: dict[tuple[str, str, int], int] = defaultdict(int)
    for _, account, currency, amount, time in entries:
        age = max((days for days in _AGES if _NOW - time >= timedelta(days=days)), default=0)
        counts[account, currency, age] += 1
        amounts[account, currency, age] += amount
    connection: Connection
    with connect(databases.service("reconciliation")) as connection:
        for account in ("", "banks/b"):
            report = postings.clearing_report(connection, account, "main")
            assert {
                (row.account, row.currency, row.min_age_days): (row.count, int(row.amount))
                for row in report.expected
            } == {
                key: (count, amounts[key])
                for key, count in counts.items()
                if account in ("", key[0])
            }
        gauges = read_gauges(connection, postings.gauge_queries())
    assert gauges["tallystick.clearing.expected"] == {
        (account, currency, str(age)): amount
        for (account, currency, age), amount in amounts.items()
    }
