"""What migrations of ReconciliationService carry over."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from tallystick_server.app import services
from tallystick_server.app.database import schema
from tallystick_server.app.database.migrate import migrate
from tests.support.platform import fresh_database

_ROWS = """
    insert into open_item values ('main', 1, 1, 'psp/p/clearing', 'EUR', 500, 'PAY_IN', 'o-1',
        'ch-1', '2026-01-02Z', 'CHARGE');
    insert into closed_item values ('main', 2, 1, 'psp/p/clearing', 'EUR', 7, 'PAY_IN', 'o-2',
        'ch-2', '2026-01-03Z', 'CHARGE', 3, 4, null, false);
"""


def test_entries_are_carried_over_to_one_table(
    admin_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read of open and of closed entries is in ledger_item, and each stays where it is."""
    folder = tmp_path / "migrations"
    shutil.copytree(schema._MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "reconciliation" / "0002_ledger_item.py").unlink()
    released = services.SERVICES
    with fresh_database(admin_url, tmp_path, migrated=False) as databases:
        monkeypatch.setattr(
            services,
            "SERVICES",
            [
                replace(spec, migrations=f"tallystick_storage:{folder}/reconciliation")
                if spec.name == "reconciliation"
                else spec
                for spec in released
            ],
        )
        migrate(databases.admin, databases.passwords)
        with psycopg.connect(databases.admin) as connection:
            connection.execute("set search_path = reconciliation; set timezone = 'UTC'")
            connection.execute(_ROWS)
        monkeypatch.setattr(services, "SERVICES", released)
        migrate(databases.admin, databases.passwords)
        with psycopg.connect(databases.admin) as connection:
            connection.execute("set search_path = reconciliation; set timezone = 'UTC'")
            (items,) = connection.execute(
                "select array_agg((sequence, amount, kind, source_id, external_reference, "
                "line_type)::text order by sequence) from ledger_item"
            )
            (opened,) = connection.execute("select array_agg(o::text) from open_item o")
            (closed,) = connection.execute("select array_agg(c::text) from closed_item c")
    assert items == (["(1,500,PAY_IN,o-1,ch-1,CHARGE)", "(2,7,PAY_IN,o-2,ch-2,CHARGE)"],)
    time = "2026-01-02 00:00:00+00"
    assert opened == ([f'(main,1,1,psp/p/clearing,EUR,500,ch-1,"{time}",CHARGE)'],)
    assert closed == (["(main,2,1,psp/p/clearing,EUR,7,3,4,,f)"],)
