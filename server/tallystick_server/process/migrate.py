"""Schemas and roles: each service's role reaches its own schema and nothing else."""

from __future__ import annotations

import json
import os
import re
import secrets
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import sql
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from tallystick_server.process.failure import Failure

SCHEMAS = ("payment", "ledger", "wallet", "payout", "event", "sandbox")
"""The schemas, each with a service's role, an owner that cannot log in, and a read-only role."""

_MIGRATIONS = str(files("tallystick_storage").joinpath("migrations"))
# A generic plan made on empty tables is a bad one for ever. What a service does is looked up by key, and queues hold more dead rows than live
# ones, which a sequential scan would read all. The rest ends what hangs.
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
    except Exception as error:  # the parser raises many kinds
        raise Failure("The database URL cannot be read; it looks like postgresql://user:password@host:5432/database.") from error
    if parsed.get_backend_name() != "postgresql":
        raise Failure("The database URL must begin with postgresql://.")
    return parsed.set(drivername="postgresql+psycopg")


def migrate(admin_url: str, passwords: Passwords, *, new_passwords: bool = False) -> None:
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
            connection.execute(text("select pg_advisory_lock(:key)"), {"key": _LOCK})
            connection.commit()
            database = connection.execute(text("select current_database()")).scalar_one()
            _close_database(connection.connection.driver_connection, database)  # type: ignore[arg-type]
            for service in SCHEMAS:
                named = roles(database, service)
                _make_roles(connection.connection.driver_connection, service, database, named, passwords, new_passwords)  # type: ignore[arg-type]
                connection.commit()
                _upgrade(connection, service, named)
                connection.commit()
    except (psycopg.Error, SQLAlchemyError) as error:
        raise Failure(f"The database cannot be set up: {first_line(error)}") from error
    finally:
        engine.dispose()


def _close_database(connection: psycopg.Connection[object], database: str) -> None:
    """Nobody connects, or makes temporary tables, who was not let in by name."""
    connection.execute(sql.SQL("revoke connect, temporary on database {} from public").format(sql.Identifier(database)))


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
            secret = sql.Literal(passwords.make(role))
            connection.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(role), secret))
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


def _config(service: str) -> Config:
    config = Config()
    config.set_main_option("script_location", _MIGRATIONS)
    config.set_main_option("version_locations", f"{_MIGRATIONS}/{service}")
    config.set_main_option("path_separator", "newline")
    return config


def _upgrade(connection: object, service: str, named: Roles) -> None:
    """Runs a schema's migrations as its owner."""
    config = _config(service)
    config.attributes.update(connection=connection, schema=service, roles={"service": named.service, "reader": named.reader})
    connection.execute(text(f'set role "{named.owner}"'))  # type: ignore[attr-defined]
    command.upgrade(config, "heads")
    connection.execute(text(f'grant select on {service}.alembic_version to "{named.service}"'))  # type: ignore[attr-defined]
    connection.execute(text(f'grant select on all tables in schema {service} to "{named.reader}"'))  # type: ignore[attr-defined]
    connection.execute(text("reset role"))  # type: ignore[attr-defined]


def refuse_behind(url: str, service: str) -> None:
    """Raises Failure if the service's schema is not at this code's version."""
    wanted = ScriptDirectory.from_config(_config(service)).get_current_head()
    engine = create_engine(driver_url(url))
    try:
        with engine.connect() as connection:
            found = connection.execute(text(f"select version_num from {service}.alembic_version")).scalar_one_or_none()
    except Exception as error:
        raise Failure(
            f"The {service} service's database cannot be used: {first_line(error).rstrip('.')}. Has 'tallystick migrate' been run?"
        ) from error
    finally:
        engine.dispose()
    if found != wanted:
        raise Failure(f"The {service} service's database is at version {found}, and this code needs {wanted}: run 'tallystick migrate'.")
