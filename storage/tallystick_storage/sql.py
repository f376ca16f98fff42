"""SQL statements with named parameters, and the connections that execute them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from time import monotonic
from typing import Any, Generic, TypeVar, cast

import psycopg
from psycopg.rows import RowFactory, args_row, tuple_row

R = TypeVar("R")
C = TypeVar("C", bound="Connection")

_PARAMETER = re.compile(r"(?<![:\w\\]):(\w+)(?!:)")


class Statement(str):
    """One SQL statement as the driver takes it."""

    __slots__ = ()


def text(sql: str) -> Statement:
    """The statement of some SQL. Its parameters are written `:name`. Comment lines and indentation
    are removed, because psycopg converts a statement only once if it has at most 4,096 bytes.
    """
    lines = (line.strip() for line in sql.splitlines())
    sql = "\n".join(line for line in lines if line and not line.startswith("--"))
    if not _PARAMETER.search(sql):
        return Statement(sql)
    return Statement(_PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%")))


def columns(row_type: type[Any], table: str = "") -> str:
    """The select list of a row type: its fields in order, as columns of `table` if given."""
    names = getattr(row_type, "_fields", None) or [field.name for field in fields(row_type)]
    return ", ".join(f"{table}.{name}" if table else name for name in names)


class Query(Generic[R]):
    """A statement whose rows have a type: a NamedTuple or dataclass that is declared with it.

    Its fields are the columns, in order; `{columns}` in the SQL is replaced by their names.
    """

    __slots__ = ("_row_factory", "statement")

    def __init__(self, row_type: type[R], sql: str) -> None:
        self.statement = text(sql.replace("{columns}", columns(row_type)))
        self._row_factory = args_row(row_type)

    def all(self, connection: Connection, **parameters: Any) -> list[R]:
        """All rows."""
        return connection.execute(self.statement, parameters, self._row_factory).fetchall()

    def one(self, connection: Connection, **parameters: Any) -> R:
        """The only row. Raises ValueError if there is another number of rows."""
        (row,) = self.all(connection, **parameters)
        return row

    def one_or_none(self, connection: Connection, **parameters: Any) -> R | None:
        """The only row, or None. Raises ValueError if there are several."""
        rows = self.all(connection, **parameters)
        if not rows:
            return None
        (row,) = rows
        return row


class Cursor(psycopg.Cursor[Any]):
    """The result of a statement. Rows of several columns are read by a Query."""

    def scalar_one(self) -> Any:
        """The only column of the only row. Raises ValueError if there is another number of them."""
        ((value,),) = self.fetchall()
        return value

    def scalar_one_or_none(self) -> Any:
        """The only column of the only row, or None. Raises ValueError if there are several."""
        values = self.scalars()
        if not values:
            return None
        (value,) = values
        return value

    def scalars(self) -> list[Any]:
        """The first column of each row."""
        return [row[0] for row in self.fetchall()]


class Connection(psycopg.Connection[Any]):
    """A connection that begins no transaction by itself.

    `plan_expire_time`: when its plans are to be discarded. `send_time`: when the last statement was
    sent. Both, and `open_time`, are times of time.monotonic.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.open_time = self.send_time = monotonic()
        self.plan_expire_time = self.open_time + 1.0
        self._begin_time: datetime | None = None

    @property
    def begin_time(self) -> datetime:
        """The database's time at which the present transaction of `transact` began."""
        if self._begin_time is None:
            raise RuntimeError("begin_time is known in a transaction of Database.transact only")
        return self._begin_time

    def set_begin_time(self, begin_time: datetime | None) -> None:
        self._begin_time = begin_time

    def commit(self) -> None:
        self.send_time = monotonic()
        super().commit()

    def rollback(self) -> None:
        self.send_time = monotonic()
        super().rollback()

    def execute(  # type: ignore[override]
        self,
        statement: str,
        parameters: Mapping[str, Any] | Sequence[Any] | None = None,
        row_factory: RowFactory[Any] | None = None,
    ) -> Cursor:
        """Executes a statement and returns its result."""
        self.send_time = monotonic()
        cursor = self.cursor(row_factory=row_factory or self.row_factory)
        return cast(Cursor, cursor.execute(cast(Any, statement), parameters or None))


def connect(url: str, kind: type[C] = Connection, **options: Any) -> C:  # type: ignore[assignment]
    """Opens a connection of this class. `options`: see libpq. Raises psycopg.OperationalError."""
    return kind.connect(
        url, autocommit=True, cursor_factory=Cursor, row_factory=tuple_row, **options
    )
