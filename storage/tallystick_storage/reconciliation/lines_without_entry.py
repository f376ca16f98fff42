"""The lines that match no entry: repeats, and what the statement alone proves."""

from __future__ import annotations

from tallystick_storage.reconciliation.statement_files import FileRow
from tallystick_storage.reconciliation.statement_lines import EARLIER_LINE, STATEMENT_COLUMNS
from tallystick_storage.sql import Connection, text

_NUMBER_DUPLICATES = text("""
    with numbered as (
        select ctid as tid, row_number() over (partition by identity order by number) as occurrence
        from staged_line where file_number = :file_number),
    duplicate as materialized (select * from numbered where occurrence > 1)
    update staged_line s set occurrence = d.occurrence from duplicate d
    where s.ctid = d.tid
""")
# `limit` keeps the planner from a join with all earlier lines.
_MOVE_REPEATED = text(f"""
    with repeated as materialized (
        select s.ctid as tid, l.file_number as first_file_number
        from staged_line s cross join lateral (
            select l.file_number from statement_line l
            where l.reference = s.reference and l.line_type = s.line_type
                and l.identity = s.identity and l.occurrence = s.occurrence
                and l.outcome <> 'REPEATED' limit 1) l
        where s.file_number = :file_number),
    moved as (delete from staged_line s where s.ctid = any (array(select tid from repeated)))
    insert into statement_line ({STATEMENT_COLUMNS}, outcome, match_rule, first_file_number)
    select {STATEMENT_COLUMNS}, 'REPEATED', '', first_file_number
    from repeated r join staged_line s on s.ctid = r.tid
""")
# A line that comes again, with the same values or with others, is not booked twice. Some providers
# give the same reference to the fees of each settlement.
_MOVE_BOOKED = text(f"""
    with line as materialized (
        select s.ctid as tid, s.*, row_number() over (
            partition by line_type, reference, settlement_reference order by number) as rank
        from staged_line s
        where s.file_number = :file_number and s.line_type in ('FEE', 'SETTLEMENT')),
    booked as materialized (
        select * from line s where s.reference = '' or s.rank = 1 and not exists ({EARLIER_LINE}
            and l.settlement_reference = s.settlement_reference)),
    moved as (delete from staged_line s where s.ctid = any (array(select tid from booked)))
    insert into statement_line ({STATEMENT_COLUMNS}, outcome, match_rule, match_number)
    select {STATEMENT_COLUMNS}, 'MATCHED', 'BOOKED', number from booked order by number
""")


def move_lines_without_entry(connection: Connection, file: FileRow, *, is_bank: bool) -> bool:
    """Moves the staged lines that another file had, and those that a provider books: fees and
    settlements. Returns whether some lines of the file are equal.
    """
    parameters = {"file_number": file.file_number, "account": file.account}
    has_duplicates = connection.execute(_NUMBER_DUPLICATES, parameters).rowcount > 0
    connection.execute(_MOVE_REPEATED, parameters)
    if not is_bank:
        connection.execute(_MOVE_BOOKED, parameters)
    return has_duplicates
