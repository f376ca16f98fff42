"""Payout batches: stored as a whole, and shown with their totals and report."""

from __future__ import annotations

from datetime import datetime

from tallystick_core.errors import id_taken_error, key_reused_error
from tallystick_core.payout.batch import ItemState, NewBatch, first_difference
from tallystick_core.payout.request import NewPayout
from tallystick_server.outbox.events import record_events
from tallystick_server.payout import convert, events
from tallystick_storage.database import Database
from tallystick_storage.payout import batches as store
from tallystick_storage.sql import Connection


class BatchCreator:
    """Stores batches; their payouts are generated afterwards."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: NewBatch, traceparent: str) -> bool:
        """Returns True if the batch is stored now, False if it was before.

        Raises ALREADY_EXISTS, IDEMPOTENCY_KEY_REUSED.
        """

        def create(connection: Connection) -> bool:
            row = insert_batch(connection, new, traceparent)
            if row is None:
                _replay_or_conflict(connection, store.find(connection, new.payout_batch_id), new)
            return row is not None

        return await self._database.transact(create)


def insert_batch(
    connection: Connection, new: NewBatch, traceparent: str, cut_off_time: datetime | None = None
) -> store.ChangedBatchRow | None:
    """Stores a batch and its event; returns None if the id exists.

    `cut_off_time`: set for a payout run of the platform.
    """
    row = store.insert(
        connection,
        store.NewBatchRow(
            payout_batch_id=new.payout_batch_id,
            caller=new.caller,
            owner=new.owner,
            fingerprint=new.fingerprint().hex(),
            traceparent=traceparent,
            is_run=not new.payouts,
            seller_account=new.seller_account,
            currency=new.currency,
            cut_off_time=cut_off_time,
            item_count=len(new.payouts),
        ),
        [
            store.BatchItemRow(
                new.payout_batch_id,
                payout.payout_id,
                payout.seller_account,
                payout.amount,
                payout.currency,
                payout.payout_destination_id,
                ItemState.REQUESTED,
            )
            for payout in new.payouts
        ],
    )
    if row is not None:
        emit_batch_changed(connection, row)
    return row


def emit_batch_changed(connection: Connection, row: store.ChangedBatchRow) -> None:
    """Emits the event of a batch that was created or has changed its state."""
    with record_events(connection, [row]) as publish_request:
        events.add_batch_changed(publish_request, convert.batch(row), row.traceparent)


def _replay_or_conflict(connection: Connection, row: store.BatchRow | None, new: NewBatch) -> None:
    """The result for an existing id. Raises ALREADY_EXISTS, IDEMPOTENCY_KEY_REUSED."""
    if row is None or row.owner != new.owner:
        raise id_taken_error("payout_batch_id")
    if row.fingerprint != new.fingerprint():
        items = store.load_items(connection, new.payout_batch_id) if not row.is_run else []
        stored = [
            NewPayout(
                item.payout_id,
                row.caller,
                row.owner,
                item.seller_account,
                item.amount,
                item.currency,
                item.payout_destination_id,
            )
            for item in items
        ]
        raise key_reused_error(
            first_difference(
                new,
                NewBatch(
                    row.payout_batch_id,
                    row.caller,
                    row.owner,
                    tuple(stored),
                    row.seller_account,
                    row.currency,
                ),
            )
        )
