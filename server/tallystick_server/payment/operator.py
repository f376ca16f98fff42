"""The RPCs of PaymentService for operators."""

from __future__ import annotations

import re

from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_core.identifier import parse_words
from tallystick_core.refusal import Reason, Refused
from tallystick_server.payment import unapplied
from tallystick_server.payment.flow import Flow
from tallystick_server.runtime import alerts, dead_letters
from tallystick_server.runtime.door import Call
from tallystick_server.runtime.fields import PageToken, page_size
from tallystick_storage import alert, dead_letter
from tallystick_storage import unapplied as unapplied_store
from tallystick_storage.database import Database

_DEAD_LETTER_ID = re.compile(r"\A[A-Za-z0-9_-]{1,80}\Z", re.ASCII)


class OperatorHandlers:
    """Handlers only decode, await and encode."""

    def __init__(self, database: Database, flow: Flow) -> None:
        self._database = database
        self._flow = flow

    async def ListDeadLetters(self, request: pb.ListDeadLettersRequest, _call: Call) -> pb.ListDeadLettersResponse:
        size = page_size(request.page_size)
        state = dead_letters.STATES.parse(request.state, "state", "")
        token = PageToken("ListDeadLetters", state)
        before = token.before(request.page_token)
        rows = await self._database.read(lambda connection: dead_letter.list_(connection, state, before, size + 1))
        shown, following = token.page(rows, size, dead_letters.message, lambda row: (row.create_time.isoformat(), row.dead_letter_id))
        return pb.ListDeadLettersResponse(dead_letters=shown, next_page_token=following)

    async def GetDeadLetter(self, request: pb.GetDeadLetterRequest, _call: Call) -> pb.GetDeadLetterResponse:
        row = await self._flow.dead_letters.find(_id(request.dead_letter_id))
        orders = await self._flow.dead_letters.orders(row)
        return pb.GetDeadLetterResponse(dead_letter=dead_letters.message(row), payment_orders=orders)

    async def RetryDeadLetter(self, request: pb.RetryDeadLetterRequest, call: Call) -> pb.RetryDeadLetterResponse:
        reason = parse_words(request.reason, "reason")
        row = await self._flow.dead_letters.retry(_id(request.dead_letter_id), call.caller.name, reason)
        return pb.RetryDeadLetterResponse(dead_letter=dead_letters.message(row))

    async def CloseDeadLetter(self, request: pb.CloseDeadLetterRequest, call: Call) -> pb.CloseDeadLetterResponse:
        reason, evidence = parse_words(request.reason, "reason"), parse_words(request.evidence, "evidence")
        row = await self._flow.dead_letters.close(_id(request.dead_letter_id), call.caller.name, reason, evidence)
        return pb.CloseDeadLetterResponse(dead_letter=dead_letters.message(row))

    async def ListAlerts(self, request: pb.ListAlertsRequest, _call: Call) -> pb.ListAlertsResponse:
        size = page_size(request.page_size)
        token = PageToken("ListAlerts", int(request.ended))
        before = token.before(request.page_token)
        rows = await self._database.read(lambda connection: alert.list_(connection, before, size + 1, ended=request.ended))
        shown, following = token.page(rows, size, alerts.message, lambda row: (row.create_time.isoformat(), row.alert_id))
        return pb.ListAlertsResponse(alerts=shown, next_page_token=following)

    async def ListUnappliedCharges(self, request: pb.ListUnappliedChargesRequest, _call: Call) -> pb.ListUnappliedChargesResponse:
        size = page_size(request.page_size)
        token = PageToken("ListUnappliedCharges")
        before = token.before(request.page_token)
        rows = await self._database.read(lambda connection: unapplied_store.list_(connection, before, size + 1))
        shown, following = token.page(rows, size, unapplied.message, lambda row: (row.create_time.isoformat(), row.unapplied_charge_id))
        return pb.ListUnappliedChargesResponse(unapplied_charges=shown, next_page_token=following)


def _id(text: str) -> str:
    if _DEAD_LETTER_ID.match(text) is None:
        reason = Reason.FIELD_INVALID if text else Reason.FIELD_REQUIRED
        raise Refused(reason, "dead_letter_id must be one that ListDeadLetters gave.", field="dead_letter_id")
    return text
