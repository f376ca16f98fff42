"""Runs the comparison of a file, once, or as a preview that stores nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tallystick_core.errors import ApiError, ErrorReason, not_found_error
from tallystick_core.ledger.identifiers import BOOK
from tallystick_server.observability.tracing import traceparent
from tallystick_server.reconciliation.reconcile import Reconciliation
from tallystick_server.reconciliation.statement_files import (
    delete_loading,
    require_free_name,
    require_loading,
)
from tallystick_storage.database import Database
from tallystick_storage.reconciliation import breaks as break_store
from tallystick_storage.reconciliation import ledger_items, postings
from tallystick_storage.reconciliation import statement_files as store
from tallystick_storage.reconciliation import statement_lines as line_store
from tallystick_storage.sql import Connection

_MAX_PREVIEW_BREAKS, _MAX_PREVIEW_LINES = 200, 2_000


@dataclass(frozen=True, slots=True)
class Preview:
    """What the comparison of a file would have stored."""

    file: store.FileRow
    counts: Sequence[break_store.KindCount]
    sums: Sequence[postings.PostedSum]
    breaks: Sequence[break_store.BreakRow]
    lines: Sequence[line_store.LineRow]
    """Of the breaks."""
    items: Sequence[break_store.BreakItemRow]
    """Of the breaks."""


class _PreviewEnds(Exception):
    """Rolls a preview back."""

    def __init__(self, preview: Preview) -> None:
        super().__init__()
        self.preview = preview


class _LinesLost(Exception):
    """A crash of the database has lost lines of a file that is loading: their table is unlogged."""


class FileReconciler:
    """Compares files with the ledger. `database`: with time for statements on a million lines.
    `thresholds`: as of BreakCommands.
    """

    def __init__(self, database: Database, thresholds: Mapping[str, int]) -> None:
        self._database = database
        self._thresholds = thresholds

    async def reconcile(
        self, statement_file_id: str, item_count: int, caller: str
    ) -> tuple[store.FileRow, bool]:
        """The reconciled file, and whether it was so before. Raises NOT_FOUND, FIELD_INVALID,
        IDEMPOTENCY_KEY_REUSED.
        """
        trace_context = traceparent()

        def run(connection: Connection) -> tuple[store.FileRow, bool]:
            file = store.lock(connection, statement_file_id)
            if file is not None and file.state == "RECONCILED":
                return file, True
            file = _require_complete(connection, file, statement_file_id, item_count)
            Reconciliation(connection, file, self._thresholds, caller, trace_context).run()
            return _find(connection, statement_file_id), False

        try:
            return await self._database.transact(run)
        except _LinesLost:
            await delete_loading(self._database, statement_file_id)
            raise _lines_lost_error(statement_file_id) from None

    async def preview(self, statement_file_id: str, item_count: int, caller: str) -> Preview:
        """What `reconcile` would do. The file is deleted. Raises as `reconcile`, and INVALID_STATE
        for a file that is reconciled.
        """

        def run(connection: Connection) -> None:
            file = require_loading(store.lock(connection, statement_file_id), statement_file_id)
            file = _require_complete(connection, file, statement_file_id, item_count)
            Reconciliation(connection, file, self._thresholds, caller, "").run()
            filters = break_store.BreakFilter(None, None, None, None, None, statement_file_id)
            breaks = break_store.list_breaks(connection, filters, None, _MAX_PREVIEW_BREAKS)
            break_ids = [row.break_id for row in breaks]
            raise _PreviewEnds(
                Preview(
                    _find(connection, statement_file_id),
                    break_store.count_by_kind(connection, file.file_number),
                    postings.sums_of_file(connection, file.file_number),
                    breaks,
                    line_store.lines_of_breaks(connection, break_ids, _MAX_PREVIEW_LINES),
                    break_store.items_of(connection, break_ids, _MAX_PREVIEW_LINES),
                )
            )

        try:
            await self._database.transact(run)
        except _PreviewEnds as end:
            await delete_loading(self._database, statement_file_id)
            return end.preview
        except _LinesLost:
            await delete_loading(self._database, statement_file_id)
            raise _lines_lost_error(statement_file_id) from None
        raise RuntimeError("a preview was stored")


def _find(connection: Connection, statement_file_id: str) -> store.FileRow:
    file = store.find(connection, statement_file_id)
    if file is None:
        raise RuntimeError("a locked file is not there")
    return file


def _require_complete(
    connection: Connection, file: store.FileRow | None, statement_file_id: str, item_count: int
) -> store.FileRow:
    """The file, if all its items were sent and its name is free. Raises NOT_FOUND, FIELD_INVALID,
    IDEMPOTENCY_KEY_REUSED, _LinesLost.
    """
    if file is None:
        raise not_found_error("statement file", statement_file_id)
    if item_count != file.item_count:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"item_count must be {file.item_count}, the number of items that were sent.",
            field="item_count",
        )
    last = store.last_statement(connection, file)
    if last is not None and not last.is_ended:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "item_count must include the end of the last statement.",
            field="item_count",
        )
    if store.count_staged(connection, file) != file.line_count:
        raise _LinesLost
    ledger_items.lock_items(connection, BOOK)  # so that no other file takes the name meanwhile
    require_free_name(connection, file)
    return file


def _lines_lost_error(statement_file_id: str) -> ApiError:
    return ApiError(
        ErrorReason.NOT_FOUND,
        f"The lines of the statement file {statement_file_id} were lost in a crash of the "
        "database, and the file was deleted. Send it again.",
    )
