"""Advances operations: provider call, record, book, or reschedule. First tries, retries and
recovery use the same path.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar
from uuid import UUID

from tallystick_core.errors import ApiError, overloaded_error
from tallystick_core.operations.next_action import NextAction
from tallystick_core.provider.outcome import (
    NotFound,
    NotSent,
    ProviderOutcome,
    RetryReason,
    Unknown,
)
from tallystick_server.operations.batcher import Batcher
from tallystick_server.operations.claim import claim_due
from tallystick_server.operations.failed_step import (
    BookingRejected,
    FailedStep,
    classify_before_call,
    classify_booking_error,
    classify_failure,
    classify_not_called,
    classify_not_found,
    classify_storage_error,
    with_cancel_reason,
)
from tallystick_server.operations.operation import LeasedOperation
from tallystick_server.operations.periodic import Periodic
from tallystick_server.operations.reschedule import Rescheduler
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_server.operations.tasks import WorkerTasks
from tallystick_server.providers.circuit_breaker import BreakerSettings
from tallystick_server.providers.gateway import NotCalled, ProviderGateway
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.service_client import ServiceCallRejected
from tallystick_storage import leader_lease
from tallystick_storage import operations as operation_store
from tallystick_storage.database import ConstraintViolation, Database
from tallystick_storage.sql import Connection

log = logging.getLogger(__name__)

Op = TypeVar("Op", bound=LeasedOperation)
G = TypeVar("G")
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
    provider_timeout_seconds: float
    max_calls_per_provider: int
    scan_interval_seconds: float
    retry_policies: RetryPolicies
    breaker_settings: BreakerSettings
    max_in_flight: int = 8_000
    max_owner_share: float = 0.5
    """The share of `max_in_flight` that one owner's payments may use while they wait to be stored.
    """


class OperationWorker(ABC, Generic[Op, G]):
    """Advances operations. If a process does not finish one, a scan of any process claims it.

    `G`: what a service returns for a batch of failed steps.
    """

    def __init__(
        self,
        service: str,
        database: Database,
        providers: Mapping[str, Any],
        settings: WorkerSettings,
    ) -> None:
        self.lease_seconds = settings.lease_seconds
        self._lease_check_batcher: Batcher[LeasedOperation, bool] = Batcher(
            f"{service}.check_leases", self._check_leases
        )
        self.gateway = ProviderGateway(
            providers,
            self._lease_check_batcher.submit,
            max_calls_per_provider=settings.max_calls_per_provider,
            timeout_seconds=settings.provider_timeout_seconds,
            breaker_settings=settings.breaker_settings,
        )
        self._database = database
        self._providers = providers
        self._reschedule_batcher: Batcher[FailedStep[Op], G] = Batcher(
            f"{service}.reschedule",
            Rescheduler(database, settings.retry_policies, self.lock_unresolved, self.fail).run,
            max_batch=MAX_ITEMS,
            size_of=lambda failed_step: failed_step.operation.weight,
        )
        self._batchers: list[Batcher[Any, Any]] = [
            self._reschedule_batcher,
            self._lease_check_batcher,
        ]
        self._claim_task = Periodic(
            f"{service}.claim_due", settings.scan_interval_seconds, self.claim_due
        )
        self._periodic_tasks = [self._claim_task]
        self._max_in_flight = settings.max_in_flight
        self._tasks: WorkerTasks[Op] = WorkerTasks(self._run_operation, self._on_operation_done)
        self._has_backlog = False

    @abstractmethod
    def load(self, connection: Connection, tokens: dict[str, int], now: float) -> Sequence[Op]:
        """Loads the operations that were claimed under these lease tokens at loop time `now`."""

    @abstractmethod
    def operation_id(self, resource_name: str) -> str:
        """The operation id in a dead letter's resource name."""

    def lock_unresolved(
        self, connection: Connection, operation_ids: list[str], other_ids: Sequence[str] = ()
    ) -> set[str]:
        """Locks these operations, and the queue rows of all ids. Returns the operations without a
        recorded outcome; none can be recorded while the lock is held.
        """
        unresolved = operation_store.lock_open_attempts(connection, operation_ids)
        operation_store.lock(connection, [*operation_ids, *other_ids])
        return unresolved

    @abstractmethod
    async def record(self, operation: Op, outcome: Any) -> Op:
        """Records an outcome of the operation's kind of provider. Returns the updated operation."""

    @abstractmethod
    async def book_operation(self, operation: Op) -> None:
        """Credits the wallet and posts to the ledger.

        Raises BookingRejected, ServiceCallRejected or ConstraintViolation, and ApiError where a
        retry may succeed.
        """

    @abstractmethod
    def fail(self, connection: Connection, failures: Sequence[FailedStep[Op]]) -> G:
        """Fails operations that certainly moved no money."""

    @abstractmethod
    def close(self, connection: Connection, operation: Op, operator: str, reason: str) -> G:
        """Fails an operation by an operator's decision."""

    @abstractmethod
    def after_failed_step(self, operation: Op, result: G) -> None:
        """Called with the result of the batch that failed, rescheduled or closed the operation."""

    def start(self) -> None:
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
                "cannot release the leases of %d operations; they expire: %s", len(tokens), error
            )

    async def stop(self) -> None:
        """Stops the batchers. Call it after `drain`."""
        for batcher in self._batchers:
            await batcher.stop()

    @property
    def is_idle(self) -> bool:
        """Whether no operation is in flight in this process."""
        return self._tasks.is_idle and all(batcher.is_idle for batcher in self._batchers)

    @property
    def in_flight_count(self) -> int:
        """The number of operations in flight in this process."""
        return self._tasks.operation_count

    @property
    def tasks(self) -> Collection[asyncio.Task[None]]:
        """The tasks of the operations in flight."""
        return self._tasks.tasks

    def start_operation(self, operation: Op) -> None:
        """Starts an operation that this process leases."""
        self._tasks.start(operation)

    def _on_operation_done(self) -> None:
        """Claims more once most operations in flight are done."""
        # A quarter is half of what scans may claim: scans stay large, and the worker stays busy.
        if (
            self._has_backlog
            and not self._tasks.is_stopping
            and self.in_flight_count <= self._max_in_flight // 4
        ):
            self._has_backlog = False
            self._claim_task.wake()

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
        # Each provider has its own share, so the backlog of one never blocks another. Half of the
        # limit is reserved for new operations.
        provider_share = max(self._max_in_flight // 2 // max(len(self._providers), 1), 1)
        limits = {
            provider: provider_share - self._tasks.count_of(provider)
            for provider in sorted(self._providers)
        }
        now = asyncio.get_running_loop().time()

        def claim(connection: Connection) -> tuple[Sequence[Op], list[str]]:
            tokens, full_providers = claim_due(connection, limits, self.lease_seconds)
            return self.load(connection, tokens, now) if tokens else (), full_providers

        operations, full_providers = await self._database.transact(claim)
        for operation in operations:
            self.start_operation(operation)
        self._has_backlog = bool(full_providers)
        # A provider without a free share was not asked, and counts as full.
        if any(
            limits[provider] > 0 and provider_share > self._tasks.count_of(provider)
            for provider in full_providers
        ):
            self._claim_task.wake()

    async def _check_leases(self, operations: Sequence[LeasedOperation]) -> Sequence[bool]:
        lease_tokens = await self._database.load(
            lambda connection: operation_store.find_held(
                connection, [operation.operation_id for operation in operations]
            )
        )
        return [
            lease_tokens.get(operation.operation_id) == operation.lease_token
            for operation in operations
        ]

    async def _run_operation(self, operation: Op) -> None:
        """Keeps the lease on an unexpected error. After it expires, a scan claims the operation."""
        try:
            await self.advance(operation)
        except ApiError as error:
            log.warning(
                "%s: %s; it is retried when its lease expires", operation.resource_name, error
            )
        except Exception:  # the claim after the lease has expired tries again
            log.exception(
                "%s: unexpected error; it is retried when its lease expires",
                operation.resource_name,
            )

    async def advance(self, operation: Op) -> None:
        """Advances an operation as far as possible now."""
        now = asyncio.get_running_loop().time()
        key_window = self.gateway.key_window(operation.provider)
        action = operation.next_action(now, key_window, self.lease_seconds)
        if action is NextAction.BOOK:
            await self.book(operation)
            return
        early_failure = classify_before_call(operation, action, now)
        if early_failure is not None:
            await self._reschedule(early_failure)
            return
        action, outcome = await self._find_outcome(operation, action)
        if isinstance(outcome, NotCalled):
            await self._reschedule(classify_not_called(operation, outcome, action))
        elif isinstance(outcome, NotFound):
            await self._reschedule(
                classify_not_found(
                    operation, outcome, action, now, self.gateway, self.lease_seconds
                )
            )
        else:
            outcome = with_cancel_reason(outcome, operation.failure_if_not_sent(now))
            await self._apply_outcome(operation, outcome, action, key_window)

    async def _apply_outcome(
        self, operation: Op, outcome: ProviderOutcome, action: NextAction, key_window: float
    ) -> None:
        """Records an outcome, then books or reschedules the operation. The failure of a lookup is
        not recorded.
        """
        key_honored = operation.is_key_honored(key_window, self.lease_seconds)
        failed_step = classify_failure(operation, outcome, action, key_honored=key_honored)
        must_record = (
            failed_step is None
            or action is NextAction.SEND
            or failed_step.retry_reason is RetryReason.PENDING
        )
        if must_record:
            try:
                operation = await self.record(operation, outcome)
            except ConstraintViolation as error:
                log.error(  # noqa: TRY400 - the traceback adds nothing
                    "%s: the outcome cannot be stored or applied: %s",
                    operation.resource_name,
                    error,
                )
                await self._reschedule(classify_storage_error(operation, outcome, action, error))
                return
        if operation.needs_booking:
            await self.book(operation)
        elif failed_step is not None:
            await self._reschedule(replace(failed_step, operation=operation))

    async def _find_outcome(
        self, operation: Op, action: NextAction
    ) -> tuple[NextAction, ProviderOutcome | NotCalled]:
        """Returns the outcome and the action that it answers. The provider is called unless the
        outcome is recorded. While the circuit for sends is open, an operation that may have been
        sent is looked up instead.
        """
        if action is NextAction.APPLY_RECORDED and (recorded := operation.recorded_outcome):
            return action, recorded
        outcome = await self.gateway.call(operation, action)
        has_separate_lookup = action is NextAction.SEND and operation.circuit(
            action
        ) is not operation.circuit(NextAction.LOOK_UP)
        if has_separate_lookup and operation.maybe_sent and isinstance(outcome, NotCalled):
            lookup_outcome = await self.gateway.call(operation, NextAction.LOOK_UP)
            # After an inconclusive lookup the operation waits for the circuit, and uses no try.
            if not isinstance(lookup_outcome, NotCalled | NotFound | NotSent | Unknown):
                return NextAction.LOOK_UP, lookup_outcome
        return action, outcome

    async def book(self, operation: Op) -> None:
        """Books the operation now, or reschedules it."""
        await self.call_downstream(operation, self.book_operation(operation))

    async def call_downstream(self, operation: Op, call: Awaitable[R]) -> R | None:
        """Returns the result of a call to wallet or ledger. Returns None, and reschedules the
        operation, if the call was rejected or the service unavailable.
        """
        try:
            return await call
        except (BookingRejected, ServiceCallRejected, ConstraintViolation, ApiError) as error:
            await self._reschedule(classify_booking_error(operation, error))
            return None

    async def _reschedule(self, failed_step: FailedStep[Op]) -> None:
        operation = failed_step.operation
        log.info(
            "%s: not complete, rescheduled: %s (%s)",
            operation.resource_name,
            failed_step.retry_reason,
            failed_step.detail,
        )
        self.after_failed_step(
            operation, await self._reschedule_batcher.submit(failed_step, operation.context)
        )
