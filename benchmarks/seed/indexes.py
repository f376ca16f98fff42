"""Drops indexes while rows are inserted, and creates them at the end, which is faster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from benchmarks.measure import StatusPrinter
from benchmarks.seed.clone import TABLES_SQL


@contextmanager
def without_indexes(
    connection: psycopg.Connection[Any], print_status: StatusPrinter
) -> Iterator[None]:
    """Drops each index, and each constraint that needs one, and creates them again when the block
    ends.
    """
    constraints = connection.execute(f"""
        select conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid)
            from pg_constraint
        where contype in ('p', 'u', 'x', 'f') and conrelid in ({TABLES_SQL})
            order by contype = 'f'
    """).fetchall()
    indexes = connection.execute(f"""
        select indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index i
        where indrelid in ({TABLES_SQL})
            and not exists (select from pg_constraint c where c.conindid = i.indexrelid
                and c.conrelid = i.indrelid)
    """).fetchall()
    for table, name, _ in reversed(constraints):  # foreign keys first, which need the others
        connection.execute(f"alter table {table} drop constraint {name}")
    for name, _ in indexes:
        connection.execute(f"drop index {name}")
    yield
    print_status("Creating indexes")
    for table, name, definition in constraints:
        connection.execute(f"alter table {table} add constraint {name} {definition}")
    for _, definition in indexes:
        connection.execute(definition)
