"""The plans of statements, and how many rows and blocks they read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

from benchmarks.growth.queries import DatabaseWork
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_storage.connection_pool import Connections
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection, Cursor, connect


class RecordingConnection(Connection):
    """A connection that reports its statements to a recorder."""

    recorder: StatementRecorder

    def execute(  # type: ignore[override]
        self, statement: str, parameters: Any = None, row_factory: Any = None
    ) -> Cursor:
        for listener in self.recorder.listeners:
            listener.append((self.recorder.url, statement, parameters))
        return super().execute(statement, parameters, row_factory)


class StatementRecorder(Connections):
    """Connections whose statements are captured by `listeners`."""

    def __init__(
        self, url: str, settings: Mapping[str, str] | None = None, *, keeps_plans: bool = False
    ) -> None:
        super().__init__(url, settings, keeps_plans=keeps_plans)
        self.url = url
        self.listeners: list[list[tuple[str, str, Any]]] = []

    def open(self) -> Connection:
        connection = connect(self._url, RecordingConnection, options=self._options)
        connection.recorder = self
        return connection


@contextmanager
def rolled_back(recorder: StatementRecorder) -> Iterator[Connection]:
    """Yields a connection in a transaction that is rolled back at the end."""
    connection = recorder.take()
    try:
        connection.execute("begin")
        yield connection
    finally:
        recorder.give_back(connection)
        recorder.close()


@dataclass
class QueryPlans:
    """The statements of recorders, and what their plans read.

    `statements`: the URL of the database, the SQL and its parameters.
    """

    statements: list[tuple[str, str, Any]] = field(default_factory=list)

    @contextmanager
    def capture(self, *recorders: StatementRecorder) -> Iterator[QueryPlans]:
        """Captures what these execute until the block ends. Other connections of the process are
        not captured.
        """
        for recorder in recorders:
            recorder.listeners.append(self.statements)
        try:
            yield self
        finally:
            for recorder in recorders:
                recorder.listeners.remove(self.statements)

    def explain(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields each read or change with its plan. Executes it again, as the same role, and rolls
        back.
        """
        for url, statement, parameters in self.statements:
            if (
                not statement.lstrip(" (\n")
                .lower()
                .startswith(("select", "with", "delete", "update"))
            ):
                continue
            with psycopg.connect(url) as connection:
                row = connection.execute(
                    f"explain (analyze, buffers, format json) {statement}".encode(), parameters
                ).fetchone()
                connection.rollback()
            yield statement, (row or ([],))[0][0]["Plan"]

    def nodes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields each node of each plan, with its statement."""
        for statement, plan in self.explain():
            for node in flatten(plan):
                yield statement, node


def flatten(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields a node of a plan, and all nodes below it."""
    yield node
    for child in node.get("Plans", ()):
        yield from flatten(child)


def rows_read(node: dict[str, Any]) -> int:
    """The rows that a node of a plan read in all its loops, with those that it filtered out."""
    filtered_rows = sum(
        node.get(f"Rows Removed by {reason}", 0)
        for reason in ("Filter", "Index Recheck", "Join Filter")
    )
    rows: float = (node.get("Actual Rows", 0) + filtered_rows) * node.get("Actual Loops", 1)
    return round(rows)


def blocks_read(plan: dict[str, Any]) -> int:
    """The blocks of 8 kB that a plan read, cached or not. They include those of dead index
    entries.
    """
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def count_statements(plans: QueryPlans) -> int:
    """How many statements were captured, without the begin of transactions and the housekeeping of
    connections.
    """
    return sum(
        not statement.startswith(("begin", "discard")) for _, statement, _ in plans.statements
    )


class StatementRecorders:
    """Opens the databases of a platform that is started with `dependencies`. `reads`: the recorders
    of the reads of callers. `all`: also those of changes, relays, monitors and workers.
    """

    def __init__(self) -> None:
        self.reads: list[StatementRecorder] = []
        self.all: list[StatementRecorder] = []
        self.dependencies = Dependencies(open_database=self._open)

    def _open(self, url: str, connections: int, new_id: Callable[[], UUID]) -> Database:
        return Database(
            url, connections=connections, new_id=new_id, open_connections=self._connections
        )

    def _connections(
        self, url: str, settings: Mapping[str, str] | None = None, *, keeps_plans: bool = False
    ) -> StatementRecorder:
        recorder = StatementRecorder(url, settings, keeps_plans=keeps_plans)
        self.all.append(recorder)
        if not keeps_plans:  # the reads of callers
            self.reads.append(recorder)
        return recorder


def time_execution(
    database_urls: DatabaseUrls, schema: str, work: DatabaseWork, plans: QueryPlans | None = None
) -> float:
    """Does work as the service's role, in a transaction that is rolled back. Adds its statements to
    `plans`, and returns the seconds that it took.
    """
    recorder = StatementRecorder(database_urls.service(schema), keeps_plans=True)
    with rolled_back(recorder) as connection:
        # on a busy machine this process may wait for long
        connection.execute("set idle_in_transaction_session_timeout = 0")
        start = time.perf_counter()
        with (plans or QueryPlans()).capture(recorder):
            work(connection)
        return time.perf_counter() - start
