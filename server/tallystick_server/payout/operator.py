"""The RPCs of PayoutService for operators, beside those that every service has."""

from __future__ import annotations

from tallystick.payout.v1 import payout_service_pb2 as pb
from tallystick_server.payout import acknowledge, encode
from tallystick_server.payout.flow import PayOut
from tallystick_server.runtime import dead_letters, operator
from tallystick_server.runtime.door import Call
from tallystick_storage.database import Database
from tallystick_storage.payout import destination as destinations
from tallystick_storage.payout import reads as store


class OperatorHandlers(operator.OperatorHandlers):
    """Handlers only decode, await and encode."""

    def __init__(self, database: Database, flow: PayOut) -> None:
        super().__init__(database, flow.dead_letters, pb)
        self._flow = flow

    async def GetDeadLetter(self, request: pb.GetDeadLetterRequest, _call: Call) -> pb.GetDeadLetterResponse:
        row = await self._letters.find(operator.parse_dead_letter_id(request.dead_letter_id))
        collection, _, id_ = row.subject.partition("/")
        answer = pb.GetDeadLetterResponse(dead_letter=dead_letters.message(row))
        if collection == "payouts":
            payouts = await self._database.read(lambda connection: store.shown(connection, [id_]))
            answer.payout.CopyFrom(encode.shown_payout(payouts[id_]))
        else:
            found = await self._database.read(lambda connection: destinations.find(connection, [id_]))
            answer.payout_destination.CopyFrom(encode.destination(found[id_]))
        return answer

    async def AcknowledgePayout(self, request: pb.AcknowledgePayoutRequest, call: Call) -> pb.AcknowledgePayoutResponse:
        what = acknowledge.decode(request, call.caller.name)
        if not await acknowledge.acknowledge(self._database, what):
            call.replayed()
        payouts = await self._database.read(lambda connection: store.shown(connection, [what.payout_id]), changed=True)
        return pb.AcknowledgePayoutResponse(payout=encode.shown_payout(payouts[what.payout_id]))
