"""The RPCs of PaymentService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from functools import partial

from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_core.access import Role
from tallystick_core.errors import ApiError, ErrorReason, key_reused_error, not_found_error
from tallystick_core.payment.state import OrderStatus, PaymentTrigger, transition
from tallystick_core.state_machine import Verb, invalid_state_error
from tallystick_core.validation import parse_id, parse_reason_text
from tallystick_server.operations import history, operator_handlers
from tallystick_server.operations.batcher import Batcher
from tallystick_server.operations.explanations import explain_to
from tallystick_server.payment import convert, preview_routing, requests
from tallystick_server.payment.buyer_status import LOOK_UP_SECONDS, to_buyer_status
from tallystick_server.payment.explain import PaymentExplainer
from tallystick_server.payment.operator_handlers import PaymentOperatorHandlers
from tallystick_server.payment.payments import Payments
from tallystick_server.rpc.call import Access, Call
from tallystick_server.rpc.pagination import NEWEST_FIRST, Listing, list_page
from tallystick_server.rpc.streaming import stream_resource
from tallystick_server.rpc.timestamps import to_timestamp
from tallystick_storage.database import Database
from tallystick_storage.payment import conflicts
from tallystick_storage.payment import queries as store
from tallystick_storage.payment.unapplied_charges import exists_for_checkout
from tallystick_storage.sql import Connection

ACCESS: Access = {
    "CreatePayment": frozenset({Role.TEAM}),
    "GetPayment": frozenset({Role.TEAM, Role.OPERATOR}),
    "ListPayments": frozenset({Role.TEAM, Role.OPERATOR}),
    "GetPaymentOrder": frozenset({Role.TEAM, Role.OPERATOR}),
    "ExplainPayment": frozenset({Role.TEAM, Role.OPERATOR, Role.SERVICE}),
    "WatchPayment": frozenset({Role.TEAM, Role.OPERATOR}),
    "CancelPayment": frozenset({Role.TEAM}),
    "ConfirmDelivery": frozenset({Role.TEAM}),
    "PreviewRouting": frozenset({Role.TEAM, Role.OPERATOR}),
    "CreateStatusLink": frozenset({Role.TEAM}),
    "RevokeStatusLink": frozenset({Role.TEAM, Role.OPERATOR}),
    "RefreshBuyerStatus": frozenset({Role.SERVICE}),
    **operator_handlers.ACCESS,
    "ListUnappliedCharges": frozenset({Role.OPERATOR}),
    "AcknowledgeUnappliedCharge": frozenset({Role.OPERATOR}),
    "AcknowledgeCharge": frozenset({Role.OPERATOR}),
    "GetCaller": frozenset(Role),
}

_POLL_INTERVAL_SECONDS = 2.0  # another process may have changed the payment

_MAX_READ_BATCH = 100  # payments, each of which may have 200 orders
_YIELD_ABOVE_ORDERS = 20
_CANCEL = Verb("CANCEL", "cancelled")

_PAYMENTS = Listing(
    "ListPayments",
    store.list_payments,
    NEWEST_FIRST,
    lambda row: (row.checkout_create_time, row.checkout_id),
    convert.payment_summary,
)

_RESULT_STATUSES = frozenset(
    {payment_pb2.PAYMENT_ORDER_STATUS_FAILED, payment_pb2.PAYMENT_ORDER_STATUS_PENDING}
)


class PaymentHandlers(PaymentOperatorHandlers):
    """Handlers only decode, await and encode. A cancelled call changes nothing."""

    def __init__(self, database: Database, payments: Payments, explainer: PaymentExplainer) -> None:
        super().__init__(database, payments)
        self._explainer = explainer
        # No limit of its own: calls also read after their commit, and an overload error would
        # wrongly say that nothing was stored. The server's call limit bounds these reads.
        self.read_batcher: Batcher[str, payment_pb2.Payment | None] = Batcher(
            "payment.read",
            self._load_payments,
            max_batch=_MAX_READ_BATCH,
            concurrency=2,
            drop_abandoned=True,
        )

    def start(self) -> None:
        self.read_batcher.start()

    async def stop(self) -> None:
        await self.read_batcher.stop()

    async def CreatePayment(
        self, request: pb.CreatePaymentRequest, call: Call
    ) -> pb.CreatePaymentResponse:
        wait_for = convert.WAIT_CONDITIONS.parse(request.wait_for, "wait_for", "RESULT")
        checkout = requests.parse_checkout(request, call.caller)
        with self.payments.notifier.subscribe(
            checkout.checkout_id, only_results=True
        ) as subscription:
            result = await self.payments.create_payment(checkout)
            if result.replayed:
                call.mark_replayed()
            load = partial(self._load_payment, checkout.checkout_id)
            del request, checkout  # release the request body while waiting
            with call.waiting_slot() if wait_for == "RESULT" else nullcontext(False) as may_wait:
                # Above the limit of waiting calls, the call is answered as with ACCEPTANCE.
                deadline = call.response_deadline() if may_wait else 0.0
                load_first = not result.in_progress or not may_wait
                payment = await subscription.wait_until(
                    _is_in_progress,
                    load,
                    deadline,
                    load_first=load_first,
                    poll_seconds=_POLL_INTERVAL_SECONDS,
                )
        return pb.CreatePaymentResponse(payment=payment)

    async def CancelPayment(
        self, request: pb.CancelPaymentRequest, call: Call
    ) -> pb.CancelPaymentResponse:
        reason = parse_reason_text(request.reason, "reason")
        payment = await self._get_visible_payment(request.checkout_id, call)
        with self.payments.notifier.subscribe(payment.checkout_id) as subscription:
            cancel_reason, newly_cancelled = await self.payments.cancel(
                payment.checkout_id, call.caller.name, reason
            )
            if not cancel_reason:
                # The payment completed after it was read.
                payment = await self._get_visible_payment(request.checkout_id, call)
                state = convert.PAYMENT_STATES.parse(payment.payment_state, "payment_state")
                raise invalid_state_error("payment", state, _CANCEL)
            if cancel_reason != reason:
                raise key_reused_error("reason")
            if not newly_cancelled:
                call.mark_replayed()
            del request  # release the request body while waiting
            with call.waiting_slot() as may_wait:
                latest = await subscription.wait_until(
                    _is_open,
                    lambda: self._load_payment(payment.checkout_id),
                    call.response_deadline() if may_wait else 0.0,
                )
            return pb.CancelPaymentResponse(payment=latest)

    async def ConfirmDelivery(
        self, request: pb.ConfirmDeliveryRequest, call: Call
    ) -> pb.ConfirmDeliveryResponse:
        order, _, _ = await self._get_visible_order(request.payment_order_id, call)
        transition(OrderStatus(order.status), PaymentTrigger.DELIVERED)  # rejects unpaid orders
        if not order.ledger_updated:
            raise ApiError(
                ErrorReason.CONFLICT, "The order is still being booked; retry.", retry_after=0.2
            )
        if not await self.payments.confirm_delivery(order.payment_order_id):
            call.mark_replayed()
        updated_order, _, _ = await self._get_visible_order(
            request.payment_order_id, call, changed=True
        )
        return pb.ConfirmDeliveryResponse(payment_order=convert.payment_order(updated_order))

    async def GetPayment(self, request: pb.GetPaymentRequest, call: Call) -> pb.GetPaymentResponse:
        return pb.GetPaymentResponse(
            payment=await self._get_visible_payment(request.checkout_id, call)
        )

    async def ListPayments(
        self, request: pb.ListPaymentsRequest, call: Call
    ) -> pb.ListPaymentsResponse:
        filters = requests.parse_payment_filter(
            request, None if call.caller.can_see_all else call.caller.owner
        )
        payments, next_page_token = await list_page(self._database, _PAYMENTS, request, filters)
        return pb.ListPaymentsResponse(payments=payments, next_page_token=next_page_token)

    async def GetPaymentOrder(
        self, request: pb.GetPaymentOrderRequest, call: Call
    ) -> pb.GetPaymentOrderResponse:
        order, transitions, attempts = await self._get_visible_order(request.payment_order_id, call)
        reports = await self._database.read(
            lambda connection: conflicts.list_reports(connection, order.charge_id)
        )
        return pb.GetPaymentOrderResponse(
            payment_order=convert.payment_order(order),
            history=history.transitions(transitions),
            attempts=history.attempts(attempts),
            conflicting_reports=[history.conflicting_report(row) for row in reports],
        )

    async def ExplainPayment(
        self, request: pb.ExplainPaymentRequest, call: Call
    ) -> pb.ExplainPaymentResponse:
        explanation = await explain_to(
            call.caller, self._explainer, request.id, name_only=request.name_only
        )
        return pb.ExplainPaymentResponse(explanation=explanation)

    async def PreviewRouting(
        self, request: pb.PreviewRoutingRequest, call: Call
    ) -> pb.PreviewRoutingResponse:
        facts = preview_routing.parse_charge_facts(request, call.caller)
        return preview_routing.to_response(self.payments.routing.route(facts))

    async def CreateStatusLink(
        self, request: pb.CreateStatusLinkRequest, call: Call
    ) -> pb.CreateStatusLinkResponse:
        payment = await self._get_visible_payment(request.checkout_id, call)
        link = await self.payments.status_links.create(payment.checkout_id)
        return pb.CreateStatusLinkResponse(
            status_url=link.status_url, expire_time=to_timestamp(link.expire_time)
        )

    async def RevokeStatusLink(
        self, request: pb.RevokeStatusLinkRequest, call: Call
    ) -> pb.RevokeStatusLinkResponse:
        payment = await self._get_visible_payment(request.checkout_id, call)
        if not await self.payments.status_links.revoke(payment.checkout_id):
            call.mark_replayed()
        return pb.RevokeStatusLinkResponse()

    async def RefreshBuyerStatus(
        self, request: pb.RefreshBuyerStatusRequest, call: Call
    ) -> pb.RefreshBuyerStatusResponse:
        checkout_id = await self.payments.status_links.find_checkout(request.status_token)
        payment = await self._require_payment(checkout_id)
        if (
            request.look_up
            and _is_open(payment)
            and self.payments.buyer_lookups.may_look_up(checkout_id)
        ):
            with call.waiting_slot() as may_wait:
                payment = await self._look_up(payment) if may_wait else payment
        has_unapplied_charge = not _is_open(payment) and await self._database.load(
            lambda connection: exists_for_checkout(connection, checkout_id)
        )
        return pb.RefreshBuyerStatusResponse(
            buyer_status=to_buyer_status(payment, has_unapplied_charge=has_unapplied_charge)
        )

    async def WatchPayment(
        self, request: pb.WatchPaymentRequest, call: Call
    ) -> AsyncIterator[pb.WatchPaymentResponse]:
        checkout_id = request.checkout_id
        payments = self.payments.notifier.watch_versions(
            checkout_id,
            lambda: self._get_visible_payment(checkout_id, call),
            request.after_version,
            _is_open,
        )
        return stream_resource(payments, lambda payment: pb.WatchPaymentResponse(payment=payment))

    async def _get_visible_order(
        self, payment_order_id: str, call: Call, *, changed: bool = False
    ) -> store.OrderDetails:
        """Returns the order if the caller may see it; `changed` as in `Database.read`.

        Raises NOT_FOUND, also for an order of another owner.
        """
        order_id = parse_id(payment_order_id, "payment_order_id")
        result = await self._database.read(
            lambda connection: store.load_order(connection, order_id), changed=changed
        )
        order, transitions, attempts = result or (None, (), ())
        return call.require_visible(order, "payment order", order_id), transitions, attempts

    async def _get_visible_payment(self, checkout_id: str, call: Call) -> payment_pb2.Payment:
        """Returns the payment if the caller may see it.

        Raises NOT_FOUND, also for a payment of another owner.
        """
        return call.require_visible(
            await self._load_payment(parse_id(checkout_id, "checkout_id")), "payment", checkout_id
        )

    async def _look_up(self, payment: payment_pb2.Payment) -> payment_pb2.Payment:
        """The payment once its providers have been asked and what they report is booked, or as it
        is when the time is up.
        """
        deadline = asyncio.get_running_loop().time() + LOOK_UP_SECONDS
        with self.payments.notifier.subscribe(
            payment.checkout_id, only_results=True
        ) as subscription:
            if not await self.payments.buyer_lookups.look_up(payment):
                return payment
            latest = await subscription.wait_until(
                _is_in_progress,
                lambda: self._load_payment(payment.checkout_id),
                deadline,
                poll_seconds=_POLL_INTERVAL_SECONDS,
            )
        return latest or payment

    async def _require_payment(self, checkout_id: str) -> payment_pb2.Payment:
        payment = await self._load_payment(checkout_id)
        if payment is None:
            raise not_found_error("payment", checkout_id)
        return payment

    async def _load_payment(self, checkout_id: str) -> payment_pb2.Payment | None:
        return await self.read_batcher.submit(checkout_id)

    async def _load_payments(
        self, checkout_ids: Sequence[str]
    ) -> Sequence[payment_pb2.Payment | None]:
        def load(connection: Connection) -> dict[str, list[store.OrderWithPaymentRow]]:
            return store.load_payments(connection, sorted(set(checkout_ids)))

        orders_by_checkout = await self._database.load(load)
        messages = {}
        for checkout_id, orders in orders_by_checkout.items():
            messages[checkout_id] = convert.payment(orders)
            if len(orders) > _YIELD_ABOVE_ORDERS:
                await asyncio.sleep(0)  # lets other calls run
        return [messages.get(checkout_id) for checkout_id in checkout_ids]


def _is_open(payment: payment_pb2.Payment) -> bool:
    return payment.payment_state == payment_pb2.PAYMENT_STATE_OPEN


def _is_in_progress(payment: payment_pb2.Payment) -> bool:
    """Whether an order is neither pending, nor final and booked."""
    return not all(_has_result(order) for order in payment.payment_orders)


def _has_result(order: payment_pb2.PaymentOrder) -> bool:
    return order.payment_order_status in _RESULT_STATUSES or (
        order.wallet_updated and order.ledger_updated
    )
