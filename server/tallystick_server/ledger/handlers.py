"""The RPCs of LedgerService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import TypeVar

from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tallystick.money.v1 import money_pb2
from tallystick_core.access import Role
from tallystick_core.errors import ApiError, ErrorReason, not_found_error
from tallystick_core.ledger.hash_chain import Head
from tallystick_core.ledger.identifiers import (
    BOOK,
    TransactionId,
    parse_account,
    parse_book,
    parse_transaction_id,
)
from tallystick_core.ledger.posting import Posting, build_reversal, reject_irreversible
from tallystick_core.money import format_amount, parse_currency
from tallystick_core.validation import parse_optional_id, parse_reason_text, parse_text
from tallystick_server.ledger import convert
from tallystick_server.ledger.post import PostedTransaction, TransactionPoster
from tallystick_server.operations import alerts
from tallystick_server.operations.alerts import AlertHandlers
from tallystick_server.operations.batcher import MAX_QUEUED_BATCHES, Batcher
from tallystick_server.rpc.batch import process_items, to_item_status
from tallystick_server.rpc.call import Access, Call
from tallystick_server.rpc.pagination import Listing, PageToken, list_page, parse_page_size
from tallystick_server.rpc.streaming import (
    SequenceSource,
    SequenceTail,
    StreamFilter,
    stream_resource,
)
from tallystick_server.rpc.timestamps import parse_time, to_timestamp
from tallystick_storage.database import Database
from tallystick_storage.ledger import queries as store
from tallystick_storage.ledger.postings import UnknownBook
from tallystick_storage.pagination import Scan
from tallystick_storage.sql import Connection

T = TypeVar("T")

_MAX_SOURCE_ID = 64
_MAX_SOURCES = 300
_READ = frozenset({Role.OPERATOR, Role.AUDITOR, Role.SERVICE})
ACCESS: Access = {
    "BatchPost": frozenset({Role.SERVICE}),
    "ReverseTransaction": frozenset({Role.OPERATOR}),
    "GetTransaction": _READ,
    "ListTransactions": _READ,
    "GetAccount": _READ,
    "ListAccounts": _READ,
    "GetTrialBalance": _READ,
    "StreamEntries": frozenset({Role.AUDITOR, Role.SERVICE}),
    **alerts.ACCESS,
}


def _require_book(connection: Connection, book: str) -> None:
    """Raises NOT_FOUND for a book that does not exist: an empty answer would hide a wrong name."""
    if book == BOOK:
        return
    try:
        store.head_at(connection, book)
    except UnknownBook:
        raise not_found_error("book", book, "book") from None


def _read_accounts(
    connection: Connection, filters: store.AccountFilter, after: tuple[str, str] | None, limit: int
) -> list[store.AccountRow]:
    _require_book(connection, filters.book)
    return store.list_accounts(connection, filters, after, limit)


def _read_transactions(
    connection: Connection, filters: store.TransactionFilter, before: tuple[int] | None, limit: int
) -> Scan[store.StoredTransaction, tuple[int]]:
    """Transactions, newest first, before a given sequence."""
    _require_book(connection, filters.book)
    return store.list_transactions(
        connection, filters._replace(before=before[0] if before else None), limit
    )


_ACCOUNTS = Listing(
    "ListAccounts",
    _read_accounts,
    (str, str),
    lambda row: (row.account, row.currency),
    convert.account,
)
_TRANSACTIONS = Listing(
    "ListTransactions",
    _read_transactions,
    (int,),
    lambda item: (item.row.sequence,),
    convert.transaction,
)


class LedgerHandlers(AlertHandlers):
    """Handlers only decode, await and encode."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        poster = TransactionPoster(database)
        self.recent = poster.recent
        self.tail = _open_tail(database, BOOK)
        self._tails = {BOOK: self.tail}
        self._post_batcher: Batcher[Sequence[Posting], Sequence[PostedTransaction | Exception]] = (
            Batcher(
                "ledger.post",
                poster.post_groups,
                max_batch=4,
                max_linger=0,
                drop_abandoned=True,
                max_queued=MAX_QUEUED_BATCHES,
            )
        )  # the items arrive in batches already

    def start(self) -> None:
        self._post_batcher.start()

    async def stop(self) -> None:
        await self._post_batcher.stop()

    async def BatchPost(self, request: pb.BatchPostRequest, _call: Call) -> pb.BatchPostResponse:
        include_transaction = not request.outcome_only
        results = await process_items(
            request.postings, "postings", convert.parse_posting, self._post_batcher.submit
        )
        return pb.BatchPostResponse(
            results=[
                _post_result(result, include_transaction=include_transaction) for result in results
            ]
        )

    async def ReverseTransaction(
        self, request: pb.ReverseTransactionRequest, call: Call
    ) -> pb.ReverseTransactionResponse:
        transaction_id = parse_transaction_id(request.transaction_id)
        reason = parse_reason_text(request.reason, "reason")
        original = convert.stored_posting(await self._get_transaction(transaction_id))
        reject_irreversible(original)
        (result,) = await self._post_batcher.submit(
            [build_reversal(original, transaction_id.sequence, reason, call.caller.name)]
        )
        if isinstance(result, ApiError) and result.reason is ErrorReason.IDEMPOTENCY_KEY_REUSED:
            raise ApiError(
                ErrorReason.ALREADY_REVERSED,
                "The transaction has already been reversed with another reason.",
            )
        if isinstance(result, Exception):
            raise result
        if result.replayed:
            call.mark_replayed()
        return pb.ReverseTransactionResponse(transaction=result.transaction)

    async def GetTransaction(
        self, request: pb.GetTransactionRequest, _call: Call
    ) -> pb.GetTransactionResponse:
        transaction_id = parse_transaction_id(request.transaction_id)
        return pb.GetTransactionResponse(
            transaction=convert.transaction(await self._get_transaction(transaction_id))
        )

    async def ListTransactions(
        self, request: pb.ListTransactionsRequest, _call: Call
    ) -> pb.ListTransactionsResponse:
        transactions, next_page_token = await list_page(
            self._database, _TRANSACTIONS, request, _parse_filter(request)
        )
        return pb.ListTransactionsResponse(
            transactions=transactions, next_page_token=next_page_token
        )

    async def GetAccount(self, request: pb.GetAccountRequest, _call: Call) -> pb.GetAccountResponse:
        account = parse_account(request.account)
        currency = parse_currency(request.currency)
        as_of = parse_time(request, "as_of_time")
        book = parse_book(request.book)

        def read(connection: Connection) -> tuple[Head, store.AccountRow | None]:
            head = store.head_at(connection, book, as_of)
            last = TransactionId(book, head.sequence)
            return head, store.account_at(connection, last, account, currency)

        head, row = await self._read(book, read)
        if row is None:
            raise not_found_error("account", f"{account} in {currency}")
        return pb.GetAccountResponse(
            account=convert.account(row),
            sequence=head.sequence,
            as_of_time=to_timestamp(head.post_time),
        )

    async def ListAccounts(
        self, request: pb.ListAccountsRequest, _call: Call
    ) -> pb.ListAccountsResponse:
        filters = store.AccountFilter(
            parse_book(request.book),
            parse_text(request.prefix, "prefix", 255),
            parse_currency(request.currency) if request.currency else "",
        )
        accounts, next_page_token = await list_page(self._database, _ACCOUNTS, request, filters)
        return pb.ListAccountsResponse(accounts=accounts, next_page_token=next_page_token)

    async def GetTrialBalance(
        self, request: pb.GetTrialBalanceRequest, _call: Call
    ) -> pb.GetTrialBalanceResponse:
        size = parse_page_size(request.page_size)
        as_of = parse_time(request, "as_of_time")
        book = parse_book(request.book)
        token = PageToken("GetTrialBalance", book)
        cursor = token.parse(request.page_token, int, str, str, str)
        sums = convert.parse_sums(cursor[3]) if cursor else {}

        def read(connection: Connection) -> tuple[Head, Sequence[store.TrialBalanceRow]]:
            head = (
                store.head_after(connection, TransactionId(book, cursor[0]))
                if cursor
                else store.head_at(connection, book, as_of)
            )
            return head, store.list_trial_balance(
                connection,
                TransactionId(book, head.sequence),
                cursor[1:3] if cursor else ("", ""),
                size + 1,
            )

        head, rows = await self._read(book, read)
        lines = [line for row in rows[:size] if (line := row.opened()) is not None]
        for line in lines:
            sums[line.currency] = sums.get(line.currency, 0) + int(line.balance)
        next_token = ""
        if len(rows) > size:
            last = rows[size - 1]
            next_token = token.make(
                head.sequence, last.account, last.currency, convert.format_sums(sums)
            )
        return pb.GetTrialBalanceResponse(
            lines=[convert.account(line) for line in lines],
            sums=[
                money_pb2.Money(amount=format_amount(total, currency), currency=currency)
                for currency, total in sorted(sums.items())
            ],
            sequence=head.sequence,
            chain_head=head.hash,
            as_of_time=to_timestamp(head.post_time),
            next_page_token=next_token,
        )

    async def StreamEntries(
        self, request: pb.StreamEntriesRequest, call: Call
    ) -> AsyncIterator[pb.StreamEntriesResponse]:
        prefix = parse_text(request.account_prefix, "account_prefix", 255)
        book = parse_book(request.book)
        tail = await self._get_tail(book)

        def matches(transaction: store.StoredTransaction) -> bool:
            return any(entry.account.startswith(prefix) for entry in transaction.entries)

        filters = StreamFilter(
            partial(_load_between, book=book, prefix=prefix), matches, call.caller.owner
        )
        return stream_resource(
            tail.stream(filters, request.after_sequence, "after_sequence", follow=request.follow),
            lambda item: pb.StreamEntriesResponse(transaction=convert.transaction(item)),
        )

    async def _get_transaction(self, transaction_id: TransactionId) -> store.StoredTransaction:
        book, sequence = transaction_id
        stored = await self._database.read(
            lambda connection: store.load_transactions(connection, book, [sequence])
        )
        if not stored:
            raise not_found_error("transaction", str(transaction_id))
        return stored[0]

    async def _get_tail(self, book: str) -> SequenceTail[store.StoredTransaction]:
        """The end of a book that exists, shared by its streams. Raises NOT_FOUND."""
        if book not in self._tails:
            await self._read(book, lambda _connection: None)
            self._tails.setdefault(book, _open_tail(self._database, book))
        return self._tails[book]

    async def _read(self, book: str, read: Callable[[Connection], T]) -> T:
        """Reads from a book. Raises NOT_FOUND if it does not exist."""

        def read_book(connection: Connection) -> T:
            _require_book(connection, book)
            return read(connection)

        return await self._database.read(read_book)


def _open_tail(database: Database, book: str) -> SequenceTail[store.StoredTransaction]:
    return SequenceTail(
        database,
        SequenceSource(
            lambda connection: store.head_at(connection, book).sequence,
            partial(_load_between, book=book),
            lambda transaction: transaction.row.sequence,
            lambda transaction: 300 * len(transaction.entries),
        ),
    )


def _load_between(
    connection: Connection, after: int, until: int, limit: int, *, book: str, prefix: str = ""
) -> list[store.StoredTransaction]:
    sequences = store.list_sequences_between(connection, book, after, until, prefix, limit)
    return store.load_transactions(connection, book, sequences)


def _post_result(
    result: PostedTransaction | Exception, *, include_transaction: bool
) -> pb.PostResult:
    if isinstance(result, Exception):
        return pb.PostResult(error=to_item_status(result))
    return pb.PostResult(
        transaction=result.transaction if include_transaction else None, replayed=result.replayed
    )


def _parse_filter(request: pb.ListTransactionsRequest) -> store.TransactionFilter:
    return store.TransactionFilter(
        parse_book(request.book),
        parse_account(request.account) if request.account else None,
        parse_currency(request.currency) if request.currency else None,
        convert.KINDS.parse(request.kind, "kind", "") or None,
        parse_text(request.source_id, "source_id", _MAX_SOURCE_ID) or None,
        parse_time(request, "post_time_from"),
        parse_time(request, "post_time_until"),
        convert.parse_external_reference(request.external_reference) or None,
        parse_optional_id(request.buyer_account, "buyer_account") or None,
        _parse_source_ids(request.source_ids) or None,
    )


def _parse_source_ids(texts: Sequence[str]) -> list[str]:
    if len(texts) > _MAX_SOURCES:
        raise ApiError(
            ErrorReason.TOO_MANY_ITEMS,
            f"source_ids must have at most {_MAX_SOURCES} items.",
            field="source_ids",
        )
    return [
        parse_text(text, f"source_ids[{index}]", _MAX_SOURCE_ID) for index, text in enumerate(texts)
    ]
