"""What LedgerService tells of its changes. The book is its own outbox: it has no gaps, and nothing in it commits late."""

from __future__ import annotations

from sqlalchemy import Connection

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.ledger.v1 import ledger_pb2
from tallystick_server.ledger import messages
from tallystick_server.ledger.post import Recent
from tallystick_server.runtime.relay import MOST_EVENTS, Unpublished, tell, to_requests
from tallystick_storage import ledger as store
from tallystick_storage import outbox
from tallystick_storage.database import Database


class LedgerEvents:
    """The source of LedgerService's relay."""

    def __init__(self, database: Database, recent: Recent) -> None:
        self._database = database
        self._recent = recent

    async def __call__(self) -> Unpublished:
        after, any_refused = await self._database.load(store.relayed)
        known = self._recent.after(after, MOST_EVENTS)
        if known and not await self._is_in_book(known[-1][0]):  # the database was set back, and others have their numbers
            self._recent.clear()
            known = []
        if not known:  # nothing is new, or it was posted before this process began, or by another one

            def unpublished(connection: Connection) -> list[store.TransactionRow]:
                return store.transactions(connection, store.sequences_between(connection, after, after + MOST_EVENTS, "", MOST_EVENTS))

            rows = await self._database.load(unpublished)
            known = [(messages.transaction(row, entries), row.caller) for row, entries in rows]
            for transaction, _ in known:
                transaction.ClearField("reversed_by_transaction_id")  # an event shows a transaction as it was posted

        def published(connection: Connection) -> None:
            store.set_relayed(connection, after + len(known))

        told = BatchPublishRequest()
        for transaction, caller in known:
            aggregate = f"transactions/{transaction.transaction_id}"
            tell(told, event_pb2.EVENT_TYPE_TRANSACTION_POSTED, aggregate, 1, transaction.post_time, caller, transaction=transaction)
        refused: frozenset[str] = frozenset()
        if any_refused:  # also of what is new here: a turn that finds too many of them ends, and the next one starts behind them
            aggregates = [event.aggregate_id for event in told.events]
            refused = await self._database.load(lambda connection: outbox.refused(connection, aggregates))
        return Unpublished(to_requests(told), published, more=len(known) == MOST_EVENTS, refused=refused)

    async def _is_in_book(self, transaction: ledger_pb2.Transaction) -> bool:
        """Whether the book holds just this transaction, and so all before it: each hash covers the one before."""
        return transaction.hash == await self._database.load(lambda connection: store.hash_of(connection, transaction.sequence))
