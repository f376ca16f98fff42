"""Events of LedgerService. The ledger is its own outbox: its sequence has no gaps, and no
transaction commits out of order.
"""

from __future__ import annotations

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.ledger.v1 import ledger_pb2
from tallystick_server.ledger import convert
from tallystick_server.ledger.post import RecentTransactions
from tallystick_server.outbox.events import add_event
from tallystick_server.outbox.relay import MAX_EVENTS, EventBatch, split_requests
from tallystick_storage import outbox
from tallystick_storage.database import Database
from tallystick_storage.ledger import postings as store
from tallystick_storage.ledger import queries
from tallystick_storage.sql import Connection


class LedgerEvents:
    """The event source of LedgerService's relay."""

    def __init__(self, database: Database, recent: RecentTransactions) -> None:
        self._database = database
        self._recent = recent

    async def __call__(self) -> EventBatch:
        after, has_rejected_events = await self._database.load(store.relay_position)
        transactions = self._recent.after(after, MAX_EVENTS)
        # The database was restored to an earlier state, and other transactions have these sequence
        # numbers.
        if transactions and not await self._is_in_book(transactions[-1][0]):
            self._recent.clear()
            transactions = []
        # There is nothing new, or it was posted by another process or before this one started.
        if not transactions:

            def load_unpublished(connection: Connection) -> list[queries.TransactionRow]:
                return queries.load_transactions(
                    connection,
                    queries.list_sequences_between(
                        connection, after, after + MAX_EVENTS, "", MAX_EVENTS
                    ),
                )

            rows = await self._database.load(load_unpublished)
            transactions = [
                (convert.transaction(row, entries), row.caller) for row, entries in rows
            ]
            for transaction, _ in transactions:
                # an event shows the transaction as posted
                transaction.ClearField("reversed_by_transaction_id")

        def mark_published(connection: Connection) -> None:
            store.set_relay_position(connection, after + len(transactions))

        publish_request = BatchPublishRequest()
        for transaction, caller in transactions:
            aggregate = f"transactions/{transaction.transaction_id}"
            add_event(
                publish_request,
                event_pb2.EVENT_TYPE_TRANSACTION_POSTED,
                aggregate,
                1,
                transaction.post_time,
                caller,
                transaction=transaction,
            )
        rejected_aggregates: frozenset[str] = frozenset()
        # Check new transactions too: a run with too many rejections ends, and the next one starts
        # after them.
        if has_rejected_events:
            aggregates = [event.aggregate_id for event in publish_request.events]
            rejected_aggregates = await self._database.load(
                lambda connection: outbox.find_rejected_aggregates(connection, aggregates)
            )
        return EventBatch(
            split_requests(publish_request),
            mark_published,
            has_more=len(transactions) == MAX_EVENTS,
            rejected_aggregates=rejected_aggregates,
        )

    async def _is_in_book(self, transaction: ledger_pb2.Transaction) -> bool:
        """Whether the ledger holds exactly this transaction, and so all before it.

        Each hash covers the previous one.
        """
        return transaction.hash == await self._database.load(
            lambda connection: store.hash_of(connection, transaction.sequence)
        )
