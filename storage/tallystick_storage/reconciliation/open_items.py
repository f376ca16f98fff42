"""Ledger entries that breaks take while no statement has them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from tallystick_storage.reconciliation.matching import ITEM_COLUMNS, ItemRow
from tallystick_storage.sql import Connection, Query, text


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
_SELECT_EXPECTED = f"""
    select {ITEM_COLUMNS} from open_item
    where account = :account and currency = :currency
        and effective_time <= (select clock()) - make_interval(days => :min_age_days)
"""
_EXPECTED_ORDER = "order by effective_time, book, sequence, entry_number limit :limit"
_LIST_EXPECTED = Query(ItemRow, f"{_SELECT_EXPECTED} {_EXPECTED_ORDER}")
_LIST_EXPECTED_AFTER = Query(
    ItemRow,
    f"""{_SELECT_EXPECTED}
        and effective_time >= :time and (effective_time, book, sequence, entry_number)
            > (:time, :book, :sequence, :entry_number)
    {_EXPECTED_ORDER}""",
)
_SETTLEMENT_ACCOUNT = """
    coalesce((select p.account from ledger_posting p where i.kind = 'SETTLEMENT'
        and p.kind = i.kind and p.source_id = i.source_id), '') as settlement_account"""
_LIST_ENTRIES = Query(
    EntryRow,
    f"""
    select {ITEM_COLUMNS}, true as is_open, null as break_id, {_SETTLEMENT_ACCOUNT}
    from open_item i where i.book = :book and i.sequence = :sequence
    union all
    select {ITEM_COLUMNS}, false, break_id, {_SETTLEMENT_ACCOUNT}
    from closed_item i where i.book = :book and i.sequence = :sequence and not i.is_own
    order by entry_number
    """,
)
_LIST_SETTLEMENTS = Query(
    ItemRow,
    f"""
    select {ITEM_COLUMNS} from open_item i where i.account || '' = 'banks/transit'
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
# Each break of the kind has one line. Lookups by index, whatever statistics the planner has, and no
# more of them than there are such breaks.
_AT_BANK = "(i.account like 'banks/%' or i.account like 'payouts/%')"
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
            select i.book, i.sequence, i.entry_number, i.amount, i.currency from open_item i
            where i.external_reference = any (n.names) and i.external_reference <> ''
                and {_CAN_MATCH}
            union
            select i.book, i.sequence, i.entry_number, i.amount, i.currency from open_item i
            where i.source_id = n.source_id and {_CAN_MATCH}) i),
    agreeing as (
        select break_id from named group by break_id, gross, line_currency
        having sum(amount) = gross and bool_and(currency = line_currency)),
    near as (
        select n.break_id, i.book, i.sequence, i.entry_number
        from line n cross join lateral (
            select min(i.book) as book, min(i.sequence) as sequence,
                min(i.entry_number) as entry_number, min(i.day) as day, count(*) as count from (
                select i.book, i.sequence, i.entry_number, {_DAY} as day from open_item i
                where i.amount = n.gross and i.currency = n.currency and {_AT_BANK}
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
