"""The real database under a clock of the simulation's, with COMMITs that go wrong when they are told to."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from sqlalchemy import Connection, Engine, Row, create_engine, event

from tallystick_server.process.databases import Databases
from tallystick_server.process.migrate import SCHEMAS
from tallystick_server.runtime.telemetry import TracedDatabase
from tallystick_storage import verification
from tallystick_storage.database import open_engine

from .faults import Fault

T = TypeVar("T")

LABEL: contextvars.ContextVar[str] = contextvars.ContextVar("label", default="")
"""What the transaction that is about to run is called."""

BEGINNING = datetime(2026, 1, 1, 0, 0, 50, tzinfo=UTC)
"""When every world begins: seconds before a full minute, since cut-offs are at one."""
_CLOCK = """
create or replace function {schema}.clock() returns timestamptz language sql volatile as
    'select timestamptz ''{beginning}'' + cast(current_setting(''simulation.now'') as float8) * interval ''1 second'''
"""
_WRITTEN = "select name from unnest(%s::text[]) name where pg_relation_size(name::regclass) > 0"
_NEVER_BY_ITSELF = "alter table {schema}.{table} set (autovacuum_enabled = off)"


@dataclass
class Conditions:
    """What the databases do now: the fault that befalls the present transaction, and what their clocks show."""

    fault: Fault | None = None
    now: float = 0.0
    at_commit: bool = False
    """Whether the transaction has come to its COMMIT."""


class _Connection(psycopg.Connection[Any]):
    """A connection that breaks at COMMIT when its server is told to."""

    server: Conditions

    def commit(self) -> None:
        self.server.at_commit, fault = True, self.server.fault
        if fault is Fault.SERIALIZATION_FAILURE:
            self.rollback()
            raise psycopg.errors.SerializationFailure("could not serialize access due to read/write dependencies among transactions")
        if fault is Fault.COMMIT_LOST_AFTER:
            super().commit()
        if fault in (Fault.COMMIT_LOST_BEFORE, Fault.COMMIT_LOST_AFTER):
            self.close()
            raise psycopg.OperationalError("the connection to the server was lost")
        super().commit()


class Engines:
    """One engine for each schema, for all nodes of all runs: transactions come one at a time."""

    def __init__(self, server: Conditions) -> None:
        self._server = server
        self._engines: dict[str, Engine] = {}

    def __call__(self, url: str, _connections: int, _statement_timeout: float | None = None) -> Engine:
        if url not in self._engines:
            engine = open_engine(url, 1)
            event.listen(engine, "do_connect", self._connect)
            event.listen(engine, "checkout", self._check_out)
            self._engines[url] = engine
        return self._engines[url]

    def _connect(self, _dialect: Any, _record: Any, arguments: list[Any], parameters: dict[str, Any]) -> psycopg.Connection[Any]:
        # batches are small here, and planning each took most of the time
        parameters["options"] += " -c plan_cache_mode=force_generic_plan"
        connection = _Connection.connect(*arguments, **parameters)
        connection.server = self._server
        return connection

    def _check_out(self, connection: psycopg.Connection[Any], _record: Any, _proxy: Any) -> None:
        if self._server.fault is Fault.DATABASE_AWAY:
            raise psycopg.OperationalError("the server is not there")
        if connection.autocommit or connection.pgconn.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            raise RuntimeError("a connection came back to the pool as it was used, not as it was made")
        # by libpq itself, and outside of any transaction: a cursor for it, and a SELECT that is planned, took a tenth of a run
        answer = connection.pgconn.exec_(f"set simulation.now = '{self._server.now!r}'".encode())
        if answer.status != psycopg.pq.ExecStatus.COMMAND_OK:
            raise psycopg.OperationalError(answer.error_message.decode())

    def close(self) -> None:
        for engine in self._engines.values():
            engine.dispose()


class SimulatedDatabase(TracedDatabase):
    """The database as it is, that says by which name a transaction goes."""

    def __init__(self, url: str, new_id: Callable[[], UUID], engines: Engines) -> None:
        super().__init__(url, connections=1, new_id=new_id, engine=engines)

    async def transact(self, work: Callable[[Connection], T]) -> T:
        LABEL.set(f"transaction {work.__qualname__.replace('.<locals>', '')}")
        return await super().transact(work)

    async def load(self, work: Callable[[Connection], T]) -> T:
        LABEL.set(f"read {work.__qualname__.replace('.<locals>', '')}")
        return await super().load(work)

    async def read(self, work: Callable[[Connection], T], *, changed: bool = False) -> T:
        LABEL.set(f"read {work.__qualname__.replace('.<locals>', '')}")
        return await super().read(work, changed=changed)


class AtRest:
    """What `verify` reads, of a world in which nothing moves any more: each schema by its own reader, on one connection that stays open."""

    def __init__(self, databases: Databases) -> None:
        self._databases = databases
        self._open: dict[str, Connection] = {}

    def read(self, name: str, **parameters: Any) -> Iterator[Row[Any]]:
        """All rows of a query at once."""
        schema = name.partition(".")[0]
        if schema not in self._open:
            # each world empties the tables, which ends every plan: none is worth keeping
            engine = create_engine(self._databases.reader(schema), isolation_level="AUTOCOMMIT", connect_args={"prepare_threshold": None})
            self._open[schema] = engine.connect()
        return iter(self._open[schema].execute(verification.statement(name, parameters), parameters).fetchall())

    def close(self) -> None:
        for connection in self._open.values():
            connection.close()
            connection.engine.dispose()


class Tables:
    """All tables of a database, as they were when it was new; `reset` makes them so again. Replaces the clock of every schema."""

    def __init__(self, databases: Databases) -> None:
        self._connection: psycopg.Connection[Any] = psycopg.connect(databases.admin, autocommit=True)
        self._connection.execute("set simulation.now = '0'")
        self._names: list[str] = []
        self._rows: list[tuple[str, list[tuple[Any, ...]]]] = []
        for schema in SCHEMAS:
            self._connection.execute(_CLOCK.format(schema=schema, beginning=BEGINNING.isoformat()))
            found = self._connection.execute("select tablename from pg_tables where schemaname = %s order by 1", (schema,)).fetchall()
            for (table,) in found:
                name = f"{schema}.{table}"
                self._connection.execute(_NEVER_BY_ITSELF.format(schema=schema, table=table))
                rows = self._connection.execute(f"select * from {name}").fetchall()
                if table != "alembic_version":
                    self._names.append(name)
                    if rows:
                        self._rows.append((name, rows))

    def reset(self) -> None:
        with self._connection.transaction():
            self._connection.execute("set local session_replication_role = replica")  # or the triggers that refuse any change would
            # one that no row has ever come to is empty to its last page; each that is truncated costs files, and the plans of all statements on it
            written = {name for (name,) in self._connection.execute(_WRITTEN, (self._names,)).fetchall()}
            self._connection.execute(f"truncate {', '.join(sorted(written))} restart identity cascade")
            for name, rows in self._rows:
                places = ", ".join(["%s"] * len(rows[0]))
                for row in rows:
                    self._connection.execute(f"insert into {name} values ({places})", row)

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Reads past every service, as nobody does outside of tests."""
        return self._connection.execute(statement).fetchall()

    def close(self) -> None:
        self._connection.close()
