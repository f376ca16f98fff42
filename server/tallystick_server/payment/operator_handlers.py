"""Operator RPCs of PaymentService, in addition to those that every service has."""

from __future__ import annotations

from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.operations.kind import KindName
from tallystick_core.payment.charge import parse_charge_id
from tallystick_core.validation import parse_id, parse_reason_text
from tallystick_server.operations import dead_letters, history, operator_handlers
from tallystick_server.payment import convert, unapplied_charges
from tallystick_server.payment.payments import Payments
from tallystick_server.rpc.call import Call
from tallystick_server.rpc.enums import EnumNames
from tallystick_server.rpc.pagination import NEWEST_FIRST, Listing, list_page
from tallystick_storage.database import Database
from tallystick_storage.payment import queries as store
from tallystick_storage.payment import unapplied_charges as unapplied_store

_ROLES = EnumNames(operator_pb2.CallerRole.DESCRIPTOR)
_UNAPPLIED_CHARGES = Listing(
    "ListUnappliedCharges",
    unapplied_store.list_unapplied_charges,
    NEWEST_FIRST,
    lambda row: (row.create_time, row.unapplied_charge_id),
    convert.unapplied_charge,
)


class PaymentOperatorHandlers(operator_handlers.OperatorHandlers):
    """Handlers only decode, await and encode."""

    def __init__(self, database: Database, payments: Payments) -> None:
        super().__init__(database, payments.dead_letters, payments.inbox)
        self.payments = payments

    async def GetDeadLetter(
        self, request: operator_pb2.GetDeadLetterRequest, _call: Call
    ) -> pb.GetDeadLetterResponse:
        row = await self._dead_letters.find(
            operator_handlers.parse_dead_letter_id(request.dead_letter_id)
        )
        response = pb.GetDeadLetterResponse(dead_letter=dead_letters.to_message(row))
        if row.kind == KindName.WEBHOOK_EVENT:
            response.webhook_event.CopyFrom(await self.find_webhook_event(row.operation_id))
            return response
        orders = await self._database.read(
            lambda connection: store.list_charge_orders(connection, row.operation_id)
        )
        response.payment_orders.extend(convert.payment_order(order) for order in orders)
        return response

    async def ListUnappliedCharges(
        self, request: pb.ListUnappliedChargesRequest, _call: Call
    ) -> pb.ListUnappliedChargesResponse:
        filters = unapplied_store.UnappliedChargeFilter(request.acknowledged)
        charges, next_page_token = await list_page(
            self._database, _UNAPPLIED_CHARGES, request, filters
        )
        return pb.ListUnappliedChargesResponse(
            unapplied_charges=charges, next_page_token=next_page_token
        )

    async def AcknowledgeUnappliedCharge(
        self, request: pb.AcknowledgeUnappliedChargeRequest, call: Call
    ) -> pb.AcknowledgeUnappliedChargeResponse:
        id_, reason = (
            parse_id(request.unapplied_charge_id, "unapplied_charge_id"),
            parse_reason_text(request.reason, "reason"),
        )
        row, replayed = await unapplied_charges.acknowledge(
            self._database, id_, call.caller.name, reason
        )
        if replayed:
            call.mark_replayed()
        return pb.AcknowledgeUnappliedChargeResponse(unapplied_charge=convert.unapplied_charge(row))

    async def AcknowledgeCharge(
        self, request: pb.AcknowledgeChargeRequest, call: Call
    ) -> pb.AcknowledgeChargeResponse:
        charge_id = parse_charge_id(request.charge_id)
        if request.report_number < 1:
            raise ApiError(
                ErrorReason.FIELD_INVALID, "report_number must be 1 or more.", field="report_number"
            )
        reason = parse_reason_text(request.reason, "reason")
        row, replayed = await unapplied_charges.acknowledge_report(
            self._database, charge_id, request.report_number, call.caller.name, reason
        )
        if replayed:
            call.mark_replayed()
        return pb.AcknowledgeChargeResponse(conflicting_report=history.conflicting_report(row))

    async def GetCaller(
        self, _request: operator_pb2.GetCallerRequest, call: Call
    ) -> operator_pb2.GetCallerResponse:
        caller = call.caller
        roles = sorted(_ROLES.number(role.name) for role in caller.roles)
        return operator_pb2.GetCallerResponse(name=caller.name, owner=caller.owner, roles=roles)
