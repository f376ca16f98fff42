"""Compares the ledger with itself and with the wallets, by the calls of the services. What differs
becomes a break.

Wallet and ledger are read at different moments, and a payment that is being booked is in one of
them first. So only a difference that two checks find is a break; it ends once it is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

from tallystick.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from tallystick.wallet.v1 import wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.ledger.identifiers import BOOK
from tallystick_core.money import MAX_BALANCE, format_amount, parse_signed_amount
from tallystick_core.reconciliation.breaks import (
    BreakAction,
    BreakKind,
    BreakState,
    Resolution,
)
from tallystick_server.observability.tracing import traceparent
from tallystick_server.reconciliation.break_resolution import (
    PLATFORM,
    change_breaks,
    resolve_by_platform,
)
from tallystick_server.reconciliation.events import record_break_changes
from tallystick_server.reconciliation.rules import load_rules
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_storage.database import Database
from tallystick_storage.reconciliation import breaks as store
from tallystick_storage.reconciliation import ledger_items
from tallystick_storage.sql import Connection

_PAGE_SIZE = 200
_MAX_BREAKS = 200
_KINDS = (BreakKind.LEDGER_UNBALANCED, BreakKind.WALLET_DIFFERS)
_GONE = "the difference is gone"
_SELLERS = "sellers/"

Balance = tuple[str, str, int]
"""An account or a seller, a currency, and the balance in minor units."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What should be zero. `account`: a ledger account; "ledger": the sum of all."""

    kind: BreakKind
    account: str
    currency: str
    amount: int

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.kind, self.account, self.currency)


class InternalChecks:
    """Runs the checks, and keeps what the last run found."""

    def __init__(
        self, database: Database, service_client: ServiceClient, ledger: str, wallet: str
    ) -> None:
        self._database = database
        self._service_client = service_client
        self._ledger = service_client.stub(ledger_service_pb2_grpc.LedgerServiceStub, ledger)
        self._wallet = service_client.stub(wallet_service_pb2_grpc.WalletServiceStub, wallet)
        self._last_found: Mapping[tuple[str, str, str], Difference] = {}

    async def run_once(self) -> None:
        """Compares all balances, opens the breaks of differences that stay, and ends those that are
        gone. Raises DEPENDENCY_UNAVAILABLE.
        """
        found = {item.key: item async for item in self._find_differences()}
        staying = [item for key, item in found.items() if self._last_found.get(key) == item]
        self._last_found = found
        trace_context = traceparent()
        await self._database.transact(
            lambda connection: _store(connection, staying[:_MAX_BREAKS], set(found), trace_context)
        )

    async def _find_differences(self) -> AsyncIterator[Difference]:
        """The sums of the ledger that are not zero, and the wallets that differ from it."""
        wallets = self._wallets()
        wallet = await anext(wallets, None)
        async for account, currency, balance in self._accounts():
            if not account:
                if balance:
                    yield Difference(BreakKind.LEDGER_UNBALANCED, "ledger", currency, balance)
                continue
            key = (account.removeprefix(_SELLERS), currency)
            while wallet is not None and wallet[:2] < key:
                yield _wallet_difference(wallet[0], wallet[1], wallet[2])
                wallet = await anext(wallets, None)
            in_wallet = 0
            if wallet is not None and wallet[:2] == key:
                in_wallet = wallet[2]
                wallet = await anext(wallets, None)
            if in_wallet != balance:
                yield _wallet_difference(*key, in_wallet - balance)
        while wallet is not None:
            yield _wallet_difference(*wallet)
            wallet = await anext(wallets, None)

    async def _accounts(self) -> AsyncIterator[Balance]:
        """The accounts of sellers at one point of the ledger, in their order, and then the sums of
        all accounts, with "" as account.
        """
        request = ledger_service_pb2.GetTrialBalanceRequest(page_size=_PAGE_SIZE)
        while True:
            page = await self._service_client.call(self._ledger.GetTrialBalance, request)
            for line in page.lines:
                if line.account.startswith(_SELLERS):
                    yield line.account, line.currency, _minor(line.balance, line.currency)
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        for total in page.sums:
            yield "", total.currency, _minor(total.amount, total.currency)

    async def _wallets(self) -> AsyncIterator[Balance]:
        """The wallets, in the order of sellers and currencies; those of zero are left out."""
        request = wallet_service_pb2.ListWalletsRequest(page_size=_PAGE_SIZE)
        while True:
            page = await self._service_client.call(self._wallet.ListWallets, request)
            for wallet in page.wallets:
                balance = _minor(wallet.balance, wallet.currency)
                if balance:
                    yield wallet.seller_account, wallet.currency, balance
            request.page_token = page.next_page_token
            if not request.page_token:
                return


def _wallet_difference(seller: str, currency: str, amount: int) -> Difference:
    return Difference(BreakKind.WALLET_DIFFERS, f"{_SELLERS}{seller}", currency, amount)


def _minor(text: str, currency: str) -> int:
    return parse_signed_amount(text, currency, "balance", MAX_BALANCE)


def _store(
    connection: Connection,
    staying: list[Difference],
    found: set[tuple[str, str, str]],
    trace_context: str,
) -> None:
    """Opens the breaks that are missing, and ends those whose difference is gone. One that was
    accepted does not count for the next difference: a comment on it says that it is gone.
    """
    if staying:  # of two processes, the second sees the breaks of the first
        ledger_items.lock_items(connection, BOOK)
    remaining = store.list_remaining(connection, _KINDS, PLATFORM, _GONE)
    open_breaks = {
        (row.kind, row.account, row.currency): row
        for row in remaining
        if row.state != BreakState.RESOLVED
    }
    accepted = {
        (row.kind, row.account, row.currency, int(row.difference))
        for row in remaining
        if row.state == BreakState.RESOLVED
    }
    rules = load_rules(connection)
    new = [
        store.NewBreak(
            _break_id(item, connection),
            item.kind,
            rules[item.kind].version,
            rules[item.kind].break_class,
            item.account,
            item.currency,
            str(item.amount),
            _detail(item),
            None,
        )
        for item in staying
        if item.key not in open_breaks and (*item.key, item.amount) not in accepted
    ]
    if new:
        rows = store.insert(connection, new, PLATFORM, trace_context, connection.begin_time)
        record_break_changes(connection, rows, PLATFORM, trace_context)
    gone = store.lock_unlocked(
        connection,
        [row.break_id for row in remaining if (row.kind, row.account, row.currency) not in found],
    ).values()
    ended = [row.break_id for row in gone if row.state == BreakState.OPEN]
    if ended:
        resolve_by_platform(connection, ended, Resolution.MATCH, _GONE, trace_context)
    no_longer_accepted = [row for row in gone if row.state == BreakState.RESOLVED]
    if no_longer_accepted:
        change_breaks(
            connection, no_longer_accepted, BreakAction.COMMENTED, PLATFORM, _GONE, trace_context
        )


def _break_id(item: Difference, connection: Connection) -> str:
    digest = sha256(" ".join(item.key).encode()).hexdigest()[:16]
    return f"c-{digest}-{connection.begin_time:%Y%m%d%H%M%S}"


def _detail(item: Difference) -> str:
    amount = f"{format_amount(item.amount, item.currency)} {item.currency}"
    if item.kind is BreakKind.LEDGER_UNBALANCED:
        return f"the accounts of the ledger sum to {amount}, and should to zero"
    return f"the wallet has {amount} more than the ledger"
