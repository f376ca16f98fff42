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

_AT_ONCE = 200
_LOOK_AGAIN = 0.25  # seconds


@dataclass(frozen=True, slots=True)
class Numbered(Generic[R]):
    """A sequence that grows at its end alone: its last number, the next items behind a number that fit, at most so many, and an item's number."""

    end: Callable[[Connection], int]
    behind: Callable[[Connection, int, int], Sequence[R]]
    number: Callable[[R], int]


async def follow(database: Database, numbered: Numbered[R], after: int, field: str, *, on: bool) -> AsyncGenerator[R, None]:
    """What fits behind a cursor, in order, and with `on` also what comes. Raises FIELD_INVALID for the field that the cursor is of."""
    if after < 0:
        raise Refused(Reason.FIELD_INVALID, f"{field} must not be negative.", field=field)
    while True:

        def read(connection: Connection, cursor: int = after) -> tuple[int, Sequence[R]]:
            end = numbered.end(connection)  # before the items: of what comes between, none is passed over
            return end, numbered.behind(connection, cursor, _AT_ONCE)

        end, items = await database.read(read)
        for item in items:
            yield item
        after = numbered.number(items[-1]) if items else after
        if len(items) < _AT_ONCE:
            after = max(after, end)  # nothing else up to there fits
            if not on:
                return
            await asyncio.sleep(_LOOK_AGAIN)
