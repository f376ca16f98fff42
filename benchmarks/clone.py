"""Copies of what the platform has written, row by row, under other values: rows keep seals, and
versions keep events.
"""

from __future__ import annotations

from typing import Any

import psycopg

from tallystick_server.app.errors import StartupError

TABLES = (
    "select oid from pg_class where relkind = 'r' and relnamespace::regnamespace::text in "
    "('payment', 'payout', 'wallet', 'ledger', 'event')"
)
"""SQL for the tables that are seeded."""


class RowCloner:
    """Clones the templates. `s` names the row of what is made, in each expression; `t` the
    template's.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        """Copies what the platform has written, by table: what is looked up in them is not looked
        for among the clones.
        """
        self._connection = connection
        for (table,) in connection.execute(
            f"select oid::regclass::text from pg_class where oid in ({TABLES})"
        ).fetchall():
            connection.execute(f"create temporary table {template_table(table)} as table {table}")

    def insert_rows(
        self, table: str, template: str, source: str, *, begin: str = "", **values: str
    ) -> None:
        """Inserts a row for each of the source and each template: the template's, but for the
        values given, with a seal if the template has one.

        `begin`: selects the time that the source's `at` takes the place of, for the times not
        given.
        """
        columns = self._connection.execute(
            """
            select quote_ident(attname), format_type(atttypid, null), attgenerated <> ''
                or attname = 'seal' from pg_attribute
            where attrelid = cast(%s as regclass) and attnum > 0 and not attisdropped
                order by attnum
            """,
            (table,),
        ).fetchall()

        def value(column: str, type_: str) -> str:
            if column in values:
                return f"cast({values[column]} as {type_})"
            if begin and type_ == "timestamp with time zone":
                return (
                    f"case when isfinite(t.{column}) then s.at + (t.{column} - ({begin})) else "
                    f"t.{column} end"
                )
            return f"t.{column}"

        is_sealed = any(column == "seal" for column, _, _ in columns)
        column_names = [column for column, _, is_derived in columns if not is_derived]
        select_list = ", ".join(
            f"{value(column, type_)} as {column}"
            for column, type_, is_derived in columns
            if not is_derived
        )
        if is_sealed:  # as the trigger does, which sees derived columns empty
            row_values = ", ".join(
                f"null::{type_}" if is_derived else f"x.{column}"
                for column, type_, is_derived in columns
            )
            self._connection.execute(f"""
                insert into {table} ({", ".join(column_names)}, seal)
                select {", ".join(column_names)}, case when is_sealed
                    then sha256(record_send(row({row_values}))) end
                from (select {select_list}, t.seal is not null as is_sealed
                    from {template_table(table)} t, {source} s where {template} offset 0) x
            """)
        else:
            self._connection.execute(
                f"insert into {table} ({', '.join(column_names)}) select {select_list} from "
                f"{template_table(table)} t, {source} s where {template}"
            )

    def insert_events(
        self, template_id: str, source: str, aggregate_id: str, version: str = ""
    ) -> None:
        """The events of a template for each of the source, the first of them at the version if one
        is given.
        """
        last = int(fetch_value(self._connection, "select max(cursor) from event.event"))
        values = {"aggregate_version": version} if version else {}
        template = f"t.aggregate_id = '{template_id}'" + (
            " and t.aggregate_version = 1" if version else ""
        )
        self.insert_rows(
            "event.event",
            template,
            source,
            cursor=f"{last} + row_number() over ()",
            aggregate_id=aggregate_id,
            **values,
        )


def fetch_value(connection: psycopg.Connection[Any], query: str) -> Any:
    """The value that a query gives."""
    row = connection.execute(query).fetchone()
    if row is None:
        raise StartupError(f"nothing came of {query}")
    return row[0]


def template_table(table: str) -> str:
    """The copy of a table as the platform left it."""
    return f"template_{table.replace('.', '_')}"


def canonical_sql(*fields: str) -> str:
    """SQL for the text of `canonical.canonical` of fields, which are SQL for texts."""
    return " || ".join(f"octet_length({field}) || ':' || {field}" for field in fields)


def fingerprint_sql(*fields: str, suffix: str = "''") -> str:
    """SQL for `canonical.fingerprint` of fields, which are SQL for texts; `suffix`: for the
    canonical text of those that follow.
    """
    return f"sha256(convert_to({canonical_sql(*fields)} || {suffix}, 'UTF8'))"
