"""The payout worker.

Payout: create → place hold → send → record → book.

Destination: create → verify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from tallystick.payout.v1 import payout_pb2
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payout.destination import (
    DestinationState,
    DestinationTrigger,
    transition_destination,
)
from tallystick_core.payout.operation_ids import (
    format_destination_operation_id,
    format_payout_operation_id,
    split_operation_ids,
)
from tallystick_core.payout.state import PayoutState, PayoutTransitionReason, PayoutTrigger
from tallystick_core.provider.outcome import PayoutFailure, RetryReason
from tallystick_core.provider.payout_provider import PayoutProvider
from tallystick_server.operations.batcher import MAX_QUEUED_CALLS, Batcher
from tallystick_server.operations.dead_letter_commands import DeadLetters
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.operation import OperationResult
from tallystick_server.operations.periodic import Periodic
from tallystick_server.operations.worker import (
    DOWNSTREAM_CONCURRENCY,
    OperationWorker,
    WorkerSettings,
)
from tallystick_server.payout.approvals import PayoutDecisions
from tallystick_server.payout.batch_generator import BatchGenerator
from tallystick_server.payout.batching_provider import BatchingPayoutProvider
from tallystick_server.payout.booking import PayoutBooking
from tallystick_server.payout.create_payout import (
    CreatePayoutCommand,
    CreatePayoutResult,
    PayoutCreator,
)
from tallystick_server.payout.destination_verification import (
    DestinationVerification,
    VerificationRecorder,
    transition_destinations,
    verifications_from_rows,
)
from tallystick_server.payout.operation import PayoutOperation, operations_from_rows
from tallystick_server.payout.page_creator import PayoutPageCreator
from tallystick_server.payout.place_hold import HoldPlacer
from tallystick_server.payout.poll_completed import CompletedPayoutPoller
from tallystick_server.payout.record_outcome import PayoutOutcomeRecorder
from tallystick_server.payout.schedule_runner import ScheduleRunner
from tallystick_server.payout.snapshot import PayoutTransition
from tallystick_server.payout.transitions import PayoutChange, transition_payouts
from tallystick_server.payout.wallet_reader import WalletReader
from tallystick_server.providers.gateway import UNCONFIGURED_RETRY_SECONDS
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.notifier import ChangeNotifier
from tallystick_server.rpc.seller_owners import SellerOwners
from tallystick_server.rpc.service_client import ServiceClient
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.payout import destinations
from tallystick_storage.payout import payouts as store
from tallystick_storage.sql import Connection

Operation = PayoutOperation | DestinationVerification


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


class PayoutWorker(OperationWorker[Operation, Mapping[str, Operation]]):
    """Creates and advances payouts and destinations. `holder_id`: identifies this process."""

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
            name: BatchingPayoutProvider(provider, settings.provider_timeout_seconds)
            for name, provider in providers.items()
        }
        super().__init__("payout", database, self._batching_providers, settings)
        self.notifier: ChangeNotifier[payout_pb2.Payout] = ChangeNotifier()
        self.dead_letters = DeadLetters(database, self)
        self.settings = payout_settings
        self.wallet_reader = WalletReader(service_client, wallet_address)
        self.seller_owners = SellerOwners(service_client, wallet_address)
        self.creator = PayoutCreator(
            database,
            self.wallet_reader.read_balances,
            self.seller_owners.find_owners,
            payout_settings.environment,
            settings.lease_seconds,
            self.start_operation,
        )
        self.decisions = PayoutDecisions(
            database,
            payout_settings.environment,
            settings.lease_seconds,
            self.start_operation,
            self.run_detached,
        )
        recorder = PayoutOutcomeRecorder(database)
        self._add_batchers(
            HoldPlacer(
                database, service_client, wallet_address, payout_settings.approval_thresholds
            ),
            recorder,
            PayoutBooking(
                database, service_client, wallet_address, ledger_address, settings.retry_policies
            ),
        )
        self._add_periodic_tasks(database, settings, recorder, holder_id)

    def _add_batchers(
        self, hold_placer: HoldPlacer, recorder: PayoutOutcomeRecorder, booking: PayoutBooking
    ) -> None:
        self.create_batcher: Batcher[CreatePayoutCommand, CreatePayoutResult] = Batcher(
            "payout.create",
            self.creator.run,
            max_batch=MAX_ITEMS,
            drop_abandoned=True,
            max_queued=MAX_QUEUED_CALLS,
        )
        self._hold_batcher: Batcher[PayoutOperation, PayoutOperation] = Batcher(
            "payout.place_hold",
            hold_placer.run,
            max_batch=MAX_ITEMS,
            concurrency=DOWNSTREAM_CONCURRENCY,
        )
        self._record_batcher: Batcher[OperationResult[PayoutOperation, Any], PayoutOperation] = (
            Batcher("payout.record", recorder.run, max_batch=MAX_ITEMS)
        )
        self._booking_batcher: Batcher[PayoutOperation, PayoutOperation] = Batcher(
            "payout.book",
            booking.run,
            max_batch=MAX_ITEMS,
            concurrency=DOWNSTREAM_CONCURRENCY,
        )
        self._verification_batcher: Batcher[
            OperationResult[DestinationVerification, Any], DestinationVerification
        ] = Batcher("payout.verify", VerificationRecorder(self._database).run)
        self._batchers += [
            self.create_batcher,
            self._hold_batcher,
            self._record_batcher,
            self._booking_batcher,
            self._verification_batcher,
        ]

    def _add_periodic_tasks(
        self,
        database: Database,
        settings: WorkerSettings,
        recorder: PayoutOutcomeRecorder,
        holder_id: UUID,
    ) -> None:
        poller = CompletedPayoutPoller(
            database,
            self.gateway,
            settings.retry_policies,
            self.record,
            recorder.record_misdirected,
            self.make_poll_lease_acquirer(holder_id),
        )
        pages = PayoutPageCreator(
            database, self.creator, holder_id, lambda: self.in_flight_count, self.run_detached
        )
        schedules = ScheduleRunner(database, self.creator, pages)
        generator = BatchGenerator(database, self.creator, self.wallet_reader, pages, schedules)
        self.polling = Periodic(
            "payout.poll_completed", settings.scan_interval_seconds, poller.run_once
        )
        self.generation = Periodic(
            "payout.generate_batches", settings.scan_interval_seconds, generator.run_once
        )
        self._periodic_tasks += [self.polling, self.generation]

    def start(self) -> None:
        for provider in self._batching_providers.values():
            provider.start()
        super().start()

    async def stop(self) -> None:
        await super().stop()
        for provider in self._batching_providers.values():
            await provider.stop()

    async def create_payout(self, command: CreatePayoutCommand) -> CreatePayoutResult:
        """Stores a payout or finds it; its operation is in progress when this returns.

        Raises ApiError; then nothing was stored.
        """
        self.reject_overload()
        return await self.create_batcher.submit(command)

    async def advance(self, operation: Operation) -> None:
        if isinstance(operation, PayoutOperation) and operation.state in (
            PayoutState.CREATED,
            PayoutState.READY,
        ):
            # Place no hold and begin no attempt if the payout cannot be sent.
            if not self.gateway.is_configured(operation.provider):
                detail = f"the provider {operation.provider} is not configured"
                await self._reschedule(
                    FailedStep(
                        operation,
                        RetryReason.CIRCUIT_OPEN,
                        detail,
                        NextAction.PLACE_HOLD,
                        UNCONFIGURED_RETRY_SECONDS,
                    )
                )
                return
            updated_operation = await self.call_downstream(
                operation, self._hold_batcher.submit(operation, operation.context)
            )
            # The lease was lost; its new holder continues.
            if updated_operation is None or updated_operation.snapshot == operation.snapshot:
                return
            operation = updated_operation
            self._notify(operation)
            if operation.state is PayoutState.AWAITING_APPROVAL:
                return
        await super().advance(operation)

    def operation_id(self, resource_name: str) -> str:
        collection, _, id_ = resource_name.partition("/")
        return (
            format_payout_operation_id(id_)
            if collection == "payouts"
            else format_destination_operation_id(id_)
        )

    def lock_unresolved(
        self, connection: Connection, operation_ids: list[str], other_ids: Sequence[str] = ()
    ) -> set[str]:
        payout_ids, destination_ids = split_operation_ids(operation_ids)
        unresolved = (
            {
                format_destination_operation_id(id_)
                for id_ in destinations.lock_unresolved(connection, destination_ids)
            }
            if destination_ids
            else set()
        )
        operation_store.lock(connection, [*operation_ids, *other_ids])
        return unresolved | (
            {
                format_payout_operation_id(id_)
                for id_ in store.lock_unresolved(connection, payout_ids)
            }
            if payout_ids
            else set()
        )

    def load(
        self, connection: Connection, tokens: dict[str, int], now: float
    ) -> Sequence[Operation]:
        payout_ids, destination_ids = split_operation_ids(tokens)
        lease_deadline = now + self.lease_seconds
        operations = (
            operations_from_rows(
                store.load_operations(connection, payout_ids),
                tokens,
                self.settings.environment,
                lease_deadline,
            )
            if payout_ids
            else []
        )
        return [
            *operations,
            *(
                verifications_from_rows(
                    destinations.load_operations(connection, destination_ids),
                    tokens,
                    lease_deadline,
                )
                if destination_ids
                else ()
            ),
        ]

    async def record(self, operation: Operation, outcome: object) -> Operation:
        if isinstance(operation, DestinationVerification):
            return await self._verification_batcher.submit(
                OperationResult(operation, outcome), operation.context
            )
        payout = await self._record_batcher.submit(
            OperationResult(operation, outcome), operation.context
        )
        self._notify(payout)
        return payout

    async def book_operation(self, operation: Operation) -> None:
        if isinstance(operation, PayoutOperation):
            self._notify(await self._booking_batcher.submit(operation, operation.context))

    def fail(
        self, connection: Connection, failures: Sequence[FailedStep[Operation]]
    ) -> Mapping[str, Operation]:
        payouts = [
            failure.operation
            for failure in failures
            if isinstance(failure.operation, PayoutOperation)
        ]
        snapshot_changes = {"failure_reason": PayoutFailure.PROVIDER_UNREACHABLE}
        return _fail_payouts(
            connection,
            [
                (
                    payout,
                    PayoutTransition(
                        payout.snapshot.apply(PayoutTrigger.GIVEN_UP, **snapshot_changes),
                        PayoutTransitionReason.GIVEN_UP,
                    ),
                )
                for payout in payouts
            ],
        )

    def close(
        self, connection: Connection, operation: Operation, operator: str, reason: str
    ) -> Mapping[str, Operation]:
        if isinstance(operation, PayoutOperation):
            snapshot = operation.snapshot.apply(
                PayoutTrigger.CLOSED, failure_reason=PayoutFailure.CLOSED_BY_OPERATOR
            )
            return _fail_payouts(
                connection,
                [
                    (
                        operation,
                        PayoutTransition(
                            snapshot, PayoutTransitionReason.CLOSED_BY_OPERATOR, operator, reason
                        ),
                    )
                ],
            )
        new_state = transition_destination(
            DestinationState(operation.state), DestinationTrigger.CLOSED
        )
        transition_destinations(
            connection,
            [destinations.DestinationTransitionRow(operation.payout_destination_id, new_state)],
        )
        return {}

    def after_failed_step(self, operation: Operation, result: Mapping[str, Operation]) -> None:
        payout = result.get(operation.operation_id)
        if isinstance(payout, PayoutOperation):
            self._notify(payout)
            self.start_operation(payout)  # to release its hold

    def _notify(self, payout: PayoutOperation) -> None:
        self.notifier.notify(payout.payout_id, has_result=True)


def _fail_payouts(
    connection: Connection, failures: Sequence[tuple[PayoutOperation, PayoutTransition]]
) -> Mapping[str, Operation]:
    payouts = transition_payouts(
        connection, [PayoutChange(payout, (transition,)) for payout, transition in failures]
    )
    return {payout.operation_id: payout for payout in payouts.values()}
