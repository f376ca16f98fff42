"""Operator RPCs of PayoutService, in addition to those that every service has."""

from __future__ import annotations

from tallystick.operator.v1 import operator_pb2
from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_core.operations.kind import KindName
from tallystick_server.operations import dead_letters, operator_handlers
from tallystick_server.payout import acknowledge, convert
from tallystick_server.payout.payouts import Payouts
from tallystick_server.rpc.call import Call
from tallystick_storage.database import Database
from tallystick_storage.payout import destinations
from tallystick_storage.payout import queries as store


class PayoutOperatorHandlers(operator_handlers.OperatorHandlers):
    """Handlers only decode, await and encode."""

    def __init__(self, database: Database, payouts: Payouts) -> None:
        super().__init__(database, payouts.dead_letters, payouts.inbox)
        self.payouts = payouts

    async def GetDeadLetter(
        self, request: operator_pb2.GetDeadLetterRequest, _call: Call
    ) -> pb.GetDeadLetterResponse:
        row = await self._dead_letters.find(
            operator_handlers.parse_dead_letter_id(request.dead_letter_id)
        )
        id_ = row.operation_id
        response = pb.GetDeadLetterResponse(dead_letter=dead_letters.to_message(row))
        if row.kind == KindName.PAYOUT:
            payouts = await self._database.read(
                lambda connection: store.load_payouts(connection, [id_])
            )
            response.payout.CopyFrom(convert.payout_with_schedule(payouts[id_]))
        elif row.kind == KindName.WEBHOOK_EVENT:
            response.webhook_event.CopyFrom(await self.find_webhook_event(id_))
        else:
            rows = await self._database.read(
                lambda connection: destinations.find(connection, [id_])
            )
            response.payout_destination.CopyFrom(convert.destination(rows[id_]))
        return response

    async def AcknowledgePayout(
        self, request: pb.AcknowledgePayoutRequest, call: Call
    ) -> pb.AcknowledgePayoutResponse:
        acknowledgement = acknowledge.decode(request, call.caller.name)
        if not await acknowledge.acknowledge(self._database, acknowledgement):
            call.mark_replayed()
        payouts = await self._database.read(
            lambda connection: store.load_payouts(connection, [acknowledgement.payout_id]),
            changed=True,
        )
        return pb.AcknowledgePayoutResponse(
            payout=convert.payout_with_schedule(payouts[acknowledgement.payout_id])
        )
