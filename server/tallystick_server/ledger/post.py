"""Post: transactions are chained behind the head of the book, in one transaction for each batch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from tallystick.ledger.v1 import ledger_pb2
from tallystick_core.ledger import Chained, Head, Posting, chain, first_difference
from tallystick_core.money import MAX_BALANCE
from tallystick_core.refusal import Reason, Refused, key_reused
from tallystick_server.ledger import messages
from tallystick_server.runtime.stage import in_groups, once_per_key
from tallystick_storage import ledger as store
from tallystick_storage.database import Database

_MOST_KNOWN = 200_000
_MOST_RECENT = 10_000

AccountKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Posted:
    """A transaction that is in the book. `replayed`: it was before."""

    transaction: ledger_pb2.Transaction
    replayed: bool


@dataclass(frozen=True, slots=True)
class _Before:
    """What of a batch is in the book already: by (kind, cause_id) the sequence and fingerprint, by sequence the transaction."""

    known: dict[tuple[str, str], tuple[int, bytes]]
    stored: dict[int, store.TransactionRow]

    @classmethod
    def of(cls, connection: Connection, postings: Sequence[Posting]) -> _Before:
        known = store.posted(connection, [(posting.kind, posting.cause_id) for posting in postings])
        found = store.transactions(connection, [sequence for sequence, _ in known.values()]) if known else []
        return cls(known, {row.sequence: (row, entries) for row, entries in found})


class Recent:
    """Transactions that this process has just posted, with their callers, so that its relay need not read them back."""

    def __init__(self) -> None:
        self._posted: OrderedDict[int, tuple[ledger_pb2.Transaction, str]] = OrderedDict()

    def add(self, transaction: ledger_pb2.Transaction, caller: str) -> None:
        """Keeps a committed transaction; the oldest goes when there are too many."""
        self._posted[transaction.sequence] = (transaction, caller)
        if len(self._posted) > _MOST_RECENT:
            self._posted.popitem(last=False)

    def after(self, sequence: int, most: int) -> list[tuple[ledger_pb2.Transaction, str]]:
        """The transactions that follow a sequence without a gap, as far as they are known here; those before them are let go."""
        while self._posted and next(iter(self._posted)) <= sequence:
            self._posted.popitem(last=False)
        found: list[tuple[ledger_pb2.Transaction, str]] = []
        while len(found) < most and (one := self._posted.get(sequence + len(found) + 1)) is not None:
            found.append(one)
        return found

    def clear(self) -> None:
        """Lets all of them go."""
        self._posted.clear()


class Post:
    """The post stage's work. It remembers the ids of accounts; each use compares them with the accounts' names, since a restore may change them."""

    def __init__(self, database: Database) -> None:
        self.recent = Recent()
        self._database = database
        self._ids: dict[AccountKey, int] = {}

    async def run(self, groups: Sequence[Sequence[Posting]]) -> Sequence[Sequence[Posted | Exception] | Exception]:
        """One list of results for each list of postings."""

        def key(posting: Posting) -> tuple[Hashable, bytes]:
            return (posting.kind, posting.cause_id), posting.fingerprint

        return await in_groups(groups, lambda flat: once_per_key(flat, key, self._post))

    async def _post(self, postings: Sequence[Posting]) -> Sequence[Posted | Exception]:
        accounts = {(line.account, line.currency) for posting in postings for line in posting.lines}
        try:
            return await self._post_known(postings, await self._known(accounts))
        except store.AccountsChanged:
            self._ids.clear()
            return await self._post_known(postings, await self._known(accounts))

    async def _post_known(self, postings: Sequence[Posting], known: Mapping[AccountKey, int]) -> Sequence[Posted | Exception]:
        """Posts with the ids of all accounts. Raises AccountsChanged."""

        def post(connection: Connection) -> list[Posted | Exception]:
            head, now = store.lock_head(connection)
            before = _Before.of(connection, postings)
            fresh = [posting for posting in postings if (posting.kind, posting.cause_id) not in before.known]
            ids = {key: known[key] for key in {(line.account, line.currency) for posting in fresh for line in posting.lines}}
            balances, counts = store.lock_accounts(connection, ids)
            outcome = _chain_all(head, now, fresh, balances)
            chained = [item for item in outcome.values() if isinstance(item, Chained)]
            if chained:
                store.append(connection, chained, ids, counts)
            return [_result(posting, before, outcome) for posting in postings]

        results = await self._database.transact(post)
        for posting, result in zip(postings, results, strict=True):
            if isinstance(result, Posted) and not result.replayed:
                self.recent.add(result.transaction, posting.caller)
        return results

    async def _known(self, accounts: set[AccountKey]) -> dict[AccountKey, int]:
        """The ids of accounts; those that are missing are opened in a transaction of their own."""
        known = {account: self._ids[account] for account in accounts if account in self._ids}
        missing = sorted(accounts - known.keys())
        if not missing:
            return known

        def open_accounts(connection: Connection) -> dict[AccountKey, int]:
            store.open_accounts(connection, missing)
            return store.account_ids(connection, missing)

        found = await self._database.transact(open_accounts)
        if len(self._ids) > _MOST_KNOWN:
            self._ids.clear()
        self._ids.update(found)
        return known | found


def _chain_all(head: Head, now: datetime, postings: Sequence[Posting], balances: dict[AccountKey, int]) -> dict[tuple[str, str], Chained | Refused]:
    """Chains postings one behind the other; one that would outgrow a balance is refused and leaves no gap."""
    outcome: dict[tuple[str, str], Chained | Refused] = {}
    for posting in postings:
        key = (posting.kind, posting.cause_id)
        if any(abs(balances[line.account, line.currency]) + abs(line.amount) > MAX_BALANCE for line in posting.lines):
            outcome[key] = Refused(Reason.BALANCE_OUT_OF_RANGE, "A balance would outgrow what can be booked.")
            continue
        item = chain(head, posting, now, balances)
        outcome[key] = item
        head = Head(item.sequence, item.hash, item.post_time)
    return outcome


def _result(posting: Posting, before: _Before, outcome: dict[tuple[str, str], Chained | Refused]) -> Posted | Exception:
    key = (posting.kind, posting.cause_id)
    if key in before.known:
        sequence, fingerprint = before.known[key]
        if fingerprint != posting.fingerprint:
            return key_reused(first_difference(posting, messages.stored_posting(*before.stored[sequence])))
        return Posted(messages.transaction(*before.stored[sequence]), replayed=True)
    made = outcome[key]
    return made if isinstance(made, Refused) else Posted(messages.chained(made), replayed=False)
