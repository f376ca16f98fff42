"""Copies template rows under other values.

In SQL expressions, `t` is the template's row, and `s` is the source's row: what a clone is made
for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from tallystick_server.app.errors import StartupError

TABLES_SQL = (
    "select oid from pg_class where relkind = 'r' and relnamespace::regnamespace::text in "
    "('payment', 'payout', 'wallet', 'ledger', 'event', 'reconciliation')"
)
"""SQL for the oids of the tables that are seeded."""


@dataclass(frozen=True)
class CloneSource:
    """The rows that clones are made for, one clone for each.

    `rows`: a table, or a subquery in parentheses. `template_start`: a query for the time at which
    the template starts, or "". If given, a clone's times are shifted from it to `s.start_time`.
    """

    rows: str
    template_start: str = ""


@dataclass(frozen=True)
class _Column:
    name: str
    type: str
    is_derived: bool
    """Whether the database computes it: a generated column or the seal."""


class RowCloner:
    """Clones the rows that the database holds when it is created, the templates."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        # copies, so that templates are not searched among the clones
        for (table,) in connection.execute(
            f"select oid::regclass::text from pg_class where oid in ({TABLES_SQL})"
        ).fetchall():
            connection.execute(f"create temporary table {template_table(table)} as table {table}")

    def insert_rows(
        self, table: str, template_filter: str, source: CloneSource, **values: str
    ) -> None:
        """Inserts a clone for each template row that the filter selects and each source row.

        `values`: SQL by column. Other columns are copied, except for shifted times and seals.
        """
        columns = self._load_columns(table)
        stored_columns = [column for column in columns if not column.is_derived]
        names = ", ".join(column.name for column in stored_columns)
        select_list = ", ".join(
            f"{_value_sql(column, source, values)} as {column.name}" for column in stored_columns
        )
        from_clause = f"from {template_table(table)} t, {source.rows} s where {template_filter}"
        if not any(column.name == "seal" for column in columns):
            self.connection.execute(
                f"insert into {table} ({names}) overriding system value "
                f"select {select_list} {from_clause}"
            )
            return
        # as the trigger does, which sees derived columns empty
        row_values = ", ".join(
            f"null::{column.type}" if column.is_derived else f"x.{column.name}"
            for column in columns
        )
        self.connection.execute(f"""
            insert into {table} ({names}, seal) overriding system value
            select {names}, case when is_sealed then sha256(record_send(row({row_values}))) end
            from (select {select_list}, t.seal is not null as is_sealed {from_clause} offset 0) x
        """)

    def insert_events(
        self, template_id: str, source_rows: str, aggregate_id: str, *, version: str = ""
    ) -> None:
        """Inserts a clone of each event of the template for each source row, at the end of the
        stream.

        `aggregate_id`: SQL for the aggregate id. `version`: SQL for the version; if given, only
        the template's first event is cloned.
        """
        last_cursor = int(fetch_value(self.connection, "select max(cursor) from event.event"))
        template_filter = f"t.aggregate_id = '{template_id}'"
        values = {}
        if version:
            template_filter += " and t.aggregate_version = 1"
            values = {"aggregate_version": version}
        self.insert_rows(
            "event.event",
            template_filter,
            CloneSource(source_rows),
            cursor=f"{last_cursor} + row_number() over ()",
            aggregate_id=aggregate_id,
            **values,
        )

    def _load_columns(self, table: str) -> list[_Column]:
        rows = self.connection.execute(
            """
            select quote_ident(attname), format_type(atttypid, null), attgenerated <> ''
                or attname = 'seal' from pg_attribute
            where attrelid = cast(%s as regclass) and attnum > 0 and not attisdropped
                order by attnum
            """,
            (table,),
        ).fetchall()
        return [_Column(*row) for row in rows]


def _value_sql(column: _Column, source: CloneSource, values: dict[str, str]) -> str:
    if column.name in values:
        return f"cast({values[column.name]} as {column.type})"
    if source.template_start and column.type == "timestamp with time zone":
        time = f"t.{column.name}"
        return (
            f"case when isfinite({time}) then s.start_time + ({time} - ({source.template_start})) "
            f"else {time} end"
        )
    return f"t.{column.name}"


def fetch_value(connection: psycopg.Connection[Any], query: str) -> Any:
    """The first column of the first row. Raises StartupError if there is no row."""
    row = connection.execute(query).fetchone()
    if row is None:
        raise StartupError(f"The query returned no row: {query}")
    return row[0]


def template_table(table: str) -> str:
    """The temporary table that holds the templates of a table."""
    return f"template_{table.replace('.', '_')}"
