"""Sweep: what a wallet owes to time: holds that expire, sales that have been pending for long
enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.wallet.instructions import Instruction
from tallystick_core.wallet.state import EntryKind
from tallystick_server.operations.batcher import Batcher
from tallystick_server.wallet.apply_instructions import InstructionRequest, InstructionResult
from tallystick_storage.database import Database
from tallystick_storage.wallet import wallets as store

_PAGE_SIZE = 500


class WalletScheduler:
    """Makes the changes that are due, by the same way as every other change; any number of
    processes may.
    """

    def __init__(
        self,
        database: Database,
        instruction_batcher: Batcher[
            Sequence[InstructionRequest], Sequence[InstructionResult | Exception]
        ],
    ) -> None:
        self._database = database
        self._instruction_batcher = instruction_batcher

    async def run_once(self) -> None:
        """Makes all that is due. Raises RuntimeError if some of it was refused; the rest is done
        all the same.
        """
        rejections = await self._apply_due(EntryKind.HOLD_EXPIRED, store.list_expired_holds)
        rejections += await self._apply_due(EntryKind.RELEASE, store.list_releasable)
        if rejections:
            raise RuntimeError(
                f"{len(rejections)} changes that were due were refused; the first is "
                f"{rejections[0]}"
            )

    async def _apply_due(
        self, kind: EntryKind, list_due: Callable[..., Sequence[Row[Any]]]
    ) -> list[str]:
        """Makes all changes of a kind that are due, page by page; what was refused, in words."""
        rejections: list[str] = []
        cursor: store.DueCursor | None = None

        def load_page(connection: Connection) -> Sequence[Row[Any]]:
            return list_due(connection, cursor, _PAGE_SIZE)

        while rows := await self._database.load(load_page):
            cursor = (rows[-1].time, rows[-1].source_id)
            instructions = [Instruction(kind, row.source_id, "wallet") for row in rows]
            results = await self._instruction_batcher.submit(
                [
                    InstructionRequest(instruction, "", include_wallet=False)
                    for instruction in instructions
                ]
            )
            rejections += [
                f"{kind} of {item.source_id}: {result}"
                for item, result in zip(instructions, results, strict=True)
                if isinstance(result, Exception) and not _is_already_ended(result)
            ]
        return rejections


def _is_already_ended(error: Exception) -> bool:
    """Whether somebody else was faster, another process's sweep for one."""
    return isinstance(error, ApiError) and error.reason is ErrorReason.HOLD_ENDED
