"""Whether a database's schema is one that this code can work with: revisions, the fingerprints of their SQL, and what a newer schema still allows."""

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
from sqlalchemy import make_url

from tallystick_server.process.failure import Failure
from tallystick_storage.migrations import scripts_of

_MIGRATIONS = str(files("tallystick_storage").joinpath("migrations"))
_UNDEFINED = ("3F000", "42P01")  # SQLSTATEs: no such schema, no such table
# What a server says when it takes nobody in, however long one waits; the driver has no SQLSTATE of a connection that was refused.
_FINAL = ("authentication failed", "does not exist", "no pg_hba.conf entry", "permission denied", "not permitted to log in", "no password supplied")
_CONNECT_TIMEOUT = 5


class DatabaseAway(Exception):
    """The database takes no connections now; it may later."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema's revisions, oldest first, each with the fingerprint of its SQL.

    `minimum_process_revision`: processes whose newest revision is older than this one cannot work with the schema.
    """

    fingerprints: Mapping[str, str]
    minimum_process_revision: str

    @property
    def head(self) -> str:
        return list(self.fingerprints)[-1]

    def as_text(self) -> str:
        """How migrate stores it, as the comment of the schema's table alembic_version."""
        return json.dumps({"fingerprints": dict(self.fingerprints), "minimum_process_revision": self.minimum_process_revision})


def config(service: str) -> Config:
    """Alembic's configuration of one schema's history."""
    made = Config()
    made.set_main_option("script_location", _MIGRATIONS)
    made.set_main_option("version_locations", f"{_MIGRATIONS}/{service}")
    made.set_main_option("path_separator", "newline")
    return made


def schema_of_code(service: str) -> Schema:
    """The schema that the migration scripts make. Each migration may declare a `minimum_process_revision`; without one it is its own revision."""
    revisions = list(ScriptDirectory.from_config(config(service)).walk_revisions())[::-1]
    order = [revision.revision for revision in revisions]
    minimum = max((getattr(one.module, "minimum_process_revision", one.revision) for one in revisions), key=order.index)
    return Schema({one.revision: _fingerprint(scripts_of(one.module.upgrade)) for one in revisions}, minimum)


def _fingerprint(scripts: list[str]) -> str:
    """A hash of SQL that comments and white space leave as it is."""
    bare = re.sub(r"\s+", " ", re.sub(r"--[^\n]*", "", "\n".join(scripts))).strip()
    return hashlib.sha256(bare.encode()).hexdigest()


def stored_schema(connection: psycopg.Connection[Any], service: str) -> tuple[str, Schema | None] | None:
    """The revision that a schema is at, and what migrate stored of it (None: nothing); None if it has none."""
    table = f"{service}.alembic_version"
    known = connection.execute("select to_regclass(%s)", (table,)).fetchone()
    if known is None or known[0] is None:
        return None
    found = connection.execute(
        sql.SQL("select version_num, obj_description(%s::regclass, 'pg_class') from {}").format(_qualified(service)), (table,)
    ).fetchone()
    if found is None:
        return None
    revision, text = found
    if not text:
        return str(revision), None
    stored = json.loads(text)
    return str(revision), Schema(stored["fingerprints"], stored["minimum_process_revision"])


def store_schema(connection: psycopg.Connection[Any], service: str, schema: Schema) -> None:
    """Notes the schema beside its revision."""
    connection.execute(sql.SQL("comment on table {} is {}").format(_qualified(service), sql.Literal(schema.as_text())))


def _qualified(service: str) -> sql.Identifier:
    return sql.Identifier(service, "alembic_version")


def refuse_foreign(service: str, code: Schema, found: tuple[str, Schema | None]) -> None:
    """Raises Failure if the schema was not made by this code's migrations, as far as both know the same revisions."""
    revision, stored = found
    shared = [known for known in code.fingerprints if stored is not None and known in stored.fingerprints]
    if stored is None or revision not in stored.fingerprints or any(code.fingerprints[one] != stored.fingerprints[one] for one in shared):
        raise Failure(
            f"The {service} service's schema was made by other migrations than this code has (another commit, or edited scripts): "
            "use the code that made it, or a new database (for the embedded one, another folder in TALLYSTICK_DATA)."
        )


def refuse_unfit(service: str, code: Schema, found: tuple[str, Schema | None] | None) -> None:
    """Raises Failure if this code cannot work with a database's schema; a newer one is taken as far as its migrations say so."""
    if found is None:
        raise Failure(f"The {service} service's schema does not exist: run 'tallystick migrate'.")
    revision, stored = found
    if revision in code.fingerprints:
        refuse_foreign(service, code, found)
        if revision != code.head:
            raise Failure(f"The {service} service's database is at version {revision}, and this code needs {code.head}: run 'tallystick migrate'.")
        return
    order = list(stored.fingerprints) if stored is not None else []
    if stored is None or code.head not in order:
        raise Failure(f"The {service} service's database is at version {revision}, which this code does not know: use the code that made it.")
    refuse_foreign(service, code, found)
    if order.index(code.head) < order.index(stored.minimum_process_revision):
        raise Failure(
            f"The {service} service's database is at version {revision}, which needs processes of {stored.minimum_process_revision} or newer, "
            f"and this one is of {code.head}: use newer code."
        )


def check_schema(url: str, service: str) -> None:
    """Raises Failure if this code cannot work with the service's database, DatabaseAway while nothing can be said of it."""
    target = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with psycopg.connect(target, connect_timeout=_CONNECT_TIMEOUT, options="-c statement_timeout=5000") as connection:
            found = stored_schema(connection, service)
    except psycopg.Error as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if error.sqlstate in _UNDEFINED:
            raise Failure(f"The {service} service's schema does not exist: run 'tallystick migrate'.") from error
        if isinstance(error, psycopg.OperationalError) and not any(final in str(error) for final in _FINAL):
            raise DatabaseAway(said) from error
        raise Failure(f"The {service} service's database cannot be used: {said.rstrip('.')}.") from error
    refuse_unfit(service, schema_of_code(service), found)
