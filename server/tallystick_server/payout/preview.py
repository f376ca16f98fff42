"""Preview: what a seller could be paid now, and why not more."""

from __future__ import annotations

from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.money import format_amount
from tallystick_core.payable import Funds, payable
from tallystick_core.payout import NewPayout
from tallystick_server.payout.funds import Funding
from tallystick_server.payout.grounds import Grounds, owner_of_seller, place_of
from tallystick_server.runtime.fields import EnumNames, to_timestamp
from tallystick_server.runtime.sellers import SellerOwners
from tallystick_storage.database import Database

_LIMITS = EnumNames(payout_pb2.PayoutLimit.DESCRIPTOR)


class Preview:
    """Answers by the same rules by which payouts are accepted."""

    def __init__(self, database: Database, funding: Funding, sellers: SellerOwners) -> None:
        self._database = database
        self._funding = funding
        self._sellers = sellers

    async def show(self, wanted: NewPayout) -> pb.PreviewPayoutResponse:
        """What would be paid. Raises DEPENDENCY_UNAVAILABLE, NOT_FOUND for another owner's seller, and what `Grounds.destination` raises."""
        key, named = (wanted.seller_account, wanted.currency), [wanted.payout_destination_id] if wanted.payout_destination_id else []
        owners = await self._sellers.of([wanted.seller_account])
        owner = owner_of_seller(wanted.seller_account, wanted.owner, owners)
        grounds = await self._database.read(lambda connection: Grounds.read(connection, [key], owners, named))
        to, terms, schedule = grounds.destination(wanted, owner), grounds.terms(key), grounds.schedules.get(key)
        funds = (await self._funding.of([key])).get(key, Funds())
        can = payable(funds, terms, place_of(to))

        def text(minor: int) -> str:
            return format_amount(minor, wanted.currency)

        return pb.PreviewPayoutResponse(
            available=text(funds.available),
            reserve=text(terms.reserve),
            minimum_amount=text(terms.minimum_amount),
            fee=text(terms.fee),
            amount=text(can.amount),
            net_amount=text(can.net),
            shortfalls=[payout_pb2.PayoutShortfall(limit=_LIMITS.number(limit), amount=text(kept)) for limit, kept in can.shortfalls.items()],
            payout_destination_id=to.payout_destination_id if to is not None else "",
            usable_time=to_timestamp(to.usable_time) if to is not None and to.waits else None,
            next_time=to_timestamp(schedule.next_time) if schedule is not None and schedule.next_time else None,
        )
