"""The lines of a file that no pass has matched: what they are, and where they go."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

from tallystick_storage.database import encode_rows
from tallystick_storage.reconciliation.ledger_items import ItemKey
from tallystick_storage.reconciliation.named_entries import (
    IN_ACCOUNTS,
    IS_OPEN,
    named_entries,
    our_id,
)
from tallystick_storage.reconciliation.open_items import store_matched_items
from tallystick_storage.reconciliation.statement_files import FileRow
from tallystick_storage.reconciliation.statement_lines import EARLIER_LINE, STATEMENT_COLUMNS
from tallystick_storage.sql import Connection, Query, text


class RestLine(NamedTuple):
    """A staged line that matches nothing."""

    number: int
    line_type: str
    currency: str
    amount: int
    fee: int
    booking_date: date | None
    reference: str
    charge_reference: str
    client_reference: str
    is_correction: bool
    is_repeated: bool
    settlement_reference: str
    is_charge_taken: bool
    is_order_taken: bool


class LineCounts(NamedTuple):
    """The lines of a file that are about what the ledger has: charges, payouts, bank entries."""

    unmatched_count: int
    line_count: int


# A line that equals one before it without a reference is a copy if that one has its entry.
_IS_REPEATED = """
    s.occurrence > 1 and ((s.reference, s.charge_reference, s.client_reference) <> ('', '', '')
        or exists (
            select from statement_line l where l.reference = s.reference
                and l.line_type = s.line_type and l.identity = s.identity
                and l.outcome = 'MATCHED'))"""


def _is_taken(condition: str) -> str:
    """Whether a line or a break has an entry with the type of a line already. "offset 0": the
    planner could read all entries at once instead.
    """
    return f"""s.line_type in ('CHARGE', 'PAYOUT', 'PAYOUT_RETURN') and exists (
        select from ledger_item i where {condition} and i.line_type = s.line_type
            and i.account = any (cast(:accounts as text[])) and not {IS_OPEN} offset 0)"""


_IS_CHARGE_TAKEN = _is_taken(
    "i.external_reference in (s.charge_reference, s.reference) and i.external_reference <> ''"
)
_IS_ORDER_TAKEN = _is_taken(f"i.source_id = {our_id('s')}")
_SELECT_REST = f"""
    select s.number, s.line_type, s.currency, s.amount, s.fee, s.booking_date, s.reference,
        s.charge_reference, s.client_reference,
        s.reference <> '' and exists ({EARLIER_LINE}) as is_correction,
        {_IS_REPEATED} as is_repeated, s.settlement_reference,
        {_IS_CHARGE_TAKEN} as is_charge_taken, {_IS_ORDER_TAKEN} as is_order_taken
    from staged_line s"""
_LIST_REST = Query(
    RestLine,
    f"""
    {_SELECT_REST} where s.file_number = :file_number and s.number > :after
    order by s.number limit :limit
    """,
)
_KEYS_OF_NAMES = ("charge_reference", "reference", "settlement_reference")
_LIST_NAMING = Query(
    RestLine,
    f"""
    {_SELECT_REST} cross join lateral (
        select from {named_entries("open_item", "s", _KEYS_OF_NAMES, of_any_type=":is_bank")} i
        where {IN_ACCOUNTS}
        union all
        select from {named_entries("closed_item", "s", _KEYS_OF_NAMES)} i
        join break b on b.break_id = i.break_id
        where {IN_ACCOUNTS} and b.state = 'OPEN' and b.kind = 'MISSING_IN_FILE'
        limit 1) i
    where s.file_number = :file_number order by s.number limit :limit
    """,
)
_COUNT_LINES = Query(
    LineCounts,
    """
    with line as (
        select true as is_unmatched, line_type from staged_line where file_number = :file_number
        union all
        select false, line_type from statement_line where file_number = :file_number)
    select count(*) filter (where is_unmatched) as unmatched_count, count(*) as line_count
    from line where line_type in ('CHARGE', 'PAYOUT', 'PAYOUT_RETURN', 'BANK_ENTRY')
    """,
)
_FOUND_LINES = """
    with found as materialized (
        select s.tid, r.break_id, r.match_number from json_to_recordset(cast(:lines as json))
            as r (number bigint, break_id text, match_number bigint)
        cross join lateral (select s.ctid as tid from staged_line s
            where s.file_number = :file_number and s.number = r.number limit 1) s),
    moved as (delete from staged_line s where s.ctid = any (array(select tid from found)))"""
_STORE_BREAK_LINES = text(f"""
    {_FOUND_LINES}
    insert into statement_line ({STATEMENT_COLUMNS}, outcome, match_rule, break_id)
    select {STATEMENT_COLUMNS}, 'BREAK', '', break_id
    from found f join staged_line s on s.ctid = f.tid
""")
_STORE_MATCHED_LINES = text(f"""
    {_FOUND_LINES}
    insert into statement_line ({STATEMENT_COLUMNS}, outcome, match_rule, match_number)
    select {STATEMENT_COLUMNS}, 'MATCHED', 'SEVERAL_KEYS', match_number
    from found f join staged_line s on s.ctid = f.tid
""")


def list_rest(
    connection: Connection, file: FileRow, accounts: Sequence[str], after: int, limit: int
) -> list[RestLine]:
    """The lines that are left, in their order, after a number. `accounts`: of the entries that they
    could match.
    """
    return _LIST_REST.all(
        connection,
        file_number=file.file_number,
        account=file.account,
        accounts=list(accounts),
        after=after,
        limit=limit,
    )


def list_naming(
    connection: Connection, file: FileRow, accounts: Sequence[str], limit: int, *, is_bank: bool
) -> list[RestLine]:
    """The lines that are left and name open entries, or entries that no file had in time."""
    return _LIST_NAMING.all(
        connection,
        file_number=file.file_number,
        account=file.account,
        accounts=list(accounts),
        is_bank=is_bank,
        limit=limit,
    )


def count_lines(connection: Connection, file: FileRow) -> LineCounts:
    """How many lines could match, and how many of them are left."""
    return _COUNT_LINES.one(connection, file_number=file.file_number)


def store_break_lines(
    connection: Connection, file: FileRow, lines: Sequence[tuple[int, str]]
) -> None:
    """Moves staged lines, by number, into breaks."""
    rows = [{"number": number, "break_id": break_id} for number, break_id in lines]
    connection.execute(
        _STORE_BREAK_LINES, {"file_number": file.file_number, "lines": encode_rows(rows)}
    )


def store_matches(
    connection: Connection,
    file: FileRow,
    lines: Sequence[tuple[int, int]],
    items: Sequence[tuple[ItemKey, int]],
) -> None:
    """Moves staged lines, by number, and open entries that match: each with the number of the first
    line that matches with them.
    """
    line_rows = [{"number": number, "match_number": match} for number, match in lines]
    connection.execute(
        _STORE_MATCHED_LINES, {"file_number": file.file_number, "lines": encode_rows(line_rows)}
    )
    store_matched_items(connection, file, items)
