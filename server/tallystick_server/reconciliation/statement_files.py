"""Creates statement files, and adds what clients send of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256

from tallystick.reconciliation.v1 import reconciliation_pb2
from tallystick.reconciliation.v1 import reconciliation_service_pb2 as pb
from tallystick_core.errors import (
    ApiError,
    ErrorReason,
    key_reused_error,
    not_found_error,
    state_error,
)
from tallystick_server.reconciliation import convert
from tallystick_server.reconciliation.packed_lines import Position, parse_lines
from tallystick_storage.database import Database
from tallystick_storage.reconciliation import statement_files as store
from tallystick_storage.sql import Connection

MAX_ITEMS = 1_000
MAX_ROWS = 10_000
"""Lines of one item: all of them are in memory at once."""
_COMPARED = (
    "file_name",
    "content_sha256",
    "format",
    "account",
    "difference_reason",
    "statement_file_id",
)


class _OtherItemsSent(Exception):
    """A chunk differs from the one that was sent in its place: the file was another one."""


class StatementFiles:
    """Stores files and their items. A file becomes visible as a whole: once it is reconciled."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: store.NewFile) -> tuple[store.FileRow, bool]:
        """The file, and whether it was stored before. A file with its id and other values that is
        still loading is replaced. Raises IDEMPOTENCY_KEY_REUSED, CONFLICT.
        """

        def create_file(connection: Connection) -> tuple[store.FileRow, bool]:
            row = store.find(connection, new.statement_file_id)
            if row is not None and not _differences(row, new):
                return row, True
            for other in store.lock_others(connection, new):
                if not _differences(other, new):  # it was created meanwhile
                    return other, True
                if other.state != "LOADING":
                    raise _reused_error(other, new)
                store.delete(connection, other)
            row = store.insert(connection, new)
            if row is None or _differences(row, new):
                raise ApiError(
                    ErrorReason.CONFLICT,
                    "Another file with this id was created at the same time; retry.",
                    retry_after=1.0,
                )
            return row, False

        return await self._database.transact(create_file)

    async def add_items(
        self, statement_file_id: str, first_item: int, messages: Sequence[pb.StatementItem]
    ) -> int:
        """Stores the next items of a file. Returns how many it has then. Raises NOT_FOUND,
        INVALID_STATE, FIELD_INVALID, FIELD_REQUIRED. If other items were sent in their place, the
        file is deleted: its client sends another content.
        """
        chunk = _to_chunk(first_item, messages)
        end = first_item + chunk.item_count

        def add(connection: Connection) -> int:
            file = store.lock(connection, statement_file_id)
            if file is not None and 0 <= first_item < file.item_count:
                if file.state == "LOADING":
                    if store.find_chunk(connection, file, first_item) != chunk:
                        raise _OtherItemsSent
                    return file.item_count
                if end <= file.item_count:
                    return file.item_count  # the answer may have been lost
            file = require_loading(file, statement_file_id)
            if first_item != file.item_count:
                raise ApiError(
                    ErrorReason.FIELD_INVALID,
                    f"first_item must be {file.item_count}, the number of items that were sent.",
                    field="first_item",
                )
            intake = _Intake(file, store.last_statement(connection, file))
            store.add_items(connection, file, chunk, intake.statements, intake.blocks(messages))
            return end

        try:
            return await self._database.transact(add)
        except _OtherItemsSent:
            await delete_loading(self._database, statement_file_id)
            raise ApiError(
                ErrorReason.NOT_FOUND,
                f"Other items were sent before for the statement file {statement_file_id}, and it "
                "was deleted. Send it again from its first item.",
            ) from None

    async def delete_abandoned(self) -> None:
        """Deletes files that nobody has reconciled within a day."""
        while await self._database.transact(store.delete_abandoned, idempotent=True):
            continue


class _Intake:
    """The items of one chunk, after those before."""

    def __init__(self, file: store.FileRow, last: store.StatementRow | None) -> None:
        self._file = file
        self._open = last if last is not None and not last.is_ended else None
        self._statement_number = file.statement_count
        self._line_count = file.line_count
        self.statements = [self._open] if self._open else []

    def blocks(self, messages: Iterable[pb.StatementItem]) -> Iterator[store.LineColumns]:
        """The lines of items, some at a time. Raises FIELD_REQUIRED, FIELD_INVALID."""
        lines: list[store.NewLine] = []
        for index, message in enumerate(messages):
            try:
                kind = message.WhichOneof("item")
                if kind == "lines":
                    yield self._parse_lines(message.lines)
                elif kind == "line":
                    lines.append(self._parse_line(message.line))
                else:
                    self._begin_or_end(message)
            except ApiError as error:
                raise error.with_field_prefix(f"items[{index}]") from None
        if lines:
            yield store.to_columns(lines)

    def _begin_or_end(self, message: pb.StatementItem) -> None:
        match message.WhichOneof("item"):
            case "start":
                self._begin(message.start)
            case "end":
                self._end(message.end)
            case _:
                raise ApiError(
                    ErrorReason.FIELD_REQUIRED,
                    "item is required: a start, a line, lines or an end.",
                    field="item",
                )

    def _begin(self, message: reconciliation_pb2.StatementStart) -> None:
        if self._open is not None:
            raise _misplaced("start", "the statement before it has not ended")
        self._statement_number += 1
        with _within("start"):
            self._open = convert.parse_start(message, self._statement_number)
        self.statements.append(self._open)

    def _end(self, message: reconciliation_pb2.StatementEnd) -> None:
        if self._open is None:
            raise _misplaced("end", "no statement has begun")
        accepts = bool(self._file.difference_reason)
        with _within("end"):
            convert.end_statement(self._open, message, accepts=accepts)
        self._open = None

    def _parse_line(self, message: reconciliation_pb2.StatementLine) -> store.NewLine:
        if self._open is None:
            raise _misplaced("line", "no statement has begun")
        with _within("line"):
            line = convert.parse_line(
                message,
                self._file.account,
                self._open.currency,
                self._line_count + 1,
                self._statement_number,
            )
        self._count(self._open, 1, line.amount)
        return line

    def _parse_lines(self, message: reconciliation_pb2.StatementLines) -> store.LineColumns:
        if self._open is None:
            raise _misplaced("lines", "no statement has begun")
        position = Position(
            self._file.account, self._open.currency, self._line_count + 1, self._statement_number
        )
        with _within("lines"):
            if message.rows.count("\n") > MAX_ROWS:
                raise ApiError(
                    ErrorReason.FIELD_INVALID,
                    f"rows must have at most {MAX_ROWS} lines; send the others in another item.",
                    field="rows",
                )
            lines = parse_lines(message.rows, position)
        self._count(self._open, len(lines.columns[0]), lines.total)
        return lines.columns

    def _count(self, statement: store.StatementRow, count: int, total: int) -> None:
        self._line_count += count
        statement.line_count += count
        statement.total += total


def _to_chunk(first_item: int, messages: Sequence[pb.StatementItem]) -> store.Chunk:
    """Items as a repeat of them is recognized."""
    digest = sha256()
    for message in messages:
        encoded = message.SerializeToString(deterministic=True)
        digest.update(len(encoded).to_bytes(8) + encoded)
    return store.Chunk(first_item, _count_items(messages), digest.digest())


def _count_items(messages: Iterable[pb.StatementItem]) -> int:
    """How many starts, lines and ends the items are."""
    return sum(
        message.lines.rows.count("\n") if message.WhichOneof("item") == "lines" else 1
        for message in messages
    )


async def delete_loading(database: Database, statement_file_id: str) -> None:
    """Deletes a file, unless it was reconciled meanwhile."""

    def delete(connection: Connection) -> None:
        file = store.lock(connection, statement_file_id)
        if file is not None and file.state == "LOADING":
            store.delete(connection, file)

    await database.transact(delete, idempotent=True)


def require_loading(file: store.FileRow | None, statement_file_id: str) -> store.FileRow:
    """The file, if its items may still be added. Raises NOT_FOUND, INVALID_STATE."""
    if file is None:
        raise not_found_error("statement file", statement_file_id)
    if file.state != "LOADING":
        message = f"The statement file is {file.state} and cannot be changed."
        raise state_error(message, file.state, "ADD_ITEMS")
    return file


def require_free_name(connection: Connection, file: store.FileRow) -> None:
    """Raises IDEMPOTENCY_KEY_REUSED if another file of the account was reconciled with the name of
    a file that is loading.
    """
    other = store.find_reconciled(connection, file.account, file.file_name)
    if other is not None:
        raise _reused_error(other, file)


def _differences(row: store.FileRow, new: store.NewFile) -> list[str]:
    """The fields in which a stored file differs from one to create."""
    return [name for name in _COMPARED if getattr(row, name) != getattr(new, name)]


def _reused_error(row: store.FileRow, new: store.NewFile) -> ApiError:
    """The error for a file whose id or name a reconciled file has."""
    if row.statement_file_id == new.statement_file_id or row.content_sha256 == new.content_sha256:
        return key_reused_error(_differences(row, new)[0])
    return ApiError(
        ErrorReason.IDEMPOTENCY_KEY_REUSED,
        f"file_name was used before for {new.account} with another content. A corrected file needs "
        "another name.",
        field="file_name",
        metadata={"field": "content_sha256"},
    )


@contextmanager
def _within(part: str) -> Iterator[None]:
    """Names the part of an item in the paths of errors."""
    try:
        yield
    except ApiError as error:
        raise error.with_field_prefix(part) from None


def _misplaced(field: str, why: str) -> ApiError:
    return ApiError(ErrorReason.FIELD_INVALID, f"{field} must not come here: {why}.", field=field)
