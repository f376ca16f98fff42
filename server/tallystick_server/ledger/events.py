"""What LedgerService tells of its changes. The book is its own outbox: it has no gaps, and nothing in it commits late."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from sqlalchemy import Connection

from tallystick.event.v1 import event_pb2
from tallystick_core.event import event_id
from tallystick_core.ledger import transaction_id
from tallystick_server.ledger import messages
from tallystick_storage import ledger as store
from tallystick_storage.database import Database


class LedgerEvents:
    """The source of LedgerService's relay."""

    def __init__(self, database: Database, most: int) -> None:
        self._database = database
        self._most = most

    async def __call__(self) -> tuple[list[event_pb2.Event], Callable[[], Awaitable[None]]]:
        def unpublished(connection: Connection) -> list[store.TransactionRow]:
            after = store.relayed(connection)
            return store.transactions(connection, store.sequences_after(connection, after, "", self._most))

        rows = await self._database.read(unpublished)

        def published(connection: Connection) -> None:
            store.set_relayed(connection, rows[-1][0].sequence)

        return [_event(row) for row in rows], lambda: self._database.transact(published)


def _event(row: store.TransactionRow) -> event_pb2.Event:
    transaction = messages.transaction(*row)
    aggregate = f"transactions/{transaction_id(transaction.sequence)}"
    return event_pb2.Event(
        event_id=event_id(aggregate, 1),
        type=event_pb2.EVENT_TYPE_TRANSACTION_POSTED,
        aggregate_id=aggregate,
        aggregate_version=1,
        create_time=transaction.post_time,
        caller=row[0].caller,
        transaction=transaction,
    )
