"""Posting: appends transactions to the hash chain, in one database transaction for each batch."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime

from tallystick.ledger.v1 import ledger_pb2
from tallystick_core.errors import ApiError, ErrorReason, key_reused_error, not_found_error
from tallystick_core.ledger.hash_chain import ChainedTransaction, Head, append_posting
from tallystick_core.ledger.posting import Posting, first_difference
from tallystick_core.money import MAX_BALANCE
from tallystick_server.ledger import convert
from tallystick_server.operations.batcher import deduplicate_by_key, run_flattened
from tallystick_storage.database import Database
from tallystick_storage.ledger import postings as store
from tallystick_storage.ledger import queries
from tallystick_storage.sql import Connection

_MAX_CACHED_IDS = 200_000
_MAX_RECENT = 10_000

AccountKey = tuple[str, str]
"""An account's name and currency, within a book."""


@dataclass(frozen=True, slots=True)
class PostedTransaction:
    """A stored transaction. `replayed`: it was stored before."""

    transaction: ledger_pb2.Transaction
    replayed: bool


@dataclass(frozen=True, slots=True)
class _KnownPostings:
    """The postings of a batch to one book that are already stored.

    Sequence and fingerprint by (kind, source_id); the transaction by sequence.
    """

    fingerprints: dict[tuple[str, str], tuple[int, bytes]]
    transactions: dict[int, queries.StoredTransaction]

    @classmethod
    def load(cls, connection: Connection, book: str, postings: Sequence[Posting]) -> _KnownPostings:
        fingerprints = store.find_posted(
            connection, book, [(posting.kind, posting.source_id) for posting in postings]
        )
        sequences = [sequence for sequence, _ in fingerprints.values()]
        stored = queries.load_transactions(connection, book, sequences) if sequences else []
        return cls(fingerprints, {transaction.row.sequence: transaction for transaction in stored})


class RecentTransactions:
    """Caches the transactions that this process has just posted, with their callers.

    The relay need not read them back.
    """

    def __init__(self) -> None:
        self._books: defaultdict[str, OrderedDict[int, tuple[ledger_pb2.Transaction, str]]] = (
            defaultdict(OrderedDict)
        )

    def add(self, book: str, transaction: ledger_pb2.Transaction, caller: str) -> None:
        """Adds a committed transaction; above the limit the oldest of its book is dropped."""
        transactions = self._books[book]
        transactions[transaction.sequence] = (transaction, caller)
        if len(transactions) > _MAX_RECENT:
            transactions.popitem(last=False)

    def after(
        self, book: str, sequence: int, limit: int
    ) -> list[tuple[ledger_pb2.Transaction, str]]:
        """Returns the cached transactions of a book that follow a sequence without a gap.

        Drops all that come before them.
        """
        cached = self._books[book]
        while cached and next(iter(cached)) <= sequence:
            cached.popitem(last=False)
        transactions: list[tuple[ledger_pb2.Transaction, str]] = []
        while (
            len(transactions) < limit
            and (item := cached.get(sequence + len(transactions) + 1)) is not None
        ):
            transactions.append(item)
        return transactions

    def clear(self) -> None:
        """Drops all transactions."""
        self._books.clear()


class TransactionPoster:
    """Posts batches of transactions.

    It caches account ids; each use compares them with the accounts' names, since a restore may
    change them.
    """

    def __init__(self, database: Database) -> None:
        self.recent = RecentTransactions()
        self._database = database
        self._account_ids: dict[tuple[str, AccountKey], int] = {}

    async def post_groups(
        self, groups: Sequence[Sequence[Posting]]
    ) -> Sequence[Sequence[PostedTransaction | Exception] | Exception]:
        """Returns one list of results for each list of postings."""

        def key(posting: Posting) -> tuple[Hashable, bytes]:
            return (posting.book, posting.kind, posting.source_id), posting.fingerprint

        return await run_flattened(groups, lambda flat: deduplicate_by_key(flat, key, self._post))

    async def _post(self, postings: Sequence[Posting]) -> Sequence[PostedTransaction | Exception]:
        """Posts in one database transaction for each book."""
        results = {
            book: iter(
                await self._post_to_book(book, [item for item in postings if item.book == book])
            )
            for book in sorted({posting.book for posting in postings})
        }
        return [next(results[posting.book]) for posting in postings]

    async def _post_to_book(
        self, book: str, postings: Sequence[Posting]
    ) -> Sequence[PostedTransaction | Exception]:
        accounts = {(line.account, line.currency) for posting in postings for line in posting.lines}
        try:
            return await self._post_to_accounts(book, postings, accounts)
        except store.AccountsChanged:
            self._account_ids.clear()
            return await self._post_to_accounts(book, postings, accounts)
        except store.UnknownBook:
            return [not_found_error("book", book, "book")] * len(postings)

    async def _post_to_accounts(
        self, book: str, postings: Sequence[Posting], accounts: set[AccountKey]
    ) -> Sequence[PostedTransaction | Exception]:
        """Posts, and opens the accounts that are missing. Raises AccountsChanged if cached ids are
        wrong, and UnknownBook.
        """
        account_ids = {
            account: self._account_ids[book, account]
            for account in accounts
            if (book, account) in self._account_ids
        }
        missing = sorted(accounts - account_ids.keys())

        def post_batch(connection: Connection) -> list[PostedTransaction | Exception]:
            head, now = store.lock_head(connection, book)
            if missing:
                account_ids.update(store.open_accounts(connection, book, missing))
            existing = _KnownPostings.load(connection, book, postings)
            new_postings = [
                posting
                for posting in postings
                if (posting.kind, posting.source_id) not in existing.fingerprints
            ]
            ids = {
                key: account_ids[key]
                for key in {
                    (line.account, line.currency)
                    for posting in new_postings
                    for line in posting.lines
                }
            }
            balances, entry_counts = store.lock_accounts(connection, book, ids)
            outcomes = _chain_all(head, now, new_postings, balances)
            chained = [item for item in outcomes.values() if isinstance(item, ChainedTransaction)]
            if chained:
                store.append(connection, book, chained, ids, entry_counts)
            return [_build_result(posting, existing, outcomes) for posting in postings]

        results = await self._database.transact(post_batch, idempotent=True)
        if len(self._account_ids) > _MAX_CACHED_IDS:
            self._account_ids.clear()
        self._account_ids.update({(book, key): id_ for key, id_ in account_ids.items()})
        for posting, result in zip(postings, results, strict=True):
            if isinstance(result, PostedTransaction) and not result.replayed:
                self.recent.add(book, result.transaction, posting.caller)
        return results


def _chain_all(
    head: Head, now: datetime, postings: Sequence[Posting], balances: dict[AccountKey, int]
) -> dict[tuple[str, str], ChainedTransaction | ApiError]:
    """Chains postings one after another.

    A posting that would exceed the range of a balance is rejected and leaves no gap.
    """
    outcomes: dict[tuple[str, str], ChainedTransaction | ApiError] = {}
    for posting in postings:
        key = (posting.kind, posting.source_id)
        if any(
            abs(balances[line.account, line.currency]) + abs(line.amount) > MAX_BALANCE
            for line in posting.lines
        ):
            outcomes[key] = ApiError(
                ErrorReason.BALANCE_OUT_OF_RANGE, "An account's balance would exceed the maximum."
            )
            continue
        item = append_posting(head, posting, now, balances)
        outcomes[key] = item
        head = Head(item.sequence, item.hash, item.post_time)
    return outcomes


def _build_result(
    posting: Posting,
    existing: _KnownPostings,
    outcomes: dict[tuple[str, str], ChainedTransaction | ApiError],
) -> PostedTransaction | Exception:
    key = (posting.kind, posting.source_id)
    if key in existing.fingerprints:
        sequence, fingerprint = existing.fingerprints[key]
        stored = existing.transactions[sequence]
        if fingerprint != posting.fingerprint:
            return key_reused_error(first_difference(posting, convert.stored_posting(stored)))
        return PostedTransaction(convert.transaction(stored), replayed=True)
    result = outcomes[key]
    return (
        result
        if isinstance(result, ApiError)
        else PostedTransaction(convert.new_transaction(result), replayed=False)
    )
