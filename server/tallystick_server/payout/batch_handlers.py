"""The RPCs of PayoutService for payout batches and schedules."""

from __future__ import annotations

from collections.abc import Sequence

from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.access import Role
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.money import parse_currency
from tallystick_core.validation import parse_id, parse_optional_id
from tallystick_server.observability.tracing import traceparent
from tallystick_server.payout import convert
from tallystick_server.payout.create_batch import BatchCreator
from tallystick_server.payout.eligibility import require_seller_owner
from tallystick_server.payout.payouts import Payouts
from tallystick_server.payout.schedules import PayoutSchedules
from tallystick_server.rpc.call import Call
from tallystick_server.rpc.pagination import Listing, list_page
from tallystick_storage.database import Database
from tallystick_storage.pagination import Scan
from tallystick_storage.payout import batches as store
from tallystick_storage.payout import queries
from tallystick_storage.sql import Connection


def _read_report(
    connection: Connection, filters: store.ReportFilter, after: tuple[str] | None, limit: int
) -> Scan[payout_pb2.PayoutBatchItem, tuple[str]]:
    report = store.load_report(connection, filters, after, limit)
    payouts = queries.load_payouts(connection, [item.payout_id for item in report.rows])
    return Scan(convert.batch_items(report.rows, payouts), report.last_key)


_REPORT = Listing(
    "GetPayoutBatch", _read_report, (str,), lambda item: (item.payout_id,), lambda item: item
)


class BatchHandlers:
    """Handlers only decode, await and encode. A cancelled call changes nothing."""

    def __init__(self, database: Database, payouts: Payouts) -> None:
        self._database = database
        self.payouts = payouts
        self._batch_creator = BatchCreator(database)
        self._schedules = PayoutSchedules(database)

    async def CreatePayoutBatch(
        self, request: pb.CreatePayoutBatchRequest, call: Call
    ) -> pb.CreatePayoutBatchResponse:
        new = convert.parse_batch(request, call.caller)
        if not new.payouts and not new.seller_account:
            _require_operator(
                call, "seller_account is required: only operators run the default schedule."
            )
        if new.seller_account:
            await self._get_seller_owner(new.seller_account, call)
        if not await self._batch_creator.create(new, traceparent()):
            call.mark_replayed()
        self.payouts.generation.wake()
        row = await self._get_visible_batch(new.payout_batch_id, call, changed=True)
        return pb.CreatePayoutBatchResponse(
            payout_batch=convert.batch(row, await self._load_totals(row, changed=True))
        )

    async def GetPayoutBatch(
        self, request: pb.GetPayoutBatchRequest, call: Call
    ) -> pb.GetPayoutBatchResponse:
        state = convert.STATES.parse(request.payout_state, "payout_state", "")
        row = await self._get_visible_batch(request.payout_batch_id, call)
        filters = store.ReportFilter(row.payout_batch_id, state, request.rejected)
        items, next_page_token = await list_page(self._database, _REPORT, request, filters)
        # Totals cover all payouts of the batch, so only the first page has them.
        totals = [] if request.page_token else await self._load_totals(row)
        return pb.GetPayoutBatchResponse(
            payout_batch=convert.batch(row, totals), items=items, next_page_token=next_page_token
        )

    async def SetPayoutSchedule(
        self, request: pb.SetPayoutScheduleRequest, call: Call
    ) -> pb.SetPayoutScheduleResponse:
        update = convert.parse_schedule_update(request, call.caller, traceparent())
        if not update.seller_account:
            _require_operator(
                call, "seller_account is required: only operators set the default schedule."
            )
        owner = (
            await self._get_seller_owner(update.seller_account, call)
            if update.seller_account
            else ""
        )
        if not await self._schedules.set(update, owner):
            call.mark_replayed()
        return pb.SetPayoutScheduleResponse(
            payout_schedule=await self._schedules.get(
                update.seller_account, update.currency, changed=True
            )
        )

    async def GetPayoutSchedule(
        self, request: pb.GetPayoutScheduleRequest, call: Call
    ) -> pb.GetPayoutScheduleResponse:
        seller = parse_optional_id(request.seller_account, "seller_account")
        if seller:
            await self._get_seller_owner(seller, call)
        return pb.GetPayoutScheduleResponse(
            payout_schedule=await self._schedules.get(seller, parse_currency(request.currency))
        )

    async def _get_seller_owner(self, seller_account: str, call: Call) -> str:
        """The owner of a seller, if the caller may see it; "" for an operator and an unowned
        seller.

        Raises NOT_FOUND for another owner's seller, and for an unowned one.
        """
        owners = await self.payouts.seller_owners.find_owners([seller_account])
        return (
            owners.get(seller_account, "")
            if call.caller.can_see_all
            else require_seller_owner(seller_account, call.caller.owner, owners)
        )

    async def _get_visible_batch(
        self, payout_batch_id: str, call: Call, *, changed: bool = False
    ) -> store.BatchRow:
        """Returns the batch if the caller may see it; `changed` as in `Database.read`.

        Raises NOT_FOUND, also for a batch of another owner.
        """
        id_ = parse_id(payout_batch_id, "payout_batch_id")
        return call.require_visible(
            await self._database.read(
                lambda connection: store.find(connection, id_), changed=changed
            ),
            "payout batch",
            id_,
        )

    async def _load_totals(
        self, batch: store.BatchRow, *, changed: bool = False
    ) -> Sequence[store.BatchTotalRow]:
        """The totals of a batch; `changed` as in `Database.read`."""
        return await self._database.read(
            lambda connection: store.load_totals(connection, batch.payout_batch_id),
            changed=changed,
        )


def _require_operator(call: Call, message: str) -> None:
    """Raises PERMISSION_DENIED unless the caller is an operator."""
    if Role.OPERATOR not in call.caller.roles:
        raise ApiError(ErrorReason.PERMISSION_DENIED, message)
