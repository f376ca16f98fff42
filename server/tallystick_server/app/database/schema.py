"""Checks whether this code can work with a database's schema: its revisions, the fingerprints of
their SQL, and the compatibility that newer schemas declare.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import psycopg
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg import sql

from tallystick_server.app.errors import StartupError, first_line
from tallystick_server.app.services import migration_folders
from tallystick_storage.migrations import collect_scripts

_MIGRATIONS = str(files("tallystick_storage").joinpath("migrations"))
_UNDEFINED_SQLSTATES = ("3F000", "42P01")  # undefined schema, undefined table
# Messages of a server that rejects connections permanently. The driver has no SQLSTATE for a
# rejected connection.
_PERMANENT_ERRORS = (
    "authentication failed",
    "does not exist",
    "no pg_hba.conf entry",
    "permission denied",
    "not permitted to log in",
    "no password supplied",
)
_CONNECT_TIMEOUT_SECONDS = 5


class DatabaseUnavailable(Exception):
    """The database accepts no connections now; it may later."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema's revisions, oldest first, each with the fingerprint of its SQL.

    `minimum_process_revision`: processes whose newest revision is older than this one cannot work
    with the schema.
    """

    fingerprints: Mapping[str, str]
    minimum_process_revision: str

    @property
    def head(self) -> str:
        return list(self.fingerprints)[-1]

    def as_text(self) -> str:
        """The form in which migrate stores it, as the comment of the schema's table
        alembic_version.
        """
        return json.dumps(
            {
                "fingerprints": dict(self.fingerprints),
                "minimum_process_revision": self.minimum_process_revision,
            }
        )


def alembic_config(service: str) -> Config:
    """Alembic's configuration of one schema's migrations."""
    package, _, folder = migration_folders()[service].partition(":")
    configuration = Config()
    configuration.set_main_option("script_location", _MIGRATIONS)
    configuration.set_main_option("version_locations", str(files(package).joinpath(folder)))
    configuration.set_main_option("path_separator", "newline")
    return configuration


def expected_schema(service: str) -> Schema:
    """The schema that the migration scripts produce. Each migration may declare a
    `minimum_process_revision`; the default is its own revision.
    """
    revisions = list(ScriptDirectory.from_config(alembic_config(service)).walk_revisions())[::-1]
    order = [revision.revision for revision in revisions]
    minimum = max(
        (
            getattr(script.module, "minimum_process_revision", script.revision)
            for script in revisions
        ),
        key=order.index,
    )
    return Schema(
        {
            script.revision: _fingerprint(collect_scripts(script.module.upgrade))
            for script in revisions
        },
        minimum,
    )


def _fingerprint(scripts: list[str]) -> str:
    """A hash of SQL that ignores comments and white space."""
    normalized = re.sub(r"\s+", " ", re.sub(r"--[^\n]*", "", "\n".join(scripts))).strip()
    return hashlib.sha256(normalized.encode()).hexdigest()


def read_stored_schema(
    connection: psycopg.Connection[Any], service: str
) -> tuple[str, Schema | None] | None:
    """A schema's revision, and what migrate stored with it (None: nothing). None if the schema has
    no revision.
    """
    table = f"{service}.alembic_version"
    relation = connection.execute("select to_regclass(%s)", (table,)).fetchone()
    if relation is None or relation[0] is None:
        return None
    row = connection.execute(
        sql.SQL("select version_num, obj_description(%s::regclass, 'pg_class') from {}").format(
            _version_table(service)
        ),
        (table,),
    ).fetchone()
    if row is None:
        return None
    revision, text = row
    if not text:
        return str(revision), None
    stored = json.loads(text)
    return str(revision), Schema(stored["fingerprints"], stored["minimum_process_revision"])


def store_schema(connection: psycopg.Connection[Any], service: str, schema: Schema) -> None:
    """Stores the schema description with its revision."""
    connection.execute(
        sql.SQL("comment on table {} is {}").format(
            _version_table(service), sql.Literal(schema.as_text())
        )
    )


def _version_table(service: str) -> sql.Identifier:
    return sql.Identifier(service, "alembic_version")


def reject_foreign_schema(
    service: str, expected: Schema, current: tuple[str, Schema | None]
) -> None:
    """Raises StartupError if the schema differs from this code's migrations in a revision that both
    know.
    """
    revision, stored = current
    shared = [
        shared_revision
        for shared_revision in expected.fingerprints
        if stored is not None and shared_revision in stored.fingerprints
    ]
    if (
        stored is None
        or revision not in stored.fingerprints
        or any(
            expected.fingerprints[shared_revision] != stored.fingerprints[shared_revision]
            for shared_revision in shared
        )
    ):
        raise StartupError(
            f"The {service} service's schema was created by other migrations than this code has "
            "(another commit, or edited scripts): use the code that created it, or a new database "
            "(for the embedded one, another folder in TALLYSTICK_DATA_DIR)."
        )


def reject_incompatible_schema(
    service: str, expected: Schema, current: tuple[str, Schema | None] | None
) -> None:
    """Raises StartupError if this code cannot work with the database's schema. A newer schema is
    accepted if its migrations allow it.
    """
    if current is None:
        raise StartupError(
            f"The {service} service's schema does not exist: run 'tallystick migrate'."
        )
    revision, stored = current
    if revision in expected.fingerprints:
        reject_foreign_schema(service, expected, current)
        if revision != expected.head:
            raise StartupError(
                f"The {service} service's database is at version {revision}, and this code needs "
                f"{expected.head}: run 'tallystick migrate'."
            )
        return
    order = list(stored.fingerprints) if stored is not None else []
    if stored is None or expected.head not in order:
        raise StartupError(
            f"The {service} service's database is at version {revision}, which this code does not "
            "know: use the code that created it."
        )
    reject_foreign_schema(service, expected, current)
    if order.index(expected.head) < order.index(stored.minimum_process_revision):
        raise StartupError(
            f"The {service} service's database is at version {revision}, which needs processes of "
            f"{stored.minimum_process_revision} or newer, "
            f"and this one is of {expected.head}: use newer code."
        )


def check_schema(url: str, service: str) -> None:
    """Raises StartupError if this code cannot work with the service's database. Raises
    DatabaseUnavailable while this cannot be checked.
    """
    try:
        with psycopg.connect(
            url, connect_timeout=_CONNECT_TIMEOUT_SECONDS, options="-c statement_timeout=5000"
        ) as connection:
            current = read_stored_schema(connection, service)
    except psycopg.Error as error:
        message = first_line(error)
        if error.sqlstate in _UNDEFINED_SQLSTATES:
            raise StartupError(
                f"The {service} service's schema does not exist: run 'tallystick migrate'."
            ) from error
        if isinstance(error, psycopg.OperationalError) and not any(
            permanent_error in str(error) for permanent_error in _PERMANENT_ERRORS
        ):
            raise DatabaseUnavailable(message) from error
        raise StartupError(
            f"The {service} service's database cannot be used: {message.rstrip('.')}."
        ) from error
    reject_incompatible_schema(service, expected_schema(service), current)
