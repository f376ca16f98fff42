"""Recording of payout outcomes: applies and stores provider outcomes in one transaction for each
batch.

Every outcome is recorded here, regardless of its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tallystick_core.operations.next_action import MAX_OPEN_REPORTS
from tallystick_core.payout.destination import DestinationTrigger, is_account_rejected
from tallystick_core.payout.operation_ids import format_payout_operation_id
from tallystick_core.payout.reported_transfer import (
    OutcomeEffect,
    PayoutRecord,
    Transfer,
    apply_outcome,
    posting_id,
)
from tallystick_core.payout.state import TRIGGERS, PayoutTransitionReason, PayoutTrigger
from tallystick_core.provider.outcome import (
    Declined,
    InTransit,
    PayoutOutcome,
    Returned,
    Submitted,
    Succeeded,
)
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.operations.dead_letters import resolve_and_requeue
from tallystick_server.operations.operation import OperationResult, attempt_result
from tallystick_server.payout.destination_verification import end_destinations
from tallystick_server.payout.operation import PayoutOperation
from tallystick_server.payout.snapshot import PayoutTransition, transfer_of
from tallystick_server.payout.transitions import PayoutChange, transition_payouts
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.payout import acknowledgements, transfers
from tallystick_storage.payout import payouts as store
from tallystick_storage.payout.acknowledgements import NewReport
from tallystick_storage.sql import Connection, Row

_TRANSITION_REASONS = {PayoutTrigger.UNMATCHED_TRANSFER: PayoutTransitionReason.UNMATCHED_TRANSFER}
_MAX_REPORT_LENGTH = 255
_MISDIRECTED_SUFFIX = ", which is the transfer of another payout"


class PayoutOutcomeRecorder:
    """Records outcomes.

    An outcome is a fact: it is applied to the locked, stored payout and counts regardless of the
    lease.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(
        self, results: Sequence[OperationResult[PayoutOperation, PayoutOutcome]]
    ) -> Sequence[PayoutOperation | Exception]:
        """Returns each payout after its outcomes were recorded."""
        return await bisect_on_error(self._record_outcomes, results)

    async def _record_outcomes(
        self, results: Sequence[OperationResult[PayoutOperation, PayoutOutcome]]
    ) -> Sequence[PayoutOperation | Exception]:
        ids = sorted({result.operation.payout_id for result in results})
        rejected_destination_ids = sorted(
            {
                result.operation.payout_destination_id
                for result in results
                if is_account_rejected(result.outcome)
            }
        )

        def record(connection: Connection) -> dict[str, PayoutOperation]:
            operation_store.record_attempt_results(
                connection,
                [
                    attempt_result(result.operation, TRIGGERS[type(result.outcome)], result.outcome)
                    for result in results
                ],
            )
            if rejected_destination_ids:  # lock order: attempts before queue rows
                end_destinations(
                    connection,
                    rejected_destination_ids,
                    DestinationTrigger.ACCOUNT_REJECTED,
                    other_operation_ids=[format_payout_operation_id(id_) for id_ in ids],
                )
            rows = store.lock(connection, ids)
            transfer_rows = transfers.load_transfers(connection, ids)
            updates = {
                result.operation.payout_id: _PayoutUpdate(
                    result.operation,
                    rows[result.operation.payout_id],
                    transfer_rows.get(result.operation.payout_id, ()),
                )
                for result in results
            }
            for result in results:
                updates[result.operation.payout_id].apply(result.outcome)
            return _store_updates(connection, list(updates.values()))

        payouts = await self._database.transact(record)
        return [
            _with_current_state(result.operation, payouts[result.operation.payout_id])
            for result in results
        ]

    async def record_misdirected(self, payout: PayoutOperation, outcome: PayoutOutcome) -> None:
        """Stores for an operator that the provider reports another payout's transfer for a
        completed payout.

        It moves no money.
        """

        def record(connection: Connection) -> None:
            rows = store.lock(connection, [payout.payout_id])
            update = _PayoutUpdate(
                payout,
                rows[payout.payout_id],
                transfers.load_transfers(connection, [payout.payout_id]).get(payout.payout_id, ()),
            )
            update.conflicts.append(
                f"{_describe_report(outcome)}{_MISDIRECTED_SUFFIX}"[:_MAX_REPORT_LENGTH]
            )
            _store_updates(connection, [update])

        await self._database.transact(record)


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


class _PayoutUpdate:
    """One locked payout with all its outcomes in the batch, in order."""

    def __init__(
        self, payout: PayoutOperation, row: Row[Any], transfer_rows: Sequence[Row[Any]]
    ) -> None:
        # Usually the version is unchanged.
        self.payout = payout if payout.snapshot.version == row.version else payout.updated_from(row)
        self.was_booked = row.booked
        self.transitions: list[PayoutTransition] = []
        self.reported_transfers: dict[str, Transfer] = {}
        self.conflicts: list[str] = []
        """Reports that conflict with earlier ones."""
        self.is_conclusive = False
        """Whether an outcome was conclusive; then a dead letter of the payout is requeued."""
        self._snapshot = self.payout.snapshot
        self._transfers = {
            transfer_row.provider_reference: transfer_of(transfer_row)
            for transfer_row in transfer_rows
        }

    def apply(self, outcome: PayoutOutcome) -> None:
        """Applies an outcome."""
        payout_record = PayoutRecord(
            self._snapshot.state, self.payout.net_amount, self.payout.currency, self._transfers
        )
        effect = apply_outcome(payout_record, outcome)
        self._transfers |= {transfer.reference: transfer for transfer in effect.transfers}
        self.reported_transfers |= {transfer.reference: transfer for transfer in effect.transfers}
        self.is_conclusive = self.is_conclusive or isinstance(
            outcome, Submitted | InTransit | Succeeded | Returned | Declined
        )
        for trigger in effect.triggers:
            self._add_transition(trigger, outcome, effect)
        if effect.is_conflicting:
            self.conflicts.append(_describe_report(outcome))

    def _add_transition(
        self, trigger: PayoutTrigger, outcome: PayoutOutcome, effect: OutcomeEffect
    ) -> None:
        previous_snapshot = self._snapshot
        snapshot = previous_snapshot.apply(
            trigger, **self._snapshot_changes(trigger, outcome, effect)
        )
        if (
            trigger is not PayoutTrigger.UNMATCHED_TRANSFER
            and snapshot.state is previous_snapshot.state
        ):
            return  # unchanged
        self._snapshot = snapshot
        self.transitions.append(
            PayoutTransition(
                snapshot, _TRANSITION_REASONS.get(trigger, PayoutTransitionReason.PROVIDER_OUTCOME)
            )
        )

    def _snapshot_changes(
        self, trigger: PayoutTrigger, outcome: PayoutOutcome, effect: OutcomeEffect
    ) -> dict[str, Any]:
        """The payout fields besides the state that an outcome sets."""
        changes: dict[str, Any] = {}
        if reference := getattr(outcome, "reference", ""):
            changes["provider_reference"] = self._snapshot.provider_reference or reference
        if code := getattr(outcome, "code", ""):
            changes["decline_code"] = code
        if trigger is PayoutTrigger.DECLINED:
            changes["failure_reason"] = effect.failure
        currency_transfers = [
            transfer
            for transfer in self._transfers.values()
            if transfer.currency == self.payout.currency
        ]
        changes["paid_amount"] = sum(transfer.amount for transfer in currency_transfers)
        if trigger in (PayoutTrigger.RETURNED, PayoutTrigger.UNMATCHED_TRANSFER):
            changes["returned_amount"] = sum(
                transfer.returned_amount or 0
                for transfer in currency_transfers
                if transfer.returned_currency == self.payout.currency
            )
        return changes

    def new_reports(self, stored_reports: Sequence[Row[Any]]) -> list[NewReport]:
        """The conflicting reports that are new; each is one version of the payout. The money stays
        where the first report put it.

        A report is not new if its alert is open or if it was the last one reported. A provider that
        repeats it raises no second alert.

        A report that returns after a different one is new, even if it was acknowledged before.
        """
        open_reports = {row.report for row in stored_reports if not row.acknowledged_by}
        last_report = stored_reports[-1].report if stored_reports else ""
        reports: list[str] = []
        for report in self.conflicts:
            if (
                report != last_report
                and report not in open_reports
                and len(open_reports) < MAX_OPEN_REPORTS
            ):
                reports.append(report)
                open_reports.add(report)
                last_report = report
        for _ in reports:
            self._snapshot = self._snapshot.apply(PayoutTrigger.UNMATCHED_TRANSFER)
            self.transitions.append(
                PayoutTransition(self._snapshot, PayoutTransitionReason.UNMATCHED_TRANSFER)
            )
        return [
            NewReport(self.payout.payout_id, number, report)
            for number, report in enumerate(reports, len(stored_reports) + 1)
        ]


def _describe_report(outcome: PayoutOutcome) -> str:
    """Describes a report in one line; equal reports give equal text."""
    parts = (
        str(getattr(outcome, name, "")) for name in ("reference", "amount", "currency", "code")
    )
    return " ".join([type(outcome).__name__, *filter(None, parts)])[:_MAX_REPORT_LENGTH]


def _record_conflicts(connection: Connection, updates: Sequence[_PayoutUpdate]) -> None:
    """Stores new reports that conflict with earlier ones, for an operator."""
    conflicting_updates = [update for update in updates if update.conflicts]
    if not conflicting_updates:
        return
    stored_reports = acknowledgements.load_reports(
        connection, [update.payout.payout_id for update in conflicting_updates]
    )
    new_reports = [
        report
        for update in conflicting_updates
        for report in update.new_reports(stored_reports.get(update.payout.payout_id, ()))
    ]
    if new_reports:
        acknowledgements.insert_reports(connection, new_reports)


def _store_updates(
    connection: Connection, updates: Sequence[_PayoutUpdate]
) -> dict[str, PayoutOperation]:
    """Stores all updates; returns the current payouts by id."""
    _record_conflicts(connection, updates)
    reported_transfers = [
        _to_reported_transfer(update.payout, transfer)
        for update in updates
        for transfer in update.reported_transfers.values()
    ]
    if reported_transfers:
        transfers.upsert_transfers(connection, reported_transfers)
    reopened_ids = [
        update.payout.payout_id for update in updates if update.was_booked and update.transitions
    ]
    if reopened_ids:
        store.reopen(connection, reopened_ids)
    changes = [
        PayoutChange(update.payout, tuple(update.transitions), ignores_lease=True)
        for update in updates
        if update.transitions
    ]
    payouts = transition_payouts(connection, changes)
    if len(payouts) < len(changes):
        raise RuntimeError("an outcome of a locked payout was not stored")
    resolve_and_requeue(connection, [update.payout for update in updates if update.is_conclusive])
    return {
        update.payout.payout_id: payouts.get(update.payout.payout_id, update.payout)
        for update in updates
    }


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
