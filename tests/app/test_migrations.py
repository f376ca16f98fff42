"""`tallystick migrate`: versions, locks, passwords and concurrent runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url

from tallystick_server.app import services
from tallystick_server.app.database import schema
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.migrate import SCHEMAS, migrate
from tallystick_server.app.database.roles import Passwords, role_names
from tallystick_server.app.errors import StartupError
from tallystick_server.verify.run import verify
from tallystick_storage.migrations import seals
from tests.support.payments import create_payment
from tests.support.platform import (
    eventually,
    free_address,
    fresh_database,
    serve_platform,
)
from tests.support.processes import CLI, environment_of, expect_startup_error


@pytest.fixture
def toy_migrations(tmp_path: Path) -> Callable[..., str]:
    """Creates a copy of the migrations with one more for EventService, and returns its folder."""

    def make_migrations(
        *, minimum: str = "", upgrade: str = "run('event', 'create table toy (a int)')"
    ) -> str:
        folder = tmp_path / f"migrations-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(schema._MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
        minimum_line = f"minimum_process_revision = {minimum!r}" if minimum else ""
        (folder / "event" / "0002_toy.py").write_text(
            "from tallystick_storage.migrations import build_index, run\n"
            "revision, down_revision, branch_labels, depends_on = 'event_0002', 'event_0001', "
            f"None, None\n{minimum_line}\n"
            f"def upgrade():\n    {upgrade}\n"
        )
        return str(folder)

    return make_migrations


def use_migrations(monkeypatch: pytest.MonkeyPatch, migrations: str) -> None:
    """From here on EventService has these migrations."""
    specs = [
        replace(spec, migrations=f"tallystick_storage:{migrations}/event")
        if spec.name == "event"
        else spec
        for spec in services.SERVICES
    ]
    monkeypatch.setattr(services, "SERVICES", specs)


def test_an_outdated_schema_is_rejected(
    scratch_database: DatabaseUrls,
    toy_migrations: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code that is newer than the schema names the outdated service and the command to run."""
    use_migrations(monkeypatch, toy_migrations())
    with pytest.raises(
        StartupError,
        match=(
            r"event service's database is at version event_0001, and this code needs "
            r"event_0002: "
            r"run 'tallystick migrate'"
        ),
    ):
        schema.check_schema(scratch_database.service("event"), "event")
    schema.check_schema(scratch_database.service("ledger"), "ledger")
    migrate(scratch_database.admin, scratch_database.passwords)
    schema.check_schema(scratch_database.service("event"), "event")


@pytest.mark.parametrize(("minimum", "works"), [("event_0001", True), ("", False)])
def test_a_newer_schema_is_accepted_if_its_migration_allows(
    scratch_database: DatabaseUrls,
    toy_migrations: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    minimum: str,
    works: bool,
) -> None:
    """While a new migration is applied, processes of the old code can restart if the migration
    allows them; otherwise they report that they are too old.
    """
    with monkeypatch.context() as newer:
        use_migrations(newer, toy_migrations(minimum=minimum))
        migrate(scratch_database.admin, scratch_database.passwords)
    if works:
        schema.check_schema(scratch_database.service("event"), "event")
        return
    with pytest.raises(StartupError, match="needs processes of event_0002 or newer"):
        schema.check_schema(scratch_database.service("event"), "event")


@pytest.mark.parametrize(
    ("service", "oldest"),
    [
        ("payment", "payment_0001"),
        ("payout", "payout_0001"),
        ("reconciliation", "reconciliation_0004"),
    ],
)
def test_each_schema_names_the_oldest_processes_that_work_with_it(
    service: str, oldest: str
) -> None:
    """The page about upgrades says the same: only ReconciliationService must be stopped."""
    assert schema.expected_schema(service).minimum_process_revision == oldest


def test_a_schema_of_edited_migrations_is_rejected(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """serve and migrate reject a revision that was made by other SQL, or by code that recorded
    none; nothing is changed.
    """
    with psycopg.connect(scratch_database.admin, autocommit=True) as admin:
        comment_row = admin.execute(
            "select obj_description('wallet.alembic_version'::regclass, 'pg_class')"
        ).fetchone()
        assert comment_row is not None
        for comment in (str(comment_row[0]).replace("a", "b"), None):
            admin.execute(
                sql.SQL("comment on table wallet.alembic_version is {}").format(
                    sql.Literal(comment)
                )
            )
            output = expect_startup_error(
                ["serve", "all"],
                {**environment_of(scratch_database), "TALLYSTICK_SERVER__LISTEN": free_address()},
            )
            assert "wallet service's schema was created by other migrations" in output
            with pytest.raises(StartupError, match="created by other migrations"):
                migrate(scratch_database.admin, scratch_database.passwords)


def test_a_migration_that_waits_for_a_lock_blocks_no_others(
    scratch_database: DatabaseUrls,
    toy_migrations: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A migration that does not get a table's lock leaves the lock queue and tries again; others
    use the table meanwhile.
    """
    use_migrations(
        monkeypatch,
        toy_migrations(
            minimum="event_0001", upgrade="run('event', 'alter table event add column toy int')"
        ),
    )
    with (
        psycopg.connect(scratch_database.admin) as holder,
        psycopg.connect(scratch_database.admin, autocommit=True) as other_connection,
    ):
        holder.execute("select from event.event")  # in a transaction that stays open
        migrating = threading.Thread(
            target=migrate, args=(scratch_database.admin, scratch_database.passwords)
        )
        migrating.start()
        other_connection.execute("set statement_timeout = '20s'")
        assert eventually(
            lambda: (
                other_connection.execute(
                    "select from pg_locks where not granted and mode = 'AccessExclusiveLock'"
                ).fetchone()
                is not None
            )
        )
        other_connection.execute("select from event.event")
        holder.commit()
        migrating.join(60)
        assert other_connection.execute("select toy from event.event").fetchall() == []


def test_a_migration_builds_an_index_while_the_table_is_written(
    scratch_database: DatabaseUrls,
    toy_migrations: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """build_index works outside a transaction, and rebuilds an index that an interrupted run has
    left invalid.
    """
    with psycopg.connect(scratch_database.admin, autocommit=True) as admin:
        admin.execute("create index toy_index on event.event (aggregate_id)")
        owner = role_names(str(make_url(scratch_database.admin).database), "event").owner
        admin.execute(
            "update pg_index set indisvalid = false where indexrelid = 'event.toy_index'::regclass"
        )
        use_migrations(
            monkeypatch,
            toy_migrations(
                minimum="event_0001",
                upgrade="build_index('event', 'toy_index', 'event (aggregate_id)')",
            ),
        )
        migrate(scratch_database.admin, scratch_database.passwords)
        row = admin.execute(
            "select indisvalid, pg_get_userbyid(relowner) from pg_index join pg_class c on c.oid "
            "= indexrelid where relname = 'toy_index'"
        )
        assert row.fetchall() == [(True, owner)]


def test_another_session_that_holds_the_migration_lock_is_named(
    scratch_database: DatabaseUrls,
) -> None:
    """migrate waits for its lock for a limited time, and names the session that holds it."""
    with psycopg.connect(scratch_database.admin) as holder:
        holder.execute("select pg_advisory_lock(%s)", (0x7A11,))
        with pytest.raises(
            StartupError,
            match=(
                rf"Another session \({holder.info.user}, process {holder.info.backend_pid}.*\) "
                rf"has held the lock"
            ),
        ):
            migrate(scratch_database.admin, scratch_database.passwords, lock_timeout_seconds=0.2)


def test_no_password_reaches_the_servers_log(admin_url: str, tmp_path: Path) -> None:
    """Passwords are sent to the server as verifiers: no statement that it may log contains one in
    plain text, and roles can still log in.
    """
    with (
        fresh_database(admin_url, tmp_path, migrated=False) as platform_databases,
        psycopg.connect(admin_url, autocommit=True) as admin,
    ):
        log_lines: list[str] = []
        name = str(make_url(platform_databases.admin).database)
        admin.execute(f"alter database {name} set log_statement = 'ddl'")
        # Logged statements are sent to the client as well.
        admin.execute(f"alter database {name} set client_min_messages = 'log'")
        real = psycopg.connect

        class Listening(psycopg.Connection[Any]):
            @classmethod
            def connect(cls, *arguments: Any, **parameters: Any) -> Any:
                connection = super().connect(*arguments, **parameters)
                connection.add_notice_handler(
                    lambda notice: log_lines.append(notice.message_primary or "")
                )
                return connection

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(psycopg, "connect", Listening.connect)
            migrate(platform_databases.admin, platform_databases.passwords)
        text = "\n".join(log_lines)
        assert "SCRAM-SHA-256$" in text
        for service in SCHEMAS:
            for role in (role_names(name, service).service, role_names(name, service).reader):
                assert platform_databases.passwords.get(role) not in text
        real(platform_databases.service("event")).close()


def test_migrate_changes_no_password_unasked(
    scratch_database: DatabaseUrls, tmp_path: Path
) -> None:
    """A folder with the passwords of another installation changes none: the command is rejected,
    and existing users keep working.
    """
    other_passwords = Passwords(tmp_path / "elsewhere" / "passwords.json")
    name = make_url(scratch_database.admin).database or ""
    for service in SCHEMAS:
        other_passwords.get_or_create(role_names(name, service).service)
        other_passwords.get_or_create(role_names(name, service).reader)
    with pytest.raises(StartupError, match="is not the one in"):
        migrate(scratch_database.admin, other_passwords)
    migrate(scratch_database.admin, scratch_database.passwords)
    for service in SCHEMAS:
        psycopg.connect(scratch_database.service(service)).close()


def test_concurrent_migrations_both_succeed(admin_url: str, tmp_path: Path) -> None:
    """Two concurrent migrations of one database run one after the other; both succeed."""
    with fresh_database(admin_url, tmp_path, migrated=False) as platform_databases:
        runs = [
            subprocess.Popen(
                [*CLI, "migrate"],
                env={**os.environ, **environment_of(platform_databases)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        output = [run.communicate(timeout=60)[1] for run in runs]
        assert [run.returncode for run in runs] == [0, 0], output
        assert verify(platform_databases).passed


def test_rows_that_are_sealed_again_after_a_new_column_pass_verify(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column that is added breaks the seals of its table. `reseal` repairs them, and seals no row
    that had no seal. Each part of the table is a transaction, so that no row stays locked.
    """
    monkeypatch.setattr(seals, "_BATCH_BLOCKS", 1)
    with serve_platform(scratch_database) as platform, platform.client() as client:
        for _ in range(20):
            create_payment(client, "5.00")
        create_payment(client, "5.00", token="tok_decline:do_not_honor")
    with psycopg.connect(scratch_database.admin, autocommit=True) as admin:
        admin.execute("set search_path = payment, pg_temp")
        unsealed = admin.execute("select count(*) from attempt where seal is null").fetchone()
        admin.execute("alter table attempt add column toy text not null default 'x'")
        assert not verify(scratch_database).passed
        admin.execute(seals.reseal("attempt").encode())
        transactions = "select count(distinct xmin::text) > 1 from attempt where seal is not null"
        assert admin.execute(transactions).fetchone() == (True,)
        assert verify(scratch_database).passed
        assert (
            unsealed == admin.execute("select count(*) from attempt where seal is null").fetchone()
        )


def test_rows_are_sealed_again_without_a_deadlock_with_processes(
    scratch_database: DatabaseUrls,
) -> None:
    """Processes lock rows by their keys. So does `reseal`, wherever the rows are in the table."""
    waiting = "select from pg_locks where not granted and locktype = 'transactionid'"
    with (
        psycopg.connect(scratch_database.admin, autocommit=True) as admin,
        psycopg.connect(scratch_database.admin, options="-c search_path=event") as process,
        ThreadPoolExecutor(1) as pool,
    ):
        admin.execute("set search_path = event, pg_temp")
        admin.execute('create table toy (id text collate "C" primary key, seal bytea)')
        admin.execute("insert into toy values ('b', 'old'), ('a', 'old'), ('c', 'old')")
        process.execute("update toy set seal = 'written' where id = 'a'")
        resealing = pool.submit(admin.execute, seals.reseal("toy").encode())
        assert eventually(lambda: process.execute(waiting).fetchone() is not None)
        process.execute("update toy set seal = 'written' where id = 'b'")
        process.commit()
        resealing.result(30)
        assert process.execute("select from toy where seal = 'old'").fetchall() == []
