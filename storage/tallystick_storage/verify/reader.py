"""Reads what queries give, each schema by a read-only role, all as it stood at one moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, Row, TextClause, create_engine, text

from tallystick_storage.verify import event, ledger, payment, payout, wallet

_FETCH_SIZE = 5000
_SCHEMAS = ("payment", "payout", "wallet", "ledger", "event")
"""In the order in which their moments are taken."""
# a transaction idles while a check reads another's rows
_DISABLE_IDLE_TIMEOUT = "set local idle_in_transaction_session_timeout = 0"
_PLANNER_SETTINGS = (
    "set local work_mem = '32MB'; set local cursor_tuple_fraction = 1; set local jit = off"
)

QUERIES = {**ledger.QUERIES, **wallet.QUERIES, **payment.QUERIES, **payout.QUERIES, **event.QUERIES}
"""Every query, by its schema and name: "{schema}.{name}" is in the file of its schema."""


class Reader:
    """Reads each schema by a role that can only read it. `url`: a schema's database."""

    def __init__(self, url: Callable[[str], str]) -> None:
        self._url = url
        self._engines: dict[str, Engine] = {}

    @contextmanager
    def open_snapshot(self) -> Iterator[Callable[..., Iterator[Row[Any]]]]:
        """What opens queries, each on a connection of its own, from any thread: rows in the query's
        order, without holding them.

        All that lies in one database is read as it stood at one moment, whatever goes on meanwhile.
        Each further database has a moment of its own, that of events the last, so that whatever was
        relayed before another's moment is among them.
        """
        snapshots: dict[URL, str] = {}
        with ExitStack() as stack:
            for schema in _SCHEMAS:
                engine = self._engine(schema)
                if _database(engine) not in snapshots:
                    # a snapshot lasts as long as its transaction
                    snapshot_connection = stack.enter_context(engine.connect())
                    snapshot_connection.exec_driver_sql(_DISABLE_IDLE_TIMEOUT)
                    snapshots[_database(engine)] = snapshot_connection.execute(
                        text("select pg_export_snapshot()")
                    ).scalar_one()

            def read(name: str, **parameters: Any) -> Iterator[Row[Any]]:
                engine = self._engine(name.partition(".")[0])
                with engine.connect() as connection:
                    connection.exec_driver_sql(
                        f"set transaction snapshot '{snapshots[_database(engine)]}'"
                    )
                    connection.exec_driver_sql(f"{_DISABLE_IDLE_TIMEOUT}; {_PLANNER_SETTINGS}")
                    yield from _rows(connection, name, parameters)

            yield read

    def _engine(self, schema: str) -> Engine:
        if schema not in self._engines:
            self._engines[schema] = create_engine(
                self._url(schema), max_overflow=-1, isolation_level="REPEATABLE READ"
            )
        return self._engines[schema]

    def close(self) -> None:
        for engine in self._engines.values():
            engine.dispose()


def _database(engine: Engine) -> URL:
    return engine.url.set(username="-", password="-")  # noqa: S106 - whoever asks


def _rows(connection: Connection, name: str, parameters: dict[str, Any]) -> Iterator[Row[Any]]:
    options = {"stream_results": True, "yield_per": _FETCH_SIZE}
    yield from connection.execution_options(**options).execute(
        statement(name, parameters), parameters
    )


def statement(name: str, parameters: dict[str, Any]) -> TextClause:
    """The query of that name, or the one that comes with the parameters, from which it is taken."""
    return text(parameters.pop("statement", QUERIES[name]))
