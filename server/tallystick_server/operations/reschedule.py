"""Reschedules, fails or dead-letters operations that are not complete, as retry policies say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Generic, TypeVar

from tallystick_core.operations.dead_letter import DeadLetterCause
from tallystick_core.operations.next_action import ExhaustedAction, NextAction, when_exhausted
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.operations.batcher import bisect_on_error
from tallystick_server.operations.dead_letters import emit_changed
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.operation import LeasedOperation
from tallystick_server.operations.retry_policy import RetryPolicies
from tallystick_storage import dead_letters as dead_letter_store
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection

Op = TypeVar("Op", bound=LeasedOperation)
G = TypeVar("G")

_MAX_DETAIL_LENGTH = 255


class Rescheduler(Generic[Op, G]):
    """The work of the reschedule batcher. Each operation is rescheduled, fails, or becomes a dead
    letter.

    `lock_unresolved`: locks the operations and their queue rows. It returns the operations without
    a recorded outcome.

    `fail`: fails operations that certainly moved no money.
    """

    def __init__(
        self,
        database: Database,
        retry_policies: RetryPolicies,
        lock_unresolved: Callable[[Connection, list[str], Sequence[str]], set[str]],
        fail: Callable[[Connection, Sequence[FailedStep[Op]]], G],
    ) -> None:
        self._database = database
        self._retry_policies = retry_policies
        self._lock_unresolved = lock_unresolved
        self._fail = fail

    async def run(self, failed_steps: Sequence[FailedStep[Op]]) -> Sequence[G | Exception]:
        """Returns the result of `fail` for the batch, once for each operation."""
        return await bisect_on_error(self._reschedule, failed_steps)

    async def _reschedule(self, failed_steps: Sequence[FailedStep[Op]]) -> Sequence[G | Exception]:
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

        def store(connection: Connection) -> G:
            # An outcome that another lease holder has recorded meanwhile is kept, and is applied
            # when this lease expires.
            unresolved_ids = [
                step.operation.operation_id
                for step in (*failures, *dead_lettered_steps)
                if not step.has_recorded_outcome
            ]
            open_ids = (
                self._lock_unresolved(
                    connection,
                    unresolved_ids,
                    [step.operation.operation_id for step in failed_steps],
                )
                if failures or dead_lettered_steps
                else set()
            )
            result = self._fail(
                connection, [step for step in failures if step.operation.operation_id in open_ids]
            )
            if reschedules:
                operation_store.reschedule(connection, reschedules)
            if dead_lettered_steps:
                self._create_dead_letters(
                    connection,
                    [
                        step
                        for step in dead_lettered_steps
                        if step.has_recorded_outcome or step.operation.operation_id in open_ids
                    ],
                    now,
                )
            return result

        result = await self._database.transact(store)
        return [result] * len(failed_steps)

    def decide(
        self, failed_step: FailedStep[Op], now: float
    ) -> operation_store.Reschedule | ExhaustedAction:
        """Returns after which delay to retry the operation, or its exhausted action. `now` is loop
        time.
        """
        operation = failed_step.operation
        if failed_step.failure_reason is not None:
            return ExhaustedAction.FAIL
        if failed_step.retry_reason is RetryReason.CIRCUIT_OPEN:
            return _build_reschedule(
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
                return _build_reschedule(failed_step, failed_step.retry_after, lookup_only=True)
            if exhausted_action is not ExhaustedAction.RESEND_OR_LOOK_UP:
                return exhausted_action
            delay_seconds = policy.exhausted_interval_seconds
        return _build_reschedule(
            failed_step,
            max(_cap_delay(delay_seconds, operation.end_deadline - now), failed_step.retry_after),
            lookup_only=False,
        )

    def _create_dead_letters(
        self, connection: Connection, failed_steps: Sequence[FailedStep[Op]], now: float
    ) -> None:
        """Creates dead letters for operations that this process still leases. An operation that was
        cancelled meanwhile is rescheduled instead.
        """
        is_dead_lettered = operation_store.reschedule(
            connection, [_without_retry(step, now) for step in failed_steps]
        )
        steps_by_resource = {
            step.operation.resource_name: step
            for step in failed_steps
            if is_dead_lettered.get(step.operation.operation_id, False)
        }
        new_dead_letters = [
            dead_letter_store.NewDeadLetter(
                resource_name,
                DeadLetterCause(step.retry_reason),
                _dead_letter_detail(step, now),
                sum(_count_tries(step).values()),
                step.operation.provider,
            )
            for resource_name, step in sorted(steps_by_resource.items())
        ]
        emit_changed(
            connection,
            dead_letter_store.insert(connection, new_dead_letters),
            lambda row: (
                steps_by_resource[row.resource_name].operation.caller,
                steps_by_resource[row.resource_name].operation.traceparent,
            ),
        )


def _cap_delay(delay_seconds: float, remaining_seconds: float) -> float:
    """Limits a delay to the remaining time. There is no limit if the deadline had passed when the
    operation was claimed.
    """
    return min(delay_seconds, max(remaining_seconds, 0.0))


def _without_retry(failed_step: FailedStep[Op], now: float) -> operation_store.Reschedule:
    """Dead-letters the operation: no retry is scheduled. If it has a deadline, it ends then, or at
    once if that has passed since the claim.
    """
    operation = failed_step.operation
    remaining_seconds = operation.end_deadline - now
    return replace(
        _build_reschedule(failed_step, delay_seconds=None, lookup_only=operation.lookup_only),
        expire_after_seconds=max(remaining_seconds, 0.0) if remaining_seconds < inf else None,
    )


def _dead_letter_detail(failed_step: FailedStep[Op], now: float) -> str:
    """The detail text of a dead letter. It also says whether the operation is to be cancelled."""
    failure_reason = failed_step.operation.failure_if_not_sent(now)
    return _sanitize_detail(
        failed_step.detail
        if failure_reason is None
        else f"{failure_reason}, not cancelled yet: {failed_step.detail}"
    )


def _build_reschedule(
    failed_step: FailedStep[Op], delay_seconds: float | None, *, lookup_only: bool
) -> operation_store.Reschedule:
    operation = failed_step.operation
    was_sent = failed_step.action is NextAction.SEND and failed_step.retry_reason not in (
        RetryReason.NOT_SENT,
        RetryReason.CIRCUIT_OPEN,
    )
    not_found_count = 0 if was_sent else operation.not_found_count + failed_step.is_not_found
    return operation_store.Reschedule(
        operation.operation_id,
        operation.lease_token,
        delay_seconds,
        was_sent,
        not_found_count,
        lookup_only,
        _count_tries(failed_step),
        failed_step.retry_reason,
        _sanitize_detail(failed_step.detail),
        operation.phase,
    )


def _sanitize_detail(text: str) -> str:
    """Makes a provider's text safe to store."""
    return "".join(
        character if character.isprintable() else "?" for character in text[:_MAX_DETAIL_LENGTH]
    )


def _count_tries(failed_step: FailedStep[Op]) -> dict[str, int]:
    """The number of tries by retry reason, including this one. A rejection by the circuit breaker
    is not counted.
    """
    tries = {str(reason): count for reason, count in failed_step.operation.tries.items()}
    if failed_step.retry_reason is not RetryReason.CIRCUIT_OPEN:
        tries[str(failed_step.retry_reason)] = tries.get(str(failed_step.retry_reason), 0) + 1
    return tries
