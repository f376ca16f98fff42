"""Schemas and roles: each service's role reaches its own schema and nothing else."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from psycopg import sql
from sqlalchemy import Connection, create_engine, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from tallystick_server.process.failure import Failure
from tallystick_server.process.schema import config, refuse_foreign, schema_of_code, store_schema, stored_schema

SCHEMAS = ("payment", "ledger", "wallet", "payout", "event", "sandbox")
"""The schemas, each with a service's role, an owner that cannot log in, and a read-only role."""

# A generic plan made on empty tables is a bad one for ever. The planner takes a list in JSON for 100 rows, so without `enable_seqscan = off` it reads
# a table of some thousand rows whole for the one that a small batch names: with 20,000 payments account, payout and attempt, 3,000 rows each time.
# It hides no index that is missing: test_growth.py counts the rows that plans read, by whatever node. The rest ends what hangs.
_SETTINGS = {
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "off",
    "jit": "off",  # what has to scan costs 10^10 by the line above, and would be compiled each time
    "idle_in_transaction_session_timeout": "1s",
    "lock_timeout": "3s",
    "statement_timeout": "10s",
}
# A reader merges streams, so one may rest while another is read.
_READER_SETTINGS = {
    "enable_seqscan": "on",
    "default_transaction_read_only": "on",
    "statement_timeout": "10min",
    "idle_in_transaction_session_timeout": "10min",
}
_LOCK = 0x7A11
_LOCK_WAIT = 60.0  # seconds for which migrate waits for another one
_TABLE_LOCK = "3s"  # for longer a migration keeps nobody waiting behind the lock that it waits for
_TRIES = 20
# Functions that anybody may call unless it is forbidden, and that no service needs: large objects, which no constraint covers, and advisory locks.
_FORBIDDEN = r"^(lo_.*|lowrite|loread|pg_(try_)?advisory_.*)$"
_SYSTEM_DATABASES = ("postgres", "template1")


@dataclass(frozen=True, slots=True)
class Roles:
    """The names of one service's roles; roles belong to the whole cluster, so the database's name comes first."""

    owner: str
    service: str
    reader: str


def roles(database: str, service: str) -> Roles:
    prefix = re.sub(r"[^a-z0-9_]", "_", database.lower())
    return Roles(f"{prefix}_{service}_owner", f"{prefix}_{service}", f"{prefix}_{service}_reader")


class Passwords:
    """The roles' passwords, made once and kept in a file that only its owner may read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def of(self, role: str) -> str:
        """The role's password. Raises Failure if none was made."""
        if not self.has(role):
            raise Failure(f"There is no password for the role {role} in {self.path}: run 'tallystick migrate' first.")
        return self._known()[role]

    def has(self, role: str) -> bool:
        return role in self._known()

    def _known(self) -> dict[str, str]:
        try:
            known = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            known = None
        if not isinstance(known, dict):
            raise Failure(f"{self.path} cannot be read: mend it, or remove it and run 'tallystick migrate --new-passwords'.")
        return known

    def make(self, role: str) -> str:
        """The role's password, made if there is none."""
        known = self._known()
        if role not in known:
            known[role] = secrets.token_urlsafe(24)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.path.with_suffix(".new")
            with os.fdopen(os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
                json.dump(known, file, indent=1)
            fresh.replace(self.path)
        return str(known[role])


def first_line(error: Exception) -> str:
    """What the driver says went wrong; it names host and database, and no password."""
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def service_url(admin: str, role: str, password: str) -> str:
    """The URL of a role in the administrator's database."""
    return make_url(admin).set(username=role, password=password).render_as_string(hide_password=False)


def driver_url(url: str) -> URL:
    """The URL for SQLAlchemy. Raises Failure if it is none of PostgreSQL's."""
    try:
        parsed = make_url(url)
    except Exception:  # noqa: BLE001 - the parser raises many kinds, whose texts may show a part of a password
        raise Failure("The database URL cannot be read; it looks like postgresql://user:password@host:5432/database.") from None
    if parsed.get_backend_name() != "postgresql":
        raise Failure("The database URL must begin with postgresql://.")
    if url.count("@") > 1 or "@" in (parsed.database or ""):  # a part of a password that connection errors would show as host, database or option
        raise Failure("The database URL may have one @, before the host; in a password @ is written as %40.")
    return parsed.set(drivername="postgresql+psycopg")


def migrate(admin_url: str, passwords: Passwords, *, new_passwords: bool = False, lock_wait: float = _LOCK_WAIT) -> None:
    """Brings every schema and role of the database up to date; harmless to repeat, and two at a time take turns. Raises Failure.

    A role whose password is not known here keeps it, unless `new_passwords` are to be made.
    """
    url = driver_url(admin_url)
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            version = int(connection.execute(text("show server_version_num")).scalar_one()) // 10_000
            if version < 15:
                raise Failure(f"PostgreSQL 15 to 18 is needed; this one is {version}.")
            connection.commit()
            driver: Any = connection.connection.driver_connection
            database = str(connection.execute(text("select current_database()")).scalar_one())
            connection.commit()
            with _turn(connection, lock_wait):
                _close_database(driver, database)
                connection.commit()
                for service in SCHEMAS:
                    named = roles(database, service)
                    _make_roles(driver, service, database, named, passwords, new_passwords)
                    connection.commit()
                    _upgrade(connection, service, named)
                    connection.commit()
    except (psycopg.Error, SQLAlchemyError) as error:
        raise Failure(f"The database cannot be set up: {first_line(error)}") from error
    finally:
        engine.dispose()


@contextmanager
def _turn(connection: Connection, seconds: float) -> Iterator[None]:
    """Holds migrate's lock. Raises Failure that names who holds it, if nobody gives it up in time."""
    end = time.monotonic() + seconds
    while not connection.execute(text("select pg_try_advisory_lock(:key)"), {"key": _LOCK}).scalar_one():
        if time.monotonic() > end:
            held = text("""
                select coalesce(a.usename, 'unknown') || ', process ' || l.pid || coalesce(' at ' || host(a.client_addr), '')
                from pg_locks l left join pg_stat_activity a on a.pid = l.pid
                where l.locktype = 'advisory' and l.granted and l.classid = 0 and l.objid = :key
                    and l.database = (select oid from pg_database where datname = current_database())
            """)
            holder = connection.execute(held, {"key": _LOCK}).scalars().first() or "somebody"
            raise Failure(
                f"Another session ({holder}) has held the lock of 'tallystick migrate' for {seconds:g} s: end it, then run the command again."
            )
        connection.commit()
        time.sleep(0.1)
    connection.commit()
    yield
    connection.rollback()
    connection.execute(text("select pg_advisory_unlock(:key)"), {"key": _LOCK})
    connection.commit()


def _close_database(connection: psycopg.Connection[Any], database: str) -> None:
    """Nobody connects to the database, or makes temporary tables, who was not let in by name; nor to those that every cluster has.

    What only a superuser may revoke stays where the administrator is none, as at many hosts.
    """
    connection.execute(sql.SQL("revoke connect, temporary on database {} from public").format(sql.Identifier(database)))
    mine = "pg_has_role(datdba, 'usage')"
    open_ = f"select datname from pg_database where datname = any (%s) and has_database_privilege('public', datname, 'connect') and {mine}"
    for (name,) in connection.execute(open_, (list(_SYSTEM_DATABASES),)).fetchall():
        with suppress(psycopg.errors.InternalError_), connection.transaction():  # another database's migrate is revoking it
            connection.execute(sql.SQL("revoke connect, temporary on database {} from public").format(sql.Identifier(name)))
    callable_ = """
        select p.oid::regprocedure::text from pg_proc p
        where p.pronamespace = 'pg_catalog'::regnamespace and p.proname ~ %s and has_function_privilege('public', p.oid, 'execute')
            and pg_has_role(p.proowner, 'usage')
    """
    for (signature,) in connection.execute(callable_, (_FORBIDDEN,)).fetchall():
        connection.execute(sql.SQL("revoke execute on function {} from public").format(sql.SQL(signature)))


def _make_roles(connection: psycopg.Connection[object], service: str, database: str, named: Roles, passwords: Passwords, new_passwords: bool) -> None:
    for role, login in ((named.owner, False), (named.service, True), (named.reader, True)):
        known = connection.execute("select from pg_roles where rolname = %s", (role,)).fetchone()
        if known is None:
            connection.execute(sql.SQL("create role {} {}").format(sql.Identifier(role), sql.SQL("login" if login else "nologin")))
        if login:
            if known is not None and not new_passwords and not (passwords.has(role) and _opens(connection, role, passwords.of(role))):
                raise Failure(
                    f"The role {role} exists, and its password is not the one in {passwords.path}: run the command where that is (TALLYSTICK_DATA), "
                    "or make new ones with 'tallystick migrate --new-passwords', which shuts out whoever uses the old."
                )
            if known is None or new_passwords:  # as its verifier: a server may log statements
                verifier = connection.pgconn.encrypt_password(passwords.make(role).encode(), role.encode(), b"scram-sha-256").decode()
                connection.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(role), sql.Literal(verifier)))
            connection.execute(sql.SQL("grant connect on database {} to {}").format(sql.Identifier(database), sql.Identifier(role)))
            settings = {**_SETTINGS, "search_path": service, **(_READER_SETTINGS if role == named.reader else {})}
            for name, value in settings.items():
                where = sql.SQL("alter role {} in database {} set {} = {}")
                connection.execute(where.format(sql.Identifier(role), sql.Identifier(database), sql.Identifier(name), sql.Literal(value)))
    connection.execute(sql.SQL("grant {} to current_user").format(sql.Identifier(named.owner)))
    connection.execute(sql.SQL("create schema if not exists {} authorization {}").format(sql.Identifier(service), sql.Identifier(named.owner)))
    for role in (named.service, named.reader):
        connection.execute(sql.SQL("grant usage on schema {} to {}").format(sql.Identifier(service), sql.Identifier(role)))


def _opens(connection: psycopg.Connection[object], role: str, password: str) -> bool:
    """Whether the role comes in with the password; also where that cannot be asked."""
    info = connection.info
    try:
        psycopg.connect(host=info.host, port=info.port, dbname=info.dbname, user=role, password=password, connect_timeout=5).close()
    except psycopg.OperationalError as error:
        return "password authentication failed" not in str(error)
    return True


def _upgrade(connection: Connection, service: str, named: Roles) -> None:
    """Runs a schema's migrations as its owner, each in a transaction of its own, and notes what they made. Raises Failure."""
    driver: Any = connection.connection.driver_connection
    code = schema_of_code(service)
    found = stored_schema(driver, service)
    connection.commit()
    if found is not None:
        if found[0] not in code.fingerprints:
            raise Failure(f"The {service} service's database is at version {found[0]}, which this code does not know: use the code that made it.")
        refuse_foreign(service, code, found)
    settings = config(service)
    settings.attributes.update(connection=connection, schema=service, roles={"service": named.service, "reader": named.reader})
    connection.execute(text(f'set role "{named.owner}"'))
    connection.execute(text(f"set lock_timeout = '{_TABLE_LOCK}'"))
    connection.commit()  # so that each migration has its own transaction, and may do without one
    _try_again(lambda: command.upgrade(settings, "heads"), connection)
    connection.execute(text("reset lock_timeout"))
    connection.execute(text(f'grant select on {service}.alembic_version to "{named.service}"'))
    connection.execute(text(f'grant select on all tables in schema {service} to "{named.reader}"'))
    store_schema(driver, service, code)
    connection.execute(text("reset role"))
    connection.execute(text("reset search_path"))


def _try_again(upgrade: Callable[[], None], connection: Connection) -> None:
    """Repeats what did not get a table's lock in time, so that it never keeps the table's users waiting for long."""
    for turn in range(_TRIES):
        try:
            upgrade()
        except (OperationalError, psycopg.errors.LockNotAvailable) as error:
            connection.rollback()
            cause = error.orig if isinstance(error, OperationalError) else error
            if not isinstance(cause, psycopg.errors.LockNotAvailable) or turn == _TRIES - 1:
                raise
            time.sleep(0.5)
        else:
            return
