"""The breaks of the internal checks: what a check finds becomes a break, which ends once the
difference is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from tallystick_core.ledger.identifiers import BOOK
from tallystick_core.reconciliation.breaks import (
    BreakAction,
    BreakKind,
    BreakState,
    Resolution,
)
from tallystick_server.reconciliation.break_resolution import (
    PLATFORM,
    change_breaks,
    resolve_by_platform,
)
from tallystick_server.reconciliation.events import record_break_changes
from tallystick_server.reconciliation.rules import load_rules
from tallystick_storage.reconciliation import breaks as store
from tallystick_storage.reconciliation import ledger_items
from tallystick_storage.sql import Connection

_GONE = "the difference is gone"

DifferenceKey = tuple[str, str, str]
"""The kind, the account and the currency of a difference: there is one break for each."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What should be zero. `account`: what it is about; `amount`: in minor units."""

    kind: BreakKind
    account: str
    currency: str
    amount: int
    detail: str

    @property
    def key(self) -> DifferenceKey:
        return (self.kind, self.account, self.currency)


def list_remaining(connection: Connection, kinds: Sequence[BreakKind]) -> list[store.BreakRow]:
    """The breaks whose differences may still be there: those that are not resolved, and those that
    were accepted.
    """
    return store.list_remaining(connection, kinds, PLATFORM, _GONE)


def open_breaks(
    connection: Connection, differences: Sequence[Difference], trace_context: str
) -> None:
    """Opens the breaks that are missing. A difference that was accepted is no new break."""
    if not differences:
        return
    # of two processes, the second sees the breaks of the first
    ledger_items.lock_items(connection, BOOK)
    remaining = list_remaining(connection, sorted({item.kind for item in differences}))
    open_keys = {key_of(row) for row in remaining if row.state != BreakState.RESOLVED}
    accepted = {
        (*key_of(row), int(row.difference)) for row in remaining if row.state == BreakState.RESOLVED
    }
    rules = load_rules(connection)
    new = [
        store.NewBreak(
            _break_id(item, connection),
            item.kind,
            rules[item.kind].version,
            rules[item.kind].break_class,
            item.account,
            item.currency,
            str(item.amount),
            item.detail,
            None,
        )
        for item in {item.key: item for item in differences}.values()
        if item.key not in open_keys and (*item.key, item.amount) not in accepted
    ]
    if new:
        rows = store.insert(connection, new, PLATFORM, trace_context, connection.begin_time)
        record_break_changes(connection, rows, PLATFORM, trace_context)


def end_breaks(connection: Connection, break_ids: Sequence[str], trace_context: str) -> None:
    """Ends breaks whose difference is gone. One that was accepted does not count for the next
    difference: a comment on it says that it is gone.
    """
    # an operator may be deciding on them, or another process may have ended them
    gone = store.lock_unlocked(connection, break_ids).values()
    ended = [row.break_id for row in gone if row.state == BreakState.OPEN]
    if ended:
        resolve_by_platform(connection, ended, Resolution.MATCH, _GONE, trace_context)
    no_longer_accepted = [row for row in gone if row.resolution == Resolution.ACCEPT]
    if no_longer_accepted:
        change_breaks(
            connection, no_longer_accepted, BreakAction.COMMENTED, PLATFORM, _GONE, trace_context
        )


def key_of(row: store.BreakRow) -> DifferenceKey:
    """The key of the difference that a break is about."""
    return (row.kind, row.account, row.currency)


def _break_id(item: Difference, connection: Connection) -> str:
    digest = sha256(" ".join(item.key).encode()).hexdigest()[:16]
    return f"c-{digest}-{connection.begin_time:%Y%m%d%H%M%S}"
