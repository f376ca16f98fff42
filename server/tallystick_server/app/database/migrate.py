"""Schemas: `migrate` brings each of them up to date, as its owner."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from alembic import command
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from tallystick_server.app.database.roles import (
    Passwords,
    RoleNames,
    create_roles,
    restrict_connections,
    role_names,
)
from tallystick_server.app.database.schema import (
    alembic_config,
    expected_schema,
    read_stored_schema,
    reject_foreign_schema,
    store_schema,
)
from tallystick_server.app.errors import StartupError, first_line
from tallystick_server.app.services import migration_folders

SCHEMAS = tuple(migration_folders())
"""The schemas. Each has a service role, an owner that cannot log in, and a read-only role."""

_MIGRATION_LOCK_KEY = 0x7A11
_LOCK_TIMEOUT_SECONDS = 60.0  # for which migrate waits for another one
# Limits how long a migration that waits for a table lock blocks others.
_TABLE_LOCK_TIMEOUT = "3s"
_MAX_TRIES = 20


def parse_url(url: str) -> URL:
    """The parts of a database URL. Raises StartupError if it is not a PostgreSQL URL."""
    try:
        parsed = make_url(url)
    # the parser raises many kinds, whose texts may show a part of a password
    except Exception:  # noqa: BLE001
        raise StartupError(
            "The database URL cannot be parsed; it must look like "
            "postgresql://user:password@host:5432/database."
        ) from None
    if parsed.get_backend_name() != "postgresql":
        raise StartupError("The database URL must begin with postgresql://.")
    # Connection errors would show that part of a password as host, database or option.
    if url.count("@") > 1 or "@" in (parsed.database or ""):
        raise StartupError(
            "The database URL must have at most one @, before the host; a password has %40."
        )
    return parsed.set(drivername="postgresql")


def migrate(
    admin_url: str,
    passwords: Passwords,
    *,
    new_passwords: bool = False,
    lock_timeout_seconds: float = _LOCK_TIMEOUT_SECONDS,
    on_schema: Callable[[str], None] = lambda _: None,
) -> None:
    """Brings every schema and role of the database up to date. Idempotent; concurrent runs wait for
    each other. Raises StartupError.

    A role whose password is unknown here keeps it, unless `new_passwords` is set. Calls `on_schema`
    after each schema.
    """
    url = parse_url(admin_url)
    engine = create_engine(url.set(drivername="postgresql+psycopg"))
    try:
        with engine.connect() as connection:
            version = (
                int(connection.execute(text("show server_version_num")).scalar_one()) // 10_000
            )
            if version < 15:
                raise StartupError(f"PostgreSQL must be version 15 to 18; this one is {version}.")
            connection.commit()
            driver: Any = connection.connection.driver_connection
            database = str(connection.execute(text("select current_database()")).scalar_one())
            connection.commit()
            with _migration_lock(connection, lock_timeout_seconds):
                restrict_connections(driver, database)
                connection.commit()
                for service in SCHEMAS:
                    service_roles = role_names(database, service)
                    create_roles(driver, service, database, service_roles, passwords, new_passwords)
                    connection.commit()
                    _upgrade(connection, service, service_roles)
                    connection.commit()
                    on_schema(service)
    except (psycopg.Error, SQLAlchemyError) as error:
        raise StartupError(f"The database cannot be set up: {first_line(error)}") from error
    finally:
        engine.dispose()


@contextmanager
def _migration_lock(connection: Connection, timeout_seconds: float) -> Iterator[None]:
    """Holds the lock of migrate. If another session keeps it too long, raises StartupError, which
    names the holder.
    """
    deadline = time.monotonic() + timeout_seconds
    while not connection.execute(
        text("select pg_try_advisory_lock(:key)"), {"key": _MIGRATION_LOCK_KEY}
    ).scalar_one():
        if time.monotonic() > deadline:
            holder_query = text("""
                select coalesce(a.usename, 'unknown') || ', process ' || l.pid ||
                    coalesce(' at ' || host(a.client_addr), '')
                from pg_locks l left join pg_stat_activity a on a.pid = l.pid
                where l.locktype = 'advisory' and l.granted and l.classid = 0 and l.objid = :key
                    and l.database = (select oid from pg_database
                        where datname = current_database())
            """)
            holder = (
                connection.execute(holder_query, {"key": _MIGRATION_LOCK_KEY}).scalars().first()
                or "unknown"
            )
            raise StartupError(
                f"Another session ({holder}) has held the lock of 'tallystick migrate' for "
                f"{timeout_seconds:g} s: stop it, then run the command again."
            )
        connection.commit()
        time.sleep(0.1)
    connection.commit()
    yield
    connection.rollback()
    connection.execute(text("select pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK_KEY})
    connection.commit()


def _upgrade(connection: Connection, service: str, service_roles: RoleNames) -> None:
    """Runs a schema's migrations as its owner, each in its own transaction, and stores the schema
    description. Raises StartupError.
    """
    driver: Any = connection.connection.driver_connection
    expected = expected_schema(service)
    current = read_stored_schema(driver, service)
    connection.commit()
    if current is not None:
        if current[0] not in expected.fingerprints:
            raise StartupError(
                f"The {service} service's database is at version {current[0]}, which this code "
                "does not know: use the code that created it."
            )
        reject_foreign_schema(service, expected, current)
    settings = alembic_config(service)
    settings.attributes.update(
        connection=connection,
        schema=service,
        roles={"service": service_roles.service, "reader": service_roles.reader},
    )
    connection.execute(text(f'set role "{service_roles.owner}"'))
    connection.execute(text(f"set lock_timeout = '{_TABLE_LOCK_TIMEOUT}'"))
    connection.commit()  # so that each migration has its own transaction, or runs without one
    _retry_on_lock_timeout(lambda: command.upgrade(settings, "heads"), connection)
    connection.execute(text("reset lock_timeout"))
    connection.execute(
        text(f'grant select on {service}.alembic_version to "{service_roles.service}"')
    )
    connection.execute(
        text(f'grant select on all tables in schema {service} to "{service_roles.reader}"')
    )
    store_schema(driver, service, expected)
    connection.execute(text("reset role"))
    connection.execute(text("reset search_path"))


def _retry_on_lock_timeout(upgrade: Callable[[], None], connection: Connection) -> None:
    """Retries a statement that did not get a table lock in time. So it never blocks the table's
    users for long.
    """
    for tries in range(1, _MAX_TRIES + 1):
        try:
            upgrade()
        except (OperationalError, psycopg.errors.LockNotAvailable) as error:
            connection.rollback()
            cause = error.orig if isinstance(error, OperationalError) else error
            if not isinstance(cause, psycopg.errors.LockNotAvailable) or tries == _MAX_TRIES:
                raise
            time.sleep(0.5)
        else:
            return
