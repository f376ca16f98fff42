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

from tallystick_core.reconciliation.breaks import BreakKind
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
_BREAKS = """
    insert into reconciliation.break_change (break_id, version, action, caller, reason, assignee,
        traceparent, create_time)
    select 'b-' || number, 1, 'FOUND', 'me', '', '', '', '2026-01-05Z'
    from generate_series(1, 4) number;
    insert into reconciliation.break (break_id, kind, rule_version, break_class, account, currency,
        difference, detail, statement_file_id, state, assignee, resolution, proposed_by, version,
        create_time, update_time)
    select 'b-' || number, 'AMOUNT_DIFFERS', 1, 'FINANCE', 'psp/p/clearing', 'EUR', 0, '', '',
        state, '', resolution, '', 1, '2026-01-05Z', '2026-01-05Z'
    from (values (1, 'OPEN', null), (2, 'RESOLVED', 'ACCEPT'), (3, 'RESOLVED', 'ADJUST'),
        (4, 'OPEN', null)) b (number, state, resolution);
    insert into reconciliation.closed_item (book, sequence, entry_number, account, currency, amount,
        kind, source_id, external_reference, effective_time, line_type, break_id, is_own)
    select 'main', 10 + number, 1, 'psp/p/clearing', 'EUR', amount, 'PAY_IN', '', '',
        '2026-01-04Z', 'CHARGE', 'b-' || number, false
    from (values (1, 100), (2, 20), (3, 3)) i (number, amount);
    insert into reconciliation.statement_line (file_number, number, statement_number, line_number,
        line_type, code, amount, currency, fee, reference, charge_reference, client_reference,
        settlement_reference, original_currency, text, identity, occurrence, outcome, match_rule,
        break_id)
    select 1, number, 1, number, 'CHARGE', '', 40, 'EUR', 0, '', '', '', '', '', '',
        gen_random_uuid(), 1, 'BREAK', '', 'b-1'
    from generate_series(1, 2) number
"""
_SUMS = """
    select (account, currency, hour, entry_count, amount)::text from expected_sum
    union all select (account, currency, break_class, sum(break_count), sum(amount))::text
    from break_sum group by account, currency, break_class order by 1
"""
_WAITING_TABLES = """
    select relation::regclass::text from pg_locks where not granted and locktype = 'relation'
        and database = (select oid from pg_database where datname = current_database())
"""


@pytest.fixture(params=["0002_ledger_item.py"])
def databases(
    admin_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[DatabaseUrls]:
    """A database with the schema of ReconciliationService before a migration, to migrate further.
    The parameter is its file; the default is the second.
    """
    folder = tmp_path / "migrations"
    shutil.copytree(schema._MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (folder / "reconciliation").glob("[0-9]*.py"):
        if file.name >= request.param:
            file.unlink()
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


def test_the_sums_of_entries_and_breaks_are_filled(
    databases: DatabaseUrls, query: Callable[[str], list[Any]]
) -> None:
    """Those of open entries by hour, and of the breaks that are open or accepted, each once however
    many lines and entries it has. A break without any has no sum.
    """
    with psycopg.connect(databases.admin) as connection:
        connection.execute("set session_replication_role = replica")  # without events
        connection.execute(_ENTRY)
        connection.execute(_ENTRY.replace("1, 1,", "5, 1,").replace("02Z", "02 00:59:59.999999Z"))
        connection.execute(_ENTRY.replace("1, 1,", "6, 1,").replace("02Z", "02 01:00Z"))
        connection.execute(_BREAKS)
    migrate(databases.admin, databases.passwords)
    assert query(_SUMS) == [
        '(psp/p/clearing,EUR,"2026-01-02 00:00:00+00",2,1000)',
        '(psp/p/clearing,EUR,"2026-01-02 01:00:00+00",1,500)',
        "(psp/p/clearing,EUR,FINANCE,2,40)",
    ]


@pytest.mark.parametrize("databases", ["0003_clearing_sums.py"], indirect=True)
def test_an_entry_that_an_old_process_stores_meanwhile_is_summed(
    databases: DatabaseUrls, query: Callable[[str], list[Any]]
) -> None:
    """An old process that still runs moves entries while the migration waits for it, and after."""
    entry = """
        insert into reconciliation.open_item values ('main', {}, 1, 'psp/p/clearing', 'EUR', 500,
            'ch-1', '2026-01-02Z', 'CHARGE')
    """
    with ThreadPoolExecutor(1) as pool:
        with psycopg.connect(databases.admin) as connection:
            connection.execute(entry.format(1))
            migration = pool.submit(migrate, databases.admin, databases.passwords)
            assert eventually(lambda: query(_WAITING_TABLES) == ["open_item"])
        migration.result()
    with psycopg.connect(databases.admin) as connection:
        connection.execute(entry.format(2))
    assert query(_SUMS) == ['(psp/p/clearing,EUR,"2026-01-02 00:00:00+00",2,1000)']
    with psycopg.connect(databases.admin) as connection:
        connection.execute("delete from reconciliation.open_item")
    assert query(_SUMS) == []


@pytest.mark.parametrize("databases", ["0004_booking_checks.py"], indirect=True)
def test_breaks_may_be_about_bookings(
    databases: DatabaseUrls, query: Callable[[str], list[Any]]
) -> None:
    """The kinds of the checks of bookings are allowed as the earlier ones are, and no others."""

    def set_kind(kind: str) -> None:
        with psycopg.connect(databases.admin) as connection:
            connection.execute("set session_replication_role = replica")  # without events
            connection.execute(
                "update reconciliation.break set kind = %s where break_id = 'b-1'", [kind]
            )

    with psycopg.connect(databases.admin) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(
            """
            insert into reconciliation.break (break_id, kind, rule_version, break_class, account,
                currency, difference, detail, statement_file_id, state, assignee, proposed_by,
                version, create_time, update_time)
            values ('b-1', 'RESERVE', 1, 'FINANCE', 'psp/p/clearing', 'EUR', 0, '', '', 'OPEN', '',
                '', 1, '2026-01-05Z', '2026-01-05Z')
            """
        )
    with pytest.raises(psycopg.errors.CheckViolation):
        set_kind("HOLD_DIFFERS")
    migrate(databases.admin, databases.passwords)
    for kind in BreakKind:
        set_kind(kind)
    with pytest.raises(psycopg.errors.CheckViolation):
        set_kind("OTHER")
    assert query("select kind from break") == [list(BreakKind)[-1]]
    assert all(query("select convalidated from pg_constraint where conname like '%kind_check'"))
