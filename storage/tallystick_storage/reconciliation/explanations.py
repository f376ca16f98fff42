"""Reads for Explain: what statements have of some ledger transactions and references.

Each read is bounded. A read of `limit` rows reads one more, so that its caller can tell whether
some are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from tallystick_storage.database import encode_rows
from tallystick_storage.reconciliation.breaks import BreakRow
from tallystick_storage.sql import Connection, Query


class ItemRow(NamedTuple):
    """A ledger entry on an account that statements are about. `is_open`: no statement has it yet.
    `match_number`: the first of the lines of the file that match it; `break_id`: the break that it
    is in; None: neither.
    """

    account: str
    is_open: bool
    file_number: int | None
    match_number: int | None
    break_id: str | None


class ExplainedLineRow(NamedTuple):
    """A line of a reconciled file; amounts in minor units."""

    statement_file_id: str
    number: int
    line_number: int
    line_type: str
    amount: int
    currency: str
    fee: int
    reference: str
    match_rule: str
    break_id: str | None
    reconcile_time: datetime


_LIST_ITEMS = Query(
    ItemRow,
    """
    with k as materialized (
        select * from json_to_recordset(cast(:transactions as json))
            as r (book text collate "C", sequence bigint))
    select i.account, true, null, null, null from k
        join open_item i on i.book = k.book and i.sequence = k.sequence
    union all
    select i.account, false, i.file_number, i.match_number, i.break_id from k
        join closed_item i on i.book = k.book and i.sequence = k.sequence
    limit :limit + 1
    """,
)
_LINE = """
    select f.statement_file_id, l.number, l.line_number, l.line_type, l.amount, l.currency, l.fee,
        l.reference, l.match_rule, l.break_id, f.reconcile_time
    from {lines} join statement_file f on f.file_number = l.file_number
    where l.outcome <> 'REPEATED' and {condition}
"""
# The matched lines are read by their key, the others by the indexes of references and breaks.
_LIST_LINES = Query(
    ExplainedLineRow,
    f"""
    {
        _LINE.format(
            lines='''json_to_recordset(cast(:matches as json))
        as m (file_number bigint, match_number bigint)
        join statement_line l on l.file_number = m.file_number and l.number = m.match_number''',
            condition="true",
        )
    }
    union
    {
        _LINE.format(
            lines="statement_line l",
            condition="l.reference <> '' and l.reference = any (cast(:references as text[]))",
        )
    }
    union
    {
        _LINE.format(
            lines="statement_line l", condition="l.break_id = any (cast(:break_ids as text[]))"
        )
    }
    order by reconcile_time desc, statement_file_id, number limit :limit + 1
    """,
)
_LIST_BREAKS = Query(
    BreakRow,
    """
    select {columns} from break where break_id = any (cast(:ids as text[]))
    order by create_time desc, break_id desc
    """,
)


def list_items(
    connection: Connection, transactions: Sequence[tuple[str, int]], limit: int
) -> list[ItemRow]:
    """The entries of ledger transactions, each given by its book and its sequence."""
    keys = [{"book": book, "sequence": sequence} for book, sequence in transactions]
    return _LIST_ITEMS.all(connection, transactions=encode_rows(keys), limit=limit)


def list_lines(
    connection: Connection, items: Sequence[ItemRow], references: Sequence[str], limit: int
) -> list[ExplainedLineRow]:
    """The lines that match entries or are in their breaks, and those with one of these references,
    newest first.
    """
    matches = [
        {"file_number": item.file_number, "match_number": item.match_number}
        for item in items
        if item.match_number is not None
    ]
    return _LIST_LINES.all(
        connection,
        matches=encode_rows(matches),
        references=list(references),
        break_ids=[item.break_id for item in items if item.break_id is not None],
        limit=limit,
    )


def list_breaks(connection: Connection, break_ids: Sequence[str]) -> list[BreakRow]:
    """Breaks by their ids, newest first."""
    return _LIST_BREAKS.all(connection, ids=list(break_ids))
