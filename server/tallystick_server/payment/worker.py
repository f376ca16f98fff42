"""The payment worker: creates payments and advances their charges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from tallystick.payment.v1 import payment_pb2
from tallystick_core.errors import ApiError, overloaded_error, seller_taken_error
from tallystick_core.payment.checkout import CheckoutRequest
from tallystick_core.payment.fees import FeeRates
from tallystick_core.payment.risk import RiskCheck
from tallystick_core.payment.state import PaymentTransitionReason, PaymentTrigger, transition
from tallystick_core.provider.outcome import (
    ChargeOutcome,
    Declined,
    FailureReason,
    Pending,
    PendingReason,
)
from tallystick_core.provider.payment_provider import PaymentProvider
from tallystick_server.observability.tracing import current_context, traceparent
from tallystick_server.operations.batcher import MAX_QUEUED_CALLS, Batcher
from tallystick_server.operations.dead_letter_commands import DeadLetters
from tallystick_server.operations.dead_letters import requeue_to_end
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.operation import OperationResult
from tallystick_server.operations.periodic import Periodic
from tallystick_server.operations.worker import (
    DOWNSTREAM_CONCURRENCY,
    OperationWorker,
    WorkerSettings,
)
from tallystick_server.payment.admission import PaymentAdmission
from tallystick_server.payment.booking import PaymentBooking
from tallystick_server.payment.charge import RESOURCE_PREFIX, Charge, charges_from_rows
from tallystick_server.payment.confirm_delivery import DeliveryConfirmation
from tallystick_server.payment.create_payment import (
    CreatePaymentCommand,
    CreatePaymentResult,
    PaymentCreator,
)
from tallystick_server.payment.poll_failed import FailedChargePoller, schedule_polls
from tallystick_server.payment.record_outcome import PaymentOutcomeRecorder, RecordResult
from tallystick_server.payment.seller_owners import SellerOwnerCache
from tallystick_server.payment.transitions import (
    OrderTransition,
    TransitionResult,
    transition_orders,
)
from tallystick_server.payment.unapplied_charges import UnappliedChargeBooking
from tallystick_server.rpc.bulkhead import Bulkhead
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.notifier import ChangeNotifier
from tallystick_server.rpc.seller_owners import SellerOwners
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.payment import charges as charge_store
from tallystick_storage.payment import orders as store
from tallystick_storage.sql import Connection

_PLATFORM = "platform"
"""The actor of dead letters that end without an operator's request."""


class PaymentWorker(OperationWorker[Charge, TransitionResult]):
    """Creates and advances charges.

    `provider`: charges new payments. `environment`: prefix of its idempotency keys.
    `max_queued_charges`: charges that may be queued while a provider fails, before new ones are
    rejected. `resolve_within`: seconds that an order has for each pending reason.
    `seller_owner_max_age_seconds`: how long a seller's owner is cached. `holder_id`: identifies
    this process.
    """

    def __init__(
        self,
        database: Database,
        risk: RiskCheck,
        fees: FeeRates,
        providers: Mapping[str, PaymentProvider],
        service_client: ServiceClient,
        wallet_address: str,
        ledger_address: str,
        settings: WorkerSettings,
        *,
        provider: str,
        environment: str,
        max_queued_charges: int,
        resolve_within: Mapping[PendingReason, float],
        seller_owner_max_age_seconds: float,
        holder_id: UUID,
    ) -> None:
        super().__init__("payment", database, providers, settings)
        self.notifier: ChangeNotifier[payment_pb2.Payment] = ChangeNotifier()
        self.dead_letters = DeadLetters(database, self)
        self._retry_policies = settings.retry_policies
        self.create_bulkhead = Bulkhead(settings.max_in_flight, settings.max_owner_share)  # orders
        self._admission = PaymentAdmission(database, self.gateway, provider, max_queued_charges)
        self.seller_owners = SellerOwnerCache(
            database, SellerOwners(service_client, wallet_address), seller_owner_max_age_seconds
        )
        creator = PaymentCreator(
            database,
            risk,
            fees,
            provider,
            environment,
            settings.lease_seconds,
            self.start_operation,
            self._admission.remaining_capacity,
        )
        delivery = DeliveryConfirmation(database, service_client, wallet_address)
        poller = FailedChargePoller(
            database,
            self.gateway,
            settings.retry_policies,
            providers,
            self.record,
            self.make_poll_lease_acquirer(holder_id),
        )
        self._add_batchers(
            creator,
            PaymentOutcomeRecorder(database, resolve_within),
            PaymentBooking(database, service_client, wallet_address, ledger_address),
            delivery,
        )
        self._add_periodic_tasks(
            settings.scan_interval_seconds,
            UnappliedChargeBooking(database, service_client, ledger_address),
            poller,
            delivery,
        )

    def _add_batchers(
        self,
        creator: PaymentCreator,
        recorder: PaymentOutcomeRecorder,
        booking: PaymentBooking,
        delivery: DeliveryConfirmation,
    ) -> None:
        self.create_batcher: Batcher[CreatePaymentCommand, CreatePaymentResult] = Batcher(
            "payment.create",
            creator.run,
            max_batch=MAX_ITEMS,
            size_of=lambda command: len(command.request.orders),
            drop_abandoned=True,
            max_queued=MAX_QUEUED_CALLS,
        )
        self._record_batcher: Batcher[OperationResult[Charge, ChargeOutcome], RecordResult] = (
            Batcher(
                "payment.record",
                recorder.run,
                max_batch=MAX_ITEMS,
                size_of=lambda command: command.operation.weight,
            )
        )
        self._booking_batcher: Batcher[Charge, payment_pb2.Payment | None] = Batcher(
            "payment.book",
            booking.run,
            max_batch=MAX_ITEMS,
            size_of=lambda command: command.weight,
            concurrency=DOWNSTREAM_CONCURRENCY,
        )
        self._delivery_batcher: Batcher[str, bool] = Batcher(
            "payment.confirm_delivery",
            delivery.run,
            drop_abandoned=True,
            max_queued=MAX_QUEUED_CALLS,
        )
        self._batchers += [
            self._admission.batcher,
            *self.seller_owners.batchers,
            self.create_batcher,
            self._record_batcher,
            self._booking_batcher,
            self._delivery_batcher,
        ]

    def _add_periodic_tasks(
        self,
        interval_seconds: float,
        unapplied_charges: UnappliedChargeBooking,
        poller: FailedChargePoller,
        delivery: DeliveryConfirmation,
    ) -> None:
        self.polling = Periodic("payment.poll_failed", interval_seconds, poller.run_once)
        self._credit_releases = Periodic("payment.release", interval_seconds, delivery.run_once)
        self._periodic_tasks += [
            Periodic(
                "payment.book_unapplied_charges", interval_seconds, unapplied_charges.run_once
            ),
            self.polling,
            Periodic("payment.end_expired", interval_seconds, self.end_expired),
            self._credit_releases,
        ]

    async def create_payment(self, request: CheckoutRequest) -> CreatePaymentResult:
        """Stores a payment or finds it; its charges are in progress when this returns.

        Raises IDEMPOTENCY_KEY_REUSED, ALREADY_EXISTS, DEPENDENCY_UNAVAILABLE, OVERLOADED. Each
        owner may use only a share of the queue, so that other owners' orders can still be stored.
        """
        self.reject_overload()
        owner, order_count = request.owner, len(request.orders)
        if not self.create_bulkhead.try_acquire(owner, order_count):
            raise overloaded_error("orders wait to be stored")
        try:
            error = await self._reject_sellers(request)
            return await self.create_batcher.submit(
                CreatePaymentCommand(
                    request, request.fingerprint(), traceparent(), current_context(), error
                )
            )
        finally:
            self.create_bulkhead.release(owner, order_count)

    async def _reject_sellers(self, request: CheckoutRequest) -> ApiError | None:
        """The error if the request may not name its sellers. A payment that is already stored
        is returned all the same.
        """
        try:
            foreign_sellers = await self.seller_owners.find_foreign_sellers(
                request.owner,
                {order.seller_account for order in request.orders},
                lambda: self._admission.check(request),
            )
        except ApiError as error:
            return error
        index = min(
            (order.index for order in request.orders if order.seller_account in foreign_sellers),
            default=None,
        )
        return (
            None if index is None else seller_taken_error(f"payment_orders[{index}].seller_account")
        )

    async def cancel(self, checkout_id: str, caller: str, reason: str) -> tuple[str, bool]:
        """Cancels an open payment. Its charges are requeued at once, dead letters included.

        Returns the result of `store.cancel`: the stored reason, and whether the payment was
        cancelled now.
        """

        def cancel(connection: Connection) -> tuple[str, bool]:
            cancel_reason, newly_cancelled = store.cancel(connection, checkout_id, reason)
            if newly_cancelled:
                charges = {
                    f"{RESOURCE_PREFIX}{id_}": id_
                    for id_ in store.list_open_charges(connection, checkout_id)
                }
                requeue_to_end(connection, charges, caller, f"the payment was cancelled: {reason}")
            return cancel_reason, newly_cancelled

        result = await self._database.transact(cancel)
        self.wake()
        return result

    async def end_expired(self) -> None:
        """Requeues dead letters whose payment has expired or whose buyer did not act in time, so
        that their charges end.
        """

        def end(connection: Connection) -> bool:
            charges = {
                f"{RESOURCE_PREFIX}{id_}": id_
                for id_ in operation_store.lock_expired(connection, MAX_ITEMS)
            }
            requeue_to_end(connection, charges, _PLATFORM, "the payment expired")
            return bool(charges)

        if await self._database.transact(end):
            self.wake()

    async def confirm_delivery(self, payment_order_id: str) -> bool:
        """Records the delivery of an order; returns whether it was not recorded before.

        An order that is not booked stays unchanged.
        """
        newly_confirmed = await self._delivery_batcher.submit(payment_order_id)
        self._credit_releases.wake()
        return newly_confirmed

    def operation_id(self, resource_name: str) -> str:
        return resource_name.removeprefix(RESOURCE_PREFIX)

    def load(self, connection: Connection, tokens: dict[str, int], now: float) -> Sequence[Charge]:
        return charges_from_rows(
            charge_store.load_charges(connection, list(tokens)), tokens, now, self.lease_seconds
        )

    async def record(self, operation: Charge, outcome: ChargeOutcome) -> Charge:
        result = await self._record_batcher.submit(
            OperationResult(operation, outcome), operation.context
        )
        has_result = isinstance(outcome, Declined | Pending) or result.final_payment is not None
        self.notifier.notify(
            operation.checkout_id, has_result=has_result, final=result.final_payment
        )
        return result.charge

    async def book_operation(self, operation: Charge) -> None:
        final_payment = await self._booking_batcher.submit(operation, operation.context)
        self.notifier.notify(operation.checkout_id, has_result=True, final=final_payment)

    def fail(
        self, connection: Connection, failures: Sequence[FailedStep[Charge]]
    ) -> TransitionResult:
        reasons = [
            (failure.operation, failure.failure_reason or FailureReason.PROVIDER_UNREACHABLE)
            for failure in failures
        ]
        transitions = [
            order_transition
            for charge, reason in reasons
            for order_transition in _failure_transitions(
                charge, PaymentTrigger.GIVEN_UP, PaymentTransitionReason.GIVEN_UP, reason
            )
        ]
        return self._fail_and_poll(connection, transitions, [charge for charge, _ in reasons])

    def close(
        self, connection: Connection, operation: Charge, operator: str, reason: str
    ) -> TransitionResult:  # the dead letter keeps the actor and the reason
        return self._fail_and_poll(
            connection,
            _failure_transitions(
                operation,
                PaymentTrigger.CLOSED,
                PaymentTransitionReason.CLOSED_BY_OPERATOR,
                FailureReason.CLOSED_BY_OPERATOR,
            ),
            [operation],
        )

    def _fail_and_poll(
        self,
        connection: Connection,
        transitions: Sequence[OrderTransition],
        charges: Sequence[Charge],
    ) -> TransitionResult:
        """Fails charges; those that may have been charged all the same are polled."""
        result = transition_orders(connection, transitions)
        schedule_polls(
            connection,
            self._retry_policies,
            [charge for charge in charges if charge.orders[0].payment_order_id in result.orders],
        )
        return result

    def after_failed_step(self, operation: Charge, result: TransitionResult) -> None:
        final_payment = result.final_payments.get(operation.checkout_id)
        if final_payment is not None:
            self.notifier.notify(operation.checkout_id, has_result=True, final=final_payment)


def _failure_transitions(
    charge: Charge,
    trigger: PaymentTrigger,
    transition_reason: PaymentTransitionReason,
    failure_reason: FailureReason,
) -> list[OrderTransition]:
    """The transitions that fail the orders of a charge."""
    return [
        OrderTransition(
            charge,
            order,
            store.OrderTransitionRow(
                payment_order_id=order.payment_order_id,
                charge_id=charge.charge_id,
                lease_token=charge.lease_token,
                version=order.version,
                status=transition(order.status, trigger),
                transition_reason=transition_reason,
                failure_reason=failure_reason,
            ),
        )
        for order in charge.orders
    ]
