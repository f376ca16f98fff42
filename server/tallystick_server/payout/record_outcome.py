"""Recording of payout outcomes: applies and stores provider outcomes in one transaction for each
batch.

Every outcome is recorded here, whatever its source: a response, a poll or an operator.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from tallystick_core.operations.next_action import MAX_OPEN_REPORTS
from tallystick_core.payout.destination import DestinationTrigger, is_account_rejected
from tallystick_core.payout.payout_update import (
    MAX_REPORT_LENGTH,
    PayoutUpdate,
    add_reported_conflicts,
    apply,
    describe_report,
)
from tallystick_core.payout.reported_transfer import Transfer, posting_id
from tallystick_core.payout.state import POSSIBLY_SENT, TERMINAL_STATES, TRIGGERS
from tallystick_core.provider.outcome import PayoutOutcome
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.operations.dead_letters import resolve_and_requeue
from tallystick_server.operations.operation import OperationResult, attempt_result
from tallystick_server.payout.destination_verification import end_destinations
from tallystick_server.payout.operation import PayoutOperation
from tallystick_server.payout.snapshot import transfer_of
from tallystick_server.payout.transitions import PayoutChange, apply_changes
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.payout import acknowledgements, transfers
from tallystick_storage.payout import payouts as store
from tallystick_storage.payout.acknowledgements import NewReport, PayoutReportRow
from tallystick_storage.sql import Connection

_MISDIRECTED_SUFFIX = ", which is the transfer of another payout"
_IN_PROGRESS = POSSIBLY_SENT - TERMINAL_STATES
_Result = OperationResult[PayoutOperation, PayoutOutcome]


class PayoutOutcomeRecorder:
    """Records outcomes. An outcome counts whichever process holds the lease: the version of a
    payout, or the lock on it, protects it from concurrent changes.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self, results: Sequence[_Result]) -> Sequence[PayoutOperation | Exception]:
        """Returns each payout after its outcomes were recorded."""
        return await bisect_on_error(self._record_outcomes, results)

    async def _record_outcomes(
        self, results: Sequence[_Result]
    ) -> Sequence[PayoutOperation | Exception]:
        payouts = await self._database.transact(lambda connection: _record(connection, results))
        return [
            _with_current_state(result.operation, payouts[result.operation.payout_id])
            for result in results
        ]

    async def record_misdirected(self, payout: PayoutOperation, outcome: PayoutOutcome) -> None:
        """Stores for an operator that the provider reports another payout's transfer for a
        completed payout.

        It moves no money.
        """
        report = f"{describe_report(outcome)}{_MISDIRECTED_SUFFIX}"[:MAX_REPORT_LENGTH]

        def record(connection: Connection) -> None:
            (locked,) = _lock(connection, [_Pending(payout, [])])
            update = replace(locked.update, conflicts=(report,))
            _store_locked(connection, [replace(locked, update=update)])

        await self._database.transact(record)


@dataclass(frozen=True, slots=True)
class _Pending:
    """A payout and all its outcomes in the batch, in order."""

    payout: PayoutOperation
    outcomes: list[PayoutOutcome]


@dataclass(frozen=True, slots=True)
class _Applied:
    """A payout and the update that its outcomes make. `was_booked`: it was completed before."""

    payout: PayoutOperation
    update: PayoutUpdate
    was_booked: bool = False


def _record(connection: Connection, results: Sequence[_Result]) -> dict[str, PayoutOperation]:
    """Records all outcomes. Returns the current payouts by id."""
    pending: dict[str, _Pending] = {}
    for result in results:
        item = pending.setdefault(result.operation.payout_id, _Pending(result.operation, []))
        item.outcomes.append(result.outcome)
    operation_store.record_attempt_results(
        connection,
        [
            attempt_result(result.operation, TRIGGERS[type(result.outcome)], result.outcome)
            for result in results
        ],
    )
    rejected_destination_ids = sorted(
        {
            result.operation.payout_destination_id
            for result in results
            if is_account_rejected(result.outcome)
        }
    )
    if rejected_destination_ids:  # lock order: attempts before queue rows
        end_destinations(
            connection,
            rejected_destination_ids,
            DestinationTrigger.ACCOUNT_REJECTED,
            other_payout_ids=sorted(pending),
        )
    payouts = _store_in_progress(connection, pending.values())
    others = [item for id_, item in pending.items() if id_ not in payouts]
    if others:
        payouts |= _store_locked(connection, _lock(connection, others))
    return payouts


def _store_in_progress(
    connection: Connection, pending: Iterable[_Pending]
) -> dict[str, PayoutOperation]:
    """Stores the outcomes of payouts in progress that have not changed since they were loaded.
    Such a payout has no transfers yet, so nothing more is read. Returns these payouts by id.
    """
    applied = []
    for item in pending:
        if item.payout.state not in _IN_PROGRESS:
            continue
        update = reduce(apply, item.outcomes, _start(item.payout))
        if update.transitions and not update.conflicts:
            applied.append(_Applied(item.payout, update))
    return _store(connection, applied)


def _lock(connection: Connection, pending: Sequence[_Pending]) -> list[_Applied]:
    """Locks payouts, and applies their outcomes to what is stored."""
    ids = sorted(item.payout.payout_id for item in pending)
    rows = store.lock(connection, ids)
    transfer_rows = transfers.load_transfers(connection, ids)
    applied = []
    for item in pending:
        row = rows[item.payout.payout_id]
        payout = item.payout.updated_from(row)
        stored_transfers = [transfer_of(one) for one in transfer_rows.get(payout.payout_id, ())]
        applied.append(
            _Applied(
                payout, reduce(apply, item.outcomes, _start(payout, stored_transfers)), row.booked
            )
        )
    return applied


def _start(payout: PayoutOperation, transfers_of_payout: Sequence[Transfer] = ()) -> PayoutUpdate:
    """A payout before its outcomes are applied."""
    return PayoutUpdate(
        payout.snapshot,
        payout.net_amount,
        payout.currency,
        {transfer.reference: transfer for transfer in transfers_of_payout},
    )


def _store_locked(
    connection: Connection, applied: Sequence[_Applied]
) -> dict[str, PayoutOperation]:
    """Stores the updates of locked payouts; returns the current payouts by id."""
    applied = _record_conflicts(connection, applied)
    reopened_ids = [
        item.payout.payout_id for item in applied if item.was_booked and item.update.transitions
    ]
    if reopened_ids:
        store.reopen(connection, reopened_ids)
    changed = [item for item in applied if item.update.transitions]
    payouts = _store(connection, changed)
    if len(payouts) < len(changed):
        raise RuntimeError("an outcome of a locked payout was not stored")
    resolve_and_requeue(
        connection,
        [
            item.payout
            for item in applied
            if item.update.is_conclusive and not item.update.transitions
        ],
    )
    return {item.payout.payout_id: item.payout for item in applied} | payouts


def _store(connection: Connection, applied: Sequence[_Applied]) -> dict[str, PayoutOperation]:
    """Stores the new versions and transfers of payouts. Returns those that had the expected
    version, by id.
    """
    changes = [
        PayoutChange(item.payout, item.update.transitions, ignores_lease=True) for item in applied
    ]
    changed = apply_changes(connection, changes)
    stored = [item for item in applied if item.payout.payout_id in changed]
    reported = [
        _to_reported_transfer(item.payout, transfer)
        for item in stored
        for transfer in item.update.changed_transfers.values()
    ]
    if reported:
        transfers.upsert_transfers(connection, reported)
    # Under another lease it may be a dead letter; the holder of this one leases no dead letter.
    resolve_and_requeue(
        connection,
        [
            item.payout
            for item in stored
            if item.update.is_conclusive
            and changed[item.payout.payout_id].lease_token != item.payout.lease_token
        ],
    )
    return {id_: change.payout for id_, change in changed.items()}


def _with_current_state(
    payout: PayoutOperation, current_payout: PayoutOperation
) -> PayoutOperation:
    """A leased payout under its lease, with the current stored values."""
    return replace(
        payout,
        snapshot=current_payout.snapshot,
        message=current_payout.message,
        tries=current_payout.tries,
    )


def _record_conflicts(connection: Connection, applied: Sequence[_Applied]) -> Sequence[_Applied]:
    """Stores new reports that conflict with earlier ones, for an operator. Returns the payouts with
    a version for each.
    """
    ids = [item.payout.payout_id for item in applied if item.update.conflicts]
    if not ids:
        return applied
    stored_reports = acknowledgements.load_reports(connection, ids)
    new_reports = {
        item.payout.payout_id: _new_reports(item, stored_reports.get(item.payout.payout_id, ()))
        for item in applied
    }
    reports = [report for of_payout in new_reports.values() for report in of_payout]
    if reports:
        acknowledgements.insert_reports(connection, reports)
    return [
        replace(
            item,
            update=add_reported_conflicts(item.update, len(new_reports[item.payout.payout_id])),
        )
        for item in applied
    ]


def _new_reports(item: _Applied, stored_reports: Sequence[PayoutReportRow]) -> list[NewReport]:
    """The conflicting reports that are new; each is one version of the payout.

    A report is not new if its alert is open or if it was the last one reported. A provider that
    repeats it raises no second alert.

    A report that returns after a different one is new, even if it was acknowledged before.
    """
    open_reports = {row.report for row in stored_reports if not row.acknowledged_by}
    last_report = stored_reports[-1].report if stored_reports else ""
    reports: list[str] = []
    for report in item.update.conflicts:
        if (
            report != last_report
            and report not in open_reports
            and len(open_reports) < MAX_OPEN_REPORTS
        ):
            reports.append(report)
            open_reports.add(report)
            last_report = report
    return [
        NewReport(item.payout.payout_id, number, report)
        for number, report in enumerate(reports, len(stored_reports) + 1)
    ]


def _to_reported_transfer(
    payout: PayoutOperation, transfer: Transfer
) -> transfers.ReportedTransfer:
    return transfers.ReportedTransfer(
        provider=payout.provider,
        provider_reference=transfer.reference,
        payout_id=payout.payout_id,
        match=transfer.match,
        source_id=posting_id(payout.payout_id, payout.provider, transfer),
        amount=transfer.amount,
        currency=transfer.currency,
        returned_amount=transfer.returned_amount,
        returned_currency=transfer.returned_currency,
    )
