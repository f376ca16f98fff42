"""The real database under the simulation's clock, with COMMITs that fail on request."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import namedtuple_row

from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.database.migrate import SCHEMAS
from tallystick_server.observability.tracing import TracedDatabase, function_name
from tallystick_server.verify.run import load_queries
from tallystick_storage.connection_pool import Connections
from tallystick_storage.sql import Connection, connect
from tallystick_storage.verify import statement
from tests.simulation.faults import InjectedFault

T = TypeVar("T")

TRANSACTION_LABEL: contextvars.ContextVar[str] = contextvars.ContextVar("label", default="")
"""The name of the transaction that is about to run."""

START_TIME = datetime(2026, 1, 1, 0, 0, 50, tzinfo=UTC)
"""The time at which every simulation begins: seconds before a full minute, because cut-offs are at
full minutes.
"""
_CLOCK = """
create or replace function {schema}.clock() returns timestamptz language sql volatile as
    'select timestamptz ''{beginning}''
        + cast(current_setting(''simulation.now'') as float8) * interval ''1 second'''
"""
_NONEMPTY_TABLES = (
    "select name from unnest(%s::text[]) name where pg_relation_size(name::regclass) > 0"
)
_DISABLE_AUTOVACUUM = "alter table {schema}.{table} set (autovacuum_enabled = off)"


@dataclass
class DatabaseConditions:
    """The state of the databases: the fault of the present transaction, and the offset of their
    clocks.
    """

    fault: InjectedFault | None = None
    now: float = 0.0
    at_commit: bool = False
    """Whether the transaction has reached its COMMIT."""


class _FaultyConnection(Connection):
    """A connection that breaks at COMMIT on request."""

    conditions: DatabaseConditions

    def commit(self) -> None:
        self.conditions.at_commit, fault = True, self.conditions.fault
        if fault is InjectedFault.SERIALIZATION_FAILURE:
            self.rollback()
            raise psycopg.errors.SerializationFailure(
                "could not serialize access due to read/write dependencies among transactions"
            )
        if fault is InjectedFault.COMMIT_LOST_AFTER:
            super().commit()
        if fault in (InjectedFault.COMMIT_LOST_BEFORE, InjectedFault.COMMIT_LOST_AFTER):
            self.close()
            raise psycopg.OperationalError("the connection to the server was lost")
        super().commit()


class SimulatedConnections(Connections):
    """The one connection to a schema, shared by all nodes of all runs, because transactions run one
    at a time.
    """

    def __init__(self, url: str, conditions: DatabaseConditions) -> None:
        # Batches are small here; planning each one took most of the time.
        super().__init__(url, {"plan_cache_mode": "force_generic_plan"})
        self._conditions = conditions

    def open(self) -> Connection:
        connection = connect(self._url, _FaultyConnection, options=self._options)
        connection.conditions = self._conditions
        return connection

    def take(self) -> Connection:
        if self._conditions.fault is InjectedFault.DATABASE_UNAVAILABLE:
            raise psycopg.OperationalError("the server is not there")
        connection = super().take()
        if connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            raise RuntimeError("a connection was kept in a transaction")
        # Uses libpq directly, outside of any transaction: a cursor and a planned SELECT took a
        # tenth of a run.
        result = connection.pgconn.exec_(
            f"set simulation.now = '{self._conditions.now!r}'".encode()
        )
        if result.status != psycopg.pq.ExecStatus.COMMAND_OK:
            raise psycopg.OperationalError(result.error_message.decode())
        return connection

    def close(self) -> None:
        """Does nothing: other nodes use the connection."""

    def close_all(self) -> None:
        super().close()


class ConnectionCache:
    """The connections to each schema."""

    def __init__(self, conditions: DatabaseConditions) -> None:
        self._conditions = conditions
        self._connections: dict[str, SimulatedConnections] = {}

    def __call__(self, url: str, *_: object, **__: object) -> Connections:
        if url not in self._connections:
            self._connections[url] = SimulatedConnections(url, self._conditions)
        return self._connections[url]

    def close(self) -> None:
        for connections in self._connections.values():
            connections.close_all()


def _name_of(work: Any) -> str:
    """The name of a function in the trace."""
    return function_name(work).replace(".<locals>", "")


class SimulatedDatabase(TracedDatabase):
    """The real database, which reports the name of each transaction that runs."""

    def __init__(self, url: str, new_id: Callable[[], UUID], cache: ConnectionCache) -> None:
        super().__init__(url, connections=1, new_id=new_id, open_connections=cache)

    async def transact(self, work: Callable[[Connection], T], *, idempotent: bool = False) -> T:
        TRANSACTION_LABEL.set(f"transaction {_name_of(work)}")
        return await super().transact(work, idempotent=idempotent)

    async def load(self, work: Callable[[Connection], T]) -> T:
        TRANSACTION_LABEL.set(f"read {_name_of(work)}")
        return await super().load(work)

    async def read(self, work: Callable[[Connection], T], *, changed: bool = False) -> T:
        TRANSACTION_LABEL.set(f"read {_name_of(work)}")
        return await super().read(work, changed=changed)


class VerifyReader:
    """Reads `verify` needs when nothing is in progress: each schema through its own reader, on one
    connection that stays open.
    """

    def __init__(self, databases: DatabaseUrls) -> None:
        self._databases = databases
        self._queries = load_queries()
        self._connections: dict[str, Connection] = {}

    def read(self, name: str, **parameters: Any) -> Iterator[Any]:
        """Fetches all rows of a query at once."""
        schema = name.partition(".")[0]
        if schema not in self._connections:
            # Every simulation empties the tables, which discards every plan, so keeping plans is
            # useless.
            self._connections[schema] = connect(
                self._databases.reader(schema), prepare_threshold=None
            )
        return iter(
            self._connections[schema]
            .execute(statement(self._queries[schema][name], parameters), parameters, namedtuple_row)
            .fetchall()
        )

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()


class Tables:
    """The initial contents of all tables of a database; `reset` restores them. Replaces the clock
    of every schema.
    """

    def __init__(self, databases: DatabaseUrls) -> None:
        self._connection: psycopg.Connection[Any] = psycopg.connect(
            databases.admin, autocommit=True
        )
        self._connection.execute("set simulation.now = '0'")
        self._table_names: list[str] = []
        self._initial_rows: list[tuple[str, list[tuple[Any, ...]]]] = []
        for schema in SCHEMAS:
            self._connection.execute(_CLOCK.format(schema=schema, beginning=START_TIME.isoformat()))
            table_rows = self._connection.execute(
                "select tablename from pg_tables where schemaname = %s order by 1", (schema,)
            ).fetchall()
            for (table,) in table_rows:
                name = f"{schema}.{table}"
                self._connection.execute(_DISABLE_AUTOVACUUM.format(schema=schema, table=table))
                rows = self._connection.execute(f"select * from {name}").fetchall()
                if table != "alembic_version":
                    self._table_names.append(name)
                    if rows:
                        self._initial_rows.append((name, rows))

    def reset(self) -> None:
        with self._connection.transaction():
            # Otherwise the triggers that reject every change would reject this one.
            self._connection.execute("set local session_replication_role = replica")
            # A table that never had a row has no pages and is skipped: each truncated table costs
            # files and the plans of all its statements.
            nonempty_tables = {
                name
                for (name,) in self._connection.execute(
                    _NONEMPTY_TABLES, (self._table_names,)
                ).fetchall()
            }
            self._connection.execute(
                f"truncate {', '.join(sorted(nonempty_tables))} restart identity cascade"
            )
            for name, rows in self._initial_rows:
                placeholders = ", ".join(["%s"] * len(rows[0]))
                for row in rows:
                    self._connection.execute(f"insert into {name} values ({placeholders})", row)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Reads directly from the database, bypassing every service; only tests do this."""
        return self._connection.execute(statement).fetchall()

    def close(self) -> None:
        self._connection.close()
