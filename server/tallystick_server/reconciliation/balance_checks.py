"""Compares the balances of the ledger with each other and with the wallets, by the calls of the
services. What differs becomes a break.

Wallet and ledger are read at different moments, and a payment that is being booked is in one of
them first. So only a difference that two checks find is a break; it ends once it is gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from tallystick.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from tallystick.wallet.v1 import wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.money import MAX_BALANCE, format_amount, parse_signed_amount
from tallystick_core.reconciliation.breaks import BreakKind
from tallystick_server.observability.tracing import traceparent
from tallystick_server.reconciliation.check_breaks import (
    Difference,
    DifferenceKey,
    end_breaks,
    key_of,
    list_remaining,
    open_breaks,
)
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection

_PAGE_SIZE = 200
_MAX_BREAKS = 200
_KINDS = (BreakKind.LEDGER_UNBALANCED, BreakKind.WALLET_DIFFERS)
_SELLERS = "sellers/"

Balance = tuple[str, str, int]
"""An account or a seller, a currency, and the balance in minor units."""


class BalanceChecks:
    """Runs the check, and keeps what the last run found."""

    def __init__(
        self, database: Database, service_client: ServiceClient, ledger: str, wallet: str
    ) -> None:
        self._database = database
        self._service_client = service_client
        self._ledger = service_client.stub(ledger_service_pb2_grpc.LedgerServiceStub, ledger)
        self._wallet = service_client.stub(wallet_service_pb2_grpc.WalletServiceStub, wallet)
        self._last_found: Mapping[DifferenceKey, Difference] = {}

    async def run_once(self) -> None:
        """Compares all balances, opens the breaks of differences that stay, and ends those that are
        gone. Raises DEPENDENCY_UNAVAILABLE.
        """
        found = {item.key: item async for item in self._find_differences()}
        staying = [item for key, item in found.items() if self._last_found.get(key) == item]
        self._last_found = found
        trace_context = traceparent()

        def store(connection: Connection) -> None:
            open_breaks(connection, staying[:_MAX_BREAKS], trace_context)
            gone = [
                row.break_id
                for row in list_remaining(connection, _KINDS)
                if key_of(row) not in found
            ]
            end_breaks(connection, gone, trace_context)

        await self._database.transact(store)

    async def _find_differences(self) -> AsyncIterator[Difference]:
        """The sums of the ledger that are not zero, and the wallets that differ from it."""
        wallets = self._wallets()
        wallet = await anext(wallets, None)
        async for account, currency, balance in self._accounts():
            if not account:
                if balance:
                    yield _ledger_difference(currency, balance)
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


def _ledger_difference(currency: str, amount: int) -> Difference:
    detail = (
        f"the accounts of the ledger sum to {format_amount(amount, currency)} {currency}, and "
        "should to zero"
    )
    return Difference(BreakKind.LEDGER_UNBALANCED, "ledger", currency, amount, detail)


def _wallet_difference(seller: str, currency: str, amount: int) -> Difference:
    detail = f"the wallet has {format_amount(amount, currency)} {currency} more than the ledger"
    return Difference(BreakKind.WALLET_DIFFERS, f"{_SELLERS}{seller}", currency, amount, detail)


def _minor(text: str, currency: str) -> int:
    return parse_signed_amount(text, currency, "balance", MAX_BALANCE)
