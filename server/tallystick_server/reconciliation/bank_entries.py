"""Ends breaks of banks whose line came before the ledger had what it is about: a settlement whose
statement is reconciled later, or a payout that is booked later.
"""

from __future__ import annotations

from tallystick_core.ledger.identifiers import BOOK
from tallystick_core.reconciliation.breaks import BreakKind, BreakState, Resolution
from tallystick_server.observability.tracing import traceparent
from tallystick_server.reconciliation.break_resolution import resolve_by_platform
from tallystick_server.reconciliation.rules import load_rules
from tallystick_storage.reconciliation import breaks as break_store
from tallystick_storage.reconciliation import ledger_items, open_items
from tallystick_storage.sql import Connection

_MAX_BREAKS = 200


def end_bank_entries(connection: Connection) -> bool:
    """Resolves breaks BANK_ENTRY_UNKNOWN with which open entries agree. Returns whether there may
    be more.
    """
    if not _list_arrived(connection):
        return False
    ledger_items.lock_items(connection, BOOK)
    items: dict[str, list[ledger_items.ItemKey]] = {}
    taken: set[ledger_items.ItemKey] = set()
    for found in _list_arrived(connection):
        key = ledger_items.ItemKey(found.book, found.sequence, found.entry_number)
        items.setdefault(found.break_id, []).append(key)
    rows = break_store.lock(connection, sorted(items))
    ended = []
    for break_id, row in rows.items():
        keys = items[break_id]
        if row.state == BreakState.OPEN and taken.isdisjoint(keys):
            taken.update(keys)
            ended.append(break_id)
    if ended:
        open_items.store_break_items(
            connection, [(key, break_id) for break_id in ended for key in items[break_id]]
        )
        resolve_by_platform(connection, ended, Resolution.MATCH, "booked after all", traceparent())
    return bool(ended)


def _list_arrived(connection: Connection) -> list[open_items.ArrivedRow]:
    rules = load_rules(connection)
    days, fee_percent = rules[BreakKind.DATE_DIFFERS].limit, rules[BreakKind.FEE_DIFFERS].limit
    return open_items.list_arrived(connection, days, fee_percent, _MAX_BREAKS)
