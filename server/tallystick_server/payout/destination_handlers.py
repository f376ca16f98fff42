"""The RPCs of PayoutService for payout destinations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.money import parse_currency
from tallystick_core.validation import parse_id, parse_optional_id, parse_reason_text
from tallystick_server.observability.tracing import traceparent
from tallystick_server.payout import convert
from tallystick_server.payout.destinations import DestinationRegistry
from tallystick_server.payout.payouts import Payouts
from tallystick_server.rpc.call import Call
from tallystick_server.rpc.pagination import NEWEST_FIRST, Listing, list_page
from tallystick_storage.database import Database
from tallystick_storage.payout import destinations as store

_DESTINATIONS = Listing(
    "ListPayoutDestinations",
    store.list_destinations,
    NEWEST_FIRST,
    lambda row: (row.create_time, row.payout_destination_id),
    convert.destination,
)


class DestinationHandlers:
    """Handlers only decode, await and encode. A cancelled call changes nothing."""

    def __init__(self, database: Database, payouts: Payouts) -> None:
        self._database = database
        self._destination_registry = DestinationRegistry(database, payouts)

    async def CreatePayoutDestination(
        self, request: pb.CreatePayoutDestinationRequest, call: Call
    ) -> pb.CreatePayoutDestinationResponse:
        row, replayed = await self._destination_registry.create(
            convert.parse_destination(request, call.caller), traceparent()
        )
        if replayed:
            call.mark_replayed()
        return pb.CreatePayoutDestinationResponse(payout_destination=convert.destination(row))

    async def GetPayoutDestination(
        self, request: pb.GetPayoutDestinationRequest, call: Call
    ) -> pb.GetPayoutDestinationResponse:
        return pb.GetPayoutDestinationResponse(
            payout_destination=convert.destination(
                await self._get_visible_destination(request.payout_destination_id, call)
            )
        )

    async def ListPayoutDestinations(
        self, request: pb.ListPayoutDestinationsRequest, call: Call
    ) -> pb.ListPayoutDestinationsResponse:
        filters = store.DestinationFilter(
            convert.parse_owner(call.caller),
            parse_optional_id(request.seller_account, "seller_account"),
            parse_currency(request.currency) if request.currency else "",
            convert.DESTINATION_STATES.parse(request.state, "state", ""),
        )
        destinations, next_page_token = await list_page(
            self._database, _DESTINATIONS, request, filters
        )
        return pb.ListPayoutDestinationsResponse(
            payout_destinations=destinations, next_page_token=next_page_token
        )

    async def DisablePayoutDestination(
        self, request: pb.DisablePayoutDestinationRequest, call: Call
    ) -> pb.DisablePayoutDestinationResponse:
        updated_row = await self._apply_decision(request, call, self._destination_registry.disable)
        return pb.DisablePayoutDestinationResponse(
            payout_destination=convert.destination(updated_row)
        )

    async def ApprovePayoutDestination(
        self, request: pb.ApprovePayoutDestinationRequest, call: Call
    ) -> pb.ApprovePayoutDestinationResponse:
        updated_row = await self._apply_decision(request, call, self._destination_registry.approve)
        return pb.ApprovePayoutDestinationResponse(
            payout_destination=convert.destination(updated_row)
        )

    async def _apply_decision(
        self,
        request: pb.DisablePayoutDestinationRequest | pb.ApprovePayoutDestinationRequest,
        call: Call,
        apply: Callable[[str, str, str], Awaitable[bool]],
    ) -> store.DestinationRow:
        """The destination after a decision about it. `apply`: stores the decision, from the id, the
        name of the caller and the reason; returns whether it was not stored before.
        """
        reason = parse_reason_text(request.reason, "reason")
        row = await self._get_visible_destination(request.payout_destination_id, call)
        if not await apply(row.payout_destination_id, call.caller.name, reason):
            call.mark_replayed()
        return await self._get_visible_destination(
            request.payout_destination_id, call, changed=True
        )

    async def _get_visible_destination(
        self, payout_destination_id: str, call: Call, *, changed: bool = False
    ) -> store.DestinationRow:
        """Returns the destination if the caller may see it; `changed` as in `Database.read`.

        Raises NOT_FOUND, also for a destination of another owner.
        """
        id_ = parse_id(payout_destination_id, "payout_destination_id")
        rows = await self._database.read(
            lambda connection: store.find(connection, [id_]), changed=changed
        )
        return call.require_visible(rows.get(id_), "payout destination", id_)
