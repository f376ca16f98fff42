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
    """The head of each book is at its last transaction, and its relay is not beyond it."""
    heads = {row.book: row for row in read("ledger.heads")}
    relays = {row.book: row for row in read("ledger.relayed")}
    last_by_book = {row.book: row for row in read("ledger.last")}
    for table, rows in (("head", heads), ("relayed", relays)):
        for book in sorted({BOOK, *last_by_book} - rows.keys()):
            check.fail(f"ledger.{table}", f"has no row of the book {book}")
    for book, last in last_by_book.items():
        sequence, last_hash = (last.sequence, bytes(last.hash)) if last.sequence else (0, GENESIS)
        head, relay = heads.get(book), relays.get(book)
        if head is not None and last.sequence and head.post_time != last.post_time:
            check.fail(
                f"ledger.head {book}",
                f"is of {head.post_time}, but the last transaction was posted at {last.post_time}",
            )
        if head is not None and (head.sequence, bytes(head.hash)) != (sequence, last_hash):
            check.fail(
                f"ledger.head {book}", f"is at {head.sequence}, but the book ends at {sequence}"
            )
        if relay is not None and (relay.sequence is None or relay.sequence > sequence):
            check.fail(
                f"ledger.relayed {book}", f"is at {relay.sequence}, but the book ends at {sequence}"
            )


def check_unique_postings(read: QueryRunner) -> Check:
    """Each money movement is booked once, and a reversal names the transaction it reverses."""
    check = Check("each source id is booked once", "L5 L8", sum_counts(read("ledger.tx_count")))
    check.fail_each(read("ledger.repeated"))
    check.fail_each(read("ledger.inconsistent_reversals"))
    return check


CHECKS = (check_ledger, check_unique_postings)
