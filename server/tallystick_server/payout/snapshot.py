"""Payout snapshots and transfers from stored rows."""

from __future__ import annotations

from tallystick_core.payout.reported_transfer import Transfer, TransferMatch
from tallystick_core.payout.snapshot import PayoutSnapshot
from tallystick_core.payout.state import PayoutState
from tallystick_storage.payout.payouts import PayoutRow
from tallystick_storage.payout.transfers import TransferRow


def snapshot_of(row: PayoutRow) -> PayoutSnapshot:
    """The snapshot of a stored payout."""
    return PayoutSnapshot(
        version=row.version,
        state=PayoutState(row.state),
        booked=row.booked,
        failure_reason=row.failure_reason,
        decline_code=row.decline_code,
        provider_reference=row.provider_reference,
        attempt_count=row.attempt_count,
        paid_amount=row.paid_amount,
        returned_amount=row.returned_amount,
    )


def transfer_of(row: TransferRow) -> Transfer:
    """A stored transfer."""
    return Transfer(
        row.provider_reference,
        row.amount,
        row.currency,
        TransferMatch(row.match),
        row.returned_amount,
        row.returned_currency,
    )
