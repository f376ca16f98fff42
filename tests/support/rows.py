"""Changes of rows that set up a state which no call of the API can."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg.rows import TupleRow


def update_rows(
    connection: psycopg.Connection[TupleRow],
    statement: str,
    parameters: Sequence[object] | None = None,
) -> None:
    """Runs an UPDATE that must change a row: without it, the test would test nothing."""
    row_count = connection.execute(statement, parameters).rowcount
    assert row_count > 0, f"no row was changed: {statement}"
