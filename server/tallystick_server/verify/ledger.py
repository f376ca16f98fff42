"""Recomputes the ledger."""

from __future__ import annotations

from tallystick_core.ledger.hash_chain import GENESIS
from tallystick_core.ledger.identifiers import BOOK
from tallystick_core.ledger.posting_rules import PostingKind
from tallystick_server.verify.report import Check, QueryRunner, sum_counts


def check_ledger(read: QueryRunner) -> Check:
    """Recomputes the hash chain, sums, currencies and running balances, from the first transaction
    to the head. The database does the work.
    """
    check = Check(
        "the ledger recomputes from its first transaction",
        "L1 L2 L3 L6 L7",
        sum_counts(read("ledger.tx_count")),
    )
    check.fail_each(
        read("ledger.inconsistent_transactions", kinds=[*map(str, PostingKind)], genesis=GENESIS)
    )
    check.fail_each(read("ledger.inconsistent_entries"))
    check.fail_each(read("ledger.orphan_entries"))
    _check_head(check, read)
    check.fail_each(read("ledger.unbalanced"))
    check.fail_each(read("ledger.inconsistent_balances"))
    return check


def _check_head(check: Check, read: QueryRunner) -> None:
    """The head is at the last transaction, and the relay is not beyond it."""
    heads, relays, last = (
        [*read("ledger.heads")],
        [*read("ledger.relayed")],
        next(iter([*read("ledger.last")]), None),
    )
    sequence, last_hash = (last.sequence, bytes(last.hash)) if last is not None else (0, GENESIS)
    if [head.book for head in heads] != [BOOK]:
        check.fail("ledger.head", f"has {len(heads)} rows, and must have one, of the book {BOOK}")
    for head in heads:
        if last is not None and head.post_time != last.post_time:
            check.fail(
                f"ledger.head {head.book}",
                f"is of {head.post_time}, but the last transaction was posted at {last.post_time}",
            )
        if (head.sequence, bytes(head.hash)) != (sequence, last_hash):
            check.fail(
                f"ledger.head {head.book}",
                f"is at {head.sequence}, but the ledger ends at {sequence}",
            )
    if [row.book for row in relays] != [BOOK]:
        check.fail(
            "ledger.relayed", f"has {len(relays)} rows, and must have one, of the book {BOOK}"
        )
    for row in relays:
        if row.sequence is None or row.sequence > sequence:
            check.fail(
                f"ledger.relayed {row.book}",
                f"is at {row.sequence}, but the ledger ends at {sequence}",
            )


def check_unique_postings(read: QueryRunner) -> Check:
    """Each money movement is booked once, and a reversal names the transaction it reverses."""
    check = Check("each source id is booked once", "L5 L8", sum_counts(read("ledger.tx_count")))
    check.fail_each(read("ledger.repeated"))
    check.fail_each(read("ledger.inconsistent_reversals"))
    return check


CHECKS = (check_ledger, check_unique_postings)
