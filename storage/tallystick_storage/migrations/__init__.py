"""One Alembic history for each service's schema. The first migration creates what every schema has,
including `clock()` and `commit_marker`, by `create`. Later migrations only call `run`,
`run_in_batches` or `build_index`.
"""

import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from alembic import op
from sqlalchemy import text

from tallystick_storage.migrations.seals import SEAL_FUNCTION, seal
from tallystick_storage.migrations.shared_tables import COMMON_OBJECTS


def create(schema: str, *scripts: str, unsealed: frozenset[str] | None = frozenset()) -> None:
    """The first migration of a schema. Seals every table except those in `unsealed`, which verify
    recomputes. None seals no table: the schema is not a service's.
    """
    run(schema, COMMON_OBJECTS, *scripts)
    if unsealed is not None:
        tables = re.findall(r"^create table (\w+)", "\n".join(scripts), re.MULTILINE)
        run(
            schema,
            SEAL_FUNCTION,
            *[seal(schema, table) for table in tables if table not in unsealed],
        )


_script_collector: ContextVar[list[str] | None] = ContextVar("collected", default=None)


def collect_scripts(upgrade: Callable[[], None]) -> list[str]:
    """The SQL that a migration would run, without running it."""
    scripts: list[str] = []
    token = _script_collector.set(scripts)
    try:
        upgrade()
    finally:
        _script_collector.reset(token)
    return scripts


def run(schema: str, *scripts: str) -> None:
    """Runs SQL in the schema as its owner. {schema} is its name, {service} and {reader} for
    the service's role and its read-only role.
    """
    collector = _script_collector.get()
    if collector is not None:
        collector += [schema, *scripts]
        return
    connection = op.get_bind()
    roles = op.get_context().config.attributes["roles"]  # type: ignore[union-attr]
    connection.execute(text(f"set local search_path = {schema}, pg_temp"))
    # bypasses SQLAlchemy, which reads every % as a placeholder
    driver: Any = connection.connection.driver_connection
    for script in scripts:
        driver.execute(
            script.replace("{schema}", schema)
            .replace("{service}", roles["service"])
            .replace("{reader}", roles["reader"])
        )


def run_in_batches(schema: str, script: str) -> None:
    """Runs a script that commits by itself, so that no row stays locked for long.

    A migration that does so does nothing else: if it is interrupted, it is run again.
    """
    collector = _script_collector.get()
    if collector is not None:
        collector += [schema, script]
        return
    with op.get_context().autocommit_block():
        driver: Any = op.get_bind().connection.driver_connection
        driver.execute(f"set search_path = {schema}, pg_temp")
        driver.execute(script)


def build_index(schema: str, name: str, definition: str, *, unique: bool = False) -> None:
    """Builds an index while the table is being written, outside a transaction. `definition` is
    everything after "on". An index that was left incomplete is rebuilt.

    A migration that builds an index does nothing else.
    """
    statement = (
        f"create {'unique ' if unique else ''}index concurrently if not exists {name} on "
        f"{definition}"
    )
    collector = _script_collector.get()
    if collector is not None:
        collector += [schema, statement]
        return
    with op.get_context().autocommit_block():
        driver: Any = op.get_bind().connection.driver_connection
        driver.execute(f"set search_path = {schema}, pg_temp")
        # It waits for transactions that were already open, and blocks no others meanwhile.
        driver.execute("set lock_timeout = '10min'")
        if (
            driver.execute(
                "select from pg_index where indexrelid = to_regclass(%s) and not indisvalid",
                (name,),
            ).fetchone()
            is not None
        ):
            driver.execute(f"drop index concurrently {name}")
        driver.execute(statement)
