"""Opens a break for a ledger entry, because a person asks for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.ledger.identifiers import TransactionId
from tallystick_core.reconciliation.accounts import is_bank, matched_accounts
from tallystick_core.reconciliation.breaks import BreakAction, BreakKind
from tallystick_server.reconciliation.events import record_break_changes
from tallystick_server.reconciliation.rules import load_rules
from tallystick_storage.reconciliation import breaks as store
from tallystick_storage.reconciliation import ledger_items, open_items
from tallystick_storage.reconciliation.open_items import EntryRow
from tallystick_storage.sql import Connection

_PAYOUTS = re.compile(r"\Apayouts/[^/]+/clearing\Z", re.ASCII)


class EntryName(NamedTuple):
    """Names a ledger entry that statements of `account` should have."""

    account: str
    transaction_id: TransactionId
    entry_number: int
    """Its position in the transaction, from 1; 0: it is the only one that they can have."""


def open_break(
    connection: Connection, name: EntryName, caller: str, reason: str, traceparent: str
) -> tuple[store.BreakRow, bool]:
    """The break MISSING_IN_FILE of an entry, and whether the call was a repeat. Raises
    FIELD_INVALID.
    """
    book, sequence = name.transaction_id
    ledger_items.lock_items(connection, book)
    entry = _find_entry(open_items.list_entries(connection, book, sequence), name)
    if not open_items.has_reconciled_file(connection, name.account):
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"account must be one whose statement files were reconciled; {name.account} has none.",
            field="account",
        )
    break_id = store.id_of_entry(book, sequence, entry.entry_number)
    if not entry.is_open:
        return _find_repeat(connection, entry, name, break_id, caller, reason), True
    rule = load_rules(connection)[BreakKind.MISSING_IN_FILE]
    new = store.NewBreak(
        break_id,
        rule.kind,
        rule.version,
        rule.break_class,
        name.account,
        entry.currency,
        str(-entry.amount),
        reason,
        None,
    )
    rows = store.insert(connection, [new], caller, traceparent, connection.begin_time)
    record_break_changes(connection, rows, caller, traceparent)
    key = ledger_items.ItemKey(book, sequence, entry.entry_number)
    open_items.store_break_items(connection, [(key, break_id)])
    return rows[0], False


def _find_entry(entries: Sequence[EntryRow], name: EntryName) -> EntryRow:
    """The entry that is named. Raises FIELD_INVALID."""
    fitting = [entry for entry in entries if _can_have(name.account, entry)]
    if not fitting:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"transaction_id must be a transaction with an entry that a statement of {name.account}"
            f" can have; {name.transaction_id} has none.",
            field="transaction_id",
        )
    chosen = [entry for entry in fitting if name.entry_number in (0, entry.entry_number)]
    if len(chosen) != 1:
        numbers = " or ".join(str(entry.entry_number) for entry in fitting)
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"entry_number must be {numbers}: of the entries of {name.transaction_id}, a statement "
            f"of {name.account} can have no other.",
            field="entry_number",
        )
    return chosen[0]


def _can_have(account: str, entry: EntryRow) -> bool:
    """Whether a line of a statement can match an entry; or take it back, if it is of a settlement
    of this account.
    """
    is_payout = _PAYOUTS.match(entry.account) is not None
    return (
        entry.account in matched_accounts(account)
        or (is_bank(account) and is_payout)
        or entry.settlement_account == account
    )


def _find_repeat(
    connection: Connection,
    entry: EntryRow,
    name: EntryName,
    break_id: str,
    caller: str,
    reason: str,
) -> store.BreakRow:
    """The break that the same call has opened. Raises FIELD_INVALID."""
    if entry.break_id == break_id:
        row = store.find(connection, [break_id])[break_id]
        found = store.last_change(connection, break_id, [BreakAction.FOUND])
        if (
            found is not None
            and row.account == name.account
            and (found.caller, found.reason) == (caller, reason)
        ):
            return row
    place = f"in the break {entry.break_id}" if entry.break_id else "on a statement"
    raise ApiError(
        ErrorReason.FIELD_INVALID,
        f"transaction_id must be of an entry that no statement and no break has; entry "
        f"{entry.entry_number} of {name.transaction_id} is {place} already.",
        field="transaction_id",
    )
