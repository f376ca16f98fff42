"""What a buyer may see of a payment."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Iterable
from decimal import Decimal
from functools import partial
from math import inf

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
_MAX_LOOKUPS = 5
"""Of one payment: a buyer has one charge to complete, rarely more."""
_MIN_INTERVAL_SECONDS = 1.0
_MAX_REQUESTS_PER_PAYMENT, _MAX_REQUESTS = 4, 64
_MAX_END_TIMES = 10_000
_OPEN_STATUSES = frozenset(
    {payment_pb2.PAYMENT_ORDER_STATUS_EXECUTING, payment_pb2.PAYMENT_ORDER_STATUS_PENDING}
)


def to_buyer_status(
    payment: payment_pb2.Payment, *, has_unapplied_charge: bool
) -> payment_pb2.BuyerStatus:
    """What the buyer may see of a payment."""
    orders = payment.payment_orders
    failures = {order.failure_reason for order in orders if order.failure_reason}
    is_open = payment.payment_state == payment_pb2.PAYMENT_STATE_OPEN
    status = payment_pb2.BuyerStatus(
        payment_state=payment.payment_state,
        requested_amounts=_sum_by_currency(
            order for order in orders if not (is_open and order.failure_reason)
        ),
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
        has_unapplied_charge=has_unapplied_charge,
    )
    if len(failures) == 1:
        status.failure_reason = failures.pop()
    _add_buyer_action(status, payment)
    return status


def _add_buyer_action(status: payment_pb2.BuyerStatus, payment: payment_pb2.Payment) -> None:
    """What the payment waits for. A page that is being closed is no action any more."""
    waiting = next((order for order in payment.payment_orders if order.pending_reason), None)
    if waiting is None:
        return
    url = waiting.next_action_url
    if payment.HasField("hosted_page"):
        url = payment.hosted_page.url
        if waiting.pending_reason == payment_pb2.PENDING_REASON_BUYER_ACTION and not url:
            return
    status.pending_reason = waiting.pending_reason
    status.next_action_url = url
    if waiting.HasField("resolve_by_time"):
        status.resolve_by_time.CopyFrom(waiting.resolve_by_time)


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
    requests about a charge share a lookup, and at most one begins each second. Everybody who has a
    link can ask, so only a part of the requests is served; the others show what is stored.
    """

    def __init__(self, database: Database, worker: OperationWorker) -> None:
        self._database = database
        self._worker = worker
        self._lookups: Coalescer[str, bool] = Coalescer()
        self._requests: Counter[str] = Counter()
        self._end_times: OrderedDict[str, float] = OrderedDict()

    def may_look_up(self, checkout_id: str) -> bool:
        """Whether few enough requests wait, about the payment and in all."""
        return (
            self._requests[checkout_id] < _MAX_REQUESTS_PER_PAYMENT
            and self._requests.total() < _MAX_REQUESTS
        )

    async def look_up(self, payment: payment_pb2.Payment) -> bool:
        """Applies what the providers report within LOOK_UP_SECONDS. What comes later is applied
        too. Returns whether the payment may have changed.
        """
        charge_ids = {
            order.charge_id
            for order in payment.payment_orders
            if order.payment_order_status in _OPEN_STATUSES
        }
        self._requests[payment.checkout_id] += 1
        try:
            async with asyncio.timeout(LOOK_UP_SECONDS):
                charges = await self._load(sorted(charge_ids)[:_MAX_LOOKUPS])
                lookups = [
                    self._lookups.run(charge.charge_id, partial(self._look_up, charge))
                    for charge in charges
                ]
                # of a lookup that failed the page shows what is stored
                return not lookups or any(await asyncio.gather(*lookups, return_exceptions=True))
        except TimeoutError:
            return True
        finally:
            self._requests[payment.checkout_id] -= 1
            if not self._requests[payment.checkout_id]:
                del self._requests[payment.checkout_id]

    async def _look_up(self, charge: Charge) -> bool:
        """Looks up a charge, at the earliest a second after the last time."""
        loop = asyncio.get_running_loop()
        wait = self._end_times.get(charge.charge_id, -inf) + _MIN_INTERVAL_SECONDS - loop.time()
        if wait > 0:
            await asyncio.sleep(wait)
        try:
            return await self._apply(charge)
        finally:
            self._end_times[charge.charge_id] = loop.time()
            self._end_times.move_to_end(charge.charge_id)
            if len(self._end_times) > _MAX_END_TIMES:
                self._end_times.popitem(last=False)

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

    async def _apply(self, charge: Charge) -> bool:
        """Returns whether the provider has reported something new."""
        outcome = await self._worker.call_provider(charge, NextAction.LOOK_UP)
        if not isinstance(outcome, Succeeded | Declined | Pending) or _is_stored(charge, outcome):
            return False  # the worker asks again
        try:
            await self._worker.record_reported(charge, outcome)
        except ConstraintViolation as error:
            log.error(  # noqa: TRY400 - the traceback adds nothing
                "%s: the outcome cannot be stored or applied: %s",
                charge.resource_name,
                error,
                extra=names.OUTCOME_NOT_STORED.extra,
            )
        return True


def _is_stored(charge: Charge, outcome: Succeeded | Declined | Pending) -> bool:
    """Whether the orders show a pending outcome already, so that nothing is to be written."""
    order = charge.orders[0].message
    return isinstance(outcome, Pending) and (
        order.pending_reason == payment_pb2.PendingReason.Value(f"PENDING_REASON_{outcome.reason}")
        and order.next_action_url == outcome.next_action_url
        and order.provider_reference == outcome.reference
    )
