"""Creates payouts and batches. The worker advances payouts and verifies destinations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from tallystick.payout.v1 import payout_pb2
from tallystick_core.provider.outcome import ProviderOutcome
from tallystick_core.provider.payout_provider import PayoutProvider
from tallystick_server.operations.batcher import MAX_QUEUED_CALLS, Batcher
from tallystick_server.operations.dead_letter_commands import DeadLetters
from tallystick_server.operations.periodic import Periodic
from tallystick_server.operations.webhook_events import EventOperations
from tallystick_server.operations.webhook_inbox import WebhookInbox
from tallystick_server.operations.worker import OperationWorker, WorkerSettings
from tallystick_server.payout.approvals import PayoutDecisions
from tallystick_server.payout.batch_generator import BatchGenerator
from tallystick_server.payout.batching_provider import BatchingPayoutProvider
from tallystick_server.payout.booking import PayoutBooking
from tallystick_server.payout.create_payout import (
    CreatePayoutCommand,
    CreatePayoutResult,
    PayoutCreator,
)
from tallystick_server.payout.destination_verification import VerificationRecorder
from tallystick_server.payout.operation import PayoutOperation
from tallystick_server.payout.operations.destination_verification import VerificationOperations
from tallystick_server.payout.operations.payout import PayoutOperations
from tallystick_server.payout.page_creator import PayoutPageCreator
from tallystick_server.payout.place_hold import HoldPlacer
from tallystick_server.payout.poll_completed import CompletedPayoutPoller
from tallystick_server.payout.record_outcome import PayoutOutcomeRecorder
from tallystick_server.payout.schedule_runner import ScheduleRunner
from tallystick_server.payout.wallet_reader import WalletReader
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.notifier import ChangeNotifier
from tallystick_server.rpc.seller_owners import SellerOwners
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_storage.database import Database


@dataclass(frozen=True, slots=True)
class PayoutSettings:
    """Settings for payouts only."""

    provider: str
    """The provider of new payouts."""
    environment: str
    """Prefix of the provider's idempotency keys."""
    approval_thresholds: Mapping[str, int]
    """By currency, the amount in minor units above which a second person must approve a payout."""
    destination_cooldown_seconds: float
    """Seconds after creation before a new destination is used."""
    destination_approval_thresholds: Mapping[str, int]
    """By currency, the seller's available funds in minor units above which a second person must
    approve a new destination.
    """


class Payouts:
    """Creates payouts and batches, and owns the worker that advances payouts and destinations.
    `holder_id`: identifies this process.
    """

    def __init__(
        self,
        database: Database,
        providers: Mapping[str, PayoutProvider],
        service_client: ServiceClient,
        wallet_address: str,
        ledger_address: str,
        settings: WorkerSettings,
        payout_settings: PayoutSettings,
        holder_id: UUID,
    ) -> None:
        self._batching_providers = {
            name: BatchingPayoutProvider(provider, settings.limits_of(name).timeout_seconds)
            for name, provider in providers.items()
        }
        self.notifier: ChangeNotifier[payout_pb2.Payout] = ChangeNotifier()
        recorder = PayoutOutcomeRecorder(database)
        operations = PayoutOperations(
            HoldPlacer(
                database, service_client, wallet_address, payout_settings.approval_thresholds
            ),
            recorder,
            PayoutBooking(
                database, service_client, wallet_address, ledger_address, settings.retry_policies
            ),
            self.notifier,
            payout_settings.environment,
            settings.lease_seconds,
        )
        verifications = VerificationOperations(
            VerificationRecorder(database), settings.lease_seconds
        )
        webhook_events = EventOperations(
            "payout", database, operations.event_subjects(self._record_reported), settings
        )
        self.worker = OperationWorker(
            "payout",
            database,
            self._batching_providers,
            [operations.kind(), verifications.kind(), webhook_events.kind()],
            settings,
        )
        self.dead_letters = DeadLetters(database, self.worker)
        self.inbox = WebhookInbox("payout", database, self.worker)
        self.settings = payout_settings
        self.wallet_reader = WalletReader(service_client, wallet_address)
        self.seller_owners = SellerOwners(service_client, wallet_address)
        self.creator = PayoutCreator(
            database,
            self.wallet_reader.read_balances,
            self.seller_owners.find_owners,
            payout_settings.environment,
            settings.lease_seconds,
            self.worker.start_operation,
            lambda provider, amount, currency: (
                providers[provider].reject_amount(amount, currency)
                if provider in providers
                else None
            ),
        )
        self.decisions = PayoutDecisions(
            database,
            payout_settings.environment,
            settings.lease_seconds,
            self.worker.start_operation,
            self.worker.run_detached,
        )
        poller = CompletedPayoutPoller(
            database,
            self.worker.call_provider,
            settings.retry_policies,
            operations.record,
            recorder.record_misdirected,
            self.worker.make_poll_lease_acquirer(holder_id),
        )
        self._add_to_worker(database, poller, settings.scan_interval_seconds, holder_id)

    def _add_to_worker(
        self,
        database: Database,
        poller: CompletedPayoutPoller,
        interval_seconds: float,
        holder_id: UUID,
    ) -> None:
        """Adds what the service does apart from single operations."""
        self.create_batcher: Batcher[CreatePayoutCommand, CreatePayoutResult] = Batcher(
            "payout.create",
            self.creator.run,
            max_batch=MAX_ITEMS,
            drop_abandoned=True,
            max_queued=MAX_QUEUED_CALLS,
        )
        pages = PayoutPageCreator(
            database,
            self.creator,
            holder_id,
            lambda: self.worker.in_flight_count,
            self.worker.run_detached,
        )
        schedules = ScheduleRunner(database, self.creator, pages)
        generator = BatchGenerator(database, self.creator, self.wallet_reader, pages, schedules)
        self.polling = Periodic("payout.poll_completed", interval_seconds, poller.run_once)
        self.generation = Periodic("payout.generate_batches", interval_seconds, generator.run_once)
        self.worker.add([self.create_batcher, self.inbox.batcher], [self.polling, self.generation])

    async def _record_reported(self, payout: PayoutOperation, outcome: ProviderOutcome) -> object:
        return await self.worker.record_reported(payout, outcome)

    def start(self) -> None:
        """Starts the submissions to providers. Call it before the worker starts."""
        for provider in self._batching_providers.values():
            provider.start()

    async def stop(self) -> None:
        """Stops the submissions to providers. Call it after the worker has stopped."""
        for provider in self._batching_providers.values():
            await provider.stop()

    async def create_payout(self, command: CreatePayoutCommand) -> CreatePayoutResult:
        """Stores a payout or finds it; its operation is in progress when this returns.

        Raises ApiError; then nothing was stored.
        """
        self.worker.reject_overload()
        return await self.create_batcher.submit(command)
