"""What a buyer may see of a payment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from decimal import Decimal
from functools import partial

from tallystick.payment.v1 import payment_pb2
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payment.state import OrderStatus
from tallystick_core.provider.outcome import Declined, Pending, Succeeded
from tallystick_server.observability import names
from tallystick_server.operations.coalescer import Coalescer
from tallystick_server.operations.operation import NO_LEASE
from tallystick_server.operations.worker import OperationWorker
from tallystick_server.payment.charge import Charge, charges_from_rows
from tallystick_storage.database import ConstraintViolation, Database
from tallystick_storage.payment import charges as store
from tallystick_storage.sql import Connection

log = logging.getLogger(__name__)

LOOK_UP_SECONDS = 3.0
"""How long a buyer's page waits for the provider."""
_MAX_LOOKED_UP = 5
"""Of one payment: a buyer has one charge to complete, rarely more."""
_OPEN_STATUSES = frozenset(
    {payment_pb2.PAYMENT_ORDER_STATUS_EXECUTING, payment_pb2.PAYMENT_ORDER_STATUS_PENDING}
)


def to_buyer_status(payment: payment_pb2.Payment) -> payment_pb2.BuyerStatus:
    """What the buyer may see of a payment."""
    orders = payment.payment_orders
    waiting = next((order for order in orders if order.pending_reason), None)
    failures = {order.failure_reason for order in orders if order.failure_reason}
    status = payment_pb2.BuyerStatus(
        payment_state=payment.payment_state,
        requested_amounts=_sum_by_currency(orders),
        paid_amounts=_sum_by_currency(
            order
            for order in orders
            if order.payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        ),
        success_url=payment.hosted_page.success_url,
        cancel_url=payment.hosted_page.cancel_url,
        locale=payment.hosted_page.locale,
        update_time=payment.update_time,
        version=payment.version,
    )
    if len(failures) == 1:
        status.failure_reason = failures.pop()
    if waiting is not None:
        status.pending_reason = waiting.pending_reason
        status.next_action_url = waiting.next_action_url
        if waiting.HasField("resolve_by_time"):
            status.resolve_by_time.CopyFrom(waiting.resolve_by_time)
    return status


def _sum_by_currency(
    orders: Iterable[payment_pb2.PaymentOrder],
) -> list[payment_pb2.BuyerAmount]:
    totals: dict[str, Decimal] = {}
    for order in orders:
        totals[order.currency] = totals.get(order.currency, Decimal()) + Decimal(order.amount)
    return [
        payment_pb2.BuyerAmount(amount=format(total, "f"), currency=currency)
        for currency, total in sorted(totals.items())
    ]


class BuyerLookups:
    """Looks up pending charges at their providers when their buyers have returned. Simultaneous
    requests about a payment share a lookup.
    """

    def __init__(self, database: Database, worker: OperationWorker) -> None:
        self._database = database
        self._worker = worker
        self._lookups: Coalescer[str, None] = Coalescer()

    async def look_up(self, payment: payment_pb2.Payment) -> None:
        """Applies what the providers report within LOOK_UP_SECONDS. What comes later is applied
        too.
        """
        charge_ids = {
            order.charge_id
            for order in payment.payment_orders
            if order.payment_order_status in _OPEN_STATUSES
        }
        charges = await self._load(sorted(charge_ids)[:_MAX_LOOKED_UP])
        if not charges:
            return
        lookups = [
            asyncio.ensure_future(self._lookups.run(charge.charge_id, partial(self._apply, charge)))
            for charge in charges
        ]
        await asyncio.wait(lookups, timeout=LOOK_UP_SECONDS)

    async def _load(self, charge_ids: list[str]) -> list[Charge]:
        """The charges that may have been sent, without their leases."""
        if not charge_ids:
            return []
        now = asyncio.get_running_loop().time()

        def load(connection: Connection) -> list[Charge]:
            rows = store.find_charges(
                connection, [store.AttemptSelector(charge_id) for charge_id in charge_ids]
            )
            tokens = dict.fromkeys(charge_ids, NO_LEASE)
            return charges_from_rows(rows, tokens, now, self._worker.lease_seconds)

        return [
            charge
            for charge in await self._database.load(load)
            if charge.maybe_sent or charge.orders[0].status is OrderStatus.PENDING
        ]

    async def _apply(self, charge: Charge) -> None:
        outcome = await self._worker.call_provider(charge, NextAction.LOOK_UP)
        if not isinstance(outcome, Succeeded | Declined | Pending):
            return  # the worker asks again
        try:
            await self._worker.record_reported(charge, outcome)
        except ConstraintViolation as error:
            log.error(  # noqa: TRY400 - the traceback adds nothing
                "%s: the outcome cannot be stored or applied: %s",
                charge.resource_name,
                error,
                extra=names.OUTCOME_NOT_STORED.extra,
            )
