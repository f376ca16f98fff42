"""The lines of reconciled files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import NamedTuple

from tallystick_storage.reconciliation.statement_files import LINE_COLUMNS
from tallystick_storage.sql import Connection, Query


class LineRow(NamedTuple):
    """A line of a reconciled file."""

    statement_file_id: str
    number: int
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
    outcome: str
    match_rule: str
    break_id: str | None
    first_statement_file_id: str | None


class LineSumRow(NamedTuple):
    """The sums of the lines of a break in one currency."""

    break_id: str
    currency: str
    amount: Decimal
    fee: Decimal


STATEMENT_COLUMNS = f"file_number, {LINE_COLUMNS}"
EARLIER_LINE = """
    select from statement_line l join statement_file f on f.file_number = l.file_number
    where l.reference = s.reference and l.line_type = s.line_type and l.outcome <> 'REPEATED'
        and (l.file_number <> s.file_number or l.match_rule = 'BOOKED')
        and f.account = :account"""
"""Selects lines of the account with the type and reference of the line `s`: of an earlier file, or
booked by this one.
"""
_LINE_SELECT = f"""
    select f.statement_file_id, {
    ", ".join(f"l.{name}" for name in LineRow._fields[1:17])
}, l.outcome, l.match_rule, l.break_id, g.statement_file_id as first_statement_file_id
    from statement_line l join statement_file f on f.file_number = l.file_number
    left join statement_file g on g.file_number = l.first_file_number
"""
_LIST_LINES = Query(
    LineRow,
    f"""{_LINE_SELECT}
    where l.file_number = (select file_number from statement_file where statement_file_id = :id)
        and l.number > :after
    order by l.number limit :limit""",
)
_BREAK_LINES = Query(
    LineRow,
    f"""{_LINE_SELECT} where l.break_id = any (cast(:break_ids as text[]))
    order by l.file_number, l.number limit :limit""",
)
_BREAK_LINE_SUMS = Query(
    LineSumRow,
    """
    select break_id, currency, sum(amount) as amount, sum(fee) as fee from statement_line
    where break_id = any (cast(:break_ids as text[]))
    group by break_id, currency order by break_id, currency
    """,
)


def list_lines(
    connection: Connection, filters: tuple[str], after: tuple[int] | None, limit: int
) -> list[LineRow]:
    """The lines of a reconciled file, in their order."""
    return _LIST_LINES.all(connection, id=filters[0], after=after[0] if after else 0, limit=limit)


def line_sums_of_breaks(connection: Connection, break_ids: Sequence[str]) -> list[LineSumRow]:
    """The sums of the lines that are in breaks."""
    return _BREAK_LINE_SUMS.all(connection, break_ids=list(break_ids))


def lines_of_breaks(connection: Connection, break_ids: Sequence[str], limit: int) -> list[LineRow]:
    """The first lines that are in breaks."""
    return _BREAK_LINES.all(connection, break_ids=list(break_ids), limit=limit)
