"""Payment booking: credits the wallet and posts to the ledger, then sets both flags, for a batch of
charges.

Every step is idempotent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from tallystick.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from tallystick.wallet.v1 import wallet_service_pb2, wallet_service_pb2_grpc
from tallystick_core.ledger.posting_rules import PostingKind, pay_in_lines
from tallystick_core.money import format_amount
from tallystick_core.payment.state import PaymentTransitionReason, PaymentTrigger, transition
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.operations.failed_step import BookingRejected
from tallystick_server.payment.charge import Charge, OrderInCharge
from tallystick_server.payment.transitions import (
    OrderTransition,
    TransitionResult,
    transition_orders,
)
from tallystick_server.rpc.batch import errors_by_key
from tallystick_server.rpc.postings import add_posting
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_storage.database import Database


class PaymentBooking:
    """Books charges in batches that never exceed the item limit of a call to another service.

    The flags are set only after both wallet and ledger have confirmed.
    """

    def __init__(
        self,
        database: Database,
        service_client: ServiceClient,
        wallet_address: str,
        ledger_address: str,
    ) -> None:
        self._database = database
        self._service_client = service_client
        self._wallet = service_client.stub(
            wallet_service_pb2_grpc.WalletServiceStub, wallet_address
        )
        self._ledger = service_client.stub(
            ledger_service_pb2_grpc.LedgerServiceStub, ledger_address
        )

    async def run(self, charges: Sequence[Charge]) -> Sequence[Charge | Exception]:
        """Returns each charge after booking, or BookingRejected.

        Raises DEPENDENCY_UNAVAILABLE for the whole batch.
        """
        return await bisect_on_error(self._book, charges)

    async def _book(self, charges: Sequence[Charge]) -> Sequence[Charge | Exception]:
        orders = [(charge, order) for charge in charges for order in charge.orders]
        # Both are idempotent, and a repeat completes what the other lacks.
        credit_rejections, post_rejections = await asyncio.gather(
            self._call_for_all(orders, self._credit), self._call_for_all(orders, self._post)
        )
        rejections = post_rejections | credit_rejections
        transitions = [
            _booked_transition(charge, order)
            for charge, order in orders
            if charge.charge_id not in rejections
        ]

        result = (
            await self._database.transact(
                lambda connection: transition_orders(connection, transitions)
            )
            if transitions
            else TransitionResult()
        )
        now = asyncio.get_running_loop().time()
        return [
            rejections.get(charge.charge_id) or result.apply_to(charge, now) for charge in charges
        ]

    async def _call_for_all(
        self, orders: Sequence[tuple[Charge, OrderInCharge]], call: Callable[..., Any]
    ) -> dict[str, BookingRejected]:
        """Sends the items of all orders; returns the rejections by charge."""
        rejections = errors_by_key(
            ((charge.charge_id, order.payment_order_id) for charge, order in orders),
            await call(orders) if orders else (),
        )
        return {
            charge_id: BookingRejected(f"order {order_id}: {error.message}")
            for (charge_id, order_id), error in rejections.items()
        }

    async def _credit(self, orders: Sequence[tuple[Charge, OrderInCharge]]) -> Sequence[Any]:
        request = wallet_service_pb2.BatchCreditRequest(outcome_only=True)
        for charge, order in orders:
            request.credits.add(
                source_id=f"PAY_IN/{order.payment_order_id}",
                caller=charge.caller,
                seller_account=order.seller_account,
                amount=format_amount(order.amount - order.platform_fee, charge.currency),
                currency=charge.currency,
                pending=True,
            )
        return list((await self._service_client.call(self._wallet.BatchCredit, request)).results)

    async def _post(self, orders: Sequence[tuple[Charge, OrderInCharge]]) -> Sequence[Any]:
        request = ledger_service_pb2.BatchPostRequest(outcome_only=True)
        for charge, order in orders:
            lines = pay_in_lines(
                charge.provider,
                order.buyer_account,
                order.seller_account,
                charge.currency,
                order.amount,
                order.platform_fee,
            )
            # Until it is booked, an order does not change after the outcome of its charge.
            add_posting(
                request,
                PostingKind.PAY_IN,
                order.payment_order_id,
                charge.caller,
                lines,
                order.message.provider_reference,
                order.message.update_time,
                order.buyer_account,
            )
        return list((await self._service_client.call(self._ledger.BatchPost, request)).results)


def _booked_transition(charge: Charge, order: OrderInCharge) -> OrderTransition:
    return OrderTransition(
        charge,
        order,
        transition(order.status, PaymentTrigger.BOOKED),
        PaymentTransitionReason.BOOKED,
        booked=True,
    )
