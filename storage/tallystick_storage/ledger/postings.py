"""Postings, and the relay's position.

Lock order: head, then accounts by id. Functions of the schema take both locks, because the role
itself has no UPDATE privilege.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from tallystick_core.ledger.hash_chain import ChainedTransaction, Head
from tallystick_core.ledger.identifiers import TransactionId
from tallystick_storage.alerts import OLDEST_IN_OUTBOX, AlertQuery, event_alert_queries
from tallystick_storage.database import encode_rows
from tallystick_storage.gauges import GaugeQuery, event_gauge_queries
from tallystick_storage.sql import Connection, Query, text


class _LockedHeadRow(NamedTuple):
    sequence: int
    hash: bytes
    post_time: datetime
    now: datetime


class _LockedAccountRow(NamedTuple):
    account_id: int
    balance: Decimal
    entry_count: int
    account: str
    currency: str


_LOCK_HEAD = Query(_LockedHeadRow, "select {columns} from lock_head(:book)")
_LOCK_ACCOUNTS = Query(
    _LockedAccountRow,
    """
    select l.account_id, l.balance, l.entry_count, a.account, a.currency
    from lock_accounts(cast(:ids as bigint[])) l
    -- otherwise the planner reads all accounts for a merge join
    cross join lateral (select account, currency from account
        where account_id = l.account_id and book = :book offset 0) a
    """,
)


class UnknownBook(Exception):
    """There is no book of this name."""

    def __init__(self, book: str) -> None:
        super().__init__(book)
        self.book = book


def lock_head(connection: Connection, book: str) -> tuple[Head, datetime]:
    """Locks the head of a book. The returned time is the posting time. Raises UnknownBook."""
    row = _LOCK_HEAD.one_or_none(connection, book=book)
    if row is None:
        raise UnknownBook(book)
    return Head(row.sequence, row.hash, row.post_time), row.now


class AccountsChanged(Exception):
    """An account's id has changed: the database was restored to an earlier state after the id was
    read.
    """


def lock_accounts(
    connection: Connection, book: str, ids: Mapping[tuple[str, str], int]
) -> tuple[dict[tuple[str, str], int], dict[int, int]]:
    """Locks accounts of a book in the order of their ids. `ids` is keyed by (account, currency).
    Returns balances in minor units by the same key, and the number of entries by id.

    Raises AccountsChanged if an id now belongs to another account or to none.
    """
    locked = _LOCK_ACCOUNTS.all(connection, book=book, ids=sorted(ids.values()))
    if {(row.account, row.currency): row.account_id for row in locked} != ids:
        raise AccountsChanged
    return {(row.account, row.currency): int(row.balance) for row in locked}, {
        row.account_id: row.entry_count for row in locked
    }


class _AccountIdRow(NamedTuple):
    account: str
    currency: str
    account_id: int


_OPEN_ACCOUNTS = text("""
    insert into account (book, account, currency, balance, entry_count, create_time)
    select h.book, account, currency, 0, 0, clock()
    from json_to_recordset(cast(:accounts as json))
        as r (account text collate "C", currency text collate "C")
    join head h on h.book = :book order by account, currency
    on conflict do nothing
""")
_FIND_ACCOUNT_IDS = Query(
    _AccountIdRow,
    """
    select a.account, a.currency, a.account_id
    from json_to_recordset(cast(:accounts as json))
        as r (account text collate "C", currency text collate "C")
    join account a on a.book = :book and a.account = r.account and a.currency = r.currency
    """,
)


def open_accounts(
    connection: Connection, book: str, accounts: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], int]:
    """Opens the missing ones of some accounts, given as (account, currency) pairs, and returns the
    ids of all. Raises UnknownBook.
    """
    parameters = {"book": book, "accounts": _encode_accounts(accounts)}
    connection.execute(_OPEN_ACCOUNTS, parameters)
    rows = _FIND_ACCOUNT_IDS.all(connection, **parameters)
    if not rows:
        raise UnknownBook(book)
    return {(row.account, row.currency): row.account_id for row in rows}


def _encode_accounts(accounts: Sequence[tuple[str, str]]) -> str:
    return encode_rows(
        [{"account": account, "currency": currency} for account, currency in accounts]
    )


class _PostedRow(NamedTuple):
    kind: str
    source_id: str
    sequence: int
    fingerprint: bytes


_FIND_POSTED = Query(
    _PostedRow,
    """
    select t.kind, t.source_id, t.sequence, t.fingerprint
    from json_to_recordset(cast(:source_ids as json)) as r (kind text, source_id text)
        join tx t on t.kind = r.kind and t.source_id = r.source_id and t.book = :book
    """,
)


def find_posted(
    connection: Connection, book: str, source_ids: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], tuple[int, bytes]]:
    """The given sources (kind, source_id) that are already posted to a book, with their sequence
    and fingerprint.
    """
    items = encode_rows([{"kind": kind, "source_id": source_id} for kind, source_id in source_ids])
    return {
        (row.kind, row.source_id): (row.sequence, row.fingerprint)
        for row in _FIND_POSTED.all(connection, book=book, source_ids=items)
    }


# One statement, so that the triggers of both tables see all rows.
_APPEND = text("""
    with t as (
        insert into tx (book, sequence, kind, source_id, caller, fingerprint, entry_count,
            description, external_reference, buyer_account,
            reverses, effective_time, post_time, previous_hash, hash)
        select :book, sequence, kind, source_id, caller, decode(fingerprint, 'hex'), entry_count,
            description, external_reference, buyer_account,
            reverses, effective_time, post_time,
            decode(previous_hash, 'hex'), decode(hash, 'hex')
        from json_to_recordset(cast(:transactions as json))
            as r (sequence bigint, kind text, source_id text, caller text, fingerprint text,
                entry_count int,
            description text, external_reference text, buyer_account text, reverses bigint,
                effective_time timestamptz, post_time timestamptz, previous_hash text, hash text))
    insert into entry (book, sequence, line_number, account_id, currency, amount, balance_after,
        number)
    select :book, sequence, line_number, account_id, currency, amount, balance_after, number
    from json_to_recordset(cast(:entries as json))
        as r (sequence bigint, line_number smallint, account_id bigint, currency text collate "C",
        amount bigint,
        balance_after numeric, number bigint)
""")


def append(
    connection: Connection,
    book: str,
    chained: Sequence[ChainedTransaction],
    ids: Mapping[tuple[str, str], int],
    entry_counts: Mapping[int, int],
) -> None:
    """Appends transactions after the locked head of their book. `ids` are the ids of their
    accounts, and `entry_counts` the number of entries of each.
    """
    transactions = [
        {
            "sequence": item.sequence,
            "kind": item.posting.kind,
            "source_id": item.posting.source_id,
            "caller": item.posting.caller,
            "fingerprint": item.posting.fingerprint.hex(),
            "entry_count": len(item.posting.lines),
            "description": item.posting.description,
            "external_reference": item.posting.external_reference,
            "buyer_account": item.posting.buyer_account,
            "reverses": item.posting.reverses,
            "effective_time": item.effective_time,
            "post_time": item.post_time,
            "previous_hash": item.previous_hash.hex(),
            "hash": item.hash.hex(),
        }
        for item in chained
    ]
    connection.execute(
        _APPEND,
        {
            "book": book,
            "transactions": encode_rows(transactions),
            "entries": encode_rows(_entry_rows(chained, ids, entry_counts)),
        },
    )


def _entry_rows(
    chained: Sequence[ChainedTransaction],
    ids: Mapping[tuple[str, str], int],
    entry_counts: Mapping[int, int],
) -> list[dict[str, Any]]:
    entry_numbers = dict(entry_counts)
    entries = []
    for item in chained:
        for line_number, (line, balance) in enumerate(
            zip(item.posting.lines, item.balances_after, strict=True), 1
        ):
            account_id = ids[line.account, line.currency]
            entry_numbers[account_id] += 1
            entry = {
                "sequence": item.sequence,
                "line_number": line_number,
                "account_id": account_id,
                "currency": line.currency,
                "amount": line.amount,
            }
            entries.append(
                {**entry, "balance_after": str(balance), "number": entry_numbers[account_id]}
            )
    return entries


class RelayPosition(NamedTuple):
    """The last transaction of a book that EventService has confirmed, the book's last transaction,
    and whether EventService rejects any event of this service.
    """

    book: str
    sequence: int
    last: int
    has_rejected_events: bool


_RELAY_POSITIONS = Query(
    RelayPosition,
    """
    select r.book, r.sequence, h.sequence as last,
        exists (select from rejected_aggregate) as has_rejected_events
    from relayed r join head h on h.book = r.book order by r.book
    """,
)
_SET_RELAY_POSITION = text(
    "update relayed set sequence = greatest(sequence, :sequence) where book = :book"
)


# The event of an alert waits in the outbox. The event of a transaction waits in the ledger, after
# the last transaction that EventService has confirmed.
_OLDEST_EVENT = f"""
    select min(create_time) as create_time from (
        ({OLDEST_IN_OUTBOX})
        union all select t.post_time from relayed r join tx t on t.book = r.book
            and t.sequence = r.sequence + 1) w
"""


def alert_queries(max_event_delay_seconds: float) -> Sequence[AlertQuery]:
    """The alerts of this service. `max_event_delay_seconds` is how many seconds an event may wait
    to be published.
    """
    return event_alert_queries(max_event_delay_seconds, _OLDEST_EVENT)


def gauge_queries() -> Sequence[GaugeQuery]:
    """The gauges of this service."""
    return event_gauge_queries(_OLDEST_EVENT)


def relay_positions(connection: Connection) -> list[RelayPosition]:
    """The position of the relay in each book, by book."""
    return _RELAY_POSITIONS.all(connection)


_HASH = text("select hash from tx where book = :book and sequence = :sequence")


def hash_of(connection: Connection, transaction: TransactionId) -> bytes:
    """The hash of a transaction, which covers all transactions before it; empty if it does not
    exist.
    """
    return bytes(connection.execute(_HASH, transaction._asdict()).scalar_one_or_none() or b"")


def set_relay_position(connection: Connection, published: TransactionId) -> None:
    """Records that EventService has all transactions of the book up to this one."""
    connection.execute(_SET_RELAY_POSITION, published._asdict())
