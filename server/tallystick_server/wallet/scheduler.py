"""The wallet scheduler: expires holds and releases sales whose delay has passed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.wallet.instructions import Instruction
from tallystick_core.wallet.state import EntryKind
from tallystick_server.operations.batcher import Batcher
from tallystick_server.wallet.apply_instructions import InstructionRequest, InstructionResult
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection
from tallystick_storage.wallet import queries as store

_PAGE_SIZE = 500


class WalletScheduler:
    """Applies the changes that are due like any other instruction. Several processes may run it."""

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
        """Applies all changes that are due.

        Raises RuntimeError if some were rejected; the others are applied all the same.
        """
        rejections = await self._apply_due(EntryKind.HOLD_EXPIRED, store.list_expired_holds)
        rejections += await self._apply_due(EntryKind.RELEASE, store.list_releasable)
        if rejections:
            raise RuntimeError(
                f"{len(rejections)} due changes were rejected; the first is {rejections[0]}"
            )

    async def _apply_due(
        self,
        kind: EntryKind,
        list_due: Callable[
            [Connection, store.DueCursor | None, int], Sequence[store.DueInstructionRow]
        ],
    ) -> list[str]:
        """Applies all due changes of a kind, page by page; returns the rejections as text."""
        rejections: list[str] = []
        cursor: store.DueCursor | None = None

        def load_page(connection: Connection) -> Sequence[store.DueInstructionRow]:
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
    """Whether a concurrent change came first, such as the scan of another process."""
    return isinstance(error, ApiError) and error.reason is ErrorReason.HOLD_ENDED
