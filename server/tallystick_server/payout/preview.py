"""Payout preview: how much a seller could be paid now, and what blocks the rest."""

from __future__ import annotations

from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.money import format_amount
from tallystick_core.payout.quote import WalletBalance, quote_payout
from tallystick_core.payout.request import NewPayout
from tallystick_server.payout.eligibility import PayoutContext, readiness_of, require_seller_owner
from tallystick_server.payout.wallet_reader import WalletReader
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.seller_owners import SellerOwners
from tallystick_server.rpc.timestamps import to_timestamp
from tallystick_storage.database import Database

_BLOCKERS = EnumNames(payout_pb2.PayoutBlocker.DESCRIPTOR)


class PayoutPreview:
    """Applies the same rules as payout creation."""

    def __init__(
        self, database: Database, wallet_reader: WalletReader, seller_owners: SellerOwners
    ) -> None:
        self._database = database
        self._wallet_reader = wallet_reader
        self._seller_owners = seller_owners

    async def preview(self, payout: NewPayout) -> pb.PreviewPayoutResponse:
        """Returns the payout quote.

        Raises DEPENDENCY_UNAVAILABLE, NOT_FOUND for another owner's seller, and the errors of
        `PayoutContext.find_destination`.
        """
        key, destination_ids = (
            (payout.seller_account, payout.currency),
            [payout.payout_destination_id] if payout.payout_destination_id else [],
        )
        owners = await self._seller_owners.find_owners([payout.seller_account])
        owner = require_seller_owner(payout.seller_account, payout.owner, owners)
        payout_context = await self._database.read(
            lambda connection: PayoutContext.read(connection, [key], owners, destination_ids)
        )
        destination, terms, schedule = (
            payout_context.find_destination(payout, owner),
            payout_context.terms(key),
            payout_context.schedules.get(key),
        )
        balance = (await self._wallet_reader.read_balances([key])).get(key, WalletBalance())
        quote = quote_payout(balance, terms, readiness_of(destination))

        def format_minor(minor: int) -> str:
            return format_amount(minor, payout.currency)

        return pb.PreviewPayoutResponse(
            available=format_minor(balance.available),
            reserve=format_minor(terms.reserve),
            minimum_amount=format_minor(terms.minimum_amount),
            fee=format_minor(terms.fee),
            amount=format_minor(quote.amount),
            net_amount=format_minor(quote.net_amount),
            shortfalls=[
                payout_pb2.PayoutShortfall(
                    blocker=_BLOCKERS.number(blocker), amount=format_minor(amount)
                )
                for blocker, amount in quote.blocked_amounts.items()
            ],
            payout_destination_id=destination.payout_destination_id
            if destination is not None
            else "",
            usable_time=to_timestamp(destination.usable_time)
            if destination is not None and destination.is_in_cooldown
            else None,
            next_time=to_timestamp(schedule.next_time)
            if schedule is not None and schedule.next_time
            else None,
        )
