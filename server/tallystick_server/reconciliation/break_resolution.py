"""Resolves breaks in a transaction: changes them, and stores what is to be posted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.ledger.posting_rules import ADJUSTMENTS, LOSSES, PostingKind, break_lines
from tallystick_core.money import format_amount
from tallystick_core.reconciliation.breaks import (
    STATES_WITH_PROPOSAL,
    BreakAction,
    BreakClass,
    BreakState,
    Resolution,
    next_break_state,
)
from tallystick_server.reconciliation.events import record_break_changes
from tallystick_server.reconciliation.new_posting import new_posting
from tallystick_storage.reconciliation import breaks as store
from tallystick_storage.reconciliation import postings
from tallystick_storage.reconciliation import statement_lines as line_store
from tallystick_storage.sql import Connection

PLATFORM = "tallystick"
"""The author of what the platform does by itself."""


@dataclass(slots=True)
class BreakSums:
    """What breaks have in one currency: the entries by account, debits less credits, and lines."""

    entries: dict[str, int] = field(default_factory=dict)
    amount: int = 0
    fee: int = 0

    @property
    def difference(self) -> int:
        """What the lines have more than the entries, before fees."""
        return self.amount + self.fee - sum(self.entries.values())


def sums_of_breaks(
    connection: Connection, break_ids: Sequence[str]
) -> dict[str, dict[str, BreakSums]]:
    """What each break has, by currency."""
    sums: dict[str, dict[str, BreakSums]] = {break_id: {} for break_id in break_ids}
    for line in line_store.line_sums_of_breaks(connection, break_ids):
        sums[line.break_id][line.currency] = BreakSums(amount=int(line.amount), fee=int(line.fee))
    for item in store.items_of(connection, break_ids):
        part = sums[item.break_id].setdefault(item.currency, BreakSums())
        part.entries[item.account] = part.entries.get(item.account, 0) + item.amount
    return sums


def merge_sums(sums: Sequence[Mapping[str, BreakSums]]) -> dict[str, BreakSums]:
    """The sums of several breaks together, by currency."""
    merged: dict[str, BreakSums] = {}
    for by_currency in sums:
        for currency, part in by_currency.items():
            total = merged.setdefault(currency, BreakSums())
            total.amount += part.amount
            total.fee += part.fee
            for account, amount in part.entries.items():
                total.entries[account] = total.entries.get(account, 0) + amount
    return merged


def change_breaks(
    connection: Connection,
    rows: Sequence[store.BreakRow],
    action: BreakAction,
    caller: str,
    reason: str,
    traceparent: str,
    *,
    resolution: Resolution | None = None,
    assignee: str | None = None,
    break_class: BreakClass | None = None,
) -> list[store.ChangedBreak]:
    """Stores the next change of locked breaks, with its events. `assignee`, `break_class` None: as
    before. Raises INVALID_STATE.
    """
    changes = []
    for row in rows:
        state = next_break_state(BreakState(row.state), action)
        is_proposal = action in (BreakAction.PROPOSED, BreakAction.REOPENING_PROPOSED)
        keeps_proposal = state in STATES_WITH_PROPOSAL
        changes.append(
            store.NewChange(
                row.break_id,
                row.version + 1,
                state,
                row.assignee if assignee is None else assignee,
                None if state is BreakState.OPEN else resolution or row.resolution,
                caller if is_proposal else row.proposed_by if keeps_proposal else "",
                action,
                caller,
                reason,
                break_class,
            )
        )
    changed = store.change(connection, changes, traceparent, connection.begin_time)
    record_break_changes(connection, changed, caller, traceparent)
    return changed


def resolution_postings(
    connection: Connection,
    row: store.BreakRow,
    sums: Mapping[str, BreakSums],
    resolution: Resolution,
    caller: str,
    reason: str,
) -> list[postings.NewPosting]:
    """What is to be posted for the resolution of a break, or of several as one of them. `sums`: by
    currency; `row`: as it was before. Raises AMOUNT_OUT_OF_RANGE.
    """
    kind = PostingKind.WRITE_OFF if resolution is Resolution.WRITE_OFF else PostingKind.ADJUSTMENT
    remainder_account = LOSSES if resolution is Resolution.WRITE_OFF else ADJUSTMENTS
    new = []
    for currency, part in sorted(sums.items()):
        lines = break_lines(
            row.account, currency, part.entries, part.amount, part.fee, remainder_account
        )
        if lines:
            new.append(
                new_posting(
                    kind,
                    f"{row.break_id}-{row.version + 1}-{currency}",
                    row.account,
                    lines,
                    reason,
                    caller,
                    connection.begin_time,
                    break_id=row.break_id,
                )
            )
    return new


def resolve_by_platform(
    connection: Connection,
    break_ids: Sequence[str],
    resolution: Resolution,
    reason: str,
    traceparent: str,
) -> None:
    """Resolves breaks of which cause and remedy are known."""
    rows = store.lock(connection, break_ids)
    sums = sums_of_breaks(connection, break_ids)
    new = [
        posting
        for break_id in break_ids
        for posting in resolution_postings(
            connection, rows[break_id], sums[break_id], resolution, PLATFORM, reason
        )
    ]
    postings.insert(connection, new)
    change_breaks(
        connection,
        [rows[break_id] for break_id in break_ids],
        BreakAction.RESOLVED,
        PLATFORM,
        reason,
        traceparent,
        resolution=resolution,
    )


def match_together(
    connection: Connection,
    rows: Sequence[store.BreakRow],
    caller: str,
    reason: str,
    traceparent: str,
) -> list[store.ChangedBreak]:
    """Resolves locked breaks of one account whose lines and entries agree together; what is to be
    posted belongs to the first. Raises FIELD_INVALID, INVALID_STATE, AMOUNT_OUT_OF_RANGE.
    """
    break_ids = [row.break_id for row in rows]
    sums = merge_sums(list(sums_of_breaks(connection, break_ids).values()))
    require_agreement(sums)
    changed = change_breaks(
        connection,
        rows,
        BreakAction.RESOLVED,
        caller,
        reason,
        traceparent,
        resolution=Resolution.MATCH,
    )
    new = resolution_postings(connection, rows[0], sums, Resolution.MATCH, caller, reason)
    postings.insert(connection, new)
    by_id = {row.break_id: row for row in changed}
    return [by_id[break_id] for break_id in break_ids]


def require_agreement(sums: Mapping[str, BreakSums]) -> None:
    """Raises FIELD_INVALID unless lines and entries agree."""
    differences = [
        f"{format_amount(part.difference, currency)} {currency}"
        for currency, part in sorted(sums.items())
        if part.difference
    ]
    if differences:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            "break_ids must be breaks whose lines and ledger entries agree together; the lines "
            f"have {' and '.join(differences)} more.",
            field="break_ids",
        )
