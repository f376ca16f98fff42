"""The ledger recomputes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime
from itertools import groupby
from typing import Any

from tallystick_core.booking import Kind, Line
from tallystick_core.ledger import BOOK, GENESIS, Posting, chain_hash, transaction_id
from tallystick_server.process.checks.report import Check, Read


def check_book(read: Read) -> Check:
    """Walks the chain from the first transaction: hashes, sums, currencies, running balances, and the head at its end."""
    check = Check("the book recomputes from its first transaction", "L1 L2 L3 L6 L7")
    sequence, previous, latest = 0, GENESIS, None
    balances: Counter[int] = Counter()
    counts: Counter[int] = Counter()
    totals: Counter[str] = Counter()
    for _, grouped in groupby(read("ledger.transactions"), key=lambda row: row.sequence):
        rows = list(grouped)
        first = rows[0]
        check.row()
        name = f"ledger.tx {transaction_id(first.sequence)}"
        if first.sequence != sequence + 1:
            check.fail(name, f"follows {sequence}, with a gap")
        if bytes(first.previous_hash) != previous:
            check.fail(name, "previous_hash is not the hash of the transaction before")
        if latest is not None and first.post_time < latest:
            check.fail(name, "was posted before the transaction before it")
        _check_transaction(check, name, rows, balances, counts, totals)
        sequence, previous, latest = first.sequence, bytes(first.hash), first.post_time
    for row in read("ledger.strays"):
        check.fail(f"ledger.entry {row.sequence}/{row.place}", "has no transaction")
    _check_head(check, read, sequence, previous, latest)
    _check_relayed(check, read, sequence)
    for currency, total in totals.items():
        if total:
            check.fail(f"ledger.entry in {currency}", f"all entries sum to {total}, not to zero")
    _check_accounts(check, read, balances, counts)
    return check


def _check_head(check: Check, read: Read, sequence: int, previous: bytes, latest: datetime | None) -> None:
    heads = [*read("ledger.heads")]
    if [head.book for head in heads] != [BOOK]:
        check.fail("ledger.head", f"has {len(heads)} rows, and must have one, of the book {BOOK}")
    for head in heads:
        if latest is not None and head.post_time != latest:
            check.fail(f"ledger.head {head.book}", f"is of {head.post_time}, but the last transaction was posted at {latest}")
        if (head.sequence, bytes(head.hash)) != (sequence, previous):
            check.fail(f"ledger.head {head.book}", f"is at {head.sequence}, but the book ends at {sequence}")


def _check_relayed(check: Check, read: Read, last: int) -> None:
    relayed = [*read("ledger.relayed")]
    if [row.book for row in relayed] != [BOOK]:
        check.fail("ledger.relayed", f"has {len(relayed)} rows, and must have one, of the book {BOOK}")
    for row in relayed:
        if row.sequence is None or row.sequence > last:
            check.fail(f"ledger.relayed {row.book}", f"is at {row.sequence}, but the book ends at {last}")


def _check_accounts(check: Check, read: Read, balances: Counter[int], counts: Counter[int]) -> None:
    for account in read("ledger.accounts"):
        name = f"ledger.account {account.account} {account.currency}"
        if int(account.balance) != balances[account.account_id]:
            check.fail(name, f"balance is {account.balance}, but its entries sum to {balances[account.account_id]}")
        if account.entry_count != counts[account.account_id]:
            check.fail(name, f"entry_count is {account.entry_count}, but it has {counts[account.account_id]} entries")


def _check_transaction(check: Check, name: str, rows: list[Any], balances: Counter[int], counts: Counter[int], totals: Counter[str]) -> None:
    first = rows[0]
    entries = [row for row in rows if row.place is not None]
    if len(entries) != first.n or len(entries) < 2:
        check.fail(name, f"has {len(entries)} entries, and says {first.n}")
    if [row.place for row in entries] != list(range(1, len(entries) + 1)):
        check.fail(f"{name} in ledger.entry", "its entries are not numbered 1, 2, …")
    sums: Counter[str] = Counter()
    for row in entries:
        sums[row.currency] += row.amount
        totals[row.currency] += row.amount
        balances[row.account_id] += row.amount
        counts[row.account_id] += 1
        entry = f"ledger.entry {row.sequence}/{row.place}"
        if row.account is None or row.account_currency != row.currency:
            check.fail(entry, "is in another currency than its account")
        if row.number != counts[row.account_id]:
            check.fail(entry, f"is number {row.number} of its account, and must be {counts[row.account_id]}")
        if int(row.balance_after) != balances[row.account_id]:
            check.fail(entry, f"balance_after is {row.balance_after}, but the entries so far sum to {balances[row.account_id]}")
    if any(sums.values()):
        check.fail(name, "its entries do not sum to zero")
    _check_hashes(check, name, first, entries)


def _check_hashes(check: Check, name: str, first: Any, entries: list[Any]) -> None:
    if first.kind not in Kind.__members__:
        check.fail(name, f"is of the kind {first.kind!r}, which does not exist")
        return
    lines = tuple(Line(row.account or "", row.currency, row.amount) for row in entries)
    posting = Posting(Kind(first.kind), first.cause_id, first.caller, lines, first.description, reverses=first.reverses)
    times = {first.effective_time, *([None] if first.effective_time == first.post_time else [])}
    if not any(replace(posting, effective_time=time).fingerprint == bytes(first.fingerprint) for time in times):
        check.fail(name, "its fingerprint is not that of its content")
    if chain_hash(bytes(first.previous_hash), posting, first.sequence, first.effective_time, first.post_time) != bytes(first.hash):
        check.fail(name, "its hash is not that of its content")


def check_causes(read: Read) -> Check:
    """Each fact is booked once, and a reversal names what it reverses."""
    check = Check("each fact is booked once", "L5 L8")
    for row in read("ledger.repeated"):
        check.fail(f"ledger.tx {row.kind} {row.cause_id}", f"is booked {row.times} times")
    for sequence, rows in groupby(read("ledger.transactions"), key=lambda row: row.sequence):
        first = next(iter(rows))
        check.row()
        if (first.kind == Kind.REVERSAL) != (first.reverses is not None) or (first.reverses is not None and first.reverses >= sequence):
            check.fail(f"ledger.tx {transaction_id(sequence)}", "is a reversal of nothing, or no reversal of what it names")
    return check
