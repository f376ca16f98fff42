"""What LedgerService tells of its changes. The book is its own outbox: it has no gaps, and nothing in it commits late."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sqlalchemy import Connection

from tallystick.event.v1 import event_pb2
from tallystick.ledger.v1 import ledger_pb2
from tallystick_core.event import event_id
from tallystick_server.ledger import messages
from tallystick_server.ledger.post import Recent
from tallystick_storage import ledger as store
from tallystick_storage.database import Database


class LedgerEvents:
    """The source of LedgerService's relay."""

    def __init__(self, database: Database, recent: Recent, most: int) -> None:
        self._database = database
        self._recent = recent
        self._most = most

    async def __call__(self) -> tuple[list[event_pb2.Event], Callable[[], Awaitable[None]]]:
        after = await self._database.read(store.relayed)
        known = self._recent.after(after, self._most)
        if not known:  # nothing is new, or it was posted before this process began, or by another one

            def unpublished(connection: Connection) -> list[store.TransactionRow]:
                return store.transactions(connection, store.sequences_after(connection, after, "", self._most))

            rows = await self._database.read(unpublished)
            known = [(messages.transaction(row, entries), row.caller) for row, entries in rows]

        def published(connection: Connection) -> None:
            store.set_relayed(connection, after + len(known))

        return [_event(transaction, caller) for transaction, caller in known], lambda: self._database.transact(published)


def _event(transaction: ledger_pb2.Transaction, caller: str) -> event_pb2.Event:
    aggregate = f"transactions/{transaction.transaction_id}"
    return event_pb2.Event(
        event_id=event_id(aggregate, 1),
        type=event_pb2.EVENT_TYPE_TRANSACTION_POSTED,
        aggregate_id=aggregate,
        aggregate_version=1,
        create_time=transaction.post_time,
        caller=caller,
        transaction=transaction,
    )
