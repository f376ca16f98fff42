"""The book. Lock order: head, accounts by id; both inside functions of the schema, since the role itself may update nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from tallystick_core.ledger import BOOK, Chained, Head
from tallystick_storage.database import rows

_LOCK_HEAD = text("select sequence, hash, post_time, now from lock_head(:book)")
_LOCK_ACCOUNTS = text("select account_id, balance from lock_accounts(cast(:ids as bigint[]))")


def lock_head(connection: Connection) -> tuple[Head, datetime]:
    """Locks the end of the book; the time is the one to post at."""
    row = connection.execute(_LOCK_HEAD, {"book": BOOK}).one()
    return Head(row.sequence, bytes(row.hash), row.post_time), row.now


def lock_accounts(connection: Connection, account_ids: Sequence[int]) -> dict[int, int]:
    """Locks accounts by id, and returns their balances in minor units."""
    return {account_id: int(balance) for account_id, balance in connection.execute(_LOCK_ACCOUNTS, {"ids": list(account_ids)})}


_OPEN_ACCOUNTS = text("""
    insert into account (account, currency, balance, entry_count, create_time)
    select account, currency, 0, 0, clock()
    from json_to_recordset(cast(:accounts as json)) as r (account text, currency text) order by account, currency
    on conflict do nothing
""")
_ACCOUNT_IDS = text("""
    select a.account, a.currency, a.account_id
    from json_to_recordset(cast(:accounts as json)) as r (account text, currency text)
    join account a on a.account = r.account and a.currency = r.currency
""")


def open_accounts(connection: Connection, accounts: Sequence[tuple[str, str]]) -> None:
    """Opens accounts that are missing; (account, currency) pairs."""
    connection.execute(_OPEN_ACCOUNTS, {"accounts": _accounts(accounts)})


def account_ids(connection: Connection, accounts: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """The ids of accounts that exist."""
    found = connection.execute(_ACCOUNT_IDS, {"accounts": _accounts(accounts)})
    return {(account, currency): account_id for account, currency, account_id in found}


def _accounts(accounts: Sequence[tuple[str, str]]) -> str:
    return rows([{"account": account, "currency": currency} for account, currency in accounts])


_POSTED = text("""
    select t.kind, t.cause_id, t.sequence, t.fingerprint
    from json_to_recordset(cast(:causes as json)) as r (kind text, cause_id text) join tx t on t.kind = r.kind and t.cause_id = r.cause_id
""")


def posted(connection: Connection, causes: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, bytes]]:
    """Which causes (kind, cause_id) are in the book already: their sequence and fingerprint."""
    items = rows([{"kind": kind, "cause_id": cause} for kind, cause in causes])
    return {(r.kind, r.cause_id): (r.sequence, bytes(r.fingerprint)) for r in connection.execute(_POSTED, {"causes": items})}


# One statement, so that the triggers of both tables see all rows.
_APPEND = text("""
    with t as (
        insert into tx (book, sequence, kind, cause_id, caller, fingerprint, n, description, reverses, effective_time, post_time, previous_hash, hash)
        select :book, sequence, kind, cause_id, caller, decode(fingerprint, 'hex'), n, description, reverses, effective_time, post_time,
            decode(previous_hash, 'hex'), decode(hash, 'hex')
        from json_to_recordset(cast(:transactions as json)) as r (sequence bigint, kind text, cause_id text, caller text, fingerprint text, n int,
            description text, reverses bigint, effective_time timestamptz, post_time timestamptz, previous_hash text, hash text))
    insert into entry (book, sequence, place, account_id, currency, amount, balance_after)
    select :book, sequence, place, account_id, currency, amount, balance_after
    from json_to_recordset(cast(:entries as json)) as r (sequence bigint, place smallint, account_id bigint, currency text, amount bigint,
        balance_after numeric)
""")


def append(connection: Connection, chained: Sequence[Chained], ids: dict[tuple[str, str], int]) -> None:
    """Appends transactions that follow the locked head; `ids` are their accounts'."""
    transactions = [
        {
            "sequence": item.sequence,
            "kind": item.posting.kind,
            "cause_id": item.posting.cause_id,
            "caller": item.posting.caller,
            "fingerprint": item.posting.fingerprint.hex(),
            "n": len(item.posting.lines),
            "description": item.posting.description,
            "reverses": item.posting.reverses,
            "effective_time": item.effective_time,
            "post_time": item.post_time,
            "previous_hash": item.previous_hash.hex(),
            "hash": item.hash.hex(),
        }
        for item in chained
    ]
    entries = [
        {
            "sequence": item.sequence,
            "place": place,
            "account_id": ids[line.account, line.currency],
            "currency": line.currency,
            "amount": line.amount,
            "balance_after": str(balance),
        }
        for item in chained
        for place, (line, balance) in enumerate(zip(item.posting.lines, item.balances_after, strict=True), 1)
    ]
    connection.execute(_APPEND, {"book": BOOK, "transactions": rows(transactions), "entries": rows(entries)})


_TRANSACTION_COLUMNS = """t.sequence, t.kind, t.cause_id, t.caller, t.description, t.reverses, b.sequence as reversed_by, t.effective_time, t.post_time,
    t.previous_hash, t.hash"""
_TRANSACTIONS = text(f"""
    select {_TRANSACTION_COLUMNS} from tx t left join tx b on b.reverses = t.sequence
    where t.book = :book and t.sequence = any (cast(:sequences as bigint[])) order by t.sequence
""")
_ENTRIES = text("""
    select e.sequence, e.place, a.account, e.currency, e.amount, e.balance_after
    from entry e join account a on a.account_id = e.account_id
    where e.book = :book and e.sequence = any (cast(:sequences as bigint[])) order by e.sequence, e.place
""")

TransactionRow = tuple[Row[Any], list[Row[Any]]]


def transactions(connection: Connection, sequences: Sequence[int]) -> list[TransactionRow]:
    """Transactions with their entries, by sequence."""
    parameters = {"book": BOOK, "sequences": list(sequences)}
    found: dict[int, TransactionRow] = {row.sequence: (row, []) for row in connection.execute(_TRANSACTIONS, parameters)}
    for entry in connection.execute(_ENTRIES, parameters):
        found[entry.sequence][1].append(entry)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class TransactionFilter:
    """Which transactions to list; None does not filter. `before`: sequences below it."""

    account: str | None = None
    currency: str | None = None
    kind: str | None = None
    cause_id: str | None = None
    post_time_from: datetime | None = None
    post_time_until: datetime | None = None
    before: int | None = None


def list_sequences(connection: Connection, wanted: TransactionFilter, most: int) -> list[int]:
    """The sequences of transactions, newest first."""
    conditions, values = ["t.book = :book"], {"book": BOOK, "most": most}
    if wanted.account is not None or wanted.currency is not None:
        entry = ["e.book = t.book", "e.sequence = t.sequence"]
        if wanted.account is not None:
            entry.append("e.account_id in (select account_id from account where account = :account)")
        if wanted.currency is not None:
            entry.append("e.currency = :currency")
        conditions.append(f"exists (select from entry e where {' and '.join(entry)})")
    plain = {
        "kind": "t.kind = :kind",
        "cause_id": "t.cause_id = :cause_id",
        "post_time_from": "t.post_time >= :post_time_from",
        "post_time_until": "t.post_time < :post_time_until",
        "before": "t.sequence < :before",
    }
    for name, condition in plain.items():
        if getattr(wanted, name) is not None:
            conditions.append(condition)
    for name in ("account", "currency", *plain):
        if getattr(wanted, name) is not None:
            values[name] = getattr(wanted, name)
    statement = text(f"select t.sequence from tx t where {' and '.join(conditions)} order by t.sequence desc limit :most")
    return list(connection.execute(statement, values).scalars())


_HEAD = text("select sequence, hash, post_time from head where book = :book")
_POINT_AT = text("select sequence, hash, post_time from tx where book = :book and post_time <= :time order by post_time desc, sequence desc limit 1")
_POINT_OF = text("select sequence, hash, post_time from tx where book = :book and sequence = :sequence")


def point(connection: Connection, as_of: datetime | None = None) -> Head:
    """The end of the book, or where it ended at a time; sequence 0 before the first transaction."""
    row = connection.execute(_HEAD, {"book": BOOK}).one()
    if as_of is not None and as_of < row.post_time:
        found = connection.execute(_POINT_AT, {"book": BOOK, "time": as_of}).one_or_none()
        return Head(found.sequence, bytes(found.hash), as_of) if found else Head(0, bytes(32), as_of)
    return Head(row.sequence, bytes(row.hash), row.post_time)


def point_of(connection: Connection, sequence: int) -> Head:
    """The point just after a transaction."""
    found = connection.execute(_POINT_OF, {"book": BOOK, "sequence": sequence}).one_or_none()
    return Head(found.sequence, bytes(found.hash), found.post_time) if found else point(connection)


_ACCOUNT_AT = text("""
    select a.account, a.currency, coalesce(e.balance_after, 0) as balance, a.create_time,
        (select count(*) from entry c where c.account_id = a.account_id and c.sequence <= :sequence) as entry_count
    from account a left join lateral (
        select balance_after from entry e where e.account_id = a.account_id and e.sequence <= :sequence
        order by e.sequence desc, e.place desc limit 1) e on true
    where a.account = :account and a.currency = :currency and a.entry_count > 0
""")


def account_at(connection: Connection, account: str, currency: str, sequence: int) -> Row[Any] | None:
    """An account as it stood after a transaction of the book."""
    return connection.execute(_ACCOUNT_AT, {"account": account, "currency": currency, "sequence": sequence}).one_or_none()


_ACCOUNTS = text("""
    select account, currency, balance, entry_count, create_time from account
    where starts_with(account, :prefix) and (:currency = '' or currency = :currency) and entry_count > 0
        and (account, currency) > (:after_account, :after_currency)
    order by account, currency limit :most
""")


def list_accounts(connection: Connection, prefix: str, currency: str, after: tuple[str, str], most: int) -> Sequence[Row[Any]]:
    """Accounts with their balances now, by name and currency, after a given one."""
    parameters = {"prefix": prefix, "currency": currency, "after_account": after[0], "after_currency": after[1], "most": most}
    return connection.execute(_ACCOUNTS, parameters).all()


_TRIAL_LINES = text("""
    select a.account, a.currency, e.balance_after as balance, a.create_time,
        (select count(*) from entry c where c.account_id = a.account_id and c.sequence <= :sequence) as entry_count
    from account a join lateral (
        select balance_after from entry e where e.account_id = a.account_id and e.sequence <= :sequence
        order by e.sequence desc, e.place desc limit 1) e on true
    where (a.account, a.currency) > (:after_account, :after_currency)
    order by a.account, a.currency limit :most
""")
_SUMS = text("""
    select a.currency, sum(e.balance_after) as balance
    from account a join lateral (
        select balance_after from entry e where e.account_id = a.account_id and e.sequence <= :sequence
        order by e.sequence desc, e.place desc limit 1) e on true
    group by a.currency order by a.currency
""")


def trial_lines(connection: Connection, sequence: int, after: tuple[str, str], most: int) -> Sequence[Row[Any]]:
    """Accounts as they stood after a transaction, by name and currency, after a given one."""
    return connection.execute(_TRIAL_LINES, {"sequence": sequence, "after_account": after[0], "after_currency": after[1], "most": most}).all()


def trial_sums(connection: Connection, sequence: int) -> dict[str, int]:
    """The sum of all accounts' balances after a transaction, by currency."""
    return {currency: int(balance) for currency, balance in connection.execute(_SUMS, {"sequence": sequence})}


_AFTER = text("""
    select t.sequence from tx t where t.book = :book and t.sequence > :after and t.sequence <= :until and (:prefix = '' or exists (
        select from entry e join account a on a.account_id = e.account_id
        where e.book = t.book and e.sequence = t.sequence and starts_with(a.account, :prefix)))
    order by t.sequence limit :most
""")


def sequences_between(connection: Connection, after: int, until: int, prefix: str, most: int) -> list[int]:
    """The next transactions of the book behind one and up to another that touch an account of the prefix."""
    return list(connection.execute(_AFTER, {"book": BOOK, "after": after, "until": until, "prefix": prefix, "most": most}).scalars())


_RELAYED = text("select sequence from relayed where book = :book")
_SET_RELAYED = text("update relayed set sequence = greatest(sequence, :sequence) where book = :book")


def relayed(connection: Connection) -> int:
    """The last transaction that EventService has confirmed."""
    return int(connection.execute(_RELAYED, {"book": BOOK}).scalar_one())


def set_relayed(connection: Connection, sequence: int) -> None:
    """EventService has all transactions up to this one."""
    connection.execute(_SET_RELAYED, {"book": BOOK, "sequence": sequence})
