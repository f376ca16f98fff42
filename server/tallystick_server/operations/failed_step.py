"""Steps that did not complete an operation: what an outcome or an error means for the schedule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from tallystick_core.errors import ApiError
from tallystick_core.operations.next_action import NextAction
from tallystick_core.provider.outcome import (
    Approved,
    Declined,
    FailureReason,
    InTransit,
    LookedUp,
    NotFound,
    NotSent,
    Pending,
    ProviderOutcome,
    RetryReason,
    Returned,
    Submitted,
    Succeeded,
    Unknown,
    Verified,
)
from tallystick_server.operations.operation import LeasedOperation
from tallystick_server.operations.retry_policy import jitter
from tallystick_server.providers.gateway import NotCalled, ProviderGateway
from tallystick_server.rpc.service_client import ServiceCallRejected
from tallystick_storage.database import ConstraintViolation

Op = TypeVar("Op", bound=LeasedOperation)

_REFERENCE_CONSTRAINTS = frozenset({"provider_money_pkey", "transfer_pkey"})
"""Constraints that a provider reference belongs to only one operation."""


class BookingRejected(Exception):
    """Wallet or ledger rejected the request, and a repeat would not help."""


@dataclass(frozen=True, slots=True)
class FailedStep(Generic[Op]):
    """An operation that its step did not complete, and why: the step failed, or the provider still
    processes the operation.
    """

    operation: Op
    retry_reason: RetryReason
    detail: str
    action: NextAction
    """The action of the step."""
    retry_after: float = 0.0
    """Seconds before which the provider accepts no retry."""
    is_not_found: bool = False
    """Whether the provider does not know the operation."""
    failure_reason: FailureReason | None = None
    """Why the operation fails: it certainly moved no money, and is cancelled or expired."""
    provider_unavailable: bool = False
    """Whether the provider was not called, because its circuit is open or it is not configured."""
    request_id: str = ""
    """The provider's id of the request that failed; "": none."""

    @property
    def has_recorded_outcome(self) -> bool:
        """Whether a final outcome is stored. Only its effects remain to be applied."""
        return self.action in (NextAction.BOOK, NextAction.APPLY_RECORDED)


class StepFailed(Exception, Generic[Op]):
    """A step did not complete its operation, which is to be rescheduled."""

    def __init__(self, failed_step: FailedStep[Op]) -> None:
        super().__init__(failed_step.detail)
        self.failed_step = failed_step


def classify_failure(
    operation: Op,
    outcome: ProviderOutcome,
    action: NextAction,
    *,
    key_honored: bool,
    awaits_provider: bool,
) -> FailedStep[Op] | None:
    """The failed step for an outcome that is not final, or None. `key_honored`: the operation may
    be sent again. `awaits_provider`: the provider has it and reports the result later.
    """
    match outcome:
        case Pending():
            return FailedStep(
                operation, RetryReason.PENDING, f"pending at the provider: {outcome.reason}", action
            )
        case Submitted() | InTransit():
            return FailedStep(
                operation,
                RetryReason.PENDING,
                f"in progress at the provider: {type(outcome).__name__}",
                action,
            )
        case NotSent():
            return FailedStep(
                operation,
                _retry_reason(
                    RetryReason.NOT_SENT,
                    action,
                    key_honored=key_honored,
                    awaits_provider=awaits_provider,
                ),
                outcome.detail,
                action,
                request_id=outcome.request_id,
            )
        case Unknown():
            return FailedStep(
                operation,
                _retry_reason(
                    outcome.retry_reason,
                    action,
                    key_honored=key_honored,
                    awaits_provider=awaits_provider,
                ),
                outcome.detail,
                action,
                outcome.retry_after,
                request_id=outcome.request_id,
            )
        case (
            Succeeded()
            | Declined()
            | Returned()
            | Verified()
            | Approved()
            | LookedUp()
            | NotFound()
        ):
            return None


def _retry_reason(
    reason: RetryReason, action: NextAction, *, key_honored: bool, awaits_provider: bool
) -> RetryReason:
    """The retry reason of a failed action. A failed lookup or cancellation is usually classified as
    inconclusive, whatever its cause.
    """
    if action is NextAction.SEND or reason is RetryReason.MISMATCHED_OPERATION:
        return reason
    if awaits_provider:
        return RetryReason.PENDING
    if not key_honored:
        return RetryReason.OUTCOME_UNKNOWN
    return reason if reason is RetryReason.NOT_FOUND else RetryReason.LOOKUP_INCONCLUSIVE


def classify_before_call(
    operation: Op, action: NextAction, failure_reason: FailureReason | None
) -> FailedStep[Op] | None:
    """The failed step of an operation that needs no provider call. None: the provider is called.

    `failure_reason`: why the operation fails if no money was moved; None: it must not end.
    """
    if action is NextAction.GIVE_UP and failure_reason is not None:
        return FailedStep(
            operation,
            RetryReason.NOT_SENT,
            f"never sent: {failure_reason}",
            action,
            failure_reason=failure_reason,
        )
    if action is NextAction.RISK:
        return FailedStep(
            operation, RetryReason.REJECTED, "the order has not passed the risk check", action
        )
    return None


def classify_not_called(operation: Op, not_called: NotCalled, action: NextAction) -> FailedStep[Op]:
    """The failed step of an operation whose provider was not called."""
    retry_after = not_called.retry_after + jitter(not_called.retry_after, operation.operation_id)
    return FailedStep(
        operation,
        not_called.retry_reason,
        not_called.detail,
        action,
        retry_after,
        provider_unavailable=not_called.provider_unavailable,
    )


def classify_not_found(
    operation: Op,
    outcome: NotFound,
    action: NextAction,
    now: float,
    gateway: ProviderGateway,
    lease_seconds: float,
    *,
    failure_reason: FailureReason | None,
    awaits_provider: bool,
) -> FailedStep[Op]:
    """The effect of "not found" on an operation that was claimed at loop time `now`.

    `failure_reason`: why the operation must end; None: it must not. Such an operation fails once
    "not found" proves that nothing was charged. It is then claimed again as soon as possible.
    """
    final = gateway.final_not_found(operation.provider) if failure_reason is not None else None
    if (
        failure_reason is not None
        and final is not None
        and operation.seconds_since_sent is not None
    ):
        if final.is_conclusive(operation.not_found_count + 1, operation.seconds_since_sent):
            return FailedStep(
                operation,
                RetryReason.NOT_FOUND,
                f"{outcome.detail}: {failure_reason}",
                action,
                failure_reason=failure_reason,
                request_id=outcome.request_id,
            )
        if operation.seconds_since_sent < final.min_seconds_since_sent:
            operation = replace(
                operation,
                end_deadline=min(
                    operation.end_deadline,
                    now + final.min_seconds_since_sent - operation.seconds_since_sent,
                ),
            )
    updated_operation = replace(operation, not_found_count=operation.not_found_count + 1)
    key_honored = updated_operation.is_key_honored(
        gateway.key_window(operation.provider), lease_seconds
    )
    reason = _retry_reason(
        RetryReason.NOT_FOUND, action, key_honored=key_honored, awaits_provider=awaits_provider
    )
    return FailedStep(
        operation,
        reason,
        outcome.detail,
        action,
        is_not_found=True,
        request_id=outcome.request_id,
    )


def with_cancel_reason(
    outcome: ProviderOutcome, failure_reason: FailureReason | None
) -> ProviderOutcome:
    """The outcome, with our reason if the provider cancelled the operation, or closed its page, at
    our request.
    """
    if (
        isinstance(outcome, Declined)
        and outcome.reason in (FailureReason.CALLER_CANCELLED, FailureReason.PAGE_EXPIRED)
        and failure_reason is not None
    ):
        return replace(outcome, reason=failure_reason)
    return outcome


def is_duplicate_reference(error: ConstraintViolation) -> bool:
    """Whether the outcome's provider reference already belongs to another operation."""
    return error.constraint in _REFERENCE_CONSTRAINTS


def classify_storage_error(
    operation: Op, outcome: ProviderOutcome, action: NextAction, error: ConstraintViolation
) -> FailedStep[Op]:
    """The failed step of an operation whose outcome violates a database constraint. An operator
    must decide.
    """
    if isinstance(outcome, LookedUp):
        outcome = outcome.outcome
    request_id = getattr(outcome, "request_id", "")
    if is_duplicate_reference(error):
        reference = getattr(outcome, "reference", "")
        return FailedStep(
            operation,
            RetryReason.MISMATCHED_OPERATION,
            f"the provider's reference {reference} belongs to another operation",
            action,
            request_id=request_id,
        )
    if action is NextAction.APPLY_RECORDED:
        return FailedStep(
            operation,
            RetryReason.APPLYING_FAILED,
            f"the outcome is stored and cannot be applied: {type(outcome).__name__}",
            action,
            request_id=request_id,
        )
    return FailedStep(
        operation,
        RetryReason.REJECTED,
        f"the outcome cannot be stored: {type(outcome).__name__}",
        action,
        request_id=request_id,
    )


def classify_booking_error(
    operation: Op,
    error: BookingRejected | ServiceCallRejected | ConstraintViolation | ApiError,
    action: NextAction,
) -> FailedStep[Op]:
    """The failed step for an error of a call to wallet or ledger.

    An unavailable service is retried without limit. A rejection of this item alone is retried
    up to the limit of its policy.
    """
    match error:
        case BookingRejected():
            reason = RetryReason.BOOKING_REJECTED
        case ServiceCallRejected() if error.rejects_caller:
            reason = RetryReason.CALLER_REJECTED
        case ServiceCallRejected() | ConstraintViolation():
            reason = RetryReason.BOOKING_FAILED
        case ApiError():
            return FailedStep(operation, RetryReason.BOOKING_UNAVAILABLE, error.message, action)
    return FailedStep(operation, reason, str(error), action)
