"""Entries that the ledger has now, of which the line of a break was first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tallystick_core.errors import state_error
from tallystick_core.reconciliation.accounts import is_bank, matched_accounts
from tallystick_core.reconciliation.breaks import KINDS_ENDED_BY_ENTRIES
from tallystick_core.reconciliation.classify import our_id
from tallystick_storage.reconciliation import breaks as store
from tallystick_storage.reconciliation import ledger_items, open_items
from tallystick_storage.reconciliation import statement_lines as line_store
from tallystick_storage.sql import Connection

_MAX_LINES = 10_000


class NamedItems(NamedTuple):
    """The lines of a break, and the open entries that they name."""

    lines: Sequence[line_store.LineRow]
    items: Sequence[ledger_items.ItemRow]


def named_items(connection: Connection, row: store.BreakRow) -> NamedItems:
    """The lines of a break, and the open entries that they name: those of the type of a line, or of
    any type if it is the break of a bank.
    """
    lines = line_store.lines_of_breaks(connection, [row.break_id], _MAX_LINES)
    is_of_bank = is_bank(row.account)
    items = open_items.find_items(
        connection,
        matched_accounts(row.account),
        sorted({text for line in lines for text in _references(line, row.account)}),
        sorted({our_id(line.line_type, line.client_reference) for line in lines} - {""}),
        is_bank=is_of_bank,
    )
    line_types = {line.line_type for line in lines}
    return NamedItems(lines, [item for item in items if is_of_bank or item.line_type in line_types])


def require_not_booked(connection: Connection, row: store.BreakRow) -> None:
    """Raises INVALID_STATE if the ledger has an open entry that a line of the break names: what is
    posted for the break would be there twice.
    """
    if row.kind not in KINDS_ENDED_BY_ENTRIES:
        return
    items = named_items(connection, row).items
    if items:
        names = f"{items[0].book}-{items[0].sequence}"
        raise state_error(
            f"The ledger has {names} for the line of the break now, so that the resolution would "
            "count it twice. The break ends by itself once it is open, if they agree; else open a "
            "break for the entry, too.",
            row.state,
            "RESOLVE",
        )


def _references(line: line_store.LineRow, account: str) -> Sequence[str]:
    names = [line.charge_reference, line.reference]
    if is_bank(account):
        names.append(line.settlement_reference)
    return [name for name in names if name]
