"""Compares what orders and payouts say of their booking with wallets and ledger, by the calls of
the services. What differs becomes a break.

Events name the orders and payouts that changed. What has changed lately may still be in motion, so
it is compared once it is old enough. An order whose booking takes longer is a break until it is
booked.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import takewhile
from typing import NamedTuple

from tallystick.event.v1 import event_pb2, event_service_pb2, event_service_pb2_grpc
from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from tallystick.payment.v1 import payment_pb2
from tallystick.payout.v1 import payout_pb2
from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.money import format_amount, parse_amount, parse_signed_amount
from tallystick_core.reconciliation.bookings import (
    Amounts,
    Booking,
    BookingDifference,
    WalletKey,
    find_differences,
)
from tallystick_core.reconciliation.breaks import BreakKind
from tallystick_server.observability.tracing import traceparent
from tallystick_server.reconciliation.check_breaks import (
    Difference,
    end_breaks,
    key_of,
    list_remaining,
    open_breaks,
)
from tallystick_server.rpc.service_client import ServiceCallRejected, ServiceClient
from tallystick_server.rpc.timestamps import to_timestamp
from tallystick_storage import clock
from tallystick_storage.database import Database
from tallystick_storage.reconciliation import check_positions
from tallystick_storage.sql import Connection

_CHECK_NAME = "bookings"
_KINDS = (BreakKind.ORDER_DIFFERS, BreakKind.HOLD_DIFFERS)
_PAGE_SIZE = 200
"""Events that are examined together."""
_MAX_SUBJECTS = 20
"""Orders and payouts that are compared at once."""
_MAX_LISTED = 200
"""Entries and transactions: enough for all of these, because each has at most one of each kind."""
_MAX_LISTED_EVENTS = 200
_MAX_VERSIONS = 10_000
"""Of an order or a payout; far more than any has."""
_ORDERS, _PAYOUTS, _SELLERS = "paymentOrders/", "payouts/", "sellers/"
_PAY_IN = "PAY_IN/"
_TYPES = (
    event_pb2.EVENT_TYPE_PAYMENT_ORDER_CHANGED,
    event_pb2.EVENT_TYPE_TRANSACTION_POSTED,
    event_pb2.EVENT_TYPE_PAYOUT_CHANGED,
    event_pb2.EVENT_TYPE_WALLET_CHANGED,
)
_STATES_WITH_HOLD = frozenset(
    {
        payout_pb2.PAYOUT_STATE_AWAITING_APPROVAL,
        payout_pb2.PAYOUT_STATE_READY,
        payout_pb2.PAYOUT_STATE_SUBMITTING,
        payout_pb2.PAYOUT_STATE_SUBMITTED,
        payout_pb2.PAYOUT_STATE_IN_TRANSIT,
    }
)
_HOLD_ENDS = frozenset(
    {
        wallet_pb2.WALLET_ENTRY_KIND_HOLD_CAPTURED,
        wallet_pb2.WALLET_ENTRY_KIND_HOLD_RELEASED,
        wallet_pb2.WALLET_ENTRY_KIND_HOLD_EXPIRED,
    }
)


class _Comparison(NamedTuple):
    """The differences of some orders and payouts. `undecided`: those that changed lately, or whose
    booking has not ended; `without_event`: those of which no event is left, or none has come.
    """

    differences: Sequence[Difference]
    undecided: frozenset[str]
    without_event: frozenset[str]


class BookingChecks:
    """Runs the check. `min_age`: of what is compared; what changes later comes with its own events.
    `event`, `wallet`, `ledger`: the addresses of services.
    """

    def __init__(
        self,
        database: Database,
        service_client: ServiceClient,
        event: str,
        wallet: str,
        ledger: str,
        min_age: timedelta,
    ) -> None:
        self._database = database
        self._service_client = service_client
        self._events = service_client.stub(event_service_pb2_grpc.EventServiceStub, event)
        self._wallet = service_client.stub(wallet_service_pb2_grpc.WalletServiceStub, wallet)
        self._ledger = service_client.stub(ledger_service_pb2_grpc.LedgerServiceStub, ledger)
        self._min_age = min_age

    async def run_once(self) -> None:
        """Ends the breaks whose differences are gone, and examines the new events. Raises
        DEPENDENCY_UNAVAILABLE.
        """
        until = await self._database.load(clock.now) - self._min_age
        until_nanoseconds = to_timestamp(until).ToNanoseconds()
        await self._end_breaks(until_nanoseconds)
        while await self._examine_page(until_nanoseconds):
            continue

    async def _end_breaks(self, until: int) -> None:
        remaining = await self._database.load(lambda connection: list_remaining(connection, _KINDS))
        if not remaining:
            return
        compared = await self._compare(sorted({row.account for row in remaining}), until)
        found = {item.key for item in compared.differences}
        # not those that another process has found meanwhile: they were not compared
        unknown = compared.undecided | compared.without_event
        gone = [
            row.break_id
            for row in remaining
            if row.account not in unknown and key_of(row) not in found
        ]
        trace_context = traceparent()
        await self._database.transact(
            lambda connection: end_breaks(connection, gone, trace_context)
        )

    async def _examine_page(self, until: int) -> bool:
        """Examines the next events that are old enough. Returns whether there may be more."""
        cursor = await self._database.load(
            lambda connection: check_positions.find(connection, _CHECK_NAME)
        )
        request = event_service_pb2.StreamEventsRequest(after_cursor=cursor, types=_TYPES)
        try:
            page = await self._read_events(request, _PAGE_SIZE)
        except ServiceCallRejected as error:
            # events were deleted after their retention, or the database of events was restored
            next_cursor = error.metadata.get("oldest") or error.metadata.get("last")
            if next_cursor is None:
                raise
            await self._store([], int(next_cursor))
            return True
        events = list(takewhile(lambda event: event.create_time.ToNanoseconds() <= until, page))
        if not events:
            return False
        compared = await self._compare(sorted(_subjects(events)), until)
        await self._store(compared.differences, events[-1].cursor)
        return len(events) == _PAGE_SIZE

    async def _store(self, differences: Sequence[Difference], cursor: int) -> None:
        """Opens breaks, and stores that all events up to a cursor are examined."""
        trace_context = traceparent()

        def store(connection: Connection) -> None:
            open_breaks(connection, differences, trace_context)
            check_positions.store(connection, _CHECK_NAME, cursor)

        await self._database.transact(store, idempotent=True)

    async def _read_events(
        self, request: event_service_pb2.StreamEventsRequest, limit: int
    ) -> Sequence[event_pb2.Event]:
        stream = self._events.StreamEvents
        responses = await self._service_client.read_stream(stream, request, limit)
        return [response.event for response in responses]

    async def _compare(self, subjects: Sequence[str], until: int) -> _Comparison:
        """Compares orders and payouts, by the ids that their events have."""
        differences: list[Difference] = []
        undecided, without_event = set(), set()
        for start in range(0, len(subjects), _MAX_SUBJECTS):
            part = subjects[start : start + _MAX_SUBJECTS]
            states = await self._latest_states(part)
            entries = await self._wallet_entries(part)
            transactions = await self._transactions(part)
            for subject in part:
                found = _Found(
                    subject,
                    states.get(subject),
                    entries.get(subject, ()),
                    transactions.get(subject),
                )
                booking = found.to_booking() if found.is_older_than(until) else None
                if found.event is None:
                    without_event.add(subject)
                if booking is None:
                    undecided.add(subject)
                else:
                    differences += [
                        _to_difference(subject, item) for item in find_differences(booking)
                    ]
        return _Comparison(differences, frozenset(undecided), frozenset(without_event))

    async def _latest_states(self, subjects: Sequence[str]) -> Mapping[str, event_pb2.Event]:
        """The last event of each subject that has any."""
        request = event_service_pb2.ListEventsRequest(aggregate_ids=subjects, page_size=_MAX_LISTED)
        events = (await self._service_client.call(self._events.ListEvents, request)).events
        if len(events) < _MAX_LISTED_EVENTS:
            return {event.aggregate_id: event for event in events}
        # the oldest are listed: later ones may be left out
        if len(subjects) == 1:
            later = event_service_pb2.StreamEventsRequest(
                after_cursor=events[-1].cursor, aggregate_id=subjects[0]
            )
            return {subjects[0]: [events[-1], *await self._read_events(later, _MAX_VERSIONS)][-1]}
        half = len(subjects) // 2
        return {
            **await self._latest_states(subjects[:half]),
            **await self._latest_states(subjects[half:]),
        }

    async def _wallet_entries(
        self, subjects: Sequence[str]
    ) -> Mapping[str, Sequence[wallet_pb2.WalletEntry]]:
        """The entries of each subject's credit or hold."""
        sources = {_source_of(subject): subject for subject in subjects}
        request = wallet_service_pb2.ListEntriesOfSourcesRequest(
            source_ids=sources, page_size=_MAX_LISTED
        )
        response = await self._service_client.call(self._wallet.ListEntriesOfSources, request)
        found = defaultdict[str, list[wallet_pb2.WalletEntry]](list)
        for entry in response.entries:
            found[sources[entry.source_id]].append(entry)
        return found

    async def _transactions(self, subjects: Sequence[str]) -> Mapping[str, ledger_pb2.Transaction]:
        """The transaction of each order that is posted."""
        order_ids = [
            subject.removeprefix(_ORDERS) for subject in subjects if subject.startswith(_ORDERS)
        ]
        if not order_ids:
            return {}
        request = ledger_service_pb2.ListTransactionsRequest(
            source_ids=order_ids,
            kind=ledger_pb2.TRANSACTION_KIND_PAY_IN,
            page_size=_MAX_LISTED,
        )
        response = await self._service_client.call(self._ledger.ListTransactions, request)
        return {
            f"{_ORDERS}{transaction.source_id}": transaction
            for transaction in response.transactions
        }


def _subjects(events: Iterable[event_pb2.Event]) -> set[str]:
    """The orders that are booked or have a credit or a transaction, and the payouts that changed or
    have a hold. A credit that is released is an event too, so its order is compared again.
    """
    subjects = set()
    for event in events:
        match event.WhichOneof("payload"):
            case "payment_order" if _is_booked(event.payment_order):
                subjects.add(event.aggregate_id)
            case "transaction" if event.transaction.kind == ledger_pb2.TRANSACTION_KIND_PAY_IN:
                subjects.add(f"{_ORDERS}{event.transaction.source_id}")
            case "payout":
                subjects.add(event.aggregate_id)
            case "wallet_entry":
                source_id = event.wallet_entry.source_id
                if source_id.startswith(_PAY_IN):
                    subjects.add(f"{_ORDERS}{source_id.removeprefix(_PAY_IN)}")
                elif source_id.startswith(_PAYOUTS):
                    subjects.add(source_id)
    return subjects


def _source_of(subject: str) -> str:
    """The source id of the wallet's entries of an order or a payout."""
    if subject.startswith(_ORDERS):
        return f"{_PAY_IN}{subject.removeprefix(_ORDERS)}"
    return subject


class _Found(NamedTuple):
    """What the services have of an order or a payout. `event`: its last one."""

    subject: str
    event: event_pb2.Event | None
    entries: Sequence[wallet_pb2.WalletEntry]
    transaction: ledger_pb2.Transaction | None

    def is_older_than(self, until: int) -> bool:
        """Whether all of it was there at a time, in nanoseconds."""
        times = [entry.create_time for entry in self.entries]
        if self.event is not None:
            times.append(self.event.create_time)
        if self.transaction is not None:
            times.append(self.transaction.post_time)
        return all(time.ToNanoseconds() <= until for time in times)

    def to_booking(self) -> Booking | None:
        """What should be booked, and what is; None: the booking has not ended."""
        if self.subject.startswith(_PAYOUTS):
            expected = _expected_hold(self.event)
            return None if expected is None else Booking(expected, _held(self.entries))
        return Booking(_expected_credit(self.event), _credited(self.entries), self._posted())

    def _posted(self) -> Amounts:
        """The credits of sellers in the ledger."""
        amounts = Counter[WalletKey]()
        for entry in self.transaction.entries if self.transaction is not None else ():
            if entry.account.startswith(_SELLERS):
                sign = 1 if entry.direction == ledger_pb2.DIRECTION_CREDIT else -1
                key = WalletKey(entry.account.removeprefix(_SELLERS), entry.currency)
                amounts[key] += sign * parse_amount(entry.amount, entry.currency)
        return amounts


def _is_booked(order: payment_pb2.PaymentOrder) -> bool:
    return (
        order.payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        and order.wallet_updated
        and order.ledger_updated
    )


def _expected_credit(event: event_pb2.Event | None) -> Amounts:
    """What an order says that its seller has."""
    if event is None or not _is_booked(event.payment_order):
        return {}
    order = event.payment_order
    amount = parse_amount(order.amount, order.currency)
    if order.platform_fee:
        amount -= parse_signed_amount(order.platform_fee, order.currency, "platform_fee")
    return {WalletKey(order.seller_account, order.currency): amount}


def _expected_hold(event: event_pb2.Event | None) -> Amounts | None:
    """What must be held for a payout; None: its hold is being placed or released."""
    if event is None:
        return {}
    payout = event.payout
    if payout.payout_state in _STATES_WITH_HOLD:
        amount = parse_amount(payout.amount, payout.currency)
        return {WalletKey(payout.seller_account, payout.currency): amount}
    return {} if payout.wallet_updated else None


def _credited(entries: Iterable[wallet_pb2.WalletEntry]) -> Amounts:
    return _sum_entries(
        entry for entry in entries if entry.kind == wallet_pb2.WALLET_ENTRY_KIND_CREDIT
    )


def _held(entries: Sequence[wallet_pb2.WalletEntry]) -> Amounts:
    """What is still held: a hold ends once, as a whole."""
    if any(entry.kind in _HOLD_ENDS for entry in entries):
        return {}
    return _sum_entries(entries)


def _sum_entries(entries: Iterable[wallet_pb2.WalletEntry]) -> Amounts:
    amounts = Counter[WalletKey]()
    for entry in entries:
        key = WalletKey(entry.seller_account, entry.currency)
        amounts[key] += parse_amount(entry.amount, entry.currency)
    return amounts


def _to_difference(subject: str, item: BookingDifference) -> Difference:
    seller, currency = item.key
    expected, in_wallet = (
        format_amount(amount, currency) for amount in (item.expected, item.in_wallet)
    )
    if item.in_ledger is None:
        kind = BreakKind.HOLD_DIFFERS
        detail = f"{expected} {currency} of {seller} should be held for it, and {in_wallet} is held"
    else:
        kind = BreakKind.ORDER_DIFFERS
        detail = (
            f"{seller} should have {expected} {currency} by the order, and has {in_wallet} in the "
            f"wallet and {format_amount(item.in_ledger, currency)} in the ledger"
        )
    return Difference(kind, subject, currency, item.amount, detail)
