"""Edits that a person with the administrator's rights might make, with all triggers off: one cell,
one row, or two rows that exchange values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any

import psycopg
from psycopg import sql

from tallystick_server.app.services import service_names

ROW = "(row)"
"""The column name for edits of a whole row."""


class EditKind(StrEnum):
    """The kind of an edit."""

    OTHER_VALUE = "other_value"
    """A cell gets the value of another row, or a value next to its own."""
    INVALID_VALUE = "rubbish"
    """A cell gets an arbitrary value that no service would write."""
    SWAP = "swap"
    """Two rows exchange the values of a column."""
    DELETE = "delete"
    INSERT = "insert"
    """A copy of a row, under another key."""


@dataclass(frozen=True)
class EditableColumn:
    schema: str
    table: str
    name: str
    type: str
    is_in_key: bool

    @property
    def qualified_table(self) -> str:
        return f"{self.schema}.{self.table}"


@dataclass(frozen=True)
class Edit:
    """One edit that was made. `description` is for display."""

    table: str
    column: str
    kind: EditKind
    description: str


_COLUMNS_SQL = """
    select c.table_schema, c.table_name, c.column_name, c.udt_name,
        exists (
            select from pg_index i join pg_attribute a on a.attrelid = i.indrelid
                and a.attnum = any (i.indkey)
            where i.indisprimary
                and i.indrelid = format('%%I.%%I', c.table_schema, c.table_name)::regclass
                and a.attname = c.column_name) as is_in_key
    from information_schema.columns c join information_schema.tables t
        using (table_schema, table_name)
    where c.table_schema = any (%s) and t.table_type = 'BASE TABLE' and c.is_generated = 'NEVER'
        and c.table_name <> 'alembic_version'
    order by c.table_schema, c.table_name, c.ordinal_position
"""
_OTHER_VALUES = {
    "text": ["{c} || 'x'", "left({c}, -1)", "''"],
    "bool": ["not {c}"],
    "int2": ["{c} + 1", "{c} - 1"],
    "int4": ["{c} + 1", "{c} - 1", "{c} + 100"],
    "int8": ["{c} + 1", "{c} - 1", "{c} + 100"],
    "numeric": ["{c} + 1", "{c} - 1", "{c} + 100"],
    "timestamptz": [
        "{c} + interval '1 second'",
        "{c} - interval '1 day'",
        "{c} + interval '1000 years'",
    ],
    "date": ["{c} + 1", "{c} - 1"],
    "bytea": ["set_byte({c}, 0, 255 - get_byte({c}, 0))"],
    "uuid": ["'00000000-0000-4000-8000-000000000000'::uuid"],
    "xid8": ["'1'::xid8"],
    "interval": ["{c} + interval '1 second'"],
    "_text": ["array_append({c}, 'x')"],
    "_int8": ["array_append({c}, 1)"],
    "jsonb": ["'{{}}'::jsonb"],
}
_INVALID_VALUES = {
    "text": ["E'\\x01'", "repeat('x', 5000)", "'no such thing'", "null"],
    "bool": ["null"],
    "int2": ["32767", "-1", "null"],
    "int4": ["2147483647", "-1", "null"],
    "int8": ["9223372036854775807", "-1", "null"],
    "numeric": ["99999999999999999999999999999999", "-1", "null"],
    "timestamptz": ["'infinity'::timestamptz", "'-infinity'::timestamptz", "null"],
    "date": ["'infinity'::date", "null"],
    "bytea": ["'\\x'::bytea", "null"],
    "uuid": ["null"],
    "xid8": ["null"],
    "interval": ["interval '1000 years'", "null"],
    "_text": ["'{{}}'::text[]", "null"],
    "_int8": ["'{{}}'::bigint[]", "null"],
    "jsonb": ["null"],
}

_NEAR_VALUES = {
    "text": ["''", "{c} || 'x'"],
    "bool": ["not {c}"],
    **{number: ["{c} + 1", "{c} - 1", "0"] for number in ("int2", "int4", "int8", "numeric")},
    "timestamptz": [
        f"{{c}} {sign} interval '1 {unit}'" for sign in "+-" for unit in ("second", "microsecond")
    ]
    + ["'infinity'::timestamptz"],
    "date": ["{c} + 1", "{c} - 1"],
    "bytea": ["set_byte({c}, 0, 255 - get_byte({c}, 0))"],
}
"""The values that `each_edit` gives to a cell, in addition to null and the values of other rows."""
_MAX_OTHER_VALUES = 3


def editable_columns(connection: psycopg.Connection[Any]) -> list[EditableColumn]:
    """Every column that can be edited, of every table of a service."""
    return [
        EditableColumn(*row)
        for row in connection.execute(_COLUMNS_SQL, (list(service_names()),)).fetchall()
    ]


def make_random_edit(
    connection: psycopg.Connection[Any],
    random: Random,
    column: EditableColumn,
    table_columns: Sequence[EditableColumn],
) -> Edit | None:
    """Makes one edit of a column, within the caller's transaction; None if the existing rows or a
    constraint do not allow it.
    """
    table = sql.Identifier(column.schema, column.table)
    ctids = [
        row[0]
        for row in connection.execute(
            sql.SQL("select ctid::text from {} order by ctid").format(table)
        ).fetchall()
    ]
    if not ctids:
        return None
    kind = random.choices([*EditKind], [6, 2, 2, 1, 1])[0]
    ctid, other_ctid = random.choice(ctids), random.choice(ctids)
    try:
        with connection.transaction():
            description = _apply_edit(
                connection, random, kind, column, table_columns, ctid, other_ctid
            )
    except psycopg.Error:
        return None
    is_whole_row = kind in (EditKind.DELETE, EditKind.INSERT)
    return (
        Edit(
            column.qualified_table,
            ROW if is_whole_row else column.name,
            kind,
            f"{kind} of {ctid}: {description}",
        )
        if description
        else None
    )


def first_edit(connection: psycopg.Connection[Any], column: EditableColumn) -> Edit | None:
    """Gives the first cell of a column that allows it a value next to its own or of another row,
    within the caller's transaction; None if no cell allows it.
    """
    table, name = sql.Identifier(column.schema, column.table), sql.Identifier(column.name)
    rows = connection.execute(
        sql.SQL("select ctid::text, {c}::text from {t} order by ctid").format(c=name, t=table)
    ).fetchall()
    others = dict.fromkeys(value for _, value in rows if value is not None)
    values = [
        *(sql.SQL(template).format(c=name) for template in _OTHER_VALUES[column.type]),
        *map(sql.Literal, others),
    ]
    for ctid, before in rows:
        for value in values:
            statement = sql.SQL(
                "update {t} set {c} = {e} where ctid = %s::tid returning {c}::text"
            ).format(t=table, c=name, e=value)
            try:
                with connection.transaction():
                    after = connection.execute(statement, (ctid,)).fetchone()
            except psycopg.Error:
                continue
            if after is not None and after[0] != before:
                return Edit(
                    column.qualified_table,
                    column.name,
                    EditKind.OTHER_VALUE,
                    f"first cell, {ctid}: {before!r} -> {after[0]!r}",
                )
    return None


def each_edit(connection: psycopg.Connection[Any], column: EditableColumn) -> Iterator[Edit]:
    """Gives each cell of a column each value next to its own, null, and those of some other rows.
    Each edit is undone when the next is requested. Edits that a constraint rejects, or that change
    nothing, are left out.
    """
    table, name = sql.Identifier(column.schema, column.table), sql.Identifier(column.name)
    rows = connection.execute(
        sql.SQL("select ctid::text, {c}::text from {t} order by ctid").format(c=name, t=table)
    ).fetchall()
    # as text: 'infinity' is no datetime
    others = list(dict.fromkeys(value for _, value in rows if value is not None))
    for row_index, (ctid, before) in enumerate(rows):
        near_values = [
            sql.SQL(template).format(c=name) for template in [*_NEAR_VALUES[column.type], "null"]
        ]
        other_values = [
            sql.Literal(others[(row_index + offset) % len(others)])
            for offset in range(min(_MAX_OTHER_VALUES, len(others)))
        ]
        if before is None and column.type == "timestamptz":
            other_values.append(sql.Literal("2020-01-01 00:00:00Z"))
        for expression in [*near_values, *other_values]:
            statement = sql.SQL(
                "update {t} set {c} = {e} where ctid = %s::tid returning {c}::text"
            ).format(t=table, c=name, e=expression)
            try:
                after = connection.execute(statement, (ctid,)).fetchone()
                if after is not None and after[0] != before:
                    yield Edit(
                        column.qualified_table,
                        column.name,
                        EditKind.OTHER_VALUE,
                        f"every cell, {ctid}: {before!r} -> {after[0]!r}",
                    )
            except psycopg.Error:
                pass
            finally:
                connection.rollback()


def _apply_edit(
    connection: psycopg.Connection[Any],
    random: Random,
    kind: EditKind,
    column: EditableColumn,
    table_columns: Sequence[EditableColumn],
    ctid: str,
    other_ctid: str,
) -> str:
    """Describes the change; "" if nothing changed."""
    table, name = sql.Identifier(column.schema, column.table), sql.Identifier(column.name)
    match kind:
        case EditKind.DELETE:
            connection.execute(
                sql.SQL("delete from {} where ctid = %s::tid").format(table), (ctid,)
            )
            return "deleted"
        case EditKind.INSERT:
            return _insert_copy(connection, random, column, table_columns, ctid)
        case EditKind.SWAP:
            statement = sql.SQL(
                "update {t} x set {c} = y.{c} from {t} y where x.ctid in (%s::tid, %s::tid) and "
                "y.ctid in (%s::tid, %s::tid) and x.ctid <> y.ctid"
            )
            values = _read_values(connection, column, (ctid, other_ctid))
            if len(values) < 2 or values[0] == values[1]:
                return ""
            connection.execute(
                statement.format(t=table, c=name), (ctid, other_ctid, ctid, other_ctid)
            )
            return f"{values[0]!r} <-> {values[1]!r}"
        case _:
            (before,) = _read_values(connection, column, (ctid,))
            after = _change_value(connection, random, kind, column, ctid, other_ctid)
            return f"{before!r} -> {after!r}" if after is not _UNCHANGED and after != before else ""


_UNCHANGED = object()


def _change_value(
    connection: psycopg.Connection[Any],
    random: Random,
    kind: EditKind,
    column: EditableColumn,
    ctid: str,
    other_ctid: str,
) -> object:
    """Gives a cell another value, and returns it."""
    table, name = sql.Identifier(column.schema, column.table), sql.Identifier(column.name)
    choices = (_INVALID_VALUES if kind is EditKind.INVALID_VALUE else _OTHER_VALUES).get(
        column.type, []
    )
    if kind is EditKind.OTHER_VALUE and random.random() < 0.5:
        expression = sql.SQL("(select {c} from {t} where ctid = {o}::tid)").format(
            c=name, t=table, o=sql.Literal(other_ctid)
        )
    elif choices:
        expression = sql.SQL(random.choice(choices)).format(c=name)
    else:
        return _UNCHANGED
    statement = sql.SQL("update {t} set {c} = {e} where ctid = %s::tid returning {c}::text").format(
        t=table, c=name, e=expression
    )
    row = connection.execute(statement, (ctid,)).fetchone()
    return row[0] if row else _UNCHANGED


def _insert_copy(
    connection: psycopg.Connection[Any],
    random: Random,
    column: EditableColumn,
    table_columns: Sequence[EditableColumn],
    ctid: str,
) -> str:
    """A copy of a row under another key."""
    key_columns = [
        table_column for table_column in table_columns if table_column.is_in_key
    ] or list(table_columns)
    changed_column = random.choice(key_columns)
    expression = random.choice(
        [template for template in _OTHER_VALUES.get(changed_column.type, []) if template != "''"]
        or ["{c}"]
    )
    expressions = [
        sql.SQL(expression).format(c=sql.Identifier(table_column.name))
        if table_column is changed_column
        else sql.Identifier(table_column.name)
        for table_column in table_columns
    ]
    statement = sql.SQL(
        "insert into {t} ({columns}) overriding system value select {selected} from {t} where "
        "ctid = %s::tid"
    ).format(
        t=sql.Identifier(column.schema, column.table),
        columns=sql.SQL(", ").join(
            sql.Identifier(table_column.name) for table_column in table_columns
        ),
        selected=sql.SQL(", ").join(expressions),
    )
    connection.execute(statement, (ctid,))
    return f"copied with another {changed_column.name}"


def _read_values(
    connection: psycopg.Connection[Any], column: EditableColumn, ctids: Sequence[str]
) -> list[object]:
    statement = sql.SQL(
        "select {c}::text from {t} where ctid = any (%s::tid[]) order by ctid"
    ).format(c=sql.Identifier(column.name), t=sql.Identifier(column.schema, column.table))
    return [row[0] for row in connection.execute(statement, (list(ctids),)).fetchall()]
