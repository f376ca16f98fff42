"""Runs the verify queries, each schema with its read-only role and all on one snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, Row, TextClause, create_engine, text

from tallystick_storage.verify import event, ledger, payment, payout, wallet

_FETCH_SIZE = 5000
_SCHEMAS = ("payment", "payout", "wallet", "ledger", "event")
"""The order in which their snapshots are taken."""
# A transaction idles while a check reads another's rows.
_DISABLE_IDLE_TIMEOUT = "set local idle_in_transaction_session_timeout = 0"
_PLANNER_SETTINGS = (
    "set local work_mem = '32MB'; set local cursor_tuple_fraction = 1; set local jit = off"
)

QUERIES = {**ledger.QUERIES, **wallet.QUERIES, **payment.QUERIES, **payout.QUERIES, **event.QUERIES}
"""Every query, by its schema and name: "{schema}.{name}" is in the file of its schema."""


class Reader:
    """Reads each schema with a read-only role. `url` returns the database URL of a schema."""

    def __init__(self, url: Callable[[str], str]) -> None:
        self._url = url
        self._engines: dict[str, Engine] = {}

    @contextmanager
    def open_snapshot(self) -> Iterator[Callable[..., Iterator[Row[Any]]]]:
        """Yields a function that opens queries, each on its own connection and from any thread. It
        streams rows in the query's order.

        All schemas of one database are read from one snapshot, despite concurrent writes. Each
        further database has its own snapshot. The snapshot of events is taken last, so that it
        contains every event relayed before another snapshot.
        """
        snapshots: dict[URL, str] = {}
        with ExitStack() as stack:
            for schema in _SCHEMAS:
                engine = self._engine(schema)
                if _database(engine) not in snapshots:
                    # A snapshot lasts as long as its transaction.
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
    return engine.url.set(username="-", password="-")  # noqa: S106 - a placeholder for any role


def _rows(connection: Connection, name: str, parameters: dict[str, Any]) -> Iterator[Row[Any]]:
    options = {"stream_results": True, "yield_per": _FETCH_SIZE}
    yield from connection.execution_options(**options).execute(
        statement(name, parameters), parameters
    )


def statement(name: str, parameters: dict[str, Any]) -> TextClause:
    """The query of that name, or the one in `parameters`, which is removed from them."""
    return text(parameters.pop("statement", QUERIES[name]))
