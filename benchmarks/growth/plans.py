"""The plans of statements, and how many rows and blocks they read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event

from benchmarks.growth.queries import DatabaseWork
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_storage.connection_pool import open_engine
from tallystick_storage.database import Database


@dataclass
class QueryPlans:
    """The statements that engines execute, and what their plans read.

    `statements`: the URL of the database, the SQL and its parameters.
    """

    statements: list[tuple[str, str, Any]] = field(default_factory=list)

    @contextmanager
    def capture(self, *engines: Engine) -> Iterator[QueryPlans]:
        """Captures what these engines execute until the block ends. Other engines of the process
        are not captured.
        """

        def record(
            connection: Connection,
            _cursor: Any,
            statement: str,
            parameters: Any,
            _context: Any,
            _many: bool,
        ) -> None:
            url = connection.engine.url.set(drivername="postgresql").render_as_string(
                hide_password=False
            )
            self.statements.append((url, statement, parameters))

        for engine in engines:
            event.listen(engine, "before_cursor_execute", record)
        try:
            yield self
        finally:
            for engine in engines:
                event.remove(engine, "before_cursor_execute", record)

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


class ReadEngines:
    """Opens the databases of a platform that is started with `dependencies`. `engines`: those that
    answer the reads of callers, without those of relays, monitors and workers.
    """

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.dependencies = Dependencies(open_database=self._open)

    def _open(self, url: str, connections: int, new_id: Callable[[], UUID]) -> Database:
        return Database(url, connections=connections, new_id=new_id, engine_factory=self._engine)

    def _engine(self, url: str, connections: int, statement_timeout: float | None) -> Engine:
        engine = open_engine(url, connections, statement_timeout)
        if statement_timeout is not None:  # only callers' reads have a limit of their own
            self.engines.append(engine)
        return engine


def time_execution(
    database_urls: DatabaseUrls, schema: str, work: DatabaseWork, plans: QueryPlans | None = None
) -> float:
    """Does work as the service's role, in a transaction that is rolled back. Adds its statements to
    `plans`, and returns the seconds that it took.
    """
    engine = create_engine(database_urls.service(schema))
    try:
        with engine.connect() as connection:
            # on a busy machine this process may wait for long
            connection.exec_driver_sql("set idle_in_transaction_session_timeout = 0")
            start = time.perf_counter()
            with (plans or QueryPlans()).capture(engine):
                work(connection)
            seconds = time.perf_counter() - start
            connection.rollback()
            return seconds
    finally:
        engine.dispose()
