"""The owners of sellers, from WalletService."""

from __future__ import annotations

from collections.abc import Sequence

from tallystick.wallet.v1 import wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.service_client import ServiceClient

SellerClaim = tuple[str, str, int]
"""Seller, owner and group. An empty owner only looks the seller up. The claims of a group succeed
or fail together; group 0: this claim alone.
"""


class SellerOwners:
    """Reads the owners of sellers from WalletService, which is their only source."""

    def __init__(self, service_client: ServiceClient, wallet_address: str) -> None:
        self._service_client = service_client
        self._wallet_stub = service_client.stub(
            wallet_service_pb2_grpc.WalletServiceStub, wallet_address
        )

    async def claim(self, claims: Sequence[SellerClaim]) -> dict[str, str]:
        """Returns the owners by seller after the claims, without sellers that have no owner. Raises
        DEPENDENCY_UNAVAILABLE.

        More than MAX_ITEMS claims are split into several requests. No group may be larger, or be
        divided by a split.
        """
        owners: dict[str, str] = {}
        for start in range(0, len(claims), MAX_ITEMS):
            request = wallet_service_pb2.BatchClaimSellersRequest(
                claims=[
                    wallet_service_pb2.SellerClaim(seller_account=seller, owner=owner, group=group)
                    for seller, owner, group in claims[start : start + MAX_ITEMS]
                ]
            )
            response = await self._service_client.call_or_unavailable(
                self._wallet_stub.BatchClaimSellers, request
            )
            owners |= {seller.seller_account: seller.owner for seller in response.sellers}
        return owners

    async def find_owners(self, sellers: Sequence[str]) -> dict[str, str]:
        """Returns the owners by seller, without claiming any. Raises DEPENDENCY_UNAVAILABLE."""
        return await self.claim([(seller, "", 0) for seller in sellers])
