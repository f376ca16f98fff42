"""The RPCs of PayoutService: those of payouts here, those of other resources inherited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from tallystick.payout.v1 import payout_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.access import Role
from tallystick_core.money import parse_currency
from tallystick_core.operations.kind import KindName
from tallystick_core.payout.request import NewPayout
from tallystick_core.payout.state import TERMINAL_STATES, PayoutTransitionReason
from tallystick_core.validation import parse_id, parse_reason_text
from tallystick_server.observability.tracing import current_context, traceparent
from tallystick_server.operations import history, operator_handlers
from tallystick_server.operations.batcher import Batcher
from tallystick_server.operations.explanations import explain_to
from tallystick_server.payout import convert
from tallystick_server.payout.approvals import Decision
from tallystick_server.payout.batch_handlers import BatchHandlers
from tallystick_server.payout.create_payout import CreatePayoutCommand
from tallystick_server.payout.destination_handlers import DestinationHandlers
from tallystick_server.payout.explain import PayoutExplainer
from tallystick_server.payout.operator_handlers import PayoutOperatorHandlers
from tallystick_server.payout.payouts import Payouts
from tallystick_server.payout.preview import PayoutPreview
from tallystick_server.rpc.call import Access, Call
from tallystick_server.rpc.pagination import NEWEST_FIRST, Listing, list_page
from tallystick_server.rpc.streaming import stream_resource
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.payout import acknowledgements, transfers
from tallystick_storage.payout import queries as store
from tallystick_storage.sql import Connection

_OPERATOR = frozenset({Role.OPERATOR})
_PAYOUTS = frozenset({Role.PAYOUTS})
_PAYOUTS_OR_OPERATOR = _PAYOUTS | _OPERATOR
_READ = frozenset({Role.TEAM, Role.PAYOUTS, Role.OPERATOR})
ACCESS: Access = {
    "CreatePayoutDestination": _PAYOUTS,
    "GetPayoutDestination": _READ,
    "ListPayoutDestinations": _READ,
    "DisablePayoutDestination": _PAYOUTS_OR_OPERATOR,
    "ApprovePayoutDestination": _OPERATOR,
    "PreviewPayout": _READ,
    "CreatePayout": _PAYOUTS,
    "GetPayout": _READ,
    "ExplainPayout": _READ | {Role.SERVICE},
    "ListPayouts": _READ,
    "WatchPayout": _READ,
    "CancelPayout": _PAYOUTS_OR_OPERATOR,
    "RetryPayout": _PAYOUTS_OR_OPERATOR,
    "ApprovePayout": _OPERATOR,
    "RejectPayout": _OPERATOR,
    "AcknowledgePayout": _OPERATOR,
    "CreatePayoutBatch": _PAYOUTS_OR_OPERATOR,
    "GetPayoutBatch": _READ,
    "SetPayoutSchedule": _PAYOUTS_OR_OPERATOR,
    "GetPayoutSchedule": _READ,
    **operator_handlers.ACCESS,
}

_LISTING = Listing(
    "ListPayouts",
    store.list_payouts,
    NEWEST_FIRST,
    lambda row: (row.create_time, row.payout_id),
    convert.payout_with_schedule,
)

_TERMINAL_STATES = frozenset(convert.STATES.number(state) for state in TERMINAL_STATES)


class PayoutHandlers(DestinationHandlers, BatchHandlers, PayoutOperatorHandlers):
    """Handlers only decode, await and encode. A cancelled call changes nothing."""

    def __init__(self, database: Database, payouts: Payouts, explainer: PayoutExplainer) -> None:
        self._explainer = explainer
        DestinationHandlers.__init__(self, database, payouts)
        BatchHandlers.__init__(self, database, payouts)
        PayoutOperatorHandlers.__init__(self, database, payouts)
        self._preview = PayoutPreview(database, payouts.wallet_reader, payouts.seller_owners)
        # No limit of its own: calls also read after their commit, and an overload error would
        # wrongly say that nothing was stored. The server's call limit bounds these reads.
        self.read_batcher: Batcher[str, payout_pb2.Payout | None] = Batcher(
            "payout.read", self._load_payouts, concurrency=2, drop_abandoned=True
        )

    def start(self) -> None:
        self.read_batcher.start()

    async def stop(self) -> None:
        await self.read_batcher.stop()

    async def PreviewPayout(
        self, request: pb.PreviewPayoutRequest, call: Call
    ) -> pb.PreviewPayoutResponse:
        seller, currency = (
            parse_id(request.seller_account, "seller_account"),
            parse_currency(request.currency),
        )
        destination_id = request.payout_destination_id
        if destination_id:
            await self._get_visible_destination(destination_id, call)
        return await self._preview.preview(
            NewPayout(
                "",
                call.caller.name,
                convert.parse_owner(call.caller),
                seller,
                None,
                currency,
                destination_id,
            )
        )

    async def CreatePayout(
        self, request: pb.CreatePayoutRequest, call: Call
    ) -> pb.CreatePayoutResponse:
        payout = convert.parse_payout(request, call.caller)
        payout_id = payout.payout_id
        with self.payouts.notifier.subscribe(payout_id) as subscription:
            result = await self.payouts.create_payout(
                CreatePayoutCommand(payout, traceparent(), current_context())
            )
            if result.replayed:
                call.mark_replayed()
            del request, payout  # release the request body while waiting
            with call.waiting_slot() as may_wait:
                message = await subscription.wait_until(
                    _is_awaiting_hold,
                    lambda: self._load_payout(payout_id),
                    call.response_deadline() if may_wait else 0.0,
                )
            return pb.CreatePayoutResponse(payout=message)

    async def GetPayout(self, request: pb.GetPayoutRequest, call: Call) -> pb.GetPayoutResponse:
        payout = await self._get_visible_payout(request.payout_id, call)

        def load(connection: Connection) -> pb.GetPayoutResponse:
            id_ = payout.payout_id
            reports = acknowledgements.load_reports(connection, [id_]).get(id_, ())
            attempts = operation_store.list_attempts(connection, OperationKey(KindName.PAYOUT, id_))
            return pb.GetPayoutResponse(
                payout=payout,
                history=history.transitions(store.load_history(connection, id_)),
                attempts=history.attempts(attempts),
                transfers=convert.transfers(
                    transfers.load_transfers(connection, [id_]).get(id_, ())
                ),
                conflicting_reports=[history.conflicting_report(row) for row in reports],
            )

        return await self._database.read(load)

    async def ExplainPayout(
        self, request: pb.ExplainPayoutRequest, call: Call
    ) -> pb.ExplainPayoutResponse:
        explanation = await explain_to(
            call.caller, self._explainer, request.id, name_only=request.name_only
        )
        return pb.ExplainPayoutResponse(explanation=explanation)

    async def ListPayouts(
        self, request: pb.ListPayoutsRequest, call: Call
    ) -> pb.ListPayoutsResponse:
        filters = convert.parse_payout_filter(request, convert.parse_owner(call.caller) or None)
        payouts, next_page_token = await list_page(self._database, _LISTING, request, filters)
        return pb.ListPayoutsResponse(payouts=payouts, next_page_token=next_page_token)

    async def WatchPayout(
        self, request: pb.WatchPayoutRequest, call: Call
    ) -> AsyncIterator[pb.WatchPayoutResponse]:
        payout_id = request.payout_id
        payouts = self.payouts.notifier.watch_versions(
            payout_id,
            lambda: self._get_visible_payout(payout_id, call),
            request.after_version,
            _is_in_progress,
        )
        return stream_resource(payouts, lambda payout: pb.WatchPayoutResponse(payout=payout))

    async def CancelPayout(
        self, request: pb.CancelPayoutRequest, call: Call
    ) -> pb.CancelPayoutResponse:
        return pb.CancelPayoutResponse(
            payout=await self._decide(request, PayoutTransitionReason.CANCELLED, call)
        )

    async def ApprovePayout(
        self, request: pb.ApprovePayoutRequest, call: Call
    ) -> pb.ApprovePayoutResponse:
        return pb.ApprovePayoutResponse(
            payout=await self._decide(request, PayoutTransitionReason.APPROVED, call)
        )

    async def RejectPayout(
        self, request: pb.RejectPayoutRequest, call: Call
    ) -> pb.RejectPayoutResponse:
        return pb.RejectPayoutResponse(
            payout=await self._decide(request, PayoutTransitionReason.REJECTED, call)
        )

    async def RetryPayout(
        self, request: pb.RetryPayoutRequest, call: Call
    ) -> pb.RetryPayoutResponse:
        reason, request_id = (
            parse_reason_text(request.reason, "reason"),
            parse_id(request.request_id, "request_id"),
        )
        payout = await self._get_visible_payout(request.payout_id, call)
        if not await self.payouts.decisions.retry(
            payout.payout_id, request_id, call.caller.name, reason
        ):
            call.mark_replayed()
        return pb.RetryPayoutResponse(
            payout=await self._get_visible_payout(request.payout_id, call)
        )

    async def _decide(
        self,
        request: pb.CancelPayoutRequest | pb.ApprovePayoutRequest | pb.RejectPayoutRequest,
        transition_reason: PayoutTransitionReason,
        call: Call,
    ) -> payout_pb2.Payout:
        """Returns the payout after a decision."""
        reason = parse_reason_text(request.reason, "reason")
        payout = await self._get_visible_payout(request.payout_id, call)
        by_team = Role.PAYOUTS in call.caller.roles
        decision = Decision(
            transition_reason,
            call.caller.name,
            reason,
            requires_second_person=transition_reason is PayoutTransitionReason.APPROVED,
            by_team=by_team,
        )
        if not await self.payouts.decisions.decide(payout.payout_id, decision):
            call.mark_replayed()
        return await self._get_visible_payout(request.payout_id, call)

    async def _get_visible_payout(self, payout_id: str, call: Call) -> payout_pb2.Payout:
        """Returns the payout if the caller may see it.

        Raises NOT_FOUND, also for a payout of another owner.
        """
        return call.require_visible(
            await self._load_payout(parse_id(payout_id, "payout_id")), "payout", payout_id
        )

    async def _load_payout(self, payout_id: str) -> payout_pb2.Payout | None:
        return await self.read_batcher.submit(payout_id)

    async def _load_payouts(self, payout_ids: Sequence[str]) -> Sequence[payout_pb2.Payout | None]:
        # Calls also read their own changes here.
        rows = await self._database.read(
            lambda connection: store.load_payouts(connection, sorted(set(payout_ids))), changed=True
        )
        payouts = {payout_id: convert.payout_with_schedule(row) for payout_id, row in rows.items()}
        return [payouts.get(payout_id) for payout_id in payout_ids]


def _is_awaiting_hold(payout: payout_pb2.Payout) -> bool:
    """Whether its funds are not held yet."""
    return payout.payout_state == payout_pb2.PAYOUT_STATE_CREATED


def _is_in_progress(payout: payout_pb2.Payout) -> bool:
    return payout.payout_state not in _TERMINAL_STATES or not payout.ledger_updated
