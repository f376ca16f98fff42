"""Advances operations: provider call, record, book, or reschedule. First tries, retries and
recovery use the same path.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from uuid import UUID

from tallystick_core.errors import ApiError, not_found_error, overloaded_error
from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import NextAction
from tallystick_core.provider.outcome import (
    NotFound,
    NotSent,
    ProviderOutcome,
    RetryReason,
    Unknown,
    has_valid_amounts,
    is_outcome_of,
)
from tallystick_server.observability import metrics, names
from tallystick_server.observability.tracing import resume_trace
from tallystick_server.operations.batcher import Batcher
from tallystick_server.operations.claim import Claim, claim_due
from tallystick_server.operations.failed_step import (
    BookingRejected,
    FailedStep,
    StepFailed,
    classify_before_call,
    classify_booking_error,
    classify_failure,
    classify_not_called,
    classify_not_found,
    classify_storage_error,
    with_cancel_reason,
)
from tallystick_server.operations.kind import OperationKind
from tallystick_server.operations.operation import LeasedOperation
from tallystick_server.operations.periodic import Periodic
from tallystick_server.operations.reschedule import Rescheduler
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.operations.tasks import WorkerTasks
from tallystick_server.providers.circuit_breaker import BreakerSettings
from tallystick_server.providers.gateway import (
    UNCONFIGURED_RETRY_SECONDS,
    NotCalled,
    ProviderGateway,
)
from tallystick_server.providers.provider_type import CallLimits
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.service_client import ServiceCallRejected
from tallystick_storage import leader_lease
from tallystick_storage import operations as operation_store
from tallystick_storage.database import ConstraintViolation, Database
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.sql import Connection

log = logging.getLogger(__name__)

R = TypeVar("R")

# Seconds after which another process may poll completed operations. Two concurrent pollers do no
# harm.
_POLL_LEASE_SECONDS = 5.0
DOWNSTREAM_CONCURRENCY = 4
"""Maximum concurrent booking batches. They spend most of their time waiting for other services."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Seconds and limits. `lease_seconds` exceeds a provider call by more than
    LEASE_MARGIN_SECONDS, in which the outcome is recorded.
    """

    lease_seconds: float
    limits_of: Callable[[str], CallLimits]
    """The limits of a provider by name."""
    scan_interval_seconds: float
    retry_policies: RetryPolicies
    breaker_settings: BreakerSettings
    max_in_flight: int = 8_000
    max_owner_share: float = 0.5
    """The share of `max_in_flight` that one owner's payments may use while they wait to be stored.
    """


class OperationWorker:
    """Advances operations of any kind. If a process does not finish one, a scan of any process
    claims it.

    `providers`: the providers by name, as the kinds' `perform` calls them.
    """

    def __init__(
        self,
        service: str,
        database: Database,
        providers: Mapping[str, Any],
        kinds: Sequence[OperationKind[Any]],
        settings: WorkerSettings,
    ) -> None:
        self.kinds = {kind.name: kind for kind in kinds}
        self.lease_seconds = settings.lease_seconds
        self._lease_check_batcher: Batcher[LeasedOperation, bool] = Batcher(
            f"{service}.check_leases", self._check_leases
        )
        self.gateway = ProviderGateway(
            providers,
            self._lease_check_batcher.submit,
            limits_of=settings.limits_of,
            breaker_settings=settings.breaker_settings,
        )
        self._service = service
        self._database = database
        self._providers = providers
        self._reschedule_batcher: Batcher[FailedStep[Any], LeasedOperation | None] = Batcher(
            f"{service}.reschedule",
            Rescheduler(database, settings.retry_policies, self.kinds).run,
            max_batch=MAX_ITEMS,
            size_of=lambda failed_step: failed_step.operation.weight,
        )
        self._batchers: list[Batcher[Any, Any]] = [
            self._reschedule_batcher,
            self._lease_check_batcher,
            *(batcher for kind in kinds for batcher in kind.batchers),
        ]
        self._claim_task = Periodic(
            f"{service}.claim_due", settings.scan_interval_seconds, self.claim_due
        )
        self._periodic_tasks = [self._claim_task]
        self._max_in_flight = settings.max_in_flight
        self._max_background = settings.max_in_flight // 2
        self._tasks: WorkerTasks[LeasedOperation] = WorkerTasks(
            self._run_operation, self._on_operation_done
        )
        self._has_backlog = False

    def add(
        self, batchers: Sequence[Batcher[Any, Any]], periodic_tasks: Sequence[Periodic]
    ) -> None:
        """Adds batchers and periodic tasks of the service, before the start. They are started,
        drained and stopped with the worker.
        """
        self._batchers += batchers
        self._periodic_tasks += periodic_tasks

    def start(self) -> None:
        metrics.OPERATIONS_IN_FLIGHT.track(self, OperationWorker._observe_in_flight)
        for batcher in self._batchers:
            batcher.start()
        for periodic_task in self._periodic_tasks:
            periodic_task.start()

    async def drain(self, timeout_seconds: float) -> None:
        """Stops claiming, lets operations in flight finish within `timeout_seconds`, and releases
        the leases of the rest.
        """
        for periodic_task in self._periodic_tasks:
            await periodic_task.stop()
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        # Many parts must be idle together, and no event tells when they are.
        while not self.is_idle and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        tokens = await self._tasks.cancel()
        if not tokens:
            return
        try:
            await self._database.transact(
                lambda connection: operation_store.release_leases(connection, tokens)
            )
        except ApiError as error:  # the database is unavailable: the leases expire
            log.warning(
                "cannot release the leases of %d operations; they expire: %s",
                len(tokens),
                error,
                extra=names.LEASES_NOT_RELEASED.extra,
            )

    async def stop(self) -> None:
        """Stops the batchers. Call it after `drain`."""
        metrics.OPERATIONS_IN_FLIGHT.untrack(self)
        for batcher in self._batchers:
            await batcher.stop()

    @property
    def is_idle(self) -> bool:
        """Whether no operation is in flight in this process."""
        return self._tasks.is_idle and all(batcher.is_idle for batcher in self._batchers)

    def _observe_in_flight(self) -> Mapping[tuple[str, ...], int]:
        return {(self._service,): self.in_flight_count}

    @property
    def in_flight_count(self) -> int:
        """The number of operations in flight in this process."""
        return self._tasks.operation_count

    @property
    def tasks(self) -> Collection[asyncio.Task[None]]:
        """The tasks of the operations in flight."""
        return self._tasks.tasks

    def start_operation(self, operation: LeasedOperation) -> None:
        """Starts an operation that this process leases."""
        self._tasks.start(operation)

    def _on_operation_done(self) -> None:
        """Claims more once most operations in flight are done."""
        # At half of what scans may claim, scans stay large, and the worker stays busy.
        if (
            self._has_backlog
            and not self._tasks.is_stopping
            and self.in_flight_count <= self._max_background // 2
        ):
            self._has_backlog = False
            self._claim_task.wake()

    @property
    def has_background_capacity(self) -> bool:
        """Whether operations that no caller waits for may start: less than half of `max_in_flight`
        are in flight. The other half is for new payments and payouts.
        """
        return self.in_flight_count < self._max_background

    def reject_overload(self) -> None:
        """Raises OVERLOADED if `max_in_flight` operations are in flight."""
        if self.in_flight_count >= self._max_in_flight:
            raise overloaded_error("operations are in flight in this process")

    async def run_detached(
        self, work: Callable[[], Coroutine[Any, Any, R]], *, is_team_call: bool = False
    ) -> R:
        """Runs `work` in a task of the worker, see `WorkerTasks.run_detached`."""
        return await self._tasks.run_detached(work, is_team_call=is_team_call)

    def make_poll_lease_acquirer(self, holder_id: UUID) -> Callable[[Connection], bool]:
        """Returns a function that acquires the leader lease on polling completed operations.
        Processes with the same providers share it.
        """
        return lambda connection: leader_lease.try_acquire_lease(
            connection, f"poll {','.join(sorted(self._providers))}", holder_id, _POLL_LEASE_SECONDS
        )

    def wake(self) -> None:
        """Starts a scan for due operations now."""
        self._claim_task.wake()

    async def claim_due(self) -> None:
        """Claims due operations and those with expired leases. Scans again at once while a provider
        has more and its limit allows.
        """
        await self.run_detached(self._claim_due)

    async def _claim_due(self) -> None:
        # Each provider has its own share, so the backlog of one never blocks another.
        provider_share = max(self._max_background // max(len(self._providers), 1), 1)
        limits = {
            provider: provider_share - self._tasks.count_of(provider)
            for provider in sorted(self._providers)
        }
        now = asyncio.get_running_loop().time()

        def claim(connection: Connection) -> tuple[Sequence[LeasedOperation], Claim]:
            due = claim_due(connection, limits, self.lease_seconds)
            return self.load(connection, due.tokens, now) if due.tokens else (), due

        operations, due = await self._database.transact(claim)
        if due.lost_lease_count:
            metrics.LEASES_LOST.add(due.lost_lease_count, self._service)
        for operation in operations:
            self.start_operation(operation)
        self._has_backlog = bool(due.full_providers)
        # A provider without a free share was not asked, and counts as full.
        if any(
            limits[provider] > 0 and provider_share > self._tasks.count_of(provider)
            for provider in due.full_providers
        ):
            self._claim_task.wake()

    async def is_still_leased(self, operation: LeasedOperation) -> bool:
        """Whether this process still leases the operation, and its request has not changed."""
        return await self._lease_check_batcher.submit(operation)

    async def _check_leases(self, operations: Sequence[LeasedOperation]) -> Sequence[bool]:
        lease_tokens = await self._database.load(
            lambda connection: operation_store.find_held(
                connection, [operation.key for operation in operations]
            )
        )
        return [
            lease_tokens.get(operation.key) == operation.lease_token for operation in operations
        ]

    def load(
        self, connection: Connection, tokens: Mapping[OperationKey, int], now: float
    ) -> Sequence[LeasedOperation]:
        """Loads the operations that were claimed under these lease tokens at loop time `now`."""
        by_kind: dict[KindName, dict[str, int]] = {}
        for key, token in tokens.items():
            by_kind.setdefault(key.kind, {})[key.operation_id] = token
        return [
            operation
            for kind, kind_tokens in by_kind.items()
            for operation in self.kinds[kind].load(connection, kind_tokens, now)
        ]

    async def _run_operation(self, operation: LeasedOperation) -> None:
        """Keeps the lease on an unexpected error. After it expires, a scan claims the operation."""
        with resume_trace(operation.context):
            try:
                await self.advance(operation)
            except ApiError as error:
                log.warning(
                    "%s: %s; it is retried when its lease expires",
                    operation.resource_name,
                    error,
                    extra=names.OPERATION_DELAYED.extra,
                )
            except Exception:  # the claim after the lease has expired tries again
                log.exception(
                    "%s: unexpected error; it is retried when its lease expires",
                    operation.resource_name,
                    extra=names.OPERATION_FAILED.extra,
                )

    async def advance(self, operation: LeasedOperation) -> None:
        """Advances an operation as far as possible now: next action, prepare, perform, record,
        book. If a step does not complete it, it is rescheduled.
        """
        failed_step = None
        try:
            action = self.next_action(operation)
            while action in self.kinds[operation.kind].prepare:
                prepared = await self._prepare(operation, action)
                if prepared is None:  # the lease was lost; its new holder continues
                    return
                operation, action = prepared, self.next_action(prepared)
            if action not in (NextAction.BOOK, NextAction.WAIT):
                action, outcome = await self._perform(operation, action)
                operation, failed_step = await self._record(operation, outcome, action)
            if self.next_action(operation) is NextAction.BOOK:
                await self._book(operation)
                return
        except StepFailed as error:
            failed_step = error.failed_step
        if failed_step is None:
            return
        successor = await self._fall_back(failed_step)
        if successor is None:
            await self._reschedule(failed_step)
        else:
            self.start_operation(successor)

    async def _fall_back(self, failed_step: FailedStep[LeasedOperation]) -> LeasedOperation | None:
        """The operation at its fallback provider; None: it stays at its provider."""
        kind, now = self.kinds[failed_step.operation.kind], asyncio.get_running_loop().time()
        if kind.fall_back is None or kind.failure_if_not_sent(failed_step.operation, now):
            return None
        successor: LeasedOperation | None = await kind.fall_back(
            failed_step, lambda provider: not self.gateway.is_circuit_open(provider)
        )
        return successor

    def next_action(self, operation: LeasedOperation, at: float | None = None) -> NextAction:
        """The next action of an operation at a loop time; None: now."""
        return self.kinds[operation.kind].next_action(
            operation,
            asyncio.get_running_loop().time() if at is None else at,
            self.gateway.key_window(operation.provider),
            self.lease_seconds,
        )

    async def _prepare(
        self, operation: LeasedOperation, action: NextAction
    ) -> LeasedOperation | None:
        """Performs an action that precedes the provider call. Nothing is prepared for a provider
        that cannot be called.
        """
        if not self.gateway.is_configured(operation.provider):
            detail = f"the provider {operation.provider} is not configured"
            raise StepFailed(
                FailedStep(
                    operation,
                    RetryReason.CIRCUIT_OPEN,
                    detail,
                    action,
                    UNCONFIGURED_RETRY_SECONDS,
                )
            )
        prepare = self.kinds[operation.kind].prepare[action]
        prepared: LeasedOperation | None = await _call_services(
            operation, action, prepare(operation)
        )
        return prepared

    async def _perform(
        self, operation: LeasedOperation, action: NextAction
    ) -> tuple[NextAction, ProviderOutcome]:
        """Returns the provider's outcome, and the action that it answers. Raises StepFailed if
        there is none.
        """
        kind, now = self.kinds[operation.kind], asyncio.get_running_loop().time()
        failure_reason = kind.failure_if_not_sent(operation, now)
        early_failure = classify_before_call(operation, action, failure_reason)
        if early_failure is not None:
            raise StepFailed(early_failure)
        action, outcome = await self._find_outcome(operation, action)
        if isinstance(outcome, NotCalled):
            raise StepFailed(classify_not_called(operation, outcome, action))
        if isinstance(outcome, NotFound):
            raise StepFailed(
                classify_not_found(
                    operation,
                    outcome,
                    action,
                    now,
                    self.gateway,
                    self.lease_seconds,
                    failure_reason=failure_reason,
                    awaits_provider=kind.awaits_provider(operation),
                )
            )
        return action, with_cancel_reason(outcome, failure_reason)

    async def _find_outcome(
        self, operation: LeasedOperation, action: NextAction
    ) -> tuple[NextAction, ProviderOutcome | NotCalled]:
        """Returns the outcome and the action that it answers. The provider is called unless the
        outcome is recorded. While the circuit for sends is open, an operation that may have been
        sent is looked up instead.
        """
        if action is NextAction.APPLY_RECORDED and (recorded := operation.recorded_outcome):
            return action, recorded
        outcome = await self.call_provider(operation, action)
        circuit = self.kinds[operation.kind].circuit
        has_separate_lookup = action is NextAction.SEND and circuit(action) is not circuit(
            NextAction.LOOK_UP
        )
        if has_separate_lookup and operation.maybe_sent and isinstance(outcome, NotCalled):
            lookup_outcome = await self.call_provider(operation, NextAction.LOOK_UP)
            # After an inconclusive lookup the operation waits for the circuit, and uses no try.
            if not isinstance(lookup_outcome, NotCalled | NotFound | NotSent | Unknown):
                return NextAction.LOOK_UP, lookup_outcome
        return action, outcome

    async def call_provider(
        self, operation: LeasedOperation, action: NextAction
    ) -> ProviderOutcome | NotCalled:
        """Sends, looks up or cancels the operation, as `action` says."""
        kind = self.kinds[operation.kind]
        return await self.gateway.call(operation, action, kind.circuit(action), kind.perform)

    async def _record(
        self, operation: LeasedOperation, outcome: ProviderOutcome, action: NextAction
    ) -> tuple[LeasedOperation, FailedStep[LeasedOperation] | None]:
        """Records an outcome. Returns the updated operation, and the failed step if the outcome is
        not final. The failure of a lookup is not recorded.
        """
        key_honored = operation.is_key_honored(
            self.gateway.key_window(operation.provider), self.lease_seconds
        )
        failed_step = classify_failure(
            operation,
            outcome,
            action,
            key_honored=key_honored,
            awaits_provider=self.kinds[operation.kind].awaits_provider(operation),
        )
        if failed_step is not None and (
            action is not NextAction.SEND and failed_step.retry_reason is not RetryReason.PENDING
        ):
            return operation, failed_step
        try:
            updated = await self.record(operation, outcome)
        except ConstraintViolation as error:
            log.error(  # noqa: TRY400 - the traceback adds nothing
                "%s: the outcome cannot be stored or applied: %s",
                operation.resource_name,
                error,
                extra=names.OUTCOME_NOT_STORED.extra,
            )
            raise StepFailed(classify_storage_error(operation, outcome, action, error)) from None
        return updated, failed_step and replace(failed_step, operation=updated)

    async def find(self, kind: KindName, operation_id: str) -> LeasedOperation | None:
        """Loads an operation in any state, without its lease, with its last attempt. None: there is
        none.
        """
        now = asyncio.get_running_loop().time()
        operation: LeasedOperation | None = await self._database.load(
            lambda connection: self.kinds[kind].find(connection, operation_id, now)
        )
        return operation

    async def apply_provider_update(
        self, kind: KindName, operation_id: str, outcome: ProviderOutcome
    ) -> None:
        """Applies what a provider reports of the last attempt of an operation. It needs no lease,
        may be repeated, and may come in any order. What follows is done by the holder of the lease,
        or by the next claim.

        Raises NOT_FOUND, and ConstraintViolation if the outcome cannot be stored. Raises ValueError
        if the outcome belongs to another operation, or has invalid amounts.
        """
        operation = await self.find(kind, operation_id)
        if operation is None:
            raise not_found_error(kind, operation_id)
        if not has_valid_amounts(outcome) or not is_outcome_of(
            outcome, operation_id, operation.provider_key
        ):
            raise ValueError(f"{operation.resource_name} cannot have the outcome {outcome}")
        await self.record_reported(operation, outcome)

    async def record_reported(
        self, operation: LeasedOperation, outcome: ProviderOutcome
    ) -> LeasedOperation:
        """As `apply_provider_update`, for an operation that is loaded without its lease."""
        now = asyncio.get_running_loop().time()
        failure_reason = self.kinds[operation.kind].failure_if_not_sent(operation, now)
        recorded = await self.record(operation, with_cancel_reason(outcome, failure_reason))
        if self.next_action(recorded) is NextAction.BOOK:
            self.wake()
        return recorded

    async def record(self, operation: LeasedOperation, outcome: ProviderOutcome) -> LeasedOperation:
        """As `apply_provider_update`, for an operation that is loaded: by the response to its send,
        a poll, or an operator. Returns the updated operation.
        """
        recorded: LeasedOperation = await self.kinds[operation.kind].record(operation, outcome)
        return recorded

    async def _book(self, operation: LeasedOperation) -> None:
        """Books the final outcome of the operation in wallet and ledger."""
        book = self.kinds[operation.kind].book
        if book is not None:
            await _call_services(operation, NextAction.BOOK, book(operation))

    async def _reschedule(self, failed_step: FailedStep[LeasedOperation]) -> None:
        operation = failed_step.operation
        log.info(
            "%s: not complete, rescheduled: %s (%s)",
            operation.resource_name,
            failed_step.retry_reason,
            failed_step.detail,
            extra=names.OPERATION_RESCHEDULED.extra,
        )
        failed = await self._reschedule_batcher.submit(failed_step, operation.context)
        if failed is not None:
            self.continue_failed(failed)

    def continue_failed(self, operation: LeasedOperation) -> None:
        """Wakes the calls that wait for an operation that has just failed, and books it if its
        failure must be booked.
        """
        self.kinds[operation.kind].notify(operation)
        if self.next_action(operation) is NextAction.BOOK:
            self.start_operation(operation)


async def _call_services(operation: LeasedOperation, action: NextAction, call: Awaitable[R]) -> R:
    """The result of a call to wallet or ledger. Raises StepFailed if it was rejected, or if the
    service is unavailable.
    """
    try:
        return await call
    except (BookingRejected, ServiceCallRejected, ConstraintViolation, ApiError) as error:
        raise StepFailed(classify_booking_error(operation, error, action)) from None
