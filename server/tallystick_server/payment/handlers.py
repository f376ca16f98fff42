"""The RPCs of PaymentService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import astuple
from functools import partial

from sqlalchemy import Connection

from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_core.caller import Role
from tallystick_core.identifier import parse_id, parse_words
from tallystick_core.payment import Happening, Status, move
from tallystick_core.refusal import Reason, Refused, key_reused
from tallystick_core.table import Verb, forbidden
from tallystick_server.payment import decode, encode
from tallystick_server.payment.flow import PayIn
from tallystick_server.payment.operator import OperatorHandlers
from tallystick_server.runtime import operator
from tallystick_server.runtime.door import Access, Call
from tallystick_server.runtime.fields import PageToken, page_size
from tallystick_server.runtime.stage import Stage
from tallystick_storage.database import Database
from tallystick_storage.payment import conflict
from tallystick_storage.payment import reads as store

ACCESS: Access = {
    "CreatePayment": frozenset({Role.TEAM}),
    "GetPayment": frozenset({Role.TEAM, Role.OPERATOR}),
    "ListPayments": frozenset({Role.TEAM, Role.OPERATOR}),
    "GetPaymentOrder": frozenset({Role.TEAM, Role.OPERATOR}),
    "WatchPayment": frozenset({Role.TEAM, Role.OPERATOR}),
    "CancelPayment": frozenset({Role.TEAM}),
    "ConfirmDelivery": frozenset({Role.TEAM}),
    **operator.ACCESS,
    "ListUnappliedCharges": frozenset({Role.OPERATOR}),
    "AcknowledgeUnappliedCharge": frozenset({Role.OPERATOR}),
    "AcknowledgeCharge": frozenset({Role.OPERATOR}),
}

_LOOK_AGAIN_AT_REST = 2.0  # seconds; another process may have moved the payment

_READ_AT_ONCE = 100  # payments, each of which may have 200 orders
_MANY_ORDERS = 20
_CANCEL = Verb("CANCEL", "cancelled")

_RESTING = frozenset({payment_pb2.PAYMENT_ORDER_STATUS_FAILED, payment_pb2.PAYMENT_ORDER_STATUS_PENDING})


class PaymentHandlers(OperatorHandlers):
    """Handlers only decode, await and encode: a call that is cancelled changes nothing."""

    def __init__(self, database: Database, flow: PayIn) -> None:
        super().__init__(database, flow)
        # no limit of its own: calls read after their commit as well, when "nothing was stored" would be false; the slots of the door bound them
        self._reads: Stage[str, payment_pb2.Payment | None] = Stage("payment.read", self._read, most=_READ_AT_ONCE, lanes=2, for_callers=True)

    def start(self) -> None:
        self._reads.start()

    async def stop(self) -> None:
        await self._reads.stop()

    async def CreatePayment(self, request: pb.CreatePaymentRequest, call: Call) -> pb.CreatePaymentResponse:
        wait_for = decode.WAITS.parse(request.wait_for, "wait_for", "RESULT")
        event = decode.payment_event(request, call.caller)
        with self._flow.changes.of(event.checkout_id, only_rest=True) as waiter:
            accepted = await self._flow.accept(event)
            if accepted.replayed:
                call.replayed()
            look = partial(self._payment, event.checkout_id)
            del request, event  # a wait keeps no body
            with call.waiting() if wait_for == "RESULT" else nullcontext(False) as waits:
                until = call.answers_by if waits else 0.0  # a caller above the limit is answered as if it had asked for ACCEPTANCE
                look_first = not accepted.moving or not waits
                payment = await waiter.outlast(_is_on_its_way, look, until, look_first=look_first, every=_LOOK_AGAIN_AT_REST)
        return pb.CreatePaymentResponse(payment=payment)

    async def CancelPayment(self, request: pb.CancelPaymentRequest, call: Call) -> pb.CancelPaymentResponse:
        reason = parse_words(request.reason, "reason")
        payment = await self._visible(request.checkout_id, call)
        with self._flow.changes.of(payment.checkout_id) as waiter:
            stands, now = await self._flow.cancel(payment.checkout_id, call.caller.name, reason)
            if not stands:
                payment = await self._visible(request.checkout_id, call)  # it ended since it was read
                state = decode.STATES.parse(payment.payment_state, "payment_state")
                raise forbidden("payment", state, _CANCEL)
            if stands != reason:
                raise key_reused("reason")
            if not now:
                call.replayed()
            del request  # a wait keeps no body
            with call.waiting() as waits:
                ended = await waiter.outlast(_is_open, lambda: self._payment(payment.checkout_id), call.answers_by if waits else 0.0)
            return pb.CancelPaymentResponse(payment=ended)

    async def ConfirmDelivery(self, request: pb.ConfirmDeliveryRequest, call: Call) -> pb.ConfirmDeliveryResponse:
        order, _, _ = await self._visible_order(request.payment_order_id, call)
        move(Status(order.status), Happening.DELIVERED)  # refuses what was not paid
        if not order.ledger_updated:
            raise Refused(Reason.CONFLICT, "The order is being settled; come back.", retry_after=0.2)
        if not await self._flow.confirm_delivery(order.payment_order_id):
            call.replayed()
        confirmed, _, _ = await self._visible_order(request.payment_order_id, call, changed=True)
        return pb.ConfirmDeliveryResponse(payment_order=encode.payment_order(confirmed))

    async def GetPayment(self, request: pb.GetPaymentRequest, call: Call) -> pb.GetPaymentResponse:
        return pb.GetPaymentResponse(payment=await self._visible(request.checkout_id, call))

    async def ListPayments(self, request: pb.ListPaymentsRequest, call: Call) -> pb.ListPaymentsResponse:
        size = page_size(request.page_size)
        wanted = decode.payment_filter(request, None if call.caller.sees_all else call.caller.owner)
        token = PageToken("ListPayments", *("" if value is None else str(value) for value in astuple(wanted)))
        before = token.before(request.page_token)
        rows, low = await self._database.read(lambda connection: store.list_(connection, wanted, before, size + 1))
        shown, following = token.page(rows, size, encode.payment_head, lambda row: (row.checkout_create_time.isoformat(), row.checkout_id))
        return pb.ListPaymentsResponse(payments=shown, next_page_token=following or token.below(low))

    async def GetPaymentOrder(self, request: pb.GetPaymentOrderRequest, call: Call) -> pb.GetPaymentOrderResponse:
        order, history, attempts = await self._visible_order(request.payment_order_id, call)
        reports = await self._database.read(lambda connection: conflict.reports(connection, order.charge_id))
        return pb.GetPaymentOrderResponse(
            payment_order=encode.payment_order(order),
            history=encode.transitions(history),
            attempts=encode.attempts(attempts),
            conflicting_reports=[encode.conflicting_report(row) for row in reports],
        )

    async def WatchPayment(self, request: pb.WatchPaymentRequest, call: Call) -> AsyncIterator[pb.WatchPaymentResponse]:
        checkout_id, after, moved = request.checkout_id, request.after_version, self._flow.changes.versions
        del request  # a stream keeps no body
        async with aclosing(moved(checkout_id, lambda: self._visible(checkout_id, call), after, _is_open)) as payments:
            async for payment in payments:
                yield pb.WatchPaymentResponse(payment=payment)

    async def _visible_order(self, payment_order_id: str, call: Call, *, changed: bool = False) -> store.OrderStory:
        """The order, if the caller may see it; `changed` as in `Database.read`. Raises NOT_FOUND for another's as well."""
        order_id = parse_id(payment_order_id, "payment_order_id")
        found = await self._database.read(lambda connection: store.order(connection, order_id), changed=changed)
        order, history, attempts = found or (None, (), ())
        return call.visible(order, "payment order", order_id), history, attempts

    async def _visible(self, checkout_id: str, call: Call) -> payment_pb2.Payment:
        """The payment, if the caller may see it. Raises NOT_FOUND for another's as well."""
        return call.visible(await self._payment(parse_id(checkout_id, "checkout_id")), "payment", checkout_id)

    async def _payment(self, checkout_id: str) -> payment_pb2.Payment | None:
        return await self._reads.submit(checkout_id)

    async def _read(self, checkout_ids: Sequence[str]) -> Sequence[payment_pb2.Payment | None]:
        def payments(connection: Connection) -> dict[str, list[store.OrderRow]]:
            return store.payments(connection, sorted(set(checkout_ids)))

        found = await self._database.load(payments)
        messages = {}
        for checkout_id, orders in found.items():
            messages[checkout_id] = encode.payment(orders)
            if len(orders) > _MANY_ORDERS:
                await asyncio.sleep(0)  # other calls have their turn of the loop
        return [messages.get(checkout_id) for checkout_id in checkout_ids]


def _is_open(payment: payment_pb2.Payment) -> bool:
    return payment.payment_state == payment_pb2.PAYMENT_STATE_OPEN


def _is_on_its_way(payment: payment_pb2.Payment) -> bool:
    """Whether an order is neither pending, nor final and settled."""
    return not all(_rests(order) for order in payment.payment_orders)


def _rests(order: payment_pb2.PaymentOrder) -> bool:
    return order.payment_order_status in _RESTING or (order.wallet_updated and order.ledger_updated)
