"""Reads the ledger's entries on clearing accounts, and ends breaks that waited for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from tallystick.ledger.v1 import ledger_pb2, ledger_service_pb2, ledger_service_pb2_grpc
from tallystick_core.ledger.identifiers import BOOK
from tallystick_core.money import parse_amount
from tallystick_core.reconciliation.accounts import is_tracked, line_type_of
from tallystick_core.reconciliation.breaks import (
    KINDS_ENDED_BY_BOOKING,
    BreakAction,
    BreakClass,
    Resolution,
    Rules,
)
from tallystick_core.reconciliation.classify import is_fee_likely
from tallystick_server.observability.tracing import traceparent
from tallystick_server.reconciliation.bank_entries import end_bank_entries
from tallystick_server.reconciliation.booked_entries import named_items
from tallystick_server.reconciliation.break_resolution import (
    PLATFORM,
    change_breaks,
    resolve_by_platform,
)
from tallystick_server.reconciliation.rules import load_rules
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_server.rpc.timestamps import parse_time
from tallystick_storage.database import Database
from tallystick_storage.reconciliation import breaks as break_store
from tallystick_storage.reconciliation import ledger_items as store
from tallystick_storage.reconciliation import open_items
from tallystick_storage.sql import Connection

_KINDS = EnumNames(ledger_pb2.TransactionKind.DESCRIPTOR)
_PAGE = 500
_MAX_BREAKS = 200


class LedgerReader:
    """Keeps the open entries up to date with the ledger."""

    def __init__(self, database: Database, service_client: ServiceClient, ledger: str) -> None:
        self._database = database
        self._service_client = service_client
        self._stub = service_client.stub(ledger_service_pb2_grpc.LedgerServiceStub, ledger)
        self._lock = asyncio.Lock()
        self._has_new = True
        """Whether breaks may wait for what was read: also at the start, after a crash."""

    async def catch_up(self) -> None:
        """Reads to the present end of the ledger. Raises DEPENDENCY_UNAVAILABLE."""
        async with self._lock:
            is_last = False
            while not is_last:
                count = await self._read_page()
                self._has_new |= count > 0
                is_last = count < _PAGE
            if self._has_new:
                self._has_new = False
                try:
                    await self._end_waiting()
                except BaseException:
                    self._has_new = True
                    raise

    def expect_ends(self) -> None:
        """A break is open again: the ledger may have what it waits for already."""
        self._has_new = True

    async def _end_waiting(self) -> None:
        """Resolves the breaks whose charge or payout was booked after all."""
        last_break_id: str | None = ""
        while last_break_id is not None:
            last_break_id = await self._database.transact(
                partial(_end_page, after=last_break_id), idempotent=True
            )
        while await self._database.transact(end_bank_entries, idempotent=True):
            pass

    async def _read_page(self) -> int:
        """Reads the next transactions, at most _PAGE. Returns how many there were."""
        after = await self._database.load(lambda connection: store.position(connection, BOOK))
        request = ledger_service_pb2.StreamEntriesRequest(after_sequence=after)
        page = await self._service_client.read_stream(self._stub.StreamEntries, request, _PAGE)
        if not page:
            return 0
        items, transactions = [], []
        for response in page:
            transaction = response.transaction
            kind = _KINDS.parse(transaction.kind, "kind")
            transactions.append(
                store.ReadTransaction(kind, transaction.source_id, transaction.transaction_id)
            )
            items += _items(transaction, kind)
        until = page[-1].transaction.sequence
        await self._database.transact(
            lambda connection: store.store(connection, BOOK, after, until, items, transactions),
            idempotent=True,
        )
        return len(page)


def _items(transaction: ledger_pb2.Transaction, kind: str) -> list[store.ItemRow]:
    """The entries of a transaction on accounts that statements are about."""
    rows = []
    for number, entry in enumerate(transaction.entries, 1):
        if not is_tracked(entry.account):
            continue
        amount = parse_amount(entry.amount, entry.currency)
        effective_time = parse_time(transaction, "effective_time")
        if effective_time is None:
            effective_time = parse_time(transaction, "post_time")
        if effective_time is None:
            raise ValueError("a transaction without a time")
        rows.append(
            store.ItemRow(
                BOOK,
                transaction.sequence,
                number,
                entry.account,
                entry.currency,
                amount if entry.direction == ledger_pb2.DIRECTION_DEBIT else -amount,
                kind,
                transaction.source_id,
                transaction.external_reference,
                effective_time,
                line_type_of(entry.account, kind),
            )
        )
    return rows


def _end_page(connection: Connection, after: str) -> str | None:
    """Resolves those of the next page, after a break, whose entries agree with their lines. Returns
    the last break of the page; None: there are no more.
    """
    candidates = break_store.list_waiting(connection, KINDS_ENDED_BY_BOOKING, after, _MAX_BREAKS)
    if not candidates:
        return None
    store.lock_items(connection, BOOK)
    rows = break_store.lock(connection, [row.break_id for row in candidates])
    rules = load_rules(connection)
    ended = [
        break_id
        for break_id, row in rows.items()
        if row.state == "OPEN" and _take_items(connection, row, rules)
    ]
    if ended:
        resolve_by_platform(connection, ended, Resolution.MATCH, "booked after all", traceparent())
    _reclassify(connection, [row for row in rows.values() if row.break_id not in ended])
    return candidates[-1].break_id


def _reclassify(connection: Connection, rows: Sequence[break_store.BreakRow]) -> None:
    """Gives breaks to a person that would wait for what the ledger has otherwise."""
    change_breaks(
        connection,
        [row for row in rows if row.state == "OPEN" and row.break_class == BreakClass.AUTOMATIC],
        BreakAction.RECLASSIFIED,
        PLATFORM,
        "the ledger has it with other values, with another line or in another break",
        traceparent(),
        break_class=BreakClass.INVESTIGATION,
    )


def _take_items(connection: Connection, row: break_store.BreakRow, rules: Rules) -> bool:
    """Moves the entries that the lines of a break name into it, if they agree. Their dates may be
    far apart.
    """
    lines, items = named_items(connection, row)
    gross = sum(line.amount + line.fee for line in lines)
    currencies = {line.currency for line in lines} | {item.currency for item in items}
    if not items or len(currencies) > 1 or sum(item.amount for item in items) != gross:
        return False
    if not all(is_fee_likely(line.fee, line.amount + line.fee, rules) for line in lines):
        return False
    open_items.store_break_items(
        connection,
        [
            (store.ItemKey(item.book, item.sequence, item.entry_number), row.break_id)
            for item in items
        ],
    )
    return True
