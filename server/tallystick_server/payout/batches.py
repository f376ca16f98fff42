"""Batches: accepted whole, and shown with their totals and their report."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from google.rpc import status_pb2
from sqlalchemy import Connection, Row

from tallystick.payout.v1 import payout_pb2
from tallystick_core.batch import ItemState, NewBatch
from tallystick_core.money import format_amount
from tallystick_core.refusal import id_taken, key_reused
from tallystick_server.payout import encode, events
from tallystick_server.runtime.fields import EnumNames, to_timestamp
from tallystick_server.runtime.relay import telling
from tallystick_storage.database import Database
from tallystick_storage.payout import batch as store
from tallystick_storage.payout import reads

_STATES = EnumNames(payout_pb2.PayoutBatchState.DESCRIPTOR)


class Batches:
    """Stores batches; what they are to pay is collected afterwards."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, new: NewBatch, traceparent: str) -> bool:
        """Whether it was stored now; it was before, if not. Raises ID_TAKEN, KEY_REUSED."""

        def create(connection: Connection) -> bool:
            row = insert(connection, new, traceparent)
            if row is None:
                _repeat(store.find(connection, new.payout_batch_id), new)
            return row is not None

        return await self._database.transact(create)


def insert(connection: Connection, new: NewBatch, traceparent: str, cut_off: datetime | None = None) -> Row[Any] | None:
    """Stores a batch, and tells of it; None if its id exists. `cut_off`: of a run that the platform makes by itself."""
    row = store.insert(
        connection,
        store.NewBatch(
            payout_batch_id=new.payout_batch_id,
            caller=new.caller,
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
        events.batch_changed(told, message(row), row.traceparent)


def _repeat(row: Row[Any] | None, new: NewBatch) -> None:
    """The answer to an id that exists. Raises ID_TAKEN, KEY_REUSED."""
    if row is None or row.caller != new.caller:
        raise id_taken("payout_batch_id")
    if bytes(row.fingerprint) != new.fingerprint():
        raise key_reused("content")


def message(row: Row[Any], totals: Sequence[Row[Any]] = ()) -> payout_pb2.PayoutBatch:
    """A batch, with its totals where they are asked for."""
    batch = payout_pb2.PayoutBatch(
        payout_batch_id=row.payout_batch_id,
        state=_STATES.number(row.state),
        item_count=row.item_count,
        collected_count=row.collected_count,
        refused_count=row.refused_count,
        totals=[_total(total) for total in totals],
        caller=row.caller,
        version=row.version,
        create_time=to_timestamp(row.create_time),
        update_time=to_timestamp(row.update_time),
        done_time=to_timestamp(row.done_time) if row.done_time else None,
    )
    if row.is_run:
        batch.run.seller_account, batch.run.currency = row.seller_account, row.currency
        if row.cut_off_time:
            batch.run.cut_off_time.CopyFrom(to_timestamp(row.cut_off_time))
    return batch


def _total(row: Row[Any]) -> payout_pb2.PayoutTotal:
    return payout_pb2.PayoutTotal(
        payout_state=encode.STATES.number(row.state),
        currency=row.currency,
        payout_count=row.payouts,
        amount=format_amount(int(row.amount), row.currency),
        fee=format_amount(int(row.fee), row.currency),
        returned_amount=format_amount(int(row.returned_amount), row.currency),
    )


def report(connection: Connection, rows: Sequence[Row[Any]]) -> list[payout_pb2.PayoutBatchItem]:
    """The lines of a report, with the payouts as they stand."""
    payouts = reads.shown(connection, [row.payout_id for row in rows if row.item_state == ItemState.MADE])
    lines = []
    for row in rows:
        line = payout_pb2.PayoutBatchItem(payout_id=row.payout_id, seller_account=row.seller_account)
        if row.item_state == ItemState.MADE:
            line.payout.CopyFrom(encode.shown_payout(payouts[row.payout_id]))
        else:
            line.error.CopyFrom(status_pb2.Status.FromString(bytes(row.refusal)))
        lines.append(line)
    return lines
