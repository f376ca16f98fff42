"""Statement files while they are loaded, and as they were reconciled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import NamedTuple
from uuid import UUID

from tallystick_core.reconciliation.packed_lines import escape_column
from tallystick_storage.database import encode_rows
from tallystick_storage.pagination import PageKey, newest_first
from tallystick_storage.reconciliation.statement_balances import to_int
from tallystick_storage.sql import Connection, Query, columns, text


@dataclass(frozen=True, slots=True)
class NewFile:
    """A statement file as it is created."""

    statement_file_id: str
    file_name: str
    content_sha256: str
    format: str
    account: str
    difference_reason: str
    caller: str


@dataclass(frozen=True, slots=True)
class FileRow(NewFile):
    """A statement file."""

    file_number: int
    state: str
    item_count: int
    line_count: int
    statement_count: int
    matched_count: int
    repeated_count: int
    create_time: datetime
    reconcile_time: datetime | None


@dataclass(slots=True)
class StatementRow:
    """A statement of a file, as far as it was sent. Amounts in minor units."""

    statement_number: int
    line_number: int
    masked_account: str
    currency: str
    statement_id: str
    opening_balance: int | None
    opening_date: date | None
    line_count: int = 0
    total: int = 0
    is_ended: bool = False
    closing_balance: int | None = None
    closing_date: date | None = None


class NewLine(NamedTuple):
    """A line of a statement as it is staged: the columns of staged_line after its file."""

    number: int
    statement_number: int
    line_number: int
    line_type: str
    code: str
    amount: int
    currency: str
    fee: int
    booking_date: date | None
    value_date: date | None
    reference: str
    charge_reference: str
    client_reference: str
    settlement_reference: str
    original_amount: int | None
    original_currency: str
    text: str
    identity: UUID
    occurrence: int


class Chunk(NamedTuple):
    """Items that a client sent together. `sha256`: of all of them."""

    first_item: int
    item_count: int
    sha256: bytes


class FileFilter(NamedTuple):
    """The files of a list; None does not filter."""

    account: str | None


LineColumns = Sequence[Sequence[str]]
"""Lines to stage, by column: the text of each field of NewLine; "" where a date or an original
amount is None.
"""
LINE_COLUMNS = ", ".join(NewLine._fields)
_NULLABLE = frozenset({"booking_date", "value_date", "original_amount"})
_FILE = columns(FileRow)
_INSERT = text(f"""
    insert into statement_file ({columns(NewFile)}, state, item_count, line_count,
        statement_count, matched_count, repeated_count, create_time)
    values (:statement_file_id, :file_name, :content_sha256, :format, :account,
        :difference_reason, :caller, 'LOADING', 0, 0, 0, 0, 0, clock())
    on conflict do nothing
""")
_FIND = Query(FileRow, "select {columns} from statement_file where statement_file_id = :id")
_LOCK = Query(
    FileRow, "select {columns} from statement_file where statement_file_id = :id for update"
)
_LOCK_OTHERS = Query(
    FileRow,
    """
    select {columns} from statement_file where statement_file_id = :id
        or account = :account and file_name = :file_name and state = 'RECONCILED'
    order by file_number for update
    """,
)
_FIND_BY_NAME = Query(
    FileRow,
    """
    select {columns} from statement_file
    where account = :account and file_name = :file_name and state = 'RECONCILED'
    """,
)
_LAST_STATEMENT = Query(
    StatementRow,
    """
    select {columns} from statement where file_number = :file_number
    order by statement_number desc limit 1
    """,
)
_STATEMENTS = Query(
    StatementRow,
    "select {columns} from statement where file_number = :file_number order by statement_number",
)
_STORE_RESULT = text("""
    update statement_file set state = 'RECONCILED', matched_count = :matched,
        repeated_count = :repeated, reconcile_time = greatest(create_time, clock())
    where file_number = :file_number
""")
_STORE_STATEMENTS = text(f"""
    insert into statement (file_number, {columns(StatementRow)})
    select :file_number, {columns(StatementRow, "r")}
    from json_to_recordset(cast(:statements as json)) as r (statement_number int,
        line_number bigint, masked_account text, currency text, statement_id text,
        opening_balance numeric, opening_date date, line_count bigint, total numeric,
        is_ended boolean, closing_balance numeric, closing_date date)
    on conflict (file_number, statement_number) do update set line_count = excluded.line_count,
        total = excluded.total, is_ended = excluded.is_ended,
        closing_balance = excluded.closing_balance, closing_date = excluded.closing_date
""")
_FIND_CHUNK = Query(
    Chunk,
    """
    select {columns} from staged_chunk where file_number = :file_number and first_item = :first_item
    """,
)
_STORE_CHUNK = text(f"""
    insert into staged_chunk (file_number, {columns(Chunk)})
    values (:file_number, :first_item, :item_count, :sha256)
""")
_COPY = f"copy staged_line (file_number, {LINE_COLUMNS}) from stdin"
_ADVANCE = text("""
    update statement_file set item_count = :item_count, line_count = :line_count,
        statement_count = :statement_count where file_number = :file_number
""")
_LIST = f"""
    select {_FILE} from statement_file {{where}}
    order by create_time desc, statement_file_id desc limit :limit
"""
_COUNT_STAGED = text("select count(*) from staged_line where file_number = :file_number")
_DELETE_CHUNKS = text("delete from staged_chunk where file_number = :file_number")
_DELETE_STAGED = text("delete from staged_line where file_number = :file_number")
_DELETE_STATEMENTS = text("delete from statement where file_number = :file_number")
_DELETE_FILE = text("delete from statement_file where file_number = :file_number")
_FIND_ABANDONED = Query(
    FileRow,
    """select {columns} from statement_file
    where state = 'LOADING' and create_time < (select clock()) - interval '1 day'
    order by create_time limit 10 for update skip locked""",
)


def insert(connection: Connection, new: NewFile) -> FileRow | None:
    """Stores a file, unless its id exists. Returns the file with its id, if any."""
    connection.execute(_INSERT, {name: getattr(new, name) for name in NewFile.__slots__})
    return _FIND.one_or_none(connection, id=new.statement_file_id)


def find(connection: Connection, statement_file_id: str) -> FileRow | None:
    """A file."""
    return _FIND.one_or_none(connection, id=statement_file_id)


def lock(connection: Connection, statement_file_id: str) -> FileRow | None:
    """A file, locked until the end of the transaction."""
    return _LOCK.one_or_none(connection, id=statement_file_id)


def lock_others(connection: Connection, new: NewFile) -> list[FileRow]:
    """The files with the id of a new one, and the reconciled one with its name in its account,
    locked.
    """
    return _LOCK_OTHERS.all(
        connection, id=new.statement_file_id, account=new.account, file_name=new.file_name
    )


def find_reconciled(connection: Connection, account: str, file_name: str) -> FileRow | None:
    """The reconciled file of an account with a name."""
    return _FIND_BY_NAME.one_or_none(connection, account=account, file_name=file_name)


def last_statement(connection: Connection, file: FileRow) -> StatementRow | None:
    """The last statement that was sent of a file."""
    row = _LAST_STATEMENT.one_or_none(connection, file_number=file.file_number)
    if row is not None:
        _to_ints(row)
    return row


def statements_of(connection: Connection, file: FileRow) -> list[StatementRow]:
    """The statements of a file, in their order."""
    rows = _STATEMENTS.all(connection, file_number=file.file_number)
    for row in rows:
        _to_ints(row)
    return rows


def _to_ints(row: StatementRow) -> None:
    """The database has amounts beyond 64 bits as decimals."""
    row.total = int(row.total)
    row.opening_balance = to_int(row.opening_balance)
    row.closing_balance = to_int(row.closing_balance)


def store_result(connection: Connection, file: FileRow, matched: int, repeated: int) -> None:
    """Stores that a file is reconciled, with the numbers of its lines. Nothing is added to it."""
    connection.execute(_DELETE_CHUNKS, {"file_number": file.file_number})
    connection.execute(
        _STORE_RESULT,
        {"file_number": file.file_number, "matched": matched, "repeated": repeated},
    )


def find_chunk(connection: Connection, file: FileRow, first_item: int) -> Chunk | None:
    """The chunk of a file that is loading which begins with this item."""
    return _FIND_CHUNK.one_or_none(connection, file_number=file.file_number, first_item=first_item)


def add_items(
    connection: Connection,
    file: FileRow,
    chunk: Chunk,
    statements: Sequence[StatementRow],
    blocks: Iterable[LineColumns],
) -> None:
    """Stores the next items of a locked file: lines, and the statements that began, grew or ended.
    `chunk`: the items. The database stores each block while the next is read; `statements` are
    complete once all are.
    """
    line_count = file.line_count
    with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
        for columns_ in blocks:
            copy.write(_copy_text(file.file_number, columns_))
            line_count += len(columns_[0])
    if statements:
        connection.execute(
            _STORE_STATEMENTS,
            {"file_number": file.file_number, "statements": encode_rows(_to_text(statements))},
        )
    connection.execute(_STORE_CHUNK, {"file_number": file.file_number, **chunk._asdict()})
    connection.execute(
        _ADVANCE,
        {
            "file_number": file.file_number,
            "item_count": chunk.first_item + chunk.item_count,
            "line_count": line_count,
            "statement_count": max(
                (row.statement_number for row in statements), default=file.statement_count
            ),
        },
    )


def _copy_text(file_number: int, lines: LineColumns) -> str:
    """Lines in the text format of COPY."""
    encoded = [
        [field or "\\N" for field in column] if name in _NULLABLE else escape_column(column)
        for name, column in zip(NewLine._fields, lines, strict=True)
    ]
    return "".join(
        [f"{file_number}\t{line}\n" for line in map("\t".join, zip(*encoded, strict=True))]
    )


def to_columns(lines: Iterable[NewLine]) -> LineColumns:
    """Lines by column, at least one."""
    return [
        ["" if field is None else str(field) for field in column]
        for column in zip(*lines, strict=True)
    ]


def _to_text(statements: Iterable[StatementRow]) -> list[dict[str, object]]:
    """The rows with amounts as text, because they may have more than 64 bits."""
    names = StatementRow.__slots__
    return [
        {
            name: str(value)
            if name in ("opening_balance", "total", "closing_balance")
            and (value := getattr(row, name)) is not None
            else getattr(row, name)
            for name in names
        }
        for row in statements
    ]


def count_staged(connection: Connection, file: FileRow) -> int:
    """How many lines of a file that is loading are stored."""
    parameters = {"file_number": file.file_number}
    return int(connection.execute(_COUNT_STAGED, parameters).scalar_one())


def delete(connection: Connection, file: FileRow) -> None:
    """Deletes a file that is not reconciled."""
    for statement in (_DELETE_CHUNKS, _DELETE_STAGED, _DELETE_STATEMENTS, _DELETE_FILE):
        connection.execute(statement, {"file_number": file.file_number})


def delete_abandoned(connection: Connection) -> int:
    """Deletes files that were not reconciled within a day, up to a page. Returns their number."""
    files = _FIND_ABANDONED.all(connection)
    for file in files:
        delete(connection, file)
    return len(files)


def list_files(
    connection: Connection, filters: FileFilter, before: PageKey | None, limit: int
) -> list[FileRow]:
    """Files, newest first."""
    where, values = newest_first(
        {"account": "account = :account"}, filters, "(create_time, statement_file_id)", before
    )
    return Query(FileRow, _LIST.format(where=where)).all(connection, **values, limit=limit)
