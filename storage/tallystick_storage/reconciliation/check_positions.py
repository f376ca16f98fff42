"""How far the events were examined by the checks that read them."""

from __future__ import annotations

from typing import NamedTuple

from tallystick_storage.sql import Connection, Query, text


class _Position(NamedTuple):
    event_cursor: int


_FIND = Query(_Position, "select {columns} from check_position where check_name = :check_name")
_STORE = text("""
    insert into check_position (check_name, event_cursor) values (:check_name, :event_cursor)
    on conflict (check_name) do update set event_cursor = excluded.event_cursor
""")


def find(connection: Connection, check_name: str) -> int:
    """The cursor of the last event that a check has examined; 0: none."""
    row = _FIND.one_or_none(connection, check_name=check_name)
    return 0 if row is None else row.event_cursor


def store(connection: Connection, check_name: str, event_cursor: int) -> None:
    """Stores the cursor of the last event that a check has examined."""
    connection.execute(_STORE, {"check_name": check_name, "event_cursor": event_cursor})
