"""The RPCs of LedgerService."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import Connection, Row

from tallystick.ledger.v1 import ledger_service_pb2 as pb
from tallystick.money.v1 import money_pb2
from tallystick_core.caller import Role
from tallystick_core.identifier import parse_text, parse_words
from tallystick_core.ledger import Head, Posting, parse_account, parse_transaction_id, refuse_reversal, reversal, transaction_id
from tallystick_core.money import format_amount, parse_currency
from tallystick_core.refusal import Reason, Refused, not_found
from tallystick_server.ledger import messages
from tallystick_server.ledger.post import Post, Posted
from tallystick_server.runtime import alerts
from tallystick_server.runtime.alerts import AlertHandlers
from tallystick_server.runtime.door import Access, Call
from tallystick_server.runtime.fields import PageToken, page_size, parse_time, to_timestamp
from tallystick_server.runtime.follow import Numbered, Tail, Wanted
from tallystick_server.runtime.items import each, refusal
from tallystick_server.runtime.stage import BATCHES_WAITING, Stage
from tallystick_storage import ledger as store
from tallystick_storage.database import Database

_READ = frozenset({Role.OPERATOR, Role.AUDITOR, Role.SERVICE})
ACCESS: Access = {
    "BatchPost": frozenset({Role.SERVICE}),
    "ReverseTransaction": frozenset({Role.OPERATOR}),
    "GetTransaction": _READ,
    "ListTransactions": _READ,
    "GetAccount": _READ,
    "ListAccounts": _READ,
    "GetTrialBalance": frozenset({Role.OPERATOR, Role.AUDITOR}),
    "StreamEntries": frozenset({Role.AUDITOR, Role.SERVICE}),
    **alerts.ACCESS,
}


class LedgerHandlers(AlertHandlers):
    """Handlers only decode, await and encode."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, pb)
        post = Post(database)
        self.recent = post.recent
        self._tail = Tail(
            database,
            Numbered(lambda connection: store.point(connection).sequence, _between, lambda found: found[0].sequence, _size),
        )
        self._post: Stage[Sequence[Posting], Sequence[Posted | Exception]] = Stage(
            "ledger.post", post.run, most=4, longest_rest=0, for_callers=True, max_waiting=BATCHES_WAITING
        )  # what comes is batches already

    def start(self) -> None:
        self._post.start()

    async def stop(self) -> None:
        await self._post.stop()

    async def BatchPost(self, request: pb.BatchPostRequest, _call: Call) -> pb.BatchPostResponse:
        shown = not request.outcome_only
        results = await each(request.postings, "postings", messages.parse_posting, self._post.submit)
        return pb.BatchPostResponse(results=[_result(result, shown=shown) for result in results])

    async def ReverseTransaction(self, request: pb.ReverseTransactionRequest, call: Call) -> pb.ReverseTransactionResponse:
        sequence = parse_transaction_id(request.transaction_id)
        reason = parse_words(request.reason, "reason")
        original = await self._posting(sequence)
        refuse_reversal(original)
        (made,) = await self._post.submit([reversal(original, sequence, reason, call.caller.name)])
        if isinstance(made, Refused) and made.reason is Reason.KEY_REUSED:
            raise Refused(Reason.ALREADY_REVERSED, "The transaction was reversed before, for another reason.")
        if isinstance(made, Exception):
            raise made
        if made.replayed:
            call.replayed()
        return pb.ReverseTransactionResponse(transaction=made.transaction)

    async def GetTransaction(self, request: pb.GetTransactionRequest, _call: Call) -> pb.GetTransactionResponse:
        sequence = parse_transaction_id(request.transaction_id)
        return pb.GetTransactionResponse(transaction=messages.transaction(*await self._transaction(sequence)))

    async def ListTransactions(self, request: pb.ListTransactionsRequest, _call: Call) -> pb.ListTransactionsResponse:
        size = page_size(request.page_size)
        wanted = _filter(request)
        token = PageToken("ListTransactions", *("" if value is None else str(value) for value in _values(wanted)))
        place = token.parse(request.page_token, int)
        before = int(place[0]) if place else None

        def list_(connection: Connection) -> tuple[list[store.TransactionRow], int | None]:
            sequences, looked_at = store.list_sequences(connection, replace(wanted, before=before), size + 1)
            return store.transactions(connection, sequences), looked_at

        rows, looked_at = await self._database.read(list_)
        found = sorted(rows, key=lambda pair: -pair[0].sequence)
        shown, following = token.page(found, size, lambda pair: messages.transaction(*pair), lambda pair: (pair[0].sequence,))
        if not following and looked_at is not None:
            following = token.make(looked_at)
        return pb.ListTransactionsResponse(transactions=shown, next_page_token=following)

    async def GetAccount(self, request: pb.GetAccountRequest, _call: Call) -> pb.GetAccountResponse:
        account = parse_account(request.account, "account")
        currency = parse_currency(request.currency)
        as_of = parse_time(request, "as_of_time")

        def read(connection: Connection) -> tuple[Head, Row[Any] | None]:
            head = store.point(connection, as_of)
            return head, store.account_at(connection, account, currency, head.sequence)

        head, row = await self._database.read(read)
        if row is None:
            raise not_found("account", f"{account} in {currency}")
        return pb.GetAccountResponse(account=messages.account(row), sequence=head.sequence, as_of_time=to_timestamp(head.post_time))

    async def ListAccounts(self, request: pb.ListAccountsRequest, _call: Call) -> pb.ListAccountsResponse:
        size = page_size(request.page_size)
        prefix = parse_text(request.prefix, "prefix", 255)
        currency = parse_currency(request.currency) if request.currency else ""
        token = PageToken("ListAccounts", prefix, currency)
        after = _after(token.parse(request.page_token, str, str))
        rows = await self._database.read(lambda connection: store.list_accounts(connection, prefix, currency, after, size + 1))
        accounts, following = token.page(rows, size, messages.account, lambda row: (row.account, row.currency))
        return pb.ListAccountsResponse(accounts=accounts, next_page_token=following)

    async def GetTrialBalance(self, request: pb.GetTrialBalanceRequest, _call: Call) -> pb.GetTrialBalanceResponse:
        size = page_size(request.page_size)
        as_of = parse_time(request, "as_of_time")
        token = PageToken("GetTrialBalance")
        place = token.parse(request.page_token, int, str, str, str)
        sums = messages.parse_sums(str(place[3])) if place else {}

        def read(connection: Connection) -> tuple[Head, Sequence[Row[Any]]]:
            head = store.point_of(connection, int(place[0])) if place else store.point(connection, as_of)
            return head, store.trial_lines(connection, head.sequence, _after(place[1:3] if place else None), size + 1)

        head, found = await self._database.read(read)
        lines = [line for line in found[:size] if line.balance is not None]  # the others were opened later
        for line in lines:
            sums[line.currency] = sums.get(line.currency, 0) + int(line.balance)
        following = ""
        if len(found) > size:
            last = found[size - 1]
            following = token.make(head.sequence, last.account, last.currency, messages.format_sums(sums))
        return pb.GetTrialBalanceResponse(
            lines=[messages.account(line) for line in lines],
            sums=[money_pb2.Money(amount=format_amount(total, currency), currency=currency) for currency, total in sorted(sums.items())],
            sequence=head.sequence,
            chain_head=head.hash,
            as_of_time=to_timestamp(head.post_time),
            next_page_token=following,
        )

    async def StreamEntries(self, request: pb.StreamEntriesRequest, call: Call) -> AsyncIterator[pb.StreamEntriesResponse]:
        prefix = parse_text(request.account_prefix, "account_prefix", 255)

        def fits(found: store.TransactionRow) -> bool:
            return any(entry.account.startswith(prefix) for entry in found[1])

        wanted = Wanted(partial(_between, prefix=prefix), fits, call.caller.owner)
        after, on = request.after_sequence, request.follow
        del request  # a stream keeps no body
        async with aclosing(self._tail.follow(wanted, after, "after_sequence", on=on)) as transactions:
            async for row, entries in transactions:
                yield pb.StreamEntriesResponse(transaction=messages.transaction(row, entries))

    async def _transaction(self, sequence: int) -> store.TransactionRow:
        found = await self._database.read(lambda connection: store.transactions(connection, [sequence]))
        if not found:
            raise not_found("transaction", transaction_id(sequence))
        return found[0]

    async def _posting(self, sequence: int) -> Posting:
        """A stored transaction as it was posted."""
        return messages.stored_posting(*await self._transaction(sequence))


def _size(found: store.TransactionRow) -> int:
    return 300 * len(found[1])


def _between(connection: Connection, after: int, until: int, most: int, prefix: str = "") -> list[store.TransactionRow]:
    return store.transactions(connection, store.sequences_between(connection, after, until, prefix, most))


def _result(made: Posted | Exception, *, shown: bool) -> pb.PostResult:
    if isinstance(made, Exception):
        return pb.PostResult(error=refusal(made))
    return pb.PostResult(transaction=made.transaction if shown else None, replayed=made.replayed)


def _filter(request: pb.ListTransactionsRequest) -> store.TransactionFilter:
    return store.TransactionFilter(
        parse_account(request.account, "account") if request.account else None,
        parse_currency(request.currency) if request.currency else None,
        messages.KINDS.parse(request.kind, "kind", "") or None,
        parse_text(request.cause_id, "cause_id", 64) or None,
        parse_time(request, "post_time_from"),
        parse_time(request, "post_time_until"),
    )


def _values(wanted: store.TransactionFilter) -> tuple[object, ...]:
    return (wanted.account, wanted.currency, wanted.kind, wanted.cause_id, wanted.post_time_from, wanted.post_time_until)


def _after(place: Sequence[str | int] | None) -> tuple[str, str]:
    return (str(place[0]), str(place[1])) if place else ("", "")
