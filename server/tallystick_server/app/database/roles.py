"""Roles and their passwords: the role of each service has access to its own schema only."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from tallystick_server.app.errors import StartupError

# A generic plan from empty tables stays bad, so every plan is a custom one, except on connections
# that discard their plans again and again (connection_pool.py). The planner expects 100 rows from a
# JSON list. Without `enable_seqscan = off` a small batch therefore scans tables of some thousand
# rows. With 20,000 payments these are account, payout and attempt, 3,000 rows each time. This hides
# no missing index: test_growth.py counts the rows that plans read, in any node. The timeouts end
# sessions that hang.
_ROLE_SETTINGS = {
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "off",
    "jit": "off",  # a required scan costs 10^10 by the line above, and would be compiled each time
    "idle_in_transaction_session_timeout": "1s",
    "lock_timeout": "3s",
    "statement_timeout": "10s",
}
# A reader merges streams, so one stream may be idle while another is read.
_READER_SETTINGS = {
    "enable_seqscan": "on",
    "default_transaction_read_only": "on",
    "statement_timeout": "10min",
    "idle_in_transaction_session_timeout": "10min",
}
# Functions that PUBLIC may call by default and no service needs: large objects, which no constraint
# limits, and advisory locks.
_FORBIDDEN_FUNCTIONS = r"^(lo_.*|lowrite|loread|pg_(try_)?advisory_.*)$"
_SYSTEM_DATABASES = ("postgres", "template1")


@dataclass(frozen=True, slots=True)
class RoleNames:
    """The names of one service's roles. Roles belong to the whole cluster, so names begin with the
    database.
    """

    owner: str
    service: str
    reader: str


def role_names(database: str, service: str) -> RoleNames:
    prefix = re.sub(r"[^a-z0-9_]", "_", database.lower())
    return RoleNames(
        f"{prefix}_{service}_owner", f"{prefix}_{service}", f"{prefix}_{service}_reader"
    )


class Passwords:
    """The generated passwords of the roles, stored in a file that only its owner may read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, role: str) -> str:
        """The role's password. Raises StartupError if there is none."""
        if not self.has(role):
            raise StartupError(
                f"There is no password for the role {role} in {self.path}: run 'tallystick "
                "migrate' first."
            )
        return self._read()[role]

    def has(self, role: str) -> bool:
        return role in self._read()

    def _read(self) -> dict[str, str]:
        try:
            passwords = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            passwords = None
        if not isinstance(passwords, dict):
            raise StartupError(
                f"{self.path} cannot be read: repair it, or remove it and run 'tallystick migrate "
                "--new-passwords'."
            )
        return passwords

    def get_or_create(self, role: str) -> str:
        """The role's password, generated if there is none."""
        passwords = self._read()
        if role not in passwords:
            passwords[role] = secrets.token_urlsafe(24)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary_path = self.path.with_suffix(".new")
            with os.fdopen(
                os.open(temporary_path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w"
            ) as file:
                json.dump(passwords, file, indent=1)
            temporary_path.replace(self.path)
        return str(passwords[role])


def role_url(admin_url: str, role: str, password: str) -> str:
    """The URL of a role in the administrator's database."""
    return (
        make_url(admin_url)
        .set(username=role, password=password)
        .render_as_string(hide_password=False)
    )


def restrict_connections(connection: psycopg.Connection[Any], database: str) -> None:
    """Revokes CONNECT and TEMPORARY from PUBLIC, here and in the default databases of every
    cluster. Only the listed roles may connect.

    Privileges that only a superuser may revoke stay if the administrator is none, as at many hosts.
    """
    connection.execute(
        sql.SQL("revoke connect, temporary on database {} from public").format(
            sql.Identifier(database)
        )
    )
    is_owned = "pg_has_role(datdba, 'usage')"
    open_databases_query = (
        "select datname from pg_database where datname = any (%s) and "
        f"has_database_privilege('public', datname, 'connect') and {is_owned}"
    )
    for (name,) in connection.execute(open_databases_query, (list(_SYSTEM_DATABASES),)).fetchall():
        # migrate of another database revokes it concurrently
        with suppress(psycopg.errors.InternalError_), connection.transaction():
            connection.execute(
                sql.SQL("revoke connect, temporary on database {} from public").format(
                    sql.Identifier(name)
                )
            )
    callable_functions_query = """
        select p.oid::regprocedure::text from pg_proc p
        where p.pronamespace = 'pg_catalog'::regnamespace and p.proname ~ %s
            and has_function_privilege('public', p.oid, 'execute')
            and pg_has_role(p.proowner, 'usage')
    """
    for (signature,) in connection.execute(
        callable_functions_query, (_FORBIDDEN_FUNCTIONS,)
    ).fetchall():
        connection.execute(
            sql.SQL("revoke execute on function {} from public").format(sql.SQL(signature))
        )


def create_roles(
    connection: psycopg.Connection[object],
    service: str,
    database: str,
    service_roles: RoleNames,
    passwords: Passwords,
    new_passwords: bool,
) -> None:
    """Creates a service's roles and its schema. Raises StartupError for an unknown password."""
    _create_role(connection, service_roles.owner, login=False)
    for role in (service_roles.service, service_roles.reader):
        is_new = _create_role(connection, role, login=True)
        if is_new or new_passwords:
            _set_password(connection, role, passwords.get_or_create(role))
        else:
            _require_known_password(connection, role, passwords)
        connection.execute(
            sql.SQL("grant connect on database {} to {}").format(
                sql.Identifier(database), sql.Identifier(role)
            )
        )
        settings = {**_ROLE_SETTINGS, "search_path": service}
        if role == service_roles.reader:
            settings |= _READER_SETTINGS
        _set_role_settings(connection, database, role, settings)
    _create_schema(connection, service, service_roles)


def _create_role(connection: psycopg.Connection[object], role: str, *, login: bool) -> bool:
    """Creates a missing role. Returns whether it was missing."""
    query = "select from pg_roles where rolname = %s"
    if connection.execute(query, (role,)).fetchone() is not None:
        return False
    connection.execute(
        sql.SQL("create role {} {}").format(
            sql.Identifier(role), sql.SQL("login" if login else "nologin")
        )
    )
    return True


def _require_known_password(
    connection: psycopg.Connection[object], role: str, passwords: Passwords
) -> None:
    """Raises StartupError if the stored password of a role is missing or not its password."""
    if not (passwords.has(role) and _can_log_in(connection, role, passwords.get(role))):
        raise StartupError(
            f"The role {role} exists, and its password is not the one in {passwords.path}. "
            "Set TALLYSTICK_DATA_DIR to the folder that has it, or create new ones with "
            "'tallystick migrate --new-passwords', which locks out processes that use "
            "the old ones."
        )


def _set_password(connection: psycopg.Connection[object], role: str, password: str) -> None:
    """Sets a role's password as a SCRAM verifier, because a server may log statements."""
    verifier = connection.pgconn.encrypt_password(
        password.encode(), role.encode(), b"scram-sha-256"
    ).decode()
    connection.execute(
        sql.SQL("alter role {} password {}").format(sql.Identifier(role), sql.Literal(verifier))
    )


def _set_role_settings(
    connection: psycopg.Connection[object], database: str, role: str, settings: Mapping[str, str]
) -> None:
    """Sets a role's defaults of PostgreSQL settings, in this database only."""
    statement = sql.SQL("alter role {} in database {} set {} = {}")
    for name, value in settings.items():
        connection.execute(
            statement.format(
                sql.Identifier(role),
                sql.Identifier(database),
                sql.Identifier(name),
                sql.Literal(value),
            )
        )


def _create_schema(
    connection: psycopg.Connection[object], service: str, service_roles: RoleNames
) -> None:
    """Creates a service's schema under its owner, and lets the other roles use it."""
    connection.execute(
        sql.SQL("grant {} to current_user").format(sql.Identifier(service_roles.owner))
    )
    connection.execute(
        sql.SQL("create schema if not exists {} authorization {}").format(
            sql.Identifier(service), sql.Identifier(service_roles.owner)
        )
    )
    for role in (service_roles.service, service_roles.reader):
        connection.execute(
            sql.SQL("grant usage on schema {} to {}").format(
                sql.Identifier(service), sql.Identifier(role)
            )
        )


def _can_log_in(connection: psycopg.Connection[object], role: str, password: str) -> bool:
    """Whether the role can log in with the password; true if that cannot be tested."""
    info = connection.info
    try:
        psycopg.connect(
            host=info.host,
            port=info.port,
            dbname=info.dbname,
            user=role,
            password=password,
            connect_timeout=5,
        ).close()
    except psycopg.OperationalError as error:
        return "password authentication failed" not in str(error)
    return True
