"""Reads of the ledger: transactions, heads, accounts and the trial balance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tallystick_core.ledger.hash_chain import Head
from tallystick_core.ledger.identifiers import BOOK
from tallystick_storage.sql import Connection, Row, text

_TRANSACTION_COLUMNS = """t.sequence, t.kind, t.source_id, t.caller, t.description,
    t.external_reference, t.reverses,
    b.sequence as reversed_by, t.effective_time, t.post_time,
    t.previous_hash, t.hash"""
_TRANSACTIONS = text(f"""
    select {_TRANSACTION_COLUMNS} from tx t left join tx b on b.reverses = t.sequence
    where t.book = :book and t.sequence = any (cast(:sequences as bigint[])) order by t.sequence
""")
_ENTRIES = text("""
    select e.sequence, e.line_number, a.account, e.currency, e.amount, e.balance_after
    from entry e cross
        join lateral (select account from account where account_id = e.account_id offset 0) a
    where e.book = :book and e.sequence = any (cast(:sequences as bigint[]))
        order by e.sequence, e.line_number
""")

TransactionRow = tuple[Row[Any], list[Row[Any]]]


def load_transactions(connection: Connection, sequences: Sequence[int]) -> list[TransactionRow]:
    """Transactions with their entries, by sequence."""
    parameters = {"book": BOOK, "sequences": list(sequences)}
    by_sequence: dict[int, TransactionRow] = {
        row.sequence: (row, []) for row in connection.execute(_TRANSACTIONS, parameters)
    }
    for entry in connection.execute(_ENTRIES, parameters):
        by_sequence[entry.sequence][1].append(entry)
    return list(by_sequence.values())


@dataclass(frozen=True, slots=True)
class TransactionFilter:
    """Which transactions to list; None does not filter. `before` selects lower sequences."""

    account: str | None = None
    currency: str | None = None
    kind: str | None = None
    source_id: str | None = None
    post_time_from: datetime | None = None
    post_time_until: datetime | None = None
    external_reference: str | None = None
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
_LEADING_FILTERS = ("source_id", "external_reference", "account", "kind")
"""The filters with an index, the most selective first."""


def list_sequences(
    connection: Connection, filters: TransactionFilter, limit: int
) -> tuple[list[int], int | None]:
    """The sequences of transactions, newest first, and the sequence down to which all were
    examined, or None if there are no more below it.

    Times rise with sequences, so a time translates to a sequence. One call does not search the
    whole ledger for rare matches.
    """
    low, high = 1, filters.before
    if filters.post_time_from is not None:
        low = (
            connection.execute(
                _FIRST_SINCE, {"book": BOOK, "time": filters.post_time_from}
            ).scalar_one_or_none()
            or 0
        )
        if not low:
            return [], None
    if filters.post_time_until is not None:
        last_before = connection.execute(
            _LAST_BEFORE, {"book": BOOK, "time": filters.post_time_until}
        ).scalar_one_or_none()
        if last_before is None:
            return [], None
        high = last_before + 1 if high is None else min(high, last_before + 1)
    leading = next((name for name in _LEADING_FILTERS if getattr(filters, name) is not None), "")
    range_ = "sequence >= :low" if high is None else "sequence >= :low and sequence < :high"
    conditions = _remaining_conditions(filters, leading)
    statement = text(f"""
        with candidate as materialized ({_candidate_query(filters, leading, range_)}
            order by sequence desc limit :max_scanned)
        (select distinct l.sequence, false as last from candidate l
         cross join lateral (select * from tx t where t.book = :book
             and t.sequence = l.sequence offset 0) t
         where {" and ".join(conditions) or "true"} order by l.sequence desc limit :limit)
        union all
        (select min(sequence), true from candidate having count(*) = :max_scanned)
    """)
    values = {
        name: value
        for name in (*_LEADING_FILTERS, "currency")
        if (value := getattr(filters, name)) is not None
    }
    bounds = {
        "low": low,
        "high": high,
        "limit": limit,
        "max_scanned": _MAX_SCANNED if conditions else 4 * limit,
    }
    result = connection.execute(statement, {**values, **bounds, "book": BOOK}).all()
    return [row.sequence for row in result if not row.last], next(
        (row.sequence for row in result if row.last), None
    )


def _candidate_query(filters: TransactionFilter, leading: str, range_: str) -> str:
    """Sequences in a range that meet the leading filter, from its index."""
    if leading == "account":
        return f"""
            select e.sequence
                from (select account_id from account
                where account = :account{" and currency = :currency" if filters.currency else ""}) a
            cross join lateral (select sequence from entry where account_id = a.account_id
                and {range_} order by sequence desc limit :max_scanned) e"""
    condition = f"{leading} = :{leading} and " if leading else ""
    return f"select sequence from tx where book = :book and {condition}{range_}"


def _remaining_conditions(filters: TransactionFilter, leading: str) -> list[str]:
    """The filters that the candidates need not meet, as conditions on the transaction `t`."""
    conditions = [
        f"t.{name} = :{name}"
        for name in ("source_id", "external_reference", "kind")
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


_HEAD = text("select sequence, hash, post_time from head where book = :book")
_HEAD_AT = text(
    "select sequence, hash, post_time from tx where book = :book and post_time <= :time order by "
    "post_time desc, sequence desc limit 1"
)
_HEAD_AFTER = text(
    "select sequence, hash, post_time from tx where book = :book and sequence = :sequence"
)


def head_at(connection: Connection, as_of: datetime | None = None) -> Head:
    """The head of the ledger now, or at a time. Its sequence is 0 before the first transaction."""
    row = connection.execute(_HEAD, {"book": BOOK}).one()
    if as_of is not None and as_of < row.post_time:
        transaction = connection.execute(_HEAD_AT, {"book": BOOK, "time": as_of}).one_or_none()
        return (
            Head(transaction.sequence, bytes(transaction.hash), as_of)
            if transaction
            else Head(0, bytes(32), as_of)
        )
    return Head(row.sequence, bytes(row.hash), row.post_time)


def head_after(connection: Connection, sequence: int) -> Head:
    """The head just after a transaction."""
    transaction = connection.execute(
        _HEAD_AFTER, {"book": BOOK, "sequence": sequence}
    ).one_or_none()
    return (
        Head(transaction.sequence, bytes(transaction.hash), transaction.post_time)
        if transaction
        else head_at(connection)
    )


# The entry that gives an account's balance at a transaction; the last entry unless an earlier
# transaction is requested.
_BALANCE_AT = """
    select e.balance_after as balance, e.number as entry_count from entry e
        where e.account_id = a.account_id and e.sequence <= :sequence
    order by e.sequence desc, e.line_number desc limit 1
"""
_ACCOUNT_AT = text(f"""
    select a.account, a.currency, e.balance, a.create_time, e.entry_count from account a cross
        join lateral ({_BALANCE_AT}) e
    where a.account = :account and a.currency = :currency
""")


def account_at(
    connection: Connection, account: str, currency: str, sequence: int
) -> Row[Any] | None:
    """An account as of a transaction; None before the account's first entry."""
    return connection.execute(
        _ACCOUNT_AT, {"account": account, "currency": currency, "sequence": sequence}
    ).one_or_none()


_ACCOUNTS = """
    select account, currency, balance, entry_count, create_time from account
    where starts_with(account, :prefix) and entry_count > 0 and {after} order by account, currency
        limit :limit
"""
_ALL_ACCOUNTS = text(
    _ACCOUNTS.format(after="(account, currency) > (:after_account, :after_currency)")
)
_ACCOUNTS_IN_CURRENCY = text(
    _ACCOUNTS.format(after="currency = :currency and account > :after_account")
)


def list_accounts(
    connection: Connection, prefix: str, currency: str, after: tuple[str, str], limit: int
) -> Sequence[Row[Any]]:
    """Accounts with their current balances, by name and currency, after a given one."""
    values = {"prefix": prefix, "limit": limit}
    if currency:
        return connection.execute(
            _ACCOUNTS_IN_CURRENCY, {**values, "currency": currency, "after_account": after[0]}
        ).all()
    # The index scan starts here, whatever the other filters are.
    after_account, after_currency = max(after, (prefix, ""))
    return connection.execute(
        _ALL_ACCOUNTS, {**values, "after_account": after_account, "after_currency": after_currency}
    ).all()


_LIST_TRIAL_BALANCE = text(f"""
    select a.account, a.currency, e.balance, a.create_time, e.entry_count
    from (select * from account where (account, currency) > (:after_account, :after_currency)
        order by account, currency limit :limit) a
    left join lateral ({_BALANCE_AT}) e on true
    order by a.account, a.currency
""")


def list_trial_balance(
    connection: Connection, sequence: int, after: tuple[str, str], limit: int
) -> Sequence[Row[Any]]:
    """Up to `limit` accounts as of a transaction, by name and currency, after a given one. An
    account has no balance before its first entry.
    """
    return connection.execute(
        _LIST_TRIAL_BALANCE,
        {
            "sequence": sequence,
            "after_account": after[0],
            "after_currency": after[1],
            "limit": limit,
        },
    ).all()


_SEQUENCES_BETWEEN = text("""
    select t.sequence from tx t where t.book = :book and t.sequence > :after
        and t.sequence <= :until and (:prefix = '' or exists (
        select from entry e join account a on a.account_id = e.account_id
        where e.book = t.book and e.sequence = t.sequence and starts_with(a.account, :prefix)))
    order by t.sequence limit :limit
""")


def list_sequences_between(
    connection: Connection, after: int, until: int, prefix: str, limit: int
) -> list[int]:
    """The next transactions after one sequence, up to another, that touch an account with the
    prefix.
    """
    return list(
        connection.execute(
            _SEQUENCES_BETWEEN,
            {"book": BOOK, "after": after, "until": until, "prefix": prefix, "limit": limit},
        ).scalars()
    )
