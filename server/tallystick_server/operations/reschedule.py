"""Reschedules, fails or dead-letters operations that are not complete, as retry policies say."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from tallystick_core.operations.dead_letter import DeadLetterCause
from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import ExhaustedAction, NextAction, when_exhausted
from tallystick_core.provider.outcome import NOT_CALLED_REASONS, RetryReason
from tallystick_server.observability import metrics
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.operations.dead_letters import emit_changed, key_of
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.kind import OperationKind
from tallystick_server.operations.operation import LeasedOperation
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_storage import dead_letters as dead_letter_store
from tallystick_storage import failed_tries as failed_try_store
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.sql import Connection

_MAX_DETAIL_LENGTH = 255
_NO_FAILURES = frozenset({RetryReason.PENDING, RetryReason.POST_COMPLETION_POLL})
_OUTAGES = frozenset(
    {RetryReason.CIRCUIT_OPEN, RetryReason.BOOKING_UNAVAILABLE, RetryReason.CALLER_REJECTED}
)
"""Reasons without a limit of tries, which last as long as something is unavailable."""


class Rescheduler:
    """The work of the reschedule batcher. Each operation is rescheduled, fails, or becomes a dead
    letter.
    """

    def __init__(
        self,
        database: Database,
        retry_policies: RetryPolicies,
        kinds: Mapping[KindName, OperationKind[Any]],
    ) -> None:
        self._database = database
        self._retry_policies = retry_policies
        self._kinds = kinds

    async def run(
        self, failed_steps: Sequence[FailedStep[Any]]
    ) -> Sequence[LeasedOperation | Exception | None]:
        """Returns each operation that failed, and None for the others."""
        return await bisect_on_error(self._reschedule, failed_steps)

    async def _reschedule(
        self, failed_steps: Sequence[FailedStep[Any]]
    ) -> Sequence[LeasedOperation | Exception | None]:
        now = asyncio.get_running_loop().time()
        decisions = [(step, self.decide(step, now)) for step in failed_steps]
        reschedules = [
            decision
            for _, decision in decisions
            if isinstance(decision, operation_store.Reschedule)
        ]
        failures = [step for step, decision in decisions if decision is ExhaustedAction.FAIL]
        dead_lettered_steps = [
            step for step, decision in decisions if decision is ExhaustedAction.DEAD_LETTER
        ]

        def store(connection: Connection) -> tuple[dict[OperationKey, LeasedOperation], list[str]]:
            causes: list[str] = []
            # An outcome that another lease holder has recorded meanwhile is kept, and is applied
            # when this lease expires.
            unresolved = [
                step.operation
                for step in (*failures, *dead_lettered_steps)
                if not step.has_recorded_outcome
            ]
            open_tokens = (
                lock_unresolved(
                    connection, self._kinds, unresolved, [step.operation for step in failed_steps]
                )
                if failures or dead_lettered_steps
                else {}
            )
            # A former holder does not fail what its successor may be sending.
            failing = [
                step
                for step in failures
                if open_tokens.get(step.operation.key) == step.operation.lease_token
            ]
            # An operation that was cancelled meanwhile is scheduled again instead.
            without_retry = [
                self._without_retry(step, now)
                for step in dead_lettered_steps
                if step.has_recorded_outcome or step.operation.key in open_tokens
            ]
            is_dead_lettered = (
                operation_store.reschedule(connection, [*reschedules, *without_retry])
                if reschedules or without_retry
                else {}
            )
            _store_failed_tries(
                connection,
                failed_steps,
                {key: not is_dead for key, is_dead in is_dead_lettered.items()}
                | {step.operation.key: False for step in failing},
            )
            failed = self._fail(connection, failing)
            dead_letters = {
                step.operation.key: step
                for step in dead_lettered_steps
                if is_dead_lettered.get(step.operation.key, False)
            }
            if dead_letters:
                causes = self._create_dead_letters(connection, dead_letters, now)
            return failed, causes

        failed, causes = await self._database.transact(store)
        for cause in causes:
            metrics.DEAD_LETTERS_CREATED.add(1, cause)
        return [failed.get(step.operation.key) for step in failed_steps]

    def _fail(
        self, connection: Connection, failed_steps: Sequence[FailedStep[Any]]
    ) -> dict[OperationKey, LeasedOperation]:
        """Fails operations that certainly moved no money. Returns those that failed."""
        failed: dict[OperationKey, LeasedOperation] = {}
        for name, kind in self._kinds.items():
            steps = [step for step in failed_steps if step.operation.kind is name]
            if steps:
                failed |= {item.key: item for item in kind.fail(connection, steps)}
        return failed

    def decide(
        self, failed_step: FailedStep[Any], now: float
    ) -> operation_store.Reschedule | ExhaustedAction:
        """Returns after which delay to retry the operation, or its exhausted action. `now` is loop
        time.
        """
        operation = failed_step.operation
        if failed_step.failure_reason is not None:
            return ExhaustedAction.FAIL
        if failed_step.retry_reason in NOT_CALLED_REASONS:
            return self._build_reschedule(
                failed_step,
                _cap_delay(failed_step.retry_after, operation.end_deadline - now),
                lookup_only=operation.lookup_only,
            )
        policy = self._retry_policies.policy_for(operation.provider, failed_step.retry_reason)
        delay_seconds = policy.delay_seconds(
            operation.tries.get(failed_step.retry_reason, 0) + 1, operation.operation_id
        )
        if delay_seconds is None:
            exhausted_action = when_exhausted(
                failed_step.retry_reason, maybe_sent=operation.maybe_sent
            )
            if exhausted_action is ExhaustedAction.LOOK_UP:
                return self._build_reschedule(
                    failed_step, failed_step.retry_after, lookup_only=True
                )
            if exhausted_action is not ExhaustedAction.RESEND_OR_LOOK_UP:
                return exhausted_action
            delay_seconds = policy.exhausted_interval_seconds
        return self._build_reschedule(
            failed_step,
            max(_cap_delay(delay_seconds, operation.end_deadline - now), failed_step.retry_after),
            lookup_only=False,
        )

    def _create_dead_letters(
        self, connection: Connection, steps: Mapping[OperationKey, FailedStep[Any]], now: float
    ) -> list[str]:
        """Creates dead letters for operations that no retry is scheduled for. Returns their
        causes.
        """
        new_dead_letters = [
            dead_letter_store.NewDeadLetter(
                key.kind,
                key.operation_id,
                step.operation.resource_name,
                DeadLetterCause(step.retry_reason),
                self._dead_letter_detail(step, now),
                sum(_count_tries(step).values()),
                step.operation.provider,
            )
            for key, step in steps.items()
        ]
        rows = dead_letter_store.insert(connection, new_dead_letters)
        emit_changed(
            connection,
            rows,
            lambda row: (
                steps[key_of(row)].operation.caller,
                steps[key_of(row)].operation.traceparent,
            ),
        )
        return [row.cause for row in rows]

    def _without_retry(
        self, failed_step: FailedStep[Any], now: float
    ) -> operation_store.Reschedule:
        """Dead-letters the operation: no retry is scheduled. If it has a deadline, it ends then, or
        at once if that has passed since the claim.
        """
        operation = failed_step.operation
        remaining_seconds = operation.end_deadline - now
        return replace(
            self._build_reschedule(
                failed_step, delay_seconds=None, lookup_only=operation.lookup_only
            ),
            expire_after_seconds=max(remaining_seconds, 0.0) if remaining_seconds < inf else None,
        )

    def _dead_letter_detail(self, failed_step: FailedStep[Any], now: float) -> str:
        """The detail text of a dead letter. It also says whether the operation is to end."""
        operation = failed_step.operation
        failure_reason = self._kinds[operation.kind].failure_if_not_sent(operation, now)
        return sanitize_detail(
            failed_step.detail
            if failure_reason is None
            else f"{failure_reason}, not cancelled yet: {failed_step.detail}"
        )

    def _build_reschedule(
        self, failed_step: FailedStep[Any], delay_seconds: float | None, *, lookup_only: bool
    ) -> operation_store.Reschedule:
        operation = failed_step.operation
        was_sent = _was_sent(failed_step)
        not_found_count = 0 if was_sent else operation.not_found_count + failed_step.is_not_found
        return operation_store.Reschedule(
            operation.kind,
            operation.operation_id,
            operation.lease_token,
            delay_seconds,
            was_sent,
            not_found_count,
            lookup_only,
            _count_tries(failed_step),
            failed_step.retry_reason,
            sanitize_detail(failed_step.detail),
            self._kinds[operation.kind].phase(operation),
        )


def _store_failed_tries(
    connection: Connection,
    failed_steps: Sequence[FailedStep[Any]],
    next_tries: Mapping[OperationKey, bool],
) -> None:
    """Stores the steps that failed under a valid lease, one for each operation. `next_tries`: those
    operations, and whether they are scheduled again. A provider that is not ready yet has not
    failed, and what was given up was not tried.
    """
    by_key = {
        step.operation.key: step
        for step in sorted(failed_steps, key=lambda step: step.operation.lease_token)
        if step.operation.key in next_tries
        and step.retry_reason not in _NO_FAILURES
        and step.action is not NextAction.GIVE_UP
    }
    if by_key:
        failed_try_store.insert(
            connection,
            [_failed_try(step, has_next_try=next_tries[key]) for key, step in by_key.items()],
        )


def _failed_try(
    failed_step: FailedStep[Any], *, has_next_try: bool
) -> failed_try_store.NewFailedTry:
    operation = failed_step.operation
    return failed_try_store.NewFailedTry(
        operation.kind,
        operation.operation_id,
        operation.attempt_number,
        operation.provider,
        failed_step.action,
        failed_step.retry_reason,
        sanitize_detail(failed_step.detail),
        failed_step.request_id,
        failed_step.retry_reason in _OUTAGES,
        has_next_try,
    )


def _cap_delay(delay_seconds: float, remaining_seconds: float) -> float:
    """Limits a delay to the remaining time. There is no limit if the deadline had passed when the
    operation was claimed.
    """
    return min(delay_seconds, max(remaining_seconds, 0.0))


def _was_sent(failed_step: FailedStep[Any]) -> bool:
    """Whether the step may have sent the operation."""
    return failed_step.action is NextAction.SEND and failed_step.retry_reason not in (
        RetryReason.NOT_SENT,
        *NOT_CALLED_REASONS,
    )


def sanitize_detail(text: str) -> str:
    """Makes a provider's text safe to store."""
    return "".join(
        character if character.isprintable() else "?" for character in text[:_MAX_DETAIL_LENGTH]
    )


def _count_tries(failed_step: FailedStep[Any]) -> dict[str, int]:
    """The number of tries by retry reason, including this one. A provider that was not
    called is not counted.
    """
    tries = {str(reason): count for reason, count in failed_step.operation.tries.items()}
    if failed_step.retry_reason not in NOT_CALLED_REASONS:
        tries[str(failed_step.retry_reason)] = tries.get(str(failed_step.retry_reason), 0) + 1
    return tries


def lock_unresolved(
    connection: Connection,
    kinds: Mapping[KindName, OperationKind[Any]],
    operations: Sequence[LeasedOperation],
    others: Sequence[LeasedOperation] = (),
) -> dict[OperationKey, int]:
    """Locks these operations, and the queue rows of all. Returns the current lease tokens of the
    operations without a recorded outcome; none can be recorded while the lock is held.
    """
    unresolved: set[OperationKey] = set()
    tokens: dict[OperationKey, int] = {}
    for is_locked_after_queue in (False, True):
        for name, kind in kinds.items():
            ids = [item.operation_id for item in operations if item.kind is name]
            if ids and kind.is_locked_after_queue is is_locked_after_queue:
                unresolved |= {
                    OperationKey(name, id_) for id_ in kind.lock_unresolved(connection, ids)
                }
        if not is_locked_after_queue:
            tokens = operation_store.lock(connection, {item.key for item in (*operations, *others)})
    return {key: token for key, token in tokens.items() if key in unresolved}
