"""Reads of the ledger: transactions, heads, accounts and the trial balance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from tallystick_core.ledger.hash_chain import Head
from tallystick_core.ledger.identifiers import TransactionId
from tallystick_storage.ledger.postings import UnknownBook
from tallystick_storage.pagination import Scan
from tallystick_storage.sql import Connection, Query, text


class TransactionRow(NamedTuple):
    """A stored transaction. `reverses`, `reversed_by`: sequences in the same book."""

    book: str
    sequence: int
    kind: str
    source_id: str
    caller: str
    description: str
    external_reference: str
    buyer_account: str
    effective_time: datetime
    post_time: datetime
    previous_hash: bytes
    hash: bytes
    reverses: int | None
    reversed_by: int | None


class EntryRow(NamedTuple):
    """An entry of a stored transaction, in minor units; a debit is negative."""

    sequence: int
    account: str
    currency: str
    amount: int
    balance_after: Decimal


class StoredTransaction(NamedTuple):
    """A transaction with its entries, in their order."""

    row: TransactionRow
    entries: list[EntryRow]


class AccountRow(NamedTuple):
    """An account at one point of its book; `balance` in whole minor units."""

    book: str
    account: str
    currency: str
    create_time: datetime
    balance: Decimal
    entry_count: int


_TRANSACTION_COLUMNS = (
    f"{', '.join(f't.{name}' for name in TransactionRow._fields[:-1])}, b.sequence as reversed_by"
)
_JOIN_REVERSAL = "left join tx b on b.book = t.book and b.reverses = t.sequence"
_TRANSACTIONS = Query(
    TransactionRow,
    f"""
    select {_TRANSACTION_COLUMNS} from tx t {_JOIN_REVERSAL}
    where t.book = :book and t.sequence = any (cast(:sequences as bigint[])) order by t.sequence
    """,
)
_ENTRIES = Query(
    EntryRow,
    """
    select e.sequence, a.account, e.currency, e.amount, e.balance_after
    from entry e cross
        join lateral (select account from account where account_id = e.account_id offset 0) a
    where e.book = :book and e.sequence = any (cast(:sequences as bigint[]))
        order by e.sequence, e.line_number
    """,
)


def load_transactions(
    connection: Connection, book: str, sequences: Sequence[int]
) -> list[StoredTransaction]:
    """Transactions of a book with their entries, by sequence."""
    rows = _TRANSACTIONS.all(connection, book=book, sequences=list(sequences))
    return _with_entries(connection, book, rows)


def _with_entries(
    connection: Connection, book: str, rows: Sequence[TransactionRow]
) -> list[StoredTransaction]:
    by_sequence = {row.sequence: StoredTransaction(row, []) for row in rows}
    entries = _ENTRIES.all(connection, book=book, sequences=list(by_sequence)) if rows else []
    for entry in entries:
        by_sequence[entry.sequence].entries.append(entry)
    return list(by_sequence.values())


class TransactionFilter(NamedTuple):
    """Which transactions to list; None does not filter. `before` selects lower sequences."""

    book: str
    account: str | None = None
    currency: str | None = None
    kind: str | None = None
    source_id: str | None = None
    post_time_from: datetime | None = None
    post_time_until: datetime | None = None
    external_reference: str | None = None
    buyer_account: str | None = None
    source_ids: list[str] | None = None
    before: int | None = None


_FIRST_SINCE = text(
    "select sequence from tx where post_time >= :time and book = :book order by post_time, "
    "sequence limit 1"
)
_LAST_BEFORE = text(
    "select sequence from tx where post_time < :time and book = :book order by post_time desc, "
    "sequence desc limit 1"
)
_MAX_SCANNED = 2_000
_CONDITIONS = {
    "source_id": "source_id = :source_id",
    "source_ids": "source_id = any (cast(:source_ids as text[]))",
    "external_reference": "external_reference = :external_reference",
    "buyer_account": "buyer_account = :buyer_account",
    "kind": "kind = :kind",
}
_LEADING_FILTERS = (*list(_CONDITIONS)[:-1], "account", "kind")
"""The filters with an index, the most selective first."""


def list_transactions(
    connection: Connection, filters: TransactionFilter, limit: int
) -> Scan[StoredTransaction, tuple[int]]:
    """Transactions with their entries, newest first.

    Times rise with sequences, so a time translates to a sequence. One call does not search the
    whole ledger for rare matches.
    """
    low, high = 1, filters.before
    if filters.post_time_from is not None:
        low = (
            connection.execute(
                _FIRST_SINCE, {"book": filters.book, "time": filters.post_time_from}
            ).scalar_one_or_none()
            or 0
        )
        if not low:
            return Scan([], None)
    if filters.post_time_until is not None:
        last_before = connection.execute(
            _LAST_BEFORE, {"book": filters.book, "time": filters.post_time_until}
        ).scalar_one_or_none()
        if last_before is None:
            return Scan([], None)
        high = last_before + 1 if high is None else min(high, last_before + 1)
    leading = next((name for name in _LEADING_FILTERS if getattr(filters, name) is not None), "")
    range_ = "sequence >= :low" if high is None else "sequence >= :low and sequence < :high"
    conditions = _remaining_conditions(filters, leading)
    # `is_limit`: not listed, but the last one that was examined
    statement = text(f"""
        with candidate as materialized ({_candidate_query(filters, leading, range_)}
            order by sequence desc limit :max_scanned),
        listed as materialized (
            (select distinct l.sequence, false as is_limit from candidate l
             cross join lateral (select * from tx t where t.book = :book
                 and t.sequence = l.sequence offset 0) t
             where {" and ".join(conditions) or "true"} order by l.sequence desc limit :limit)
            union all
            (select min(sequence), true from candidate having count(*) = :max_scanned))
        select {_TRANSACTION_COLUMNS}, l.is_limit from listed l
        cross join lateral (select * from tx t where t.book = :book
            and t.sequence = l.sequence offset 0) t
        {_JOIN_REVERSAL}
        order by t.sequence desc
    """)
    values = {
        name: value
        for name in (*_LEADING_FILTERS, "currency")
        if (value := getattr(filters, name)) is not None
    }
    parameters = {
        **values,
        "book": filters.book,
        "low": low,
        "high": high,
        "limit": limit,
        "max_scanned": _MAX_SCANNED if conditions else 4 * limit,
    }
    rows = connection.execute(statement, parameters).fetchall()
    listed = [TransactionRow(*columns) for *columns, is_limit in rows if not is_limit]
    last_key = next(((TransactionRow(*row[:-1]).sequence,) for row in rows if row[-1]), None)
    return Scan(_with_entries(connection, filters.book, listed), last_key)


def _candidate_query(filters: TransactionFilter, leading: str, range_: str) -> str:
    """Sequences in a range that meet the leading filter, from its index."""
    if leading == "account":
        in_currency = "and currency = :currency" if filters.currency else ""
        return f"""
            select e.sequence from (select account_id from account
                where book = :book and account = :account {in_currency}) a
            cross join lateral (select sequence from entry where account_id = a.account_id
                and {range_} order by sequence desc limit :max_scanned) e"""
    if leading == "source_ids":  # each by its index
        return f"""
            select t.sequence from unnest(cast(:source_ids as text[])) s (source_id)
            cross join lateral (select sequence from tx where book = :book
                and source_id = s.source_id and {range_} offset 0) t"""
    condition = f"{_CONDITIONS[leading]} and " if leading else ""
    return f"select sequence from tx where book = :book and {condition}{range_}"


def _remaining_conditions(filters: TransactionFilter, leading: str) -> list[str]:
    """The filters that the candidates need not meet, as conditions on the transaction `t`."""
    conditions = [
        f"t.{condition}"
        for name, condition in _CONDITIONS.items()
        if name != leading and getattr(filters, name) is not None
    ]
    of_account = [
        f"{table}.{name} = :{name}"
        for table, name in (("a", "account"), ("e", "currency"))
        if getattr(filters, name) is not None
    ]
    if of_account and leading != "account":
        conditions.append(
            "exists (select from entry e join account a on a.account_id = e.account_id where "
            f"e.book = t.book and e.sequence = t.sequence and {' and '.join(of_account)} offset 0)"
        )
    return conditions


_HEAD = Query(Head, "select {columns} from head where book = :book")
_HEAD_AT = Query(
    Head,
    "select {columns} from tx where book = :book and post_time <= :time "
    "order by post_time desc, sequence desc limit 1",
)
_HEAD_AFTER = Query(Head, "select {columns} from tx where book = :book and sequence = :sequence")


def head_at(connection: Connection, book: str, as_of: datetime | None = None) -> Head:
    """The head of a book now, or at a time. Its sequence is 0 before the first transaction. Raises
    UnknownBook.
    """
    head = _HEAD.one_or_none(connection, book=book)
    if head is None:
        raise UnknownBook(book)
    if as_of is None or as_of >= head.post_time:
        return head
    earlier = _HEAD_AT.one_or_none(connection, book=book, time=as_of) or Head(0, bytes(32), as_of)
    return replace(earlier, post_time=as_of)


def head_after(connection: Connection, transaction_id: TransactionId) -> Head:
    """The head just after a transaction."""
    head = _HEAD_AFTER.one_or_none(connection, **transaction_id._asdict())
    return head or head_at(connection, transaction_id.book)


# The entry that gives an account's balance at a transaction; the last entry unless an earlier
# transaction is requested.
_BALANCE_AT = """
    select e.balance_after as balance, e.number as entry_count from entry e
        where e.account_id = a.account_id and e.sequence <= :sequence
    order by e.sequence desc, e.line_number desc limit 1
"""
_ACCOUNT_COLUMNS = "a.book, a.account, a.currency, a.create_time"
_ACCOUNT_AT = Query(
    AccountRow,
    f"""
    select {_ACCOUNT_COLUMNS}, e.balance, e.entry_count
    from account a cross join lateral ({_BALANCE_AT}) e
    where a.book = :book and a.account = :account and a.currency = :currency
    """,
)


def account_at(
    connection: Connection, as_of: TransactionId, account: str, currency: str
) -> AccountRow | None:
    """An account as of a transaction; None before the account's first entry."""
    parameters = {**as_of._asdict(), "account": account, "currency": currency}
    return _ACCOUNT_AT.one_or_none(connection, **parameters)


_ACCOUNTS = f"""
    select {_ACCOUNT_COLUMNS}, a.balance, a.entry_count from account a
    where a.book = :book and starts_with(a.account, :prefix) and a.entry_count > 0 and {{after}}
    order by a.account, a.currency limit :limit
"""
_ALL_ACCOUNTS = Query(
    AccountRow,
    _ACCOUNTS.format(after="(a.account, a.currency) > (:after_account, :after_currency)"),
)
_ACCOUNTS_IN_CURRENCY = Query(
    AccountRow, _ACCOUNTS.format(after="a.currency = :currency and a.account > :after_account")
)


class AccountFilter(NamedTuple):
    """Which accounts to list; an empty prefix or currency does not filter."""

    book: str
    prefix: str
    currency: str


def list_accounts(
    connection: Connection, filters: AccountFilter, after: tuple[str, str] | None, limit: int
) -> list[AccountRow]:
    """Accounts of a book with their current balances, by name and currency, after a given one."""
    book, prefix, currency = filters
    after = after or ("", "")
    values = {"book": book, "prefix": prefix, "limit": limit}
    if currency:
        parameters = {**values, "currency": currency, "after_account": after[0]}
        return _ACCOUNTS_IN_CURRENCY.all(connection, **parameters)
    # The index scan starts here, whatever the other filters are.
    after_account, after_currency = max(after, (prefix, ""))
    parameters = {**values, "after_account": after_account, "after_currency": after_currency}
    return _ALL_ACCOUNTS.all(connection, **parameters)


class TrialBalanceRow(NamedTuple):
    """An account at one point of its book, as AccountRow; None: before its first entry."""

    book: str
    account: str
    currency: str
    create_time: datetime
    balance: Decimal | None
    entry_count: int | None

    def opened(self) -> AccountRow | None:
        """The account, or None: it was opened later."""
        if self.balance is None or self.entry_count is None:
            return None
        return AccountRow(*self[:4], self.balance, self.entry_count)


_LIST_TRIAL_BALANCE = Query(
    TrialBalanceRow,
    f"""
    select {_ACCOUNT_COLUMNS}, e.balance, e.entry_count
    from (select * from account where book = :book
        and (account, currency) > (:after_account, :after_currency)
        order by account, currency limit :limit) a
    left join lateral ({_BALANCE_AT}) e on true
    order by a.account, a.currency
    """,
)


def list_trial_balance(
    connection: Connection, as_of: TransactionId, after: tuple[str, str], limit: int
) -> list[TrialBalanceRow]:
    """Up to `limit` accounts as of a transaction, by name and currency, after a given one."""
    parameters = {
        **as_of._asdict(),
        "after_account": after[0],
        "after_currency": after[1],
        "limit": limit,
    }
    return _LIST_TRIAL_BALANCE.all(connection, **parameters)


_SEQUENCES_BETWEEN = text("""
    select t.sequence from tx t where t.book = :book and t.sequence > :after
        and t.sequence <= :until and (:prefix = '' or exists (
        select from entry e join account a on a.account_id = e.account_id
        where e.book = t.book and e.sequence = t.sequence and starts_with(a.account, :prefix)))
    order by t.sequence limit :limit
""")


def list_sequences_between(
    connection: Connection, book: str, after: int, until: int, prefix: str, limit: int
) -> list[int]:
    """The next transactions of a book after one sequence, up to another, that touch an account with
    the prefix.
    """
    parameters = {"book": book, "after": after, "until": until, "prefix": prefix, "limit": limit}
    return list(connection.execute(_SEQUENCES_BETWEEN, parameters).scalars())
