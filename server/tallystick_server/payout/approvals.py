"""Payout approvals: approve, reject, cancel and retry payouts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tallystick_core.approval import require_second_approver
from tallystick_core.errors import ApiError, id_taken_error, key_reused_error, state_error
from tallystick_core.operations.dead_letter import DeadLetterCause, DeadLetterState
from tallystick_core.operations.kind import KindName
from tallystick_core.payout.snapshot import PayoutTransition
from tallystick_core.payout.state import (
    PayoutState,
    PayoutTransitionReason,
    PayoutTrigger,
    transition,
)
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.operations import dead_letters
from tallystick_server.operations.tasks import DetachedRunner
from tallystick_server.payout.operation import PayoutOperation, operations_from_rows
from tallystick_server.payout.transitions import PayoutChange, transition_payouts
from tallystick_storage import dead_letters as dead_letter_store
from tallystick_storage import operations as operation_store
from tallystick_storage.database import Database
from tallystick_storage.history import TransitionRow
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.payout import payouts as store
from tallystick_storage.payout import queries
from tallystick_storage.sql import Connection


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision on a payout, and its reason. The transition reason has the same name as the
    trigger.
    """

    transition_reason: PayoutTransitionReason
    actor: str
    reason: str
    requires_second_person: bool = False
    """The creator of the payout must not make this decision."""
    by_team: bool = False
    """The decision is a team's, not an operator's."""


class PayoutDecisions:
    """Applies decisions, regardless of which process has leased the payout.

    The payout is then leased to this process and started.
    """

    def __init__(
        self,
        database: Database,
        environment: str,
        lease_seconds: float,
        start_operation: Callable[[PayoutOperation], None],
        run_detached: DetachedRunner,
    ) -> None:
        self._database = database
        self._environment = environment
        self._lease_seconds = lease_seconds
        self._start_operation = start_operation
        self._run_detached = run_detached

    async def decide(self, payout_id: str, decision: Decision) -> bool:
        """Returns True if the decision is made now, False if the same was made before.

        Raises INVALID_STATE, SECOND_APPROVER_REQUIRED, IDEMPOTENCY_KEY_REUSED.
        """
        lease_deadline = asyncio.get_running_loop().time() + self._lease_seconds

        def decide(connection: Connection) -> PayoutOperation | None:
            row = store.lock(connection, [payout_id])[payout_id]
            if _is_already_decided(queries.load_history(connection, payout_id), decision):
                return None
            trigger = PayoutTrigger(decision.transition_reason)
            # An invalid state is reported before a forbidden actor.
            transition(PayoutState(row.state), trigger)
            if row.state == PayoutState.CREATED:
                _require_certain_hold(connection, payout_id)
            if decision.requires_second_person:
                require_second_approver(decision.actor, row.caller)
            tokens = operation_store.force_claim(
                connection, KindName.PAYOUT, [payout_id], self._lease_seconds
            )
            (payout,) = operations_from_rows(
                store.load_operations(connection, [payout_id]),
                tokens,
                self._environment,
                lease_deadline,
            )
            dead_letters.resolve(connection, {payout.key: (decision.actor, payout.traceparent)})
            payout_transition = PayoutTransition(
                payout.snapshot.apply(trigger),
                decision.transition_reason,
                decision.actor,
                decision.reason,
            )
            return transition_payouts(connection, [PayoutChange(payout, (payout_transition,))])[
                payout_id
            ]

        async def commit_and_start() -> bool:
            payout = await self._database.transact(decide)
            if payout is not None:
                self._start_operation(payout)
            return payout is not None

        return await self._run_detached(commit_and_start, is_team_call=decision.by_team)

    async def retry(self, payout_id: str, request_id: str, caller: str, reason: str) -> bool:
        """Requeues a dead-lettered payout; returns whether this retry was not made before.

        Raises INVALID_STATE, IDEMPOTENCY_KEY_REUSED, ALREADY_EXISTS.
        """

        key = OperationKey(KindName.PAYOUT, payout_id)

        def retry(connection: Connection) -> bool:
            # A concurrent duplicate of the call waits here, and then finds the retry.
            row = store.lock(connection, [payout_id])[payout_id]
            previous_retry = store.find_retry(connection, payout_id, request_id)
            if previous_retry is not None:
                if previous_retry.caller != caller:
                    raise id_taken_error("request_id")
                if previous_retry.reason != reason:
                    raise key_reused_error("reason")
                return False
            retried_letters = dead_letters.end(
                connection, [key], DeadLetterState.RETRIED, caller, reason
            )
            if not retried_letters:
                message = (
                    f"The payout is {row.state} and cannot be retried: it is not a dead letter."
                )
                raise state_error(message, row.state, "RETRY")
            store.insert_retry(connection, payout_id, request_id, caller, reason)
            operation_store.requeue(connection, [key])
            return True

        return await self._database.transact(retry)


def _require_certain_hold(connection: Connection, payout_id: str) -> None:
    """Raises INVALID_STATE for a locked payout in CREATED if its hold may belong to another payout.

    Such a hold must not be released.

    A retry ends the dead letter but places no hold by itself: the hold is uncertain until the
    payout leaves CREATED.
    """
    key = OperationKey(KindName.PAYOUT, payout_id)
    if dead_letter_store.is_open(connection, key):
        raise _uncertain_hold_error(
            "The payout is a dead letter whose hold is uncertain, and cannot be "
            "cancelled; retry it first."
        )
    if dead_letter_store.has_cause(
        connection, key, DeadLetterCause.BOOKING_REJECTED
    ) or operation_store.has_retry_reason(connection, key, RetryReason.BOOKING_REJECTED):
        raise _uncertain_hold_error(
            "The wallet rejected the payout's hold, whose id may belong to another payout. The "
            "payout cannot be cancelled before its hold is placed."
        )


def _uncertain_hold_error(message: str) -> ApiError:
    return state_error(message, PayoutState.CREATED, "CANCEL")


def _is_already_decided(history: Sequence[TransitionRow], decision: Decision) -> bool:
    """Whether the same decision was made before.

    Raises IDEMPOTENCY_KEY_REUSED for a cancellation with another reason.
    """
    previous_rows = [row for row in history if row.transition_reason == decision.transition_reason]
    if decision.transition_reason is not PayoutTransitionReason.CANCELLED:
        return any(
            (row.actor, row.reason) == (decision.actor, decision.reason) for row in previous_rows
        )
    if previous_rows and previous_rows[0].reason != decision.reason:
        raise key_reused_error("reason")
    return bool(previous_rows)
