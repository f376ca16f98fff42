"""Preview: what a seller could be paid now, and why not more."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.money import format_amount
from tallystick_core.payable import Destination, DestinationState, Funds, Terms, payable
from tallystick_server.payout.funds import Funding
from tallystick_server.runtime.fields import EnumNames, to_timestamp
from tallystick_storage import destination as destinations
from tallystick_storage import schedule as schedules
from tallystick_storage.database import Database

_LIMITS = EnumNames(payout_pb2.PayoutLimit.DESCRIPTOR)


class Preview:
    """Answers by the same rules by which payouts are accepted."""

    def __init__(self, database: Database, funding: Funding) -> None:
        self._database = database
        self._funding = funding

    async def show(self, seller: str, currency: str, destination_id: str) -> pb.PreviewPayoutResponse:
        """What would be paid, to the destination that is named or the current one. Raises DEPENDENCY_UNAVAILABLE."""
        key = (seller, currency)

        def read(connection: Connection) -> tuple[Row[Any] | None, Row[Any] | None]:
            to = destinations.named(connection, [destination_id]).get(destination_id) if destination_id else None
            current = destinations.current(connection, [key]).get(key) if not destination_id else to
            return schedules.holding(connection, [key]).get(key), current

        schedule, to = await self._database.read(read)
        funds = (await self._funding.of([key])).get(key, Funds())
        terms = Terms(schedule.minimum_amount, schedule.fee, schedule.reserve) if schedule is not None else Terms()
        can = payable(funds, terms, Destination(DestinationState(to.state), waits=to.waits) if to is not None else None)

        def text(minor: int) -> str:
            return format_amount(minor, currency)

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
