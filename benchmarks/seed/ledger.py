"""Chains the ledger transactions of the clones behind those of the templates.

Needs the tables `new_payment` and `new_payout`. The hashes are made by the ledger's own code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg

from benchmarks.seed.clone import fetch_value
from benchmarks.seed.templates import ORDER_AMOUNT, PAYOUT_AMOUNTS, PLATFORM_FEE
from tallystick_core.ledger.hash_chain import ChainedTransaction, Head, append_posting
from tallystick_core.ledger.identifiers import BOOK
from tallystick_core.ledger.posting import Posting
from tallystick_core.ledger.posting_rules import (
    JournalLine,
    PostingKind,
    pay_in_lines,
    payout_lines,
)
from tallystick_server.app.errors import StartupError

_POSTINGS_PER_FETCH = 20_000
_COPY_TX_SQL = """
    copy ledger.tx (book, sequence, kind, source_id, caller, fingerprint, entry_count,
        description, external_reference, buyer_account, effective_time, post_time,
        previous_hash, hash) from stdin
"""
_COPY_ENTRY_SQL = """
    copy ledger.entry (book, sequence, line_number, account_id, currency, amount,
        balance_after, number) from stdin
"""

_AccountKey = tuple[str, str]
"""Account name and currency."""


@dataclass
class _Accounts:
    """The accounts of the ledger, by name and currency."""

    ids: dict[_AccountKey, int]
    balances: dict[_AccountKey, int]
    entry_counts: dict[_AccountKey, int]
    next_id: int

    def add_missing(self, lines: Iterable[JournalLine]) -> None:
        for line in lines:
            key = (line.account, line.currency)
            if key not in self.ids:
                self.ids[key], self.balances[key], self.entry_counts[key] = self.next_id, 0, 0
                self.next_id += 1


def chain_ledger(connection: psycopg.Connection[Any], admin_url: str) -> int:
    """Inserts a transaction for each payment and payout that is PAID, and updates the accounts and
    the head. Returns the sequence of the last transaction before them.
    """
    template_head = _load_head(connection)
    accounts = _load_accounts(connection)
    template_accounts = list(accounts.ids)
    head = _copy_transactions(connection, admin_url, template_head, accounts)
    _insert_accounts(connection, accounts, template_accounts, head)
    _update_accounts(connection, accounts, template_accounts)
    connection.execute(
        "update ledger.head set sequence = %s, hash = %s, post_time = %s",
        (head.sequence, head.hash, head.post_time),
    )
    connection.execute("update ledger.relayed set sequence = %s", (head.sequence,))
    return template_head.sequence


def _load_head(connection: psycopg.Connection[Any]) -> Head:
    row = connection.execute("select sequence, hash, post_time from ledger.head").fetchone()
    if row is None:
        raise StartupError("The table ledger.head is empty.")
    return Head(int(row[0]), bytes(row[1]), row[2])


def _load_accounts(connection: psycopg.Connection[Any]) -> _Accounts:
    rows = connection.execute(
        "select account, currency, account_id, balance, entry_count from ledger.account"
    ).fetchall()
    return _Accounts(
        ids={(row[0], row[1]): row[2] for row in rows},
        balances={(row[0], row[1]): int(row[3]) for row in rows},
        entry_counts={(row[0], row[1]): row[4] for row in rows},
        next_id=max(row[2] for row in rows) + 1,
    )


def _copy_transactions(
    connection: psycopg.Connection[Any], admin_url: str, head: Head, accounts: _Accounts
) -> Head:
    """Copies transactions and entries by two connections of their own, applies them to `accounts`,
    and returns the new head.
    """
    with (
        _connect_for_copy(admin_url) as tx_connection,
        _connect_for_copy(admin_url) as entry_connection,
        tx_connection.cursor().copy(_COPY_TX_SQL) as tx_copy,
        entry_connection.cursor().copy(_COPY_ENTRY_SQL) as entry_copy,
    ):
        for posting in _read_postings(connection):
            accounts.add_missing(posting.lines)
            post_time = head.post_time + timedelta(microseconds=1)
            transaction = append_posting(head, posting, post_time, accounts.balances)
            head = Head(transaction.sequence, transaction.hash, transaction.post_time)
            tx_copy.write_row(_tx_row(transaction))
            for row in _entry_rows(transaction, accounts):
                entry_copy.write_row(row)
    return head


def _connect_for_copy(admin_url: str) -> psycopg.Connection[Any]:
    connection = psycopg.connect(admin_url)
    connection.execute("set session_replication_role = replica; set synchronous_commit = off")
    return connection


def _read_postings(connection: psycopg.Connection[Any]) -> Iterator[Posting]:
    callers = {
        kind: fetch_value(connection, f"select caller from ledger.tx where kind = '{kind}'")
        for kind in ("PAY_IN", "PAYOUT")
    }
    with connection.cursor(name="postings", withhold=True) as cursor:
        cursor.itersize = _POSTINGS_PER_FETCH
        cursor.execute("""
            select 'PAY_IN', order_id, buyer, seller, 'seed-' || number
            from new_payment where kind = 'PAID'
            union all
            select 'PAYOUT', n.payout_id, '', n.seller, t.provider_reference
            from new_payout n join payout.transfer t on t.payout_id = n.payout_id
            where n.state = 'PAID'
        """)
        for kind, source_id, buyer, seller, reference in cursor:
            yield Posting(
                PostingKind(kind),
                source_id,
                callers[kind],
                _journal_lines(kind, buyer, seller),
                external_reference=reference,
                buyer_account=buyer,
            )


def _journal_lines(kind: str, buyer: str, seller: str) -> tuple[JournalLine, ...]:
    if kind == "PAYOUT":
        return payout_lines("sandbox", seller, "EUR", PAYOUT_AMOUNTS["PAID"], 0)
    return pay_in_lines("sandbox", buyer, seller, "EUR", ORDER_AMOUNT, PLATFORM_FEE)


def _tx_row(transaction: ChainedTransaction) -> tuple[Any, ...]:
    posting = transaction.posting
    return (
        BOOK,
        transaction.sequence,
        posting.kind.value,
        posting.source_id,
        posting.caller,
        posting.fingerprint,
        len(posting.lines),
        posting.description,
        posting.external_reference,
        posting.buyer_account,
        transaction.effective_time,
        transaction.post_time,
        transaction.previous_hash,
        transaction.hash,
    )


def _entry_rows(transaction: ChainedTransaction, accounts: _Accounts) -> Iterator[tuple[Any, ...]]:
    """Counts each entry in `accounts`."""
    lines = zip(transaction.posting.lines, transaction.balances_after, strict=True)
    for line_number, (line, balance_after) in enumerate(lines, 1):
        key = (line.account, line.currency)
        accounts.entry_counts[key] += 1
        yield (
            BOOK,
            transaction.sequence,
            line_number,
            accounts.ids[key],
            line.currency,
            line.amount,
            balance_after,
            accounts.entry_counts[key],
        )


def _insert_accounts(
    connection: psycopg.Connection[Any],
    accounts: _Accounts,
    template_accounts: list[_AccountKey],
    head: Head,
) -> None:
    with connection.cursor().copy(
        "copy ledger.account (account_id, book, account, currency, balance, entry_count, "
        "create_time) from stdin"
    ) as copy:
        for key, account_id in accounts.ids.items():
            if key not in template_accounts:
                figures = (accounts.balances[key], accounts.entry_counts[key])
                copy.write_row((account_id, BOOK, *key, *figures, head.post_time))
    connection.execute(
        "select setval(pg_get_serial_sequence('ledger.account', 'account_id'), %s)",
        (accounts.next_id,),
    )


def _update_accounts(
    connection: psycopg.Connection[Any],
    accounts: _Accounts,
    template_accounts: list[_AccountKey],
) -> None:
    for key in template_accounts:
        connection.execute(
            "update ledger.account set balance = %s, entry_count = %s where account_id = %s",
            (accounts.balances[key], accounts.entry_counts[key], accounts.ids[key]),
        )
