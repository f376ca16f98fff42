"""Checks that reconciliation has each entry of the ledger once, and each line as it was read."""

from __future__ import annotations

from typing import Any

from tallystick_core.reconciliation.accounts import line_type_of
from tallystick_core.reconciliation.identity import line_identity
from tallystick_server.verify.report import Check, QueryRunner, merge_join, sum_counts


def check_ledger_items(read: QueryRunner) -> Check:
    """Each entry on a clearing account, as far as the ledger was read, is expected, matched or in a
    break: once, and as the ledger has it.
    """
    check = Check("reconciliation has each clearing entry once", "R1")
    heads = {row.book: row.sequence for row in read("ledger.heads")}
    positions = {row.book: row.sequence for row in read("reconciliation.position")}
    for book, sequence in positions.items():
        if sequence > heads.get(book, 0):
            check.fail(
                f"reconciliation.ledger_position {book}",
                f"is at {sequence}, but the book ends at {heads.get(book, 0)}",
            )
    for key, item, entry in merge_join(
        read("reconciliation.items"), _entry_key, read("ledger.clearing_entries"), _entry_key
    ):
        check.count_row()
        name = f"reconciliation.ledger_item {key[0]} {key[1]} {key[2]}"
        is_read = key[1] <= positions.get(key[0], 0)
        if entry is None:
            check.fail(name, "is not in the ledger")
        elif item is None:
            if is_read:
                check.fail(name, "is missing, but the ledger has it")
        elif not is_read:
            check.fail(name, "is beyond the position up to which the ledger was read")
        elif _item_values(item) != _entry_values(entry):
            check.fail(name, "differs from the ledger")
    check.fail_each(read("reconciliation.inconsistent_items"))
    return check


def check_clearing(read: QueryRunner) -> Check:
    """What lines match is as much as they have, and the balance of each clearing account is that of
    the statements and of what explains the difference. The sums of this are kept right. The
    database does the work.
    """
    check = Check(
        "each clearing balance is explained", "R1", sum_counts(read("reconciliation.balance_count"))
    )
    for name in (
        "inconsistent_matches",
        "inconsistent_balances",
        "inconsistent_sums",
        "unexplained",
    ):
        check.fail_each(read(f"reconciliation.{name}"))
    return check


def check_lines(read: QueryRunner) -> Check:
    """Each line is the one that its identity says."""
    check = Check("each statement line is as it was read", "R2")
    for row in read("reconciliation.lines"):
        check.count_row()
        identity = line_identity(
            row.account,
            row.line_type,
            row.currency,
            row.amount,
            row.fee,
            row.booking_date,
            row.reference,
            row.charge_reference,
            row.settlement_reference,
            row.value_date,
            row.code,
            row.text,
        )
        if identity != row.identity.hex:
            check.fail(
                f"reconciliation.statement_line {row.file_number} {row.number}",
                "is not the line that its identity says",
            )
    return check


def check_postings(read: QueryRunner) -> Check:
    """What reconciliation has posted is in the ledger, once and with its accounts and amounts."""
    check = Check("what reconciliation has posted is in the ledger", "R3")
    for key, posting, transaction in merge_join(
        read("reconciliation.postings"),
        lambda row: row.key,
        read("ledger.statement_postings"),
        lambda row: row.key,
    ):
        if posting is None:
            continue
        check.count_row()
        name = f"reconciliation.ledger_posting {key}"
        if transaction is None:
            if posting.is_posted:
                check.fail(name, "is posted, but the ledger does not have it")
        elif posting.posting != transaction.posting:
            check.fail(name, "differs from the ledger")
        elif posting.is_posted and posting.transaction_id != transaction.transaction_id:
            check.fail(name, f"is {transaction.transaction_id} in the ledger")
    return check


def _entry_key(row: Any) -> tuple[str, int, int]:
    return (row.book, row.sequence, row.entry_number)


def _item_values(row: Any) -> tuple[object, ...]:
    return (*_common_values(row), row.line_type)


def _entry_values(row: Any) -> tuple[object, ...]:
    return (*_common_values(row), line_type_of(row.account, row.kind))


def _common_values(row: Any) -> tuple[object, ...]:
    return (
        row.account,
        row.currency,
        row.amount,
        row.kind,
        row.source_id,
        row.external_reference,
        row.effective_time,
    )


CHECKS = (check_ledger_items, check_clearing, check_lines, check_postings)
