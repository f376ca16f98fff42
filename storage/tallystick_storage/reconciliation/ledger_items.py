"""The ledger's entries on clearing accounts, as they are read from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from tallystick_storage.database import encode_rows
from tallystick_storage.sql import Connection, Query, columns, text


class ItemRow(NamedTuple):
    """A ledger entry on a clearing account. `amount`: debits less credits."""

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


class ItemKey(NamedTuple):
    """What identifies a ledger entry."""

    book: str
    sequence: int
    entry_number: int


class ReadTransaction(NamedTuple):
    """A transaction of the ledger that reconciliation may have posted."""

    kind: str
    source_id: str
    transaction_id: str


ITEM_COLUMNS = columns(ItemRow)
CLOSED_COLUMNS = "book, sequence, entry_number, account, currency, amount"
"""What closed_item has of an entry, before what took it."""
OPEN_COLUMNS = f"{CLOSED_COLUMNS}, external_reference, effective_time, line_type"
_LOCK_POSITION = text("select sequence from ledger_position where book = :book for update")
_CREATE_POSITION = text(
    "insert into ledger_position (book, sequence) values (:book, 0) on conflict do nothing"
)
_ADVANCE = text("update ledger_position set sequence = :sequence where book = :book")
# What reconciliation posted has its line already, but the bank has not reported a settlement yet.
_STORE_ITEMS = text(f"""
    with item as materialized (
        select i.*, exists (select from ledger_posting p where p.kind = i.kind
                and p.source_id = i.source_id)
            and not (i.kind = 'SETTLEMENT' and i.account = 'banks/transit') as is_own
        from json_to_recordset(cast(:items as json)) as i (book text collate "C", sequence bigint,
            entry_number int, account text collate "C", currency text collate "C", amount bigint,
            kind text, source_id text collate "C", external_reference text collate "C",
            effective_time timestamptz, line_type text)),
    stored as (insert into ledger_item ({ITEM_COLUMNS}) select {ITEM_COLUMNS} from item),
    opened as (
        insert into open_item ({OPEN_COLUMNS}) select {OPEN_COLUMNS} from item where not is_own),
    closed as (
        insert into closed_item ({CLOSED_COLUMNS}, is_own)
        select {CLOSED_COLUMNS}, true from item where is_own)
    insert into clearing_balance as b (account, currency, ledger_balance, statement_balance)
    select account, currency, sum(amount), 0 from item group by account, currency
    order by account, currency
    on conflict (account, currency) do update
        set ledger_balance = b.ledger_balance + excluded.ledger_balance
""")
_MARK_POSTED = text("""
    with read as materialized (
        select p.ctid as tid, r.transaction_id from json_to_recordset(cast(:transactions as json))
            as r (kind text, source_id text collate "C", transaction_id text)
        cross join lateral (select p.ctid from ledger_posting p where p.kind = r.kind
            and p.source_id = r.source_id and not p.is_posted limit 1) p)
    update ledger_posting p set is_posted = true, transaction_id = r.transaction_id from read r
    where p.ctid = r.tid and p.ctid = any (array(select tid from read)) and not p.is_posted
""")
_ADD_STATEMENT_BALANCES = text("""
    insert into clearing_balance as b (account, currency, ledger_balance, statement_balance)
    select :account, currency, 0, amount
    from json_to_recordset(cast(:sums as json)) as r (currency text collate "C", amount numeric)
    order by currency
    on conflict (account, currency) do update
        set statement_balance = b.statement_balance + excluded.statement_balance
""")


class _StatementBalance(NamedTuple):
    currency: str
    statement_balance: Decimal


_STATEMENT_BALANCES = Query(
    _StatementBalance, "select {columns} from clearing_balance where account = :account"
)


class Position(NamedTuple):
    sequence: int


_FIND_POSITION = Query(Position, "select {columns} from ledger_position where book = :book")


def position(connection: Connection, book: str) -> int:
    """The sequence of the last transaction that was read."""
    row = _FIND_POSITION.one_or_none(connection, book=book)
    return 0 if row is None else row.sequence


def lock_items(connection: Connection, book: str) -> int:
    """Locks the entries of a book: one transaction at a time moves them. Returns the sequence of
    the last transaction that was read.
    """
    connection.execute(_CREATE_POSITION, {"book": book})
    return int(connection.execute(_LOCK_POSITION, {"book": book}).scalar_one())


def store(
    connection: Connection,
    book: str,
    after: int,
    until: int,
    items: Sequence[ItemRow],
    transactions: Sequence[ReadTransaction],
) -> bool:
    """Stores what was read of the ledger between two sequences. Returns whether nobody else has
    done so.
    """
    if lock_items(connection, book) != after:
        return False
    if items:
        rows = [item._asdict() for item in items]
        connection.execute(_STORE_ITEMS, {"items": encode_rows(rows)})
    if transactions:
        rows = [transaction._asdict() for transaction in transactions]
        connection.execute(_MARK_POSTED, {"transactions": encode_rows(rows)})
    connection.execute(_ADVANCE, {"book": book, "sequence": until})
    return True


def statement_balances(connection: Connection, account: str) -> dict[str, int]:
    """The sums of all lines of an account, by currency."""
    rows = _STATEMENT_BALANCES.all(connection, account=account)
    return {row.currency: int(row.statement_balance) for row in rows}


def add_statement_sums(connection: Connection, account: str, sums: dict[str, int]) -> None:
    """Adds what a file changes to the statement balances of its account."""
    rows = [{"currency": currency, "amount": str(amount)} for currency, amount in sums.items()]
    connection.execute(_ADD_STATEMENT_BALANCES, {"account": account, "sums": encode_rows(rows)})
