"""The clock that every timestamp in a schema comes from."""

from __future__ import annotations

from datetime import datetime

from tallystick_storage.sql import Connection, text

_NOW = text("select clock()")


def now(connection: Connection) -> datetime:
    """The database's time."""
    time: datetime = connection.execute(_NOW).scalar_one()
    return time
