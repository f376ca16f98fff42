"""Events of LedgerService. The ledger is its own outbox: its sequence has no gaps, and no
transaction commits out of order.
"""

from __future__ import annotations

from collections.abc import Sequence

from tallystick.event.v1 import event_pb2
from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.ledger.v1 import ledger_pb2
from tallystick_core.ledger.identifiers import TransactionId
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
        self._last_book = ""

    async def __call__(self) -> EventBatch:
        positions = await self._database.load(store.relay_positions)
        waiting = [position for position in positions if position.last > position.sequence]
        if not waiting:
            return EventBatch([], lambda _connection: None, has_more=False)
        # each book in turn
        position = min(waiting, key=lambda item: (item.book <= self._last_book, item.book))
        self._last_book = position.book
        return await self._build_batch(
            position, await self._load_after(position), has_more_books=len(waiting) > 1
        )

    async def _load_after(
        self, position: store.RelayPosition
    ) -> Sequence[tuple[ledger_pb2.Transaction, str]]:
        """The next transactions of a book as they were posted, with their callers."""
        book, after = position.book, position.sequence
        transactions = self._recent.after(book, after, MAX_EVENTS)
        if transactions and await self._is_stored(book, transactions[-1][0]):
            return transactions
        # The database was restored to an earlier state, and other transactions have these sequence
        # numbers. Or they were posted by another process, or before this one started.
        self._recent.clear()

        def load_unpublished(connection: Connection) -> list[queries.StoredTransaction]:
            return queries.load_transactions(
                connection,
                book,
                queries.list_sequences_between(
                    connection, book, after, after + MAX_EVENTS, "", MAX_EVENTS
                ),
            )

        return [
            (
                convert.transaction(stored._replace(row=stored.row._replace(reversed_by=None))),
                stored.row.caller,
            )
            for stored in await self._database.load(load_unpublished)
        ]

    async def _build_batch(
        self,
        position: store.RelayPosition,
        transactions: Sequence[tuple[ledger_pb2.Transaction, str]],
        *,
        has_more_books: bool,
    ) -> EventBatch:
        published = TransactionId(position.book, position.sequence + len(transactions))

        def mark_published(connection: Connection) -> None:
            store.set_relay_position(connection, published)

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
        if position.has_rejected_events:
            aggregates = [event.aggregate_id for event in publish_request.events]
            rejected_aggregates = await self._database.load(
                lambda connection: outbox.find_rejected_aggregates(connection, aggregates)
            )
        return EventBatch(
            split_requests(publish_request),
            mark_published,
            has_more=len(transactions) == MAX_EVENTS or has_more_books,
            rejected_aggregates=rejected_aggregates,
        )

    async def _is_stored(self, book: str, transaction: ledger_pb2.Transaction) -> bool:
        """Whether the book holds exactly this transaction, and so all before it.

        Each hash covers the previous one.
        """
        transaction_id = TransactionId(book, transaction.sequence)
        return transaction.hash == await self._database.load(
            lambda connection: store.hash_of(connection, transaction_id)
        )
