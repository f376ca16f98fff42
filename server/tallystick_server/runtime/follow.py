"""Streams that read a numbered sequence from a cursor on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from sqlalchemy import Connection

from tallystick_core.refusal import Reason, Refused
from tallystick_storage.database import Database

R = TypeVar("R")

_LOOK_AGAIN = 0.25  # seconds


@dataclass(frozen=True, slots=True)
class Piece(Generic[R]):
    """What is read at once: some of the sequence, the cursor to read on from, and whether there was nothing more at that time."""

    items: Sequence[R]
    cursor: int
    is_last: bool


async def follow(database: Database, read: Callable[[Connection, int], Piece[R]], after: int, field: str, *, on: bool) -> AsyncGenerator[R, None]:
    """What stands behind a cursor, in order, and with `on` also what comes. Raises FIELD_INVALID for the field that the cursor is of."""
    if after < 0:
        raise Refused(Reason.FIELD_INVALID, f"{field} must not be negative.", field=field)
    while True:

        def next_(connection: Connection, cursor: int = after) -> Piece[R]:
            return read(connection, cursor)

        piece = await database.read(next_)
        for item in piece.items:
            yield item
        after = piece.cursor
        if piece.is_last:
            if not on:
                return
            await asyncio.sleep(_LOOK_AGAIN)
