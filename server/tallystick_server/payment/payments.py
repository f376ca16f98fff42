"""Creates payments, cancels them and confirms deliveries. The worker advances their charges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from uuid import UUID

from tallystick.payment.v1 import payment_pb2
from tallystick_core.errors import ApiError, overloaded_error, seller_taken_error
from tallystick_core.operations.kind import KindName
from tallystick_core.payment.checkout import CheckoutRequest
from tallystick_core.payment.fees import FeeRates
from tallystick_core.payment.risk import RiskCheck
from tallystick_core.payment.routing import RoutingTable
from tallystick_core.provider.outcome import PendingReason, ProviderOutcome
from tallystick_core.provider.payment_provider import PaymentProvider
from tallystick_core.provider.risk_provider import RiskProvider
from tallystick_server.observability.tracing import current_context, traceparent
from tallystick_server.operations.batcher import MAX_QUEUED_CALLS, Batcher
from tallystick_server.operations.dead_letter_commands import DeadLetters
from tallystick_server.operations.dead_letters import requeue_to_end
from tallystick_server.operations.periodic import Periodic
from tallystick_server.operations.webhook_events import EventOperations
from tallystick_server.operations.webhook_inbox import WebhookInbox
from tallystick_server.operations.worker import OperationWorker, WorkerSettings
from tallystick_server.payment.admission import PaymentAdmission
from tallystick_server.payment.booking import PaymentBooking
from tallystick_server.payment.buyer_status import BuyerLookups
from tallystick_server.payment.charge import Charge
from tallystick_server.payment.confirm_delivery import DeliveryConfirmation
from tallystick_server.payment.create_payment import (
    CreatePaymentCommand,
    CreatePaymentResult,
    PaymentCreator,
)
from tallystick_server.payment.fallback import ChargeFallback
from tallystick_server.payment.hosted_pages import HostedPages, HostedPageSettings
from tallystick_server.payment.operations.charge import ChargeOperations
from tallystick_server.payment.poll_failed import FailedChargePoller
from tallystick_server.payment.provider_amounts import reject_amounts
from tallystick_server.payment.record_outcome import PaymentOutcomeRecorder
from tallystick_server.payment.risk_check import RiskStep
from tallystick_server.payment.seller_owners import SellerOwnerCache
from tallystick_server.payment.status_links import StatusLinks, StatusLinkSettings
from tallystick_server.payment.unapplied_charges import UnappliedChargeBooking
from tallystick_server.providers.gateway import ProviderGateway
from tallystick_server.rpc.bulkhead import Bulkhead
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.notifier import ChangeNotifier
from tallystick_server.rpc.seller_owners import SellerOwners
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.payment import orders as store
from tallystick_storage.sql import Connection

_PLATFORM = "platform"
"""The actor of dead letters that end without an operator's request."""


class Payments:
    """Creates payments, and owns the worker that advances their charges.

    `routing`: chooses the provider of each charge. `risk_provider`: is asked before a charge is
    sent; None: only the built-in rules decide. `environment`: prefix of its idempotency keys.
    `max_queued_charges`: charges that may be queued while a provider fails, before new ones are
    rejected. `resolve_within`: seconds that an order has for each pending reason.
    `seller_owner_max_age_seconds`: how long a seller's owner is cached. `new_id`: makes random ids.
    """

    def __init__(
        self,
        database: Database,
        risk: RiskCheck,
        fees: FeeRates,
        providers: Mapping[str, PaymentProvider],
        risk_provider: RiskProvider | None,
        service_client: ServiceClient,
        wallet_address: str,
        ledger_address: str,
        settings: WorkerSettings,
        *,
        routing: RoutingTable,
        environment: str,
        max_queued_charges: int,
        resolve_within: Mapping[PendingReason, float],
        seller_owner_max_age_seconds: float,
        page_settings: HostedPageSettings,
        link_settings: StatusLinkSettings,
        new_id: Callable[[], UUID],
    ) -> None:
        self._database = database
        self.routing = routing
        self._providers = providers
        self.notifier: ChangeNotifier[payment_pb2.Payment] = ChangeNotifier()
        charges = ChargeOperations(
            PaymentOutcomeRecorder(database, resolve_within),
            PaymentBooking(database, service_client, wallet_address, ledger_address),
            self.notifier,
            settings.retry_policies,
            settings.lease_seconds,
            ChargeFallback(database, settings.retry_policies, environment, settings.lease_seconds),
            None if risk_provider is None else self._risk_step(risk_provider, settings),
        )
        events = EventOperations(
            "payment", database, charges.event_subjects(self._record_reported), settings
        )
        self.worker = OperationWorker(
            "payment", database, providers, [charges.kind(), events.kind()], settings
        )
        self.status_links = StatusLinks(database, link_settings, new_id)
        self.pages = HostedPages(page_settings, self.status_links, routing.page_providers)
        self.buyer_lookups = BuyerLookups(database, self.worker)
        self.dead_letters = DeadLetters(database, self.worker)
        self.inbox = WebhookInbox("payment", database, self.worker)
        self.create_bulkhead = Bulkhead(settings.max_in_flight, settings.max_owner_share)  # orders
        self._admission = PaymentAdmission(
            database, self.worker.gateway, routing, max_queued_charges
        )
        self.seller_owners = SellerOwnerCache(
            database, SellerOwners(service_client, wallet_address), seller_owner_max_age_seconds
        )
        creator = PaymentCreator(
            database,
            risk,
            fees,
            routing,
            environment,
            settings.lease_seconds,
            risk_provider is not None,
            self.pages,
            self.worker.start_operation,
            self._admission.remaining_capacity,
        )
        delivery = DeliveryConfirmation(database, service_client, wallet_address)
        unapplied_charges = UnappliedChargeBooking(database, service_client, ledger_address)
        poller = FailedChargePoller(
            database,
            self.worker.call_provider,
            settings.retry_policies,
            providers,
            charges.record,
            self.worker.make_poll_lease_acquirer(new_id()),
        )
        self._add_batchers(creator, delivery)
        self._add_periodic_tasks(
            settings.scan_interval_seconds, poller, delivery, unapplied_charges
        )

    def _add_batchers(self, creator: PaymentCreator, delivery: DeliveryConfirmation) -> None:
        self.create_batcher: Batcher[CreatePaymentCommand, CreatePaymentResult] = Batcher(
            "payment.create",
            creator.run,
            max_batch=MAX_ITEMS,
            size_of=lambda command: len(command.request.orders),
            drop_abandoned=True,
            max_queued=MAX_QUEUED_CALLS,
        )
        self._delivery_batcher: Batcher[str, bool] = Batcher(
            "payment.confirm_delivery",
            delivery.run,
            drop_abandoned=True,
            max_queued=MAX_QUEUED_CALLS,
        )
        self.worker.add(
            [
                self._admission.batcher,
                *self.seller_owners.batchers,
                self.create_batcher,
                self._delivery_batcher,
                self.inbox.batcher,
            ],
            [],
        )

    def _add_periodic_tasks(
        self,
        interval_seconds: float,
        poller: FailedChargePoller,
        delivery: DeliveryConfirmation,
        unapplied_charges: UnappliedChargeBooking,
    ) -> None:
        self.polling = Periodic("payment.poll_failed", interval_seconds, poller.run_once)
        self._credit_releases = Periodic("payment.release", interval_seconds, delivery.run_once)
        self.worker.add(
            [],
            [
                Periodic(
                    "payment.book_unapplied_charges", interval_seconds, unapplied_charges.run_once
                ),
                self.polling,
                Periodic("payment.end_expired", interval_seconds, self.end_expired),
                Periodic(
                    "payment.store_seller_owners",
                    interval_seconds,
                    self.seller_owners.store_owners,
                ),
                self._credit_releases,
            ],
        )

    async def _record_reported(self, charge: Charge, outcome: ProviderOutcome) -> object:
        return await self.worker.record_reported(charge, outcome)

    def _risk_step(self, risk_provider: RiskProvider, settings: WorkerSettings) -> RiskStep:
        """The risk check of a third party, with the limits of any provider."""

        async def is_still_leased(charge: Charge) -> bool:
            return await self.worker.is_still_leased(charge)

        gateway = ProviderGateway(
            {risk_provider.name: risk_provider},
            is_still_leased,
            limits_of=settings.limits_of,
            breaker_settings=settings.breaker_settings,
        )
        return RiskStep(self._database, gateway, risk_provider.name, is_still_leased)

    async def create_payment(self, request: CheckoutRequest) -> CreatePaymentResult:
        """Stores a payment or finds it; its charges are in progress when this returns.

        Raises IDEMPOTENCY_KEY_REUSED, ALREADY_EXISTS, DEPENDENCY_UNAVAILABLE, OVERLOADED, and
        AMOUNT_OUT_OF_RANGE if the provider does not charge an amount. Each owner may use only a
        share of the queue, so that other owners' orders can still be stored.
        """
        self.worker.reject_overload()
        owner, order_count = request.owner, len(request.orders)
        if not self.create_bulkhead.try_acquire(owner, order_count):
            raise overloaded_error("orders wait to be stored")
        try:
            error = self.pages.reject(request)
            error = error or reject_amounts(request, self.routing, self._providers)
            error = error or await self._reject_sellers(request)
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
                charges = [
                    OperationKey(KindName.CHARGE, id_)
                    for id_ in store.list_open_charges(connection, checkout_id)
                ]
                requeue_to_end(connection, charges, caller, f"the payment was cancelled: {reason}")
            return cancel_reason, newly_cancelled

        result = await self._database.transact(cancel)
        self.worker.wake()
        return result

    async def end_expired(self) -> None:
        """Requeues dead letters whose payment has expired or whose buyer did not act in time, so
        that their charges end.
        """

        def end(connection: Connection) -> bool:
            charges = operation_store.lock_expired(connection, MAX_ITEMS)
            requeue_to_end(connection, charges, _PLATFORM, "the payment expired")
            return bool(charges)

        if await self._database.transact(end):
            self.worker.wake()

    async def confirm_delivery(self, payment_order_id: str) -> bool:
        """Records the delivery of an order; returns whether it was not recorded before.

        An order that is not booked stays unchanged.
        """
        newly_confirmed = await self._delivery_batcher.submit(payment_order_id)
        self._credit_releases.wake()
        return newly_confirmed
