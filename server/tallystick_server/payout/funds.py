"""Funds: what the wallets of sellers hold, read from WalletService before anything is decided."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tallystick.wallet.v1 import wallet_pb2, wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.money import MAX_BALANCE, parse_amount
from tallystick_core.payable import Funds
from tallystick_server.runtime.peers import Peers

_PAGE = 200
_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Page:
    """Wallets in one currency, and where to go on reading; "": that was all."""

    funds: Mapping[str, Funds]
    """By seller."""
    place: str


class Funding:
    """Reads wallets. What it says may be old at once: only a hold makes sure of money."""

    def __init__(self, peers: Peers, wallet_address: str) -> None:
        self._peers = peers
        self._wallet: Any = peers.stub(wallet_service_pb2_grpc.WalletServiceStub, wallet_address)
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def of(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Funds]:
        """What the wallets of each (seller, currency) hold; those that do not exist are missing. Raises DEPENDENCY_UNAVAILABLE."""
        pages = await asyncio.gather(*(self._read(seller, currency, "", 1) for seller, currency in keys))
        return {key: page.funds[key[0]] for key, page in zip(keys, pages, strict=True) if key[0] in page.funds}

    async def page(self, currency: str, place: str) -> Page:
        """The next wallets in a currency, by seller. Raises DEPENDENCY_UNAVAILABLE."""
        return await self._read("", currency, place, _PAGE)

    async def _read(self, seller: str, currency: str, place: str, size: int) -> Page:
        request = wallet_service_pb2.ListWalletsRequest(seller_account=seller, currency=currency, page_size=size, page_token=place)
        async with self._room:
            answer = await self._peers.ask(self._wallet.ListWallets, request)
        return Page({wallet.seller_account: _funds(wallet) for wallet in answer.wallets}, answer.next_page_token)


def _funds(wallet: wallet_pb2.Wallet) -> Funds:
    def units(text: str) -> int:
        return parse_amount(text, wallet.currency, least=0, most=MAX_BALANCE)

    return Funds(units(wallet.pending), units(wallet.available), units(wallet.held), units(wallet.owed), wallet.frozen)
