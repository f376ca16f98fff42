"""Payout transitions: payouts change state and record their events in the same transaction.

Every change of a payout's state goes through this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tallystick.payout.v1 import payout_pb2
from tallystick_core.payout.snapshot import PayoutSnapshot, PayoutTransition
from tallystick_server.outbox.events import record_events
from tallystick_server.payout import convert, events
from tallystick_server.payout.operation import PayoutOperation
from tallystick_storage.payout import payouts as store
from tallystick_storage.sql import Connection


@dataclass(frozen=True, slots=True)
class PayoutChange:
    """A change of a payout in one or several transitions.

    `ignores_lease`: it applies regardless of the lease. For the other fields see
    `store.PayoutUpdateRow`.
    """

    payout: PayoutOperation
    transitions: tuple[PayoutTransition, ...]
    ignores_lease: bool = False
    awaits_approval: bool = False
    poll_after_seconds: float | None = None

    @property
    def snapshot(self) -> PayoutSnapshot:
        return self.transitions[-1].snapshot


@dataclass(frozen=True, slots=True)
class ChangedPayout:
    """A payout after a change, and the lease token that its operation has now."""

    payout: PayoutOperation
    lease_token: int | None


def transition_payouts(
    connection: Connection, changes: Sequence[PayoutChange]
) -> dict[str, PayoutOperation]:
    """Applies changes to payouts whose lease and version are unchanged.

    Returns the changed payouts by id.
    """
    return {id_: changed.payout for id_, changed in apply_changes(connection, changes).items()}


def apply_changes(
    connection: Connection, changes: Sequence[PayoutChange]
) -> dict[str, ChangedPayout]:
    """As `transition_payouts`, with the current lease tokens."""
    if not changes:
        return {}
    rows = store.transition(
        connection,
        [_to_row(change) for change in changes],
        [transition_row for change in changes for transition_row in _transition_rows(change)],
    )
    payouts = {}
    with record_events(connection, rows.values()) as publish_request:
        for change in changes:
            row = rows.get(change.payout.payout_id)
            if row is None:
                continue
            message = change.payout.message
            for transition in change.transitions:
                message = _with_snapshot(message, transition.snapshot, row.update_time)
                events.add_payout_changed(publish_request, message, change.payout.traceparent)
            # Nothing can have been sent before the attempt begins.
            begins_attempt = change.snapshot.attempt_count > change.payout.snapshot.attempt_count
            maybe_sent = change.payout.maybe_sent and not begins_attempt
            # A transition resets the retry counts.
            payout = replace(
                change.payout,
                snapshot=change.snapshot,
                message=message,
                tries={},
                maybe_sent=maybe_sent,
            )
            payouts[payout.payout_id] = ChangedPayout(payout, row.lease_token)
    return payouts


def _with_snapshot(
    previous_message: payout_pb2.Payout, snapshot: PayoutSnapshot, update_time: datetime
) -> payout_pb2.Payout:
    message = payout_pb2.Payout()
    message.CopyFrom(previous_message)
    convert.apply_snapshot(message, snapshot, update_time)
    return message


def _to_row(change: PayoutChange) -> store.PayoutUpdateRow:
    payout, snapshot = change.payout, change.snapshot
    return store.PayoutUpdateRow(
        payout_id=payout.payout_id,
        lease_token=None if change.ignores_lease else payout.lease_token,
        reporter_lease_token=payout.lease_token,
        from_version=payout.snapshot.version,
        version=snapshot.version,
        state=snapshot.state,
        booked=snapshot.booked,
        failure_reason=snapshot.failure_reason,
        decline_code=snapshot.decline_code,
        provider_reference=snapshot.provider_reference,
        attempt_count=snapshot.attempt_count,
        paid_amount=snapshot.paid_amount,
        returned_amount=snapshot.returned_amount,
        provider_key=payout.provider_key
        if snapshot.attempt_count > payout.snapshot.attempt_count
        else "",
        awaits_approval=change.awaits_approval,
        poll_after_seconds=change.poll_after_seconds,
    )


def _transition_rows(change: PayoutChange) -> Iterator[store.PayoutTransitionRow]:
    from_state = change.payout.snapshot.state
    for transition in change.transitions:
        snapshot = transition.snapshot
        yield store.PayoutTransitionRow(
            change.payout.payout_id,
            snapshot.version,
            from_state,
            snapshot.state,
            transition.transition_reason,
            snapshot.booked,
            transition.actor,
            transition.reason,
        )
        from_state = snapshot.state
