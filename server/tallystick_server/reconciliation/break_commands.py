"""What operators do about breaks. Each command is one transaction, and a repeat has no effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tallystick_core.approval import needs_approval, require_second_approver
from tallystick_core.errors import ApiError, ErrorReason, not_found_error, version_mismatch_error
from tallystick_core.ledger.posting_rules import JournalLine, PostingKind
from tallystick_core.money import format_amount
from tallystick_core.reconciliation.breaks import (
    KINDS_OF_BALANCES,
    STATES_WITH_PROPOSAL,
    BreakAction,
    BreakState,
    Resolution,
)
from tallystick_core.state_machine import Verb, invalid_state_error
from tallystick_server.reconciliation.booked_entries import require_not_booked
from tallystick_server.reconciliation.break_opening import EntryName, open_break
from tallystick_server.reconciliation.break_resolution import (
    BreakSums,
    change_breaks,
    match_together,
    merge_sums,
    resolution_postings,
    sums_of_breaks,
)
from tallystick_server.reconciliation.new_posting import new_posting
from tallystick_storage.database import Database
from tallystick_storage.reconciliation import breaks as store
from tallystick_storage.reconciliation import postings
from tallystick_storage.sql import Connection

Result = tuple[store.BreakRow, bool]
"""The break, and whether the call was a repeat."""
_RESOLUTIONS = (BreakAction.PROPOSED, BreakAction.RESOLVED)
_PROPOSALS = (BreakAction.PROPOSED, BreakAction.REOPENING_PROPOSED)
_DECISIONS = (
    *_RESOLUTIONS,
    BreakAction.APPROVED,
    BreakAction.REJECTED,
    BreakAction.REOPENING_PROPOSED,
    BreakAction.REOPENED,
)


class BreakCommands:
    """Changes breaks. `thresholds`: above which a second person approves, by currency, in minor
    units.
    """

    def __init__(self, database: Database, thresholds: Mapping[str, int]) -> None:
        self._database = database
        self._thresholds = thresholds

    async def open(self, entry: EntryName, caller: str, reason: str, traceparent: str) -> Result:
        """Opens a break for a ledger entry. Raises FIELD_INVALID."""
        return await self._database.transact(
            lambda connection: open_break(connection, entry, caller, reason, traceparent)
        )

    async def assign(self, break_id: str, assignee: str, caller: str, traceparent: str) -> Result:
        """Assigns a break; "": to nobody. Raises NOT_FOUND, INVALID_STATE."""

        def assign(connection: Connection) -> Result:
            row = _lock(connection, break_id)
            if row.assignee == assignee:
                return row, True
            return _change(
                connection, row, BreakAction.ASSIGNED, caller, "", traceparent, assignee=assignee
            )

        return await self._database.transact(assign)

    async def comment(self, break_id: str, comment: str, caller: str, traceparent: str) -> Result:
        """Adds a comment. Raises NOT_FOUND."""

        def comment_on(connection: Connection) -> Result:
            row = _lock(connection, break_id)
            if _is_repeat(connection, row, BreakAction.COMMENTED, caller, comment):
                return row, True
            return _change(connection, row, BreakAction.COMMENTED, caller, comment, traceparent)

        return await self._database.transact(comment_on)

    async def resolve(
        self, break_id: str, resolution: Resolution, caller: str, reason: str, traceparent: str
    ) -> Result:
        """Resolves a break, or proposes it to a second person. Raises NOT_FOUND, INVALID_STATE,
        FIELD_INVALID, AMOUNT_OUT_OF_RANGE.
        """

        def resolve_break(connection: Connection) -> Result:
            row = _lock(connection, break_id)
            if row.state != BreakState.OPEN and row.resolution == resolution:
                last = store.last_change(connection, break_id, _RESOLUTIONS)
                if last is not None and (last.caller, last.reason) == (caller, reason):
                    return row, True
            _require_postable(row, resolution)
            if row.state == BreakState.OPEN:
                require_not_booked(connection, row)
            sums = sums_of_breaks(connection, [break_id])[break_id]
            if self._needs_approval(row, sums):
                return _change(
                    connection,
                    row,
                    BreakAction.PROPOSED,
                    caller,
                    reason,
                    traceparent,
                    resolution=resolution,
                )
            changed = _change(
                connection,
                row,
                BreakAction.RESOLVED,
                caller,
                reason,
                traceparent,
                resolution=resolution,
            )
            _post(connection, row, sums, resolution, caller, reason)
            return changed

        return await self._database.transact(resolve_break)

    async def approve(
        self,
        break_id: str,
        expected_version: int | None,
        caller: str,
        reason: str,
        traceparent: str,
    ) -> Result:
        """Approves a resolution, or that a break is opened again. Raises NOT_FOUND,
        VERSION_MISMATCH, INVALID_STATE, SECOND_APPROVER_REQUIRED.
        """

        def approve_proposal(connection: Connection) -> Result:
            row = _lock(connection, break_id)
            if _is_repeat(connection, row, BreakAction.APPROVED, caller, reason):
                return row, True
            _require_version(row, expected_version)
            if row.state in STATES_WITH_PROPOSAL:
                require_second_approver(caller, row.proposed_by)
            if row.state == BreakState.AWAITING_APPROVAL:
                require_not_booked(connection, row)
            changed = _change(connection, row, BreakAction.APPROVED, caller, reason, traceparent)
            proposal = store.last_change(connection, break_id, _PROPOSALS)
            if proposal is None or row.resolution is None:
                raise RuntimeError("a break without a proposal was approved")
            if row.state == BreakState.AWAITING_REOPENING:
                _reverse(connection, row, proposal.caller, proposal.reason)
                return changed
            sums = sums_of_breaks(connection, [break_id])[break_id]
            # the ledger has the author of the resolution, and the history both persons
            _post(
                connection,
                row,
                sums,
                Resolution(row.resolution),
                proposal.caller,
                proposal.reason,
            )
            return changed

        return await self._database.transact(approve_proposal)

    async def reject(
        self,
        break_id: str,
        expected_version: int | None,
        caller: str,
        reason: str,
        traceparent: str,
    ) -> Result:
        """Rejects what `approve` approves. Raises NOT_FOUND, VERSION_MISMATCH, INVALID_STATE."""

        def reject_proposal(connection: Connection) -> Result:
            row = _lock(connection, break_id)
            if _is_repeat(connection, row, BreakAction.REJECTED, caller, reason):
                return row, True
            _require_version(row, expected_version)
            return _change(connection, row, BreakAction.REJECTED, caller, reason, traceparent)

        return await self._database.transact(reject_proposal)

    async def reopen(self, break_id: str, caller: str, reason: str, traceparent: str) -> Result:
        """Opens a resolved break again, or proposes it to a second person. Raises NOT_FOUND,
        INVALID_STATE.
        """

        def reopen_break(connection: Connection) -> Result:
            row = _lock(connection, break_id)
            if _is_repeat(connection, row, BreakAction.REOPENED, caller, reason) or _is_repeat(
                connection, row, BreakAction.REOPENING_PROPOSED, caller, reason
            ):
                return row, True
            if row.resolution == Resolution.MATCH:
                raise invalid_state_error(
                    "break", "RESOLVED by MATCH", Verb("REOPEN", "opened again")
                )
            sums = sums_of_breaks(connection, [break_id])[break_id]
            if row.resolution != Resolution.ACCEPT and self._needs_approval(row, sums):
                action = BreakAction.REOPENING_PROPOSED
                return _change(connection, row, action, caller, reason, traceparent)
            changed = _change(connection, row, BreakAction.REOPENED, caller, reason, traceparent)
            _reverse(connection, row, caller, reason)
            return changed

        return await self._database.transact(reopen_break)

    async def match(
        self, break_ids: Sequence[str], caller: str, reason: str, traceparent: str
    ) -> tuple[Sequence[store.BreakRow], bool]:
        """Resolves breaks that agree together. Raises NOT_FOUND, INVALID_STATE, FIELD_INVALID."""

        def match_breaks(connection: Connection) -> tuple[Sequence[store.BreakRow], bool]:
            found = store.lock(connection, sorted(break_ids))
            for break_id in break_ids:
                if break_id not in found:
                    raise not_found_error("break", break_id, "break_ids")
            rows = [found[break_id] for break_id in break_ids]
            if all(
                row.resolution == Resolution.MATCH
                and _is_repeat(connection, row, BreakAction.RESOLVED, caller, reason)
                for row in rows
            ):
                return rows, True
            if len({row.account for row in rows}) > 1:
                raise ApiError(
                    ErrorReason.FIELD_INVALID,
                    "break_ids must be breaks of one account.",
                    field="break_ids",
                )
            for row in rows:
                _require_agreeable(row)
            self._require_small_fees(connection, break_ids)
            return match_together(connection, rows, caller, reason, traceparent), False

        return await self._database.transact(match_breaks)

    def _needs_approval(self, row: store.BreakRow, sums: Mapping[str, BreakSums]) -> bool:
        """Whether a second person must approve a decision: by the difference or the fee, which is
        posted too. A break may have several currencies.
        """
        amounts = [(abs(int(row.difference)), row.currency)]
        for currency, part in sums.items():
            amounts += [(abs(part.difference), currency), (abs(part.fee), currency)]
        return any(
            needs_approval(amount, currency, self._thresholds) for amount, currency in amounts
        )

    def _require_small_fees(self, connection: Connection, break_ids: Sequence[str]) -> None:
        """Raises FIELD_INVALID if the fees that a match would post need a second person."""
        sums = merge_sums(list(sums_of_breaks(connection, break_ids).values()))
        for currency, part in sorted(sums.items()):
            if needs_approval(abs(part.fee), currency, self._thresholds):
                raise ApiError(
                    ErrorReason.FIELD_INVALID,
                    f"break_ids must be breaks whose fees are at most "
                    f"{format_amount(self._thresholds[currency], currency)} {currency} together; "
                    f"they are {format_amount(part.fee, currency)}. Resolve each with ADJUST, "
                    "which posts the same once a second person approves it.",
                    field="break_ids",
                )


def _require_postable(row: store.BreakRow, resolution: Resolution) -> None:
    """Raises FIELD_INVALID if nothing can be posted for such a break."""
    if row.kind in KINDS_OF_BALANCES and resolution is not Resolution.ACCEPT:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"resolution must be ACCEPT for {row.kind}: it has no lines and no ledger entries.",
            field="resolution",
        )


def _require_agreeable(row: store.BreakRow) -> None:
    """Raises FIELD_INVALID if such a break cannot agree with another."""
    if row.kind in KINDS_OF_BALANCES:
        raise ApiError(
            ErrorReason.FIELD_INVALID,
            f"break_ids must be breaks with lines or ledger entries; {row.break_id} is a "
            f"{row.kind}, which has neither.",
            field="break_ids",
        )


def _lock(connection: Connection, break_id: str) -> store.BreakRow:
    rows = store.lock(connection, [break_id])
    if break_id not in rows:
        raise not_found_error("break", break_id)
    return rows[break_id]


def _require_version(row: store.BreakRow, expected_version: int | None) -> None:
    """Raises VERSION_MISMATCH unless a person has seen this version. None: any."""
    if expected_version is not None and expected_version != row.version:
        raise version_mismatch_error(row.version)


def _is_repeat(
    connection: Connection, row: store.BreakRow, action: BreakAction, caller: str, reason: str
) -> bool:
    """Whether the last change of a break was the same; comments do not count between decisions."""
    actions = _DECISIONS if action in _DECISIONS else tuple(BreakAction)
    last = store.last_change(connection, row.break_id, actions)
    return last is not None and (last.action, last.caller, last.reason) == (action, caller, reason)


def _change(
    connection: Connection,
    row: store.BreakRow,
    action: BreakAction,
    caller: str,
    reason: str,
    traceparent: str,
    *,
    resolution: Resolution | None = None,
    assignee: str | None = None,
) -> Result:
    (changed,) = change_breaks(
        connection,
        [row],
        action,
        caller,
        reason,
        traceparent,
        resolution=resolution,
        assignee=assignee,
    )
    return changed, False


def _post(
    connection: Connection,
    row: store.BreakRow,
    sums: Mapping[str, BreakSums],
    resolution: Resolution,
    caller: str,
    reason: str,
) -> None:
    """Stores what a resolution posts; ACCEPT posts nothing."""
    if resolution is not Resolution.ACCEPT:
        new = resolution_postings(connection, row, sums, resolution, caller, reason)
        postings.insert(connection, new)


def _reverse(connection: Connection, row: store.BreakRow, caller: str, reason: str) -> None:
    """Stores the reverse of what was posted for a break and was not reversed."""
    totals: dict[str, dict[str, int]] = {}
    kind = PostingKind.ADJUSTMENT
    for posting in postings.of_breaks(connection, [row.break_id]):
        kind = PostingKind(posting.kind)
        amounts = totals.setdefault(posting.currency, {})
        for entry in posting.entries:
            amounts[entry["account"]] = amounts.get(entry["account"], 0) + entry["amount"]
    new = []
    for currency, amounts in sorted(totals.items()):
        lines = [
            JournalLine(account, currency, -amount)
            for account, amount in sorted(amounts.items())
            if amount
        ]
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
    postings.insert(connection, new)
