"""The wallet reader: reads sellers' balances from WalletService before a payout decision."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.money import MAX_BALANCE, parse_amount
from tallystick_core.payout.quote import WalletBalance
from tallystick_server.rpc.service_client import ServiceClient

_PAGE_SIZE = 200
_MAX_CONCURRENT_CALLS = 50


@dataclass(frozen=True, slots=True)
class WalletPage:
    """A page of wallets in one currency, and the cursor of the next page; "": this was the last."""

    balances: Mapping[str, WalletBalance]
    """By seller."""
    cursor: str


class WalletReader:
    """Reads wallets. A balance may be stale at once: only a hold guarantees the funds."""

    def __init__(self, service_client: ServiceClient, wallet_address: str) -> None:
        self._service_client = service_client
        self._wallet = service_client.stub(
            wallet_service_pb2_grpc.WalletServiceStub, wallet_address
        )
        self._semaphore = asyncio.Semaphore(_MAX_CONCURRENT_CALLS)

    async def read_balances(
        self, keys: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], WalletBalance]:
        """Returns the balances by (seller, currency); missing wallets are left out.

        Raises DEPENDENCY_UNAVAILABLE.
        """
        pages = await asyncio.gather(
            *(self._list_wallets(seller, currency, "", 1) for seller, currency in keys)
        )
        return {
            key: page.balances[key[0]]
            for key, page in zip(keys, pages, strict=True)
            if key[0] in page.balances
        }

    async def read_page(self, currency: str, cursor: str) -> WalletPage:
        """Returns the next wallets in a currency, by seller. Raises DEPENDENCY_UNAVAILABLE."""
        return await self._list_wallets("", currency, cursor, _PAGE_SIZE)

    async def _list_wallets(
        self, seller: str, currency: str, cursor: str, page_size: int
    ) -> WalletPage:
        request = wallet_service_pb2.ListWalletsRequest(
            seller_account=seller, currency=currency, page_size=page_size, page_token=cursor
        )
        async with self._semaphore:
            response = await self._service_client.call_or_unavailable(
                self._wallet.ListWallets, request
            )
        return WalletPage(
            {wallet.seller_account: _to_balance(wallet) for wallet in response.wallets},
            response.next_page_token,
        )


def _to_balance(wallet: wallet_pb2.Wallet) -> WalletBalance:
    def parse_part(text: str) -> int:
        return parse_amount(text, wallet.currency, min_amount=0, max_amount=MAX_BALANCE)

    return WalletBalance(
        parse_part(wallet.pending),
        parse_part(wallet.available),
        parse_part(wallet.held),
        parse_part(wallet.owed),
        wallet.frozen,
    )
