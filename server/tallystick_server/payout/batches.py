"""Batches: accepted whole, and shown with their totals and their report."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from tallystick_core.batch import ItemState, NewBatch, first_difference
from tallystick_core.payout import NewPayout
from tallystick_core.refusal import id_taken, key_reused
from tallystick_server.payout import encode, events
from tallystick_server.runtime.relay import telling
from tallystick_storage.database import Database
from tallystick_storage.payout import batch as store


class Batches:
    """Stores batches; what they are to pay is collected afterwards."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: NewBatch, traceparent: str) -> bool:
        """Whether it was stored now; it was before, if not. Raises ID_TAKEN, KEY_REUSED."""

        def create(connection: Connection) -> bool:
            row = insert(connection, new, traceparent)
            if row is None:
                _repeat(connection, store.find(connection, new.payout_batch_id), new)
            return row is not None

        return await self._database.transact(create)


def insert(connection: Connection, new: NewBatch, traceparent: str, cut_off: datetime | None = None) -> Row[Any] | None:
    """Stores a batch, and tells of it; None if its id exists. `cut_off`: of a run that the platform makes by itself."""
    row = store.insert(
        connection,
        store.NewBatch(
            payout_batch_id=new.payout_batch_id,
            caller=new.caller,
            owner=new.owner,
            fingerprint=new.fingerprint().hex(),
            traceparent=traceparent,
            is_run=not new.payouts,
            seller_account=new.seller_account,
            currency=new.currency,
            cut_off_time=cut_off,
            item_count=len(new.payouts),
        ),
        [
            store.Item(new.payout_batch_id, one.payout_id, one.seller_account, one.amount, one.currency, one.payout_destination_id, ItemState.ASKED)
            for one in new.payouts
        ],
    )
    if row is not None:
        tell(connection, row)
    return row


def tell(connection: Connection, row: Row[Any]) -> None:
    """Tells of a batch that was stored, or has come into another state."""
    with telling(connection, [row]) as told:
        events.batch_changed(told, encode.batch(row), row.traceparent)


def _repeat(connection: Connection, row: Row[Any] | None, new: NewBatch) -> None:
    """The answer to an id that exists. Raises ID_TAKEN, KEY_REUSED."""
    if row is None or row.owner != new.owner:
        raise id_taken("payout_batch_id")
    if bytes(row.fingerprint) != new.fingerprint():
        items = store.items(connection, new.payout_batch_id) if not row.is_run else []
        stored = [NewPayout(i.payout_id, row.caller, row.owner, i.seller_account, i.amount, i.currency, i.payout_destination_id) for i in items]
        raise key_reused(first_difference(new, NewBatch(row.payout_batch_id, row.caller, row.owner, tuple(stored), row.seller_account, row.currency)))
