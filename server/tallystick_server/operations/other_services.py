"""The parts of explanations that other services have: wallet, ledger and events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC

from tallystick.event.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.errors import ApiError
from tallystick_core.operations.explanation import (
    Explanation,
    ExplanationEntry,
    ExplanationSource,
    join_sentences,
    sort_entries,
)
from tallystick_server.operations.explanations import trace_id_of
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.service_client import ServiceCallRejected, ServiceClient

_TIMEOUT_SECONDS = 2.0
"""For each service: an explanation is read by a person who waits for it."""
_MAX_ENTRIES = 200
"""The maximum number of entries of each service."""
_LEDGER_KINDS = EnumNames(ledger_pb2.TransactionKind.DESCRIPTOR)
_WALLET_KINDS = EnumNames(wallet_pb2.WalletEntryKind.DESCRIPTOR)
_EVENT_TYPES = EnumNames(event_pb2.EventType.DESCRIPTOR)


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What other services are asked for: ledger transactions by source id, wallet entries by
    source, such as PAY_IN/{payment_order_id}, and events by aggregate. At most 300 sources and 100
    aggregates.
    """

    ledger_sources: Sequence[str]
    wallet_sources: Sequence[str]
    aggregate_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class FoundElsewhere:
    """The entries that other services have, and what is missing, as sentences."""

    entries: tuple[ExplanationEntry, ...] = ()
    omissions: tuple[str, ...] = ()


class OtherServices:
    """Reads from WalletService, LedgerService and EventService, by one call to each. A service that
    does not answer leaves a sentence instead of its entries.
    """

    def __init__(self, service_client: ServiceClient, wallet: str, ledger: str, event: str) -> None:
        self._service_client = service_client
        self._wallet = service_client.stub(wallet_service_pb2_grpc.WalletServiceStub, wallet)
        self._ledger = service_client.stub(ledger_service_pb2_grpc.LedgerServiceStub, ledger)
        self._event = service_client.stub(event_service_pb2_grpc.EventServiceStub, event)

    async def add_to(
        self, explanation: Explanation, omissions: Iterable[str], elsewhere: Elsewhere
    ) -> Explanation:
        """The explanation with the entries of these services, and with all that is left out."""
        found = await self._read(elsewhere)
        return replace(
            explanation,
            entries=sort_entries([*explanation.entries, *found.entries]),
            omissions=(*omissions, *found.omissions),
        )

    async def _read(self, elsewhere: Elsewhere) -> FoundElsewhere:
        parts = await asyncio.gather(
            _read_from("WalletService", self._read_wallet, elsewhere.wallet_sources),
            _read_from("LedgerService", self._read_ledger, elsewhere.ledger_sources),
            _read_from("EventService", self._read_events, elsewhere.aggregate_ids),
        )
        return FoundElsewhere(
            tuple(entry for part in parts for entry in part.entries),
            tuple(omission for part in parts for omission in part.omissions),
        )

    async def _read_wallet(self, source_ids: Sequence[str]) -> list[ExplanationEntry]:
        request = wallet_service_pb2.ListEntriesOfSourcesRequest(
            source_ids=source_ids, page_size=_MAX_ENTRIES
        )
        response = await self._service_client.call(self._wallet.ListEntriesOfSources, request)
        return list(map(_wallet_entry, response.entries))

    async def _read_ledger(self, source_ids: Sequence[str]) -> list[ExplanationEntry]:
        request = ledger_service_pb2.ListTransactionsRequest(
            source_ids=source_ids, page_size=_MAX_ENTRIES
        )
        response = await self._service_client.call(self._ledger.ListTransactions, request)
        return list(map(_ledger_entry, response.transactions))

    async def _read_events(self, aggregate_ids: Sequence[str]) -> list[ExplanationEntry]:
        request = event_service_pb2.ListEventsRequest(
            aggregate_ids=aggregate_ids, page_size=_MAX_ENTRIES
        )
        response = await self._service_client.call(self._event.ListEvents, request)
        return list(map(_event_entry, response.events))


async def _read_from(
    service: str,
    read: Callable[[Sequence[str]], Awaitable[list[ExplanationEntry]]],
    names: Sequence[str],
) -> FoundElsewhere:
    """The entries that a service has of these sources or aggregates, if there are any."""
    if not names:
        return FoundElsewhere()
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            entries = await read(names)
    except (TimeoutError, ApiError):
        return FoundElsewhere(omissions=(f"{service} did not answer; its entries are missing.",))
    except ServiceCallRejected as error:
        omission = (
            f"{service} rejected the call ({error.status}: {error.message.rstrip('.')}); its "
            "entries are missing."
        )
        return FoundElsewhere(omissions=(omission,))
    if len(entries) < _MAX_ENTRIES:
        return FoundElsewhere(tuple(entries))
    omission = f"{service} may have more than the {_MAX_ENTRIES} entries that are shown."
    return FoundElsewhere(tuple(entries), (omission,))


def _wallet_entry(entry: wallet_pb2.WalletEntry) -> ExplanationEntry:
    kind = _WALLET_KINDS.parse(entry.kind, "kind")
    return ExplanationEntry(
        entry.create_time.ToDatetime(UTC),
        ExplanationSource.WALLET,
        f"The wallet of {entry.seller_account} has the entry {kind} of {entry.amount} "
        f"{entry.currency}.",
        f"Afterwards pending is {entry.pending_after}, available {entry.available_after}, held "
        f"{entry.held_after} and owed {entry.owed_after}.",
        entry.source_id,
    )


def _ledger_entry(transaction: ledger_pb2.Transaction) -> ExplanationEntry:
    kind = _LEDGER_KINDS.parse(transaction.kind, "kind")
    lines = "; ".join(
        f"{'debit' if line.direction == ledger_pb2.DIRECTION_DEBIT else 'credit'} "
        f"{line.account} {line.amount} {line.currency}"
        for line in transaction.entries
    )
    reversed_by = transaction.reversed_by_transaction_id
    reference = transaction.external_reference
    return ExplanationEntry(
        transaction.post_time.ToDatetime(UTC),
        ExplanationSource.LEDGER,
        f"The ledger has the transaction {transaction.transaction_id} of the kind {kind}.",
        join_sentences(
            f"Lines: {lines}.",
            f"The provider's id is {reference}." if reference else "",
            f"It was reversed by {reversed_by}." if reversed_by else "",
        ),
        transaction.transaction_id,
    )


def _event_entry(event: event_pb2.Event) -> ExplanationEntry:
    type_ = _EVENT_TYPES.parse(event.type, "type")
    return ExplanationEntry(
        event.create_time.ToDatetime(UTC),
        ExplanationSource.EVENT,
        f"The event {type_} was published: version {event.aggregate_version} of "
        f"{event.aggregate_id}, at cursor {event.cursor}.",
        trace_id=trace_id_of(event.traceparent),
    )
