"""Runs the verify queries, each schema with its read-only role and all on one snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from psycopg.conninfo import make_conninfo
from psycopg.rows import namedtuple_row

from tallystick_storage.connection_pool import Connections
from tallystick_storage.sql import Connection, Statement, text

_FETCH_SIZE = 5000
# A transaction idles while a check reads another's rows.
_DISABLE_IDLE_TIMEOUT = "set local idle_in_transaction_session_timeout = 0"
_PLANNER_SETTINGS = (
    "set local work_mem = '32MB'; set local cursor_tuple_fraction = 1; set local jit = off"
)


class Reader:
    """Reads each schema with a read-only role.

    `url` returns the database URL of a schema; `queries` has the queries of each schema, by
    "{schema}.{name}", in the order in which the snapshots of their databases are taken.
    """

    def __init__(self, url: Callable[[str], str], queries: Mapping[str, Mapping[str, str]]) -> None:
        self._url = url
        self._queries = queries
        self._connections: dict[str, Connections] = {}
        self._used: set[Connection] = set()

    @contextmanager
    def open_snapshot(self) -> Iterator[Callable[..., Iterator[Any]]]:
        """Yields a function that opens queries, each on its own connection and from any thread. It
        streams rows in the query's order; a row's columns are its attributes.

        All schemas of one database are read from one snapshot, despite concurrent writes. Each
        further database has its own snapshot.
        """
        urls = {schema: self._url(schema) for schema in self._queries}
        # Now, because queries are opened from several threads.
        self._connections = {schema: Connections(url) for schema, url in urls.items()}
        snapshots: dict[str, str] = {}
        with ExitStack() as stack:
            for schema, url in urls.items():
                if _database(url) not in snapshots:
                    # A snapshot lasts as long as its transaction.
                    connection = stack.enter_context(self._connect(schema))
                    snapshots[_database(url)] = connection.execute(
                        text("select pg_export_snapshot()")
                    ).scalar_one()
            snapshot_of = {schema: snapshots[_database(url)] for schema, url in urls.items()}

            def read(name: str, **parameters: Any) -> Iterator[Any]:
                schema = name.partition(".")[0]
                settings = f"set transaction snapshot '{snapshot_of[schema]}'; {_PLANNER_SETTINGS}"
                with self._connect(schema, settings) as connection:
                    yield from _rows(connection, self._queries[schema][name], parameters)

            yield read

    @contextmanager
    def _connect(self, schema: str, settings: str = "") -> Iterator[Connection]:
        """Yields a connection in a new transaction with some settings, which is rolled back at the
        end.
        """
        connections = self._connections[schema]
        connection = connections.take()
        self._used.add(connection)
        try:
            connection.execute(
                f"begin isolation level repeatable read; {_DISABLE_IDLE_TIMEOUT}; {settings}"
            )
            yield connection
        finally:
            connections.give_back(connection)
            self._used.discard(connection)

    def close(self) -> None:
        """Closes all connections, with those of queries that were not read to their end."""
        for connection in self._used:
            connection.close()
        for connections in self._connections.values():
            connections.close()


def _database(url: str) -> str:
    """Where the database of a URL is, whatever the role."""
    return make_conninfo(url, user="", password="")


def _rows(connection: Connection, query: str, parameters: dict[str, Any]) -> Iterator[Any]:
    with connection.cursor("rows", row_factory=namedtuple_row) as cursor:
        cursor.itersize = _FETCH_SIZE
        yield from cursor.execute(statement(query, parameters), parameters or None)


def statement(query: str, parameters: dict[str, Any]) -> Statement:
    """The query, or the one in `parameters`, which is removed from them."""
    return text(parameters.pop("statement", query))
