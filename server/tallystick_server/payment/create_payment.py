"""Payment creation: stores new payments, or finds existing ones, in one transaction for each batch.

The provider is called only after the commit.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from tallystick.event.v1.event_service_pb2 import BatchPublishRequest
from tallystick.payment.v1 import payment_pb2
from tallystick_core.errors import ApiError
from tallystick_core.payment.charge import format_charge_id
from tallystick_core.payment.checkout import (
    CheckoutRequest,
    Order,
    reject_siblings,
)
from tallystick_core.payment.fees import FeeRates
from tallystick_core.payment.risk import RiskCheck, decide_new_order
from tallystick_core.payment.routing import RoutingDecision, RoutingTable
from tallystick_core.payment.state import (
    OrderStatus,
)
from tallystick_core.provider.outcome import FailureReason
from tallystick_server.observability.tracing import SpanContext
from tallystick_server.operations.batcher import deduplicate_by_key
from tallystick_server.payment import convert, events
from tallystick_server.payment.capacity import (
    CapacityCounter,
    RemainingCapacity,
    Route,
    provider_unavailable_error,
)
from tallystick_server.payment.charge import FIRST_ATTEMPT, Charge, build_charges
from tallystick_server.payment.existing_payments import find_conflicts
from tallystick_server.payment.hosted_pages import HostedPages, NewPage
from tallystick_storage.database import ConstraintViolation, Database
from tallystick_storage.payment import checkouts as store
from tallystick_storage.sql import Connection

_UNIQUE_VIOLATION = "23505"  # an SQLSTATE


@dataclass(frozen=True, slots=True)
class CreatePaymentCommand:
    """A parsed CreatePayment call."""

    request: CheckoutRequest
    fingerprint: bytes
    traceparent: str
    context: SpanContext
    error: ApiError | None = None
    """The error if the payment is not stored; ignored if it already exists."""


@dataclass(frozen=True, slots=True)
class CreatePaymentResult:
    """The payment is stored durably.

    `replayed`: it was stored before. `in_progress`: its charges have just been started.
    """

    replayed: bool
    in_progress: bool = False


@dataclass(frozen=True, slots=True)
class _RiskCheckedPayment:
    """A command with the rows to store, the message of each order, and the charges of the orders
    that passed the risk check.
    """

    command: CreatePaymentCommand
    checkout: store.NewCheckout
    """The row; the request is `command.request`."""
    orders: list[tuple[store.NewOrder, payment_pb2.PaymentOrder]]
    charges: list[Charge]
    decisions: Mapping[str, RoutingDecision]
    """The provider of each charge, by charge id."""
    page: NewPage | None
    """The hosted page on which the buyer pays."""

    @property
    def checkout_id(self) -> str:
        return self.checkout.checkout_id

    @property
    def routes(self) -> list[Route]:
        """The route of each charge."""
        return [Route(charge.provider, charge.fallback_provider) for charge in self.charges]


@dataclass(frozen=True, slots=True)
class _StoredPayments:
    """A batch after its transaction, whose payments have one `create_time`. `results` is keyed by
    checkout id.
    """

    results: dict[str, CreatePaymentResult | Exception]
    payments: list[_RiskCheckedPayment]
    """The payments that this process stored; their charges are to be started."""
    create_time: datetime


class PaymentCreator:
    """Stores payments. Starts each stored charge, leased to this process."""

    def __init__(
        self,
        database: Database,
        risk: RiskCheck,
        fees: FeeRates,
        routing: RoutingTable,
        environment: str,
        lease_seconds: float,
        has_risk_provider: bool,
        pages: HostedPages,
        start_operation: Callable[[Charge], None],
        remaining_capacity: RemainingCapacity,
    ) -> None:
        self._database = database
        self._risk = risk
        self._fees = fees
        self._routing = routing
        self._environment = environment
        self._lease_seconds = lease_seconds
        self._has_risk_provider = has_risk_provider
        self._pages = pages
        self._start_operation = start_operation
        self._remaining_capacity = remaining_capacity

    async def run(
        self, commands: Sequence[CreatePaymentCommand]
    ) -> Sequence[CreatePaymentResult | Exception]:
        """Returns one result for each command: stored, IDEMPOTENCY_KEY_REUSED, ALREADY_EXISTS,
        PROVIDER_UNAVAILABLE, or the command's own error.
        """
        return await deduplicate_by_key(
            commands,
            lambda command: (command.request.checkout_id, command.fingerprint),
            self._create,
        )

    async def _create(
        self, commands: Sequence[CreatePaymentCommand]
    ) -> Sequence[CreatePaymentResult | Exception]:
        now = asyncio.get_running_loop().time()

        def create(connection: Connection) -> _StoredPayments:
            return self._store(connection, commands, now)

        try:
            stored = await self._database.transact(create)
        except ConstraintViolation as error:
            if error.sqlstate != _UNIQUE_VIOLATION or len(commands) > 1:
                raise
            # An order id was taken by a concurrent transaction; the retry finds it.
            stored = await self._database.transact(create)
        for payment in stored.payments:
            for charge in payment.charges:
                self._start_operation(self._with_expiry(charge, payment, stored.create_time))
        return [stored.results[command.request.checkout_id] for command in commands]

    def _store(
        self, connection: Connection, commands: Sequence[CreatePaymentCommand], now: float
    ) -> _StoredPayments:
        """Stores the new payments of a batch. Each step takes those that the previous ones left:
        find existing ones, reject, check risk, check capacity, complete, insert.
        """
        results = _find_existing(connection, commands)
        begin_time = connection.begin_time
        results |= {
            command.request.checkout_id: error
            for command in commands
            if (error := command.error or self._pages.reject_expiry(command.request, begin_time))
            and command.request.checkout_id not in results
        }
        new_commands = [
            command for command in commands if command.request.checkout_id not in results
        ]
        payments = self._check_risk(connection, new_commands, now + self._lease_seconds)
        results |= {
            payment.checkout_id: error
            for payment in payments
            for route in payment.routes
            if (error := self._pages.reject_provider(payment.command.request, route.provider))
        }
        payments = [payment for payment in payments if payment.checkout_id not in results]
        routes = {route for payment in payments for route in payment.routes}
        counter = CapacityCounter(self._remaining_capacity(connection, now, routes))
        overflow = {
            payment.checkout_id for payment in payments if not counter.admit(payment.routes)
        }
        results |= {checkout_id: provider_unavailable_error() for checkout_id in sorted(overflow)}
        payments = [payment for payment in payments if payment.checkout_id not in overflow]
        for payment in payments:
            _complete(payment, connection.begin_time)
        stored_ids = self._insert(connection, payments) if payments else set()
        new_payments = [payment for payment in payments if payment.checkout_id in stored_ids]
        results |= {
            payment.checkout_id: CreatePaymentResult(
                replayed=False, in_progress=bool(payment.charges)
            )
            for payment in new_payments
        }
        concurrent_commands = [
            payment.command for payment in payments if payment.checkout_id not in stored_ids
        ]
        # Another process stored them after the read; the next statement sees them.
        if concurrent_commands:
            results |= _find_existing(connection, concurrent_commands)
        return _StoredPayments(results, new_payments, connection.begin_time)

    def _with_expiry(
        self, charge: Charge, payment: _RiskCheckedPayment, create_time: datetime
    ) -> Charge:
        """The charge with its payment's expiry as loop time, computed from the database clock."""
        expiry = payment.checkout.expire_time
        if expiry is None:
            return charge
        claimed_at = charge.lease_deadline - self._lease_seconds
        expires_at = claimed_at + (expiry - create_time).total_seconds()
        return replace(charge, expires_at=expires_at, end_deadline=expires_at)

    def _check_risk(
        self,
        connection: Connection,
        commands: Sequence[CreatePaymentCommand],
        lease_deadline: float,
    ) -> list[_RiskCheckedPayment]:
        """Checks risk; earlier orders of the batch count for later ones."""
        recent: Counter[str] = Counter()
        if self._risk.velocity_window is not None and commands:
            buyers = sorted(
                {order.buyer_account for command in commands for order in command.request.orders}
            )
            recent.update(store.count_recent_orders(connection, buyers, self._risk.velocity_window))
        payments = []
        for command in commands:
            request = command.request
            failures = reject_siblings(request, self._risk.check(request, recent))
            recent.update(order.buyer_account for order in request.orders)
            decisions = self._routing.route_charges(
                request,
                [order for order in request.orders if order.payment_order_id not in failures],
            )
            orders = [
                self._new_order(request, order, failures.get(order.payment_order_id), decisions)
                for order in request.orders
            ]
            orders_with_messages = [(order, convert.new_order(order)) for order in orders]
            checkout = self._new_checkout(command, len(failures), connection.begin_time)
            page = self._pages.new_page(request)
            charges = build_charges(
                request,
                orders_with_messages,
                decisions,
                self._environment,
                lease_deadline,
                command.traceparent,
                command.context,
                None
                if page is None
                else page.to_charge_page(connection.begin_time, checkout.expire_time),
            )
            payments.append(
                _RiskCheckedPayment(
                    command, checkout, orders_with_messages, charges, decisions, page
                )
            )
        return payments

    def _insert(self, connection: Connection, payments: Sequence[_RiskCheckedPayment]) -> set[str]:
        attempts = [
            store.NewAttempt(
                charge.charge_id,
                charge.checkout_id,
                charge.provider,
                charge.provider_key,
                charge.amount,
                charge.currency,
                charge.routing_rule,
                payment.decisions[charge.charge_id].reason,
                charge.fallback_provider,
            )
            for payment in payments
            for charge in payment.charges
        ]
        orders = [order for payment in payments for order, _ in payment.orders]
        stored_ids = store.insert(
            connection,
            [payment.checkout for payment in payments],
            orders,
            attempts,
            self._lease_seconds,
        )
        pages = [
            payment.page
            for payment in payments
            if payment.page is not None and payment.checkout_id in stored_ids
        ]
        if pages:
            self._pages.insert(connection, pages)
        return stored_ids

    def _new_checkout(
        self, command: CreatePaymentCommand, rejected_count: int, now: datetime
    ) -> store.NewCheckout:
        request = command.request
        return store.NewCheckout(
            checkout_id=request.checkout_id,
            caller=request.caller,
            owner=request.owner,
            fingerprint=command.fingerprint.hex(),
            buyer_info=request.buyer_info,
            seller_info=request.seller_info,
            buyer_country=request.buyer_country,
            payment_token=request.payment_token,
            payment_method_type=request.payment_method_type,
            charge_mode=request.charge_mode,
            partial_failure_policy=request.partial_failure_policy,
            traceparent=command.traceparent,
            expire_time=self._pages.expire_time_of(request, now),
            order_count=len(request.orders),
            open_orders=len(request.orders) - rejected_count,
        )

    def _new_order(
        self,
        request: CheckoutRequest,
        order: Order,
        failure_reason: FailureReason | None,
        decisions: Mapping[str, RoutingDecision],
    ) -> store.NewOrder:
        charge_id = format_charge_id(request, order)
        status, transition_reason = decide_new_order(
            failure_reason, has_risk_provider=self._has_risk_provider
        )
        return store.NewOrder(
            payment_order_id=order.payment_order_id,
            checkout_id=request.checkout_id,
            charge_id=charge_id,
            buyer_account=order.buyer_account,
            seller_account=order.seller_account,
            amount=order.amount,
            currency=order.currency,
            requested_fee=order.platform_fee,
            platform_fee=self._fees.compute_fee(order),
            status=status,
            transition_reason=transition_reason,
            failure_reason=failure_reason or "",
            provider="" if failure_reason else decisions[charge_id].provider,
            attempt_count=0 if failure_reason else FIRST_ATTEMPT,
        )


def _complete(item: _RiskCheckedPayment, create_time: datetime) -> None:
    """Completes a new payment, which is stored at this time: the times of its orders' messages, the
    decision of the risk rules on each (unless the risk provider decides later), and the events.
    Each order has one as it was requested and one as it was decided.
    """
    publish_request, checkout = BatchPublishRequest(), item.checkout
    payment = convert.new_payment(
        checkout,
        item.command.request.page,
        sum(convert.created_version(order) for order, _ in item.orders),
        create_time,
    )
    events.add_payment_created(publish_request, payment, checkout.traceparent)
    for order, message in item.orders:
        message.create_time.CopyFrom(payment.create_time)
        message.update_time.CopyFrom(payment.create_time)
        events.add_order_changed(publish_request, message, checkout)
        if order.status != OrderStatus.NOT_STARTED:
            convert.apply_risk_decision(message, order)
            events.add_order_changed(publish_request, message, checkout)
    if checkout.is_rejected:
        convert.close_new_payment(payment)
        events.add_payment_closed(publish_request, payment, checkout.traceparent)
    checkout.events = publish_request.SerializeToString().hex()


def _find_existing(
    connection: Connection, commands: Sequence[CreatePaymentCommand]
) -> dict[str, CreatePaymentResult | Exception]:
    """The results for ids that already exist, by checkout id."""
    conflicts = find_conflicts(
        connection, [(command.request, command.fingerprint) for command in commands]
    )
    return {
        checkout_id: conflict or CreatePaymentResult(replayed=True)
        for checkout_id, conflict in conflicts.items()
    }
