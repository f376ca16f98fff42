"""Sweep: what a wallet owes to time: holds that expire, sales that have been pending for long enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.refusal import Reason, Refused
from tallystick_core.wallet import EntryKind, Instruction
from tallystick_server.runtime.stage import Stage
from tallystick_server.wallet.change import Asked, Changed
from tallystick_storage import wallet as store
from tallystick_storage.database import Database

_MOST_DUE = 500


class Sweep:
    """Makes the changes that are due, by the same way as every other change; any number of processes may."""

    def __init__(self, database: Database, change: Stage[Sequence[Asked], Sequence[Changed | Exception]]) -> None:
        self._database = database
        self._change = change

    async def turn(self) -> None:
        """Makes all that is due. Raises RuntimeError if some of it was refused; the rest is done all the same."""
        refused = await self._all(EntryKind.HOLD_EXPIRED, store.expired_holds)
        refused += await self._all(EntryKind.RELEASE, store.releasable)
        if refused:
            raise RuntimeError(f"{len(refused)} changes that were due were refused; the first is {refused[0]}")

    async def _all(self, kind: EntryKind, due: Callable[..., Sequence[Row[Any]]]) -> list[str]:
        """Makes all changes of a kind that are due, page by page; what was refused, in words."""
        refused: list[str] = []
        place: store.Due | None = None

        def page(connection: Connection) -> Sequence[Row[Any]]:
            return due(connection, place, _MOST_DUE)

        while rows := await self._database.load(page):
            place = (rows[-1].time, rows[-1].cause)
            instructions = [Instruction(kind, row.cause, "wallet") for row in rows]
            results = await self._change.submit([Asked(instruction, "", shown=False) for instruction in instructions])
            refused += [
                f"{kind} of {one.cause}: {result}"
                for one, result in zip(instructions, results, strict=True)
                if isinstance(result, Exception) and not _ended_meanwhile(result)
            ]
        return refused


def _ended_meanwhile(error: Exception) -> bool:
    """Whether somebody else was faster, another process's sweep for one."""
    return isinstance(error, Refused) and error.reason is Reason.HOLD_ENDED
