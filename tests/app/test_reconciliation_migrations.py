"""What migrations of ReconciliationService carry over."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tallystick_server.app import services
from tallystick_server.app.database import schema
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.migrate import migrate
from tests.support.platform import eventually, fresh_database

_ENTRY = """
    insert into reconciliation.open_item values ('main', 1, 1, 'psp/p/clearing', 'EUR', 500,
        'PAY_IN', 'o-1', 'ch-1', '2026-01-02Z', 'CHARGE')
"""
_CLOSED_ENTRY = """
    insert into reconciliation.closed_item values ('main', 2, 1, 'psp/p/clearing', 'EUR', 7,
        'PAY_IN', 'o-2', 'ch-2', '2026-01-03Z', 'CHARGE', 3, 4, null, false)
"""
_WAITING_TABLES = """
    select relation::regclass::text from pg_locks where not granted and locktype = 'relation'
        and database = (select oid from pg_database where datname = current_database())
"""


@pytest.fixture
def databases(
    admin_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DatabaseUrls]:
    """A database with the first schema of ReconciliationService, to migrate further."""
    folder = tmp_path / "migrations"
    shutil.copytree(schema._MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "reconciliation" / "0002_ledger_item.py").unlink()
    with fresh_database(admin_url, tmp_path, migrated=False) as found:
        with monkeypatch.context() as patch:
            patch.setattr(
                services,
                "SERVICES",
                [
                    replace(spec, migrations=f"tallystick_storage:{folder}/reconciliation")
                    if spec.name == "reconciliation"
                    else spec
                    for spec in services.SERVICES
                ],
            )
            migrate(found.admin, found.passwords)
        yield found


@pytest.fixture
def query(databases: DatabaseUrls) -> Callable[[str], list[Any]]:
    """Returns the first column of a query on the schema."""

    def run(sql: str) -> list[Any]:
        with psycopg.connect(databases.admin) as connection:
            connection.execute("set search_path = reconciliation; set timezone = 'UTC'")
            return [row[0] for row in connection.execute(sql)]

    return run


def test_entries_are_carried_over_to_one_table(
    databases: DatabaseUrls, query: Callable[[str], list[Any]]
) -> None:
    """What was read of open and of closed entries is in ledger_item, and each stays where it is."""
    with psycopg.connect(databases.admin) as connection:
        connection.execute(_ENTRY)
        connection.execute(_CLOSED_ENTRY)
    migrate(databases.admin, databases.passwords)
    assert query(
        "select (sequence, amount, kind, source_id, external_reference, line_type)::text "
        "from ledger_item order by sequence"
    ) == ["(1,500,PAY_IN,o-1,ch-1,CHARGE)", "(2,7,PAY_IN,o-2,ch-2,CHARGE)"]
    assert query("select o::text from open_item o") == [
        '(main,1,1,psp/p/clearing,EUR,500,ch-1,"2026-01-02 00:00:00+00",CHARGE)'
    ]
    assert query("select c::text from closed_item c") == ["(main,2,1,psp/p/clearing,EUR,7,3,4,,f)"]


def test_an_entry_that_an_old_process_stores_meanwhile_is_carried_over(
    databases: DatabaseUrls, query: Callable[[str], list[Any]]
) -> None:
    """An old process that still runs has stored an entry, and commits when the migration waits."""
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(databases.admin) as connection:
            connection.execute(_ENTRY)
            migration = pool.submit(migrate, databases.admin, databases.passwords)
            assert eventually(lambda: query(_WAITING_TABLES) == ["open_item"])
        migration.result()
    assert query("select source_id from ledger_item") == ["o-1"]
