"""Ledger entries that no statement has yet, and how they are taken."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from tallystick_storage.database import encode_rows
from tallystick_storage.reconciliation.ledger_items import (
    CLOSED_COLUMNS,
    ITEM_COLUMNS,
    ItemKey,
    ItemRow,
)
from tallystick_storage.reconciliation.named_entries import (
    AT_BANK,
    IN_ACCOUNTS,
    IS_OPEN,
    same_entry,
)
from tallystick_storage.reconciliation.statement_files import FileRow
from tallystick_storage.sql import Connection, Query, columns, text


class EntryRow(NamedTuple):
    """A ledger entry on a clearing account, and where it is."""

    book: str
    sequence: int
    entry_number: int
    account: str
    currency: str
    amount: int
    kind: str
    source_id: str
    external_reference: str
    effective_time: datetime
    line_type: str
    is_open: bool
    """Whether neither a line nor a break has it."""
    break_id: str | None
    settlement_account: str
    """The account whose statement had the settlement that it is of, or ""."""


class ArrivedRow(NamedTuple):
    """An entry that agrees with the line of a break."""

    break_id: str
    book: str
    sequence: int
    entry_number: int


class ExpectedFilter(NamedTuple):
    """The account of entries, and how old they are at least."""

    account: str
    currency: str
    min_age_days: int


EntryKey = tuple[datetime, str, int, int]
"""The effective time, the book, the sequence and the number of an entry."""
_IS_AFTER = """
    and o.effective_time >= :time
    and (o.effective_time, o.book, o.sequence, o.entry_number)
        > (:time, :book, :sequence, :entry_number)"""


def _list_oldest(condition: str) -> Query[ItemRow]:
    """The oldest open entries of an account, `o`, that meet a condition."""
    return Query(
        ItemRow,
        f"""
        with oldest as materialized (
            select * from open_item o
            where o.account = :account and o.currency = :currency and {condition}
            order by o.effective_time, o.book, o.sequence, o.entry_number limit :limit)
        select {columns(ItemRow, "i")} from oldest o cross join lateral (
            select * from ledger_item i where {same_entry("i", "o")} limit 1) i
        order by o.effective_time, o.book, o.sequence, o.entry_number
        """,
    )


_LIST_OVERDUE = _list_oldest("o.effective_time < :until")
_IS_OLD = "o.effective_time <= (select clock()) - make_interval(days => :min_age_days)"
_LIST_EXPECTED = _list_oldest(_IS_OLD)
_LIST_EXPECTED_AFTER = _list_oldest(f"{_IS_OLD} {_IS_AFTER}")
_SETTLEMENT_ACCOUNT = """
    coalesce((select p.account from ledger_posting p where i.kind = 'SETTLEMENT'
        and p.kind = i.kind and p.source_id = i.source_id), '') as settlement_account"""
_LIST_ENTRIES = Query(
    EntryRow,
    f"""
    select {columns(ItemRow, "i")}, c.book is null as is_open, c.break_id, {_SETTLEMENT_ACCOUNT}
    from ledger_item i left join closed_item c on {same_entry("c", "i")}
    where i.book = :book and i.sequence = :sequence and c.is_own is not true
    order by i.entry_number
    """,
)
_LIST_SETTLEMENTS = Query(
    ItemRow,
    f"""
    select {ITEM_COLUMNS} from ledger_item i where {IS_OPEN} and i.account || '' = 'banks/transit'
        and i.kind = 'SETTLEMENT' and i.external_reference <> ''
        and i.external_reference = any (cast(:references as text[])) and exists (
            select from ledger_posting p where p.kind = i.kind and p.source_id = i.source_id
                and p.account = :account)
    order by book, sequence, entry_number
    """,
)
_HAS_FILE = text("""
    select exists (select from statement_file where account = :account and state = 'RECONCILED')
""")
_FIND_ITEMS = Query(
    ItemRow,
    f"""
    select {ITEM_COLUMNS} from ledger_item i where {IN_ACCOUNTS} and {IS_OPEN} and (
        i.external_reference = any (cast(:references as text[])) and i.external_reference <> ''
        or i.source_id = any (cast(:source_ids as text[])))
    order by book, sequence, entry_number
    """,
)
_FIND_SHARED = Query(
    ItemRow,
    f"""
    select {ITEM_COLUMNS} from ledger_item i where {IN_ACCOUNTS} and {IS_OPEN}
        and i.external_reference = any (cast(:references as text[]))
    order by book, sequence, entry_number
    """,
)
_FOUND_ITEMS = """
    with found as materialized (
        select i.tid, r.break_id, r.match_number from json_to_recordset(cast(:items as json))
            as r (book text collate "C", sequence bigint, entry_number int, break_id text,
                match_number bigint)
        cross join lateral (select i.ctid as tid from open_item i
            where (i.book, i.sequence, i.entry_number) = (r.book, r.sequence, r.entry_number)
            limit 1) i),
    moved as (delete from open_item i where i.ctid = any (array(select tid from found)))"""
_STORE_BREAK_ITEMS = text(f"""
    {_FOUND_ITEMS}
    insert into closed_item ({CLOSED_COLUMNS}, break_id, is_own)
    select {CLOSED_COLUMNS}, break_id, false from found f join open_item i on i.ctid = f.tid
""")
_STORE_MATCHED_ITEMS = text(f"""
    {_FOUND_ITEMS}
    insert into closed_item ({CLOSED_COLUMNS}, file_number, match_number, is_own)
    select {CLOSED_COLUMNS}, :file_number, match_number, false
    from found f join open_item i on i.ctid = f.tid
""")
# Each break of the kind has one line. Lookups by index, whatever statistics the planner has, and no
# more of them than there are such breaks.
# not by the index on accounts, which would read all payouts
_CAN_MATCH = (
    "(i.account || '' in (n.account, 'banks/transit') or i.account || '' like 'payouts/%/clearing')"
)
_DAY = "cast(i.effective_time at time zone 'UTC' as date)"
_LIST_ARRIVED = Query(
    ArrivedRow,
    f"""
    with line as materialized (
        select b.break_id, b.account, l.* from break b cross join lateral (
            select l.currency, l.amount + l.fee as gross,
                coalesce(l.value_date, l.booking_date) as day,
                array_remove(array[l.reference, l.charge_reference, l.settlement_reference], '')
                    as names,
                l.client_reference as source_id
            from statement_line l where l.break_id = b.break_id
                and cast(l.fee as numeric) * 100
                    between 0 and :fee_percent * abs(cast(l.amount + l.fee as numeric))
            limit 1) l
        where b.kind = 'BANK_ENTRY_UNKNOWN' and b.state = 'OPEN'),
    named as materialized (
        select n.break_id, n.gross, n.currency as line_currency, i.*
        from line n cross join lateral (
            select i.book, i.sequence, i.entry_number, i.amount, i.currency from ledger_item i
            where i.external_reference = any (n.names) and i.external_reference <> ''
                and {_CAN_MATCH} and {IS_OPEN}
            union
            select i.book, i.sequence, i.entry_number, i.amount, i.currency from ledger_item i
            where i.source_id = n.source_id and {_CAN_MATCH} and {IS_OPEN}) i),
    agreeing as (
        select break_id from named group by break_id, gross, line_currency
        having sum(amount) = gross and bool_and(currency = line_currency)),
    near as (
        select n.break_id, i.book, i.sequence, i.entry_number
        from line n cross join lateral (
            select min(i.book) as book, min(i.sequence) as sequence,
                min(i.entry_number) as entry_number, min(i.day) as day, count(*) as count from (
                select i.book, i.sequence, i.entry_number, {_DAY} as day from open_item i
                where i.amount = n.gross and i.currency = n.currency and {AT_BANK}
                    and {_CAN_MATCH} and abs({_DAY} - n.day) <= :days
                    and not (i.account like 'payouts/%' and n.source_id <> '')
                    and not (i.account like 'payouts/%' and exists (
                        select from statement_file f where f.state = 'RECONCILED' and f.account
                            = 'psp/' || split_part(i.account, '/', 2) || '/clearing'))
                limit 2) i) i
        where i.count = 1 and n.break_id not in (select break_id from named)
            and not exists (
                select from break o join statement_line ol on ol.break_id = o.break_id
                where o.kind = 'BANK_ENTRY_UNKNOWN' and o.state in ('OPEN', 'AWAITING_APPROVAL')
                    and o.difference = n.gross and o.currency = n.currency
                    and o.break_id <> n.break_id
                    and abs(coalesce(ol.value_date, ol.booking_date) - i.day) <= :days)),
    found as materialized (
        select break_id, book, sequence, entry_number from named
        where break_id in (select break_id from agreeing)
        union all select * from near)
    select {{columns}} from found where break_id in (
        select distinct break_id from found order by break_id limit :limit)
    order by break_id, book, sequence, entry_number
    """,
)


def list_entries(connection: Connection, book: str, sequence: int) -> list[EntryRow]:
    """The entries of a transaction on clearing accounts, as far as the ledger was read; without
    those that have a line because reconciliation has posted them.
    """
    return _LIST_ENTRIES.all(connection, book=book, sequence=sequence)


def list_expected(
    connection: Connection, filters: ExpectedFilter, after: EntryKey | None, limit: int
) -> list[ItemRow]:
    """The open entries of an account, oldest first."""
    values = {**filters._asdict(), "limit": limit}
    if after is None:
        return _LIST_EXPECTED.all(connection, **values)
    time, book, sequence, entry_number = after
    return _LIST_EXPECTED_AFTER.all(
        connection,
        **values,
        time=time,
        book=book,
        sequence=sequence,
        entry_number=entry_number,
    )


def list_settlements(
    connection: Connection, account: str, references: Sequence[str]
) -> list[ItemRow]:
    """The settlements of an account, with one of the references, that no bank has yet."""
    return _LIST_SETTLEMENTS.all(connection, account=account, references=list(references))


def has_reconciled_file(connection: Connection, account: str) -> bool:
    """Whether a statement file of an account was reconciled."""
    return bool(connection.execute(_HAS_FILE, {"account": account}).scalar_one())


def list_arrived(
    connection: Connection, days: int, fee_percent: int, limit: int
) -> list[ArrivedRow]:
    """The open entries that agree with the lines of open breaks BANK_ENTRY_UNKNOWN, at most `limit`
    of these. Those that a line names have its amount together. Of those that it does not name, only
    one has its amount and a date at most `days` from its own, and no other such break could have
    it; payouts of a provider with statements of its own are on these.
    """
    return _LIST_ARRIVED.all(connection, days=days, fee_percent=fee_percent, limit=limit)


def find_items(
    connection: Connection,
    accounts: Sequence[str],
    references: Sequence[str],
    source_ids: Sequence[str],
    *,
    is_bank: bool,
) -> list[ItemRow]:
    """The open entries with one of the references or ids, and those that share their reference."""
    filters = {"accounts": list(accounts), "is_bank": is_bank}
    items = _FIND_ITEMS.all(
        connection, **filters, references=list(references), source_ids=list(source_ids)
    )
    shared = {item.external_reference for item in items} - {""} - set(references)
    if shared:
        items += _FIND_SHARED.all(connection, **filters, references=sorted(shared))
    return sorted(set(items))


def list_overdue(
    connection: Connection, account: str, currency: str, until: datetime, limit: int
) -> list[ItemRow]:
    """The oldest open entries of an account from before a time."""
    return _LIST_OVERDUE.all(
        connection, account=account, currency=currency, until=until, limit=limit
    )


def store_break_items(connection: Connection, items: Sequence[tuple[ItemKey, str]]) -> int:
    """Moves open entries into breaks. Returns how many there still were."""
    rows = [{**key._asdict(), "break_id": break_id} for key, break_id in items]
    return connection.execute(_STORE_BREAK_ITEMS, {"items": encode_rows(rows)}).rowcount


def store_matched_items(
    connection: Connection, file: FileRow, items: Sequence[tuple[ItemKey, int]]
) -> None:
    """Moves open entries that match lines of a file, each with the number of the first line that
    matches with it.
    """
    rows = [{**key._asdict(), "match_number": match} for key, match in items]
    connection.execute(
        _STORE_MATCHED_ITEMS, {"file_number": file.file_number, "items": encode_rows(rows)}
    )
