"""An operation leased by this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Generic, TypeVar

from tallystick_core.operations.kind import KindName, format_resource_name
from tallystick_core.provider.outcome import Declined, ProviderOutcome, RetryReason, Succeeded
from tallystick_server.observability.tracing import SpanContext
from tallystick_storage import operations as operation_store
from tallystick_storage.operation_key import OperationKey

NO_LEASE = 0
"""The lease token of an operation that is only read. No holder has it."""
FIRST_LEASE_TOKEN = 1
"""The lease token that an operation is created with, so that it need not be read back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedOperation:
    """One provider operation, leased by this process until `lease_deadline` (loop time). Each kind
    adds its data.
    """

    kind: KindName
    operation_id: str
    caller: str
    attempt_number: int
    provider: str
    provider_key: str
    """Its idempotency key; "": it has none, because repeating it is harmless."""
    provider_reference: str = ""
    """The provider's id of it, as stored at the claim; "": the provider has not reported one."""
    lease_token: int
    lease_deadline: float
    traceparent: str
    context: SpanContext
    age_seconds: float = 0.0
    """Seconds from the attempt's start to the claim."""
    expires_at: float = inf
    """Loop time after which it must not be sent for the first time."""
    end_deadline: float = inf
    """Loop time at which it must be ended, and is claimed again at the latest. inf: it has none, or
    it had passed at the claim.
    """
    recorded_outcome: ProviderOutcome | None = None
    """The attempt's outcome, if it is stored and final."""
    maybe_sent: bool = False
    lookup_only: bool = False
    tries: Mapping[RetryReason, int] = field(default_factory=dict)
    """The number of tries by retry reason since the last progress."""
    seconds_since_sent: float | None = None
    """Seconds from the last possible send to the claim. None: it was not sent before the claim."""
    not_found_count: int = 0
    """The number of "not found" answers since the last possible send."""
    weight: int = 1
    """Its share of a batch's size."""

    @property
    def subject_id(self) -> str:
        """The id of what the provider is asked about; "": it is not called. Failures of different
        ones open a circuit.
        """
        return self.operation_id

    @property
    def key(self) -> OperationKey:
        """Its key in storage."""
        return OperationKey(self.kind, self.operation_id)

    @property
    def resource_name(self) -> str:
        """Its public resource name: "{collection}/{id}"."""
        return format_resource_name(self.kind, self.operation_id)

    def is_key_honored(self, key_window_seconds: float, lease_seconds: float) -> bool:
        """Whether it may be sent to a provider that honors a key for `key_window_seconds`.

        Either the provider still knows the key when a lease that starts now ends. Or the key was
        never sent and the provider confirms this: a restored database may have lost a send.
        """
        return (
            not self.provider_key
            or self.age_seconds + lease_seconds < key_window_seconds
            or (not self.maybe_sent and self.not_found_count > 0)
        )


def parse_tries(counts: Mapping[str, int] | None) -> dict[RetryReason, int]:
    """The tries of a row; None: no tries."""
    return {RetryReason(reason): count for reason, count in (counts or {}).items()}


Op = TypeVar("Op", bound=LeasedOperation)
A = TypeVar("A", bound=ProviderOutcome)


@dataclass(frozen=True, slots=True)
class OperationResult(Generic[Op, A]):
    """An operation and its provider's outcome."""

    operation: Op
    outcome: A


def attempt_result(
    operation: LeasedOperation, outcome_code: str, outcome: ProviderOutcome
) -> operation_store.AttemptResult:
    """The result that the attempt stores. `outcome_code`: the outcome's code in that table."""
    succeeded = outcome if isinstance(outcome, Succeeded) else None
    declined = outcome if isinstance(outcome, Declined) else None
    fee = succeeded.fee if succeeded else None
    return operation_store.AttemptResult(
        kind=operation.kind,
        operation_id=operation.operation_id,
        attempt_number=operation.attempt_number,
        outcome=outcome_code,
        provider_reference=getattr(outcome, "reference", ""),
        moved_amount=succeeded.amount if succeeded else None,
        moved_currency=succeeded.currency if succeeded else None,
        failure_reason=declined.reason if declined else "",
        decline_code=declined.code if declined else "",
        provider_fee=fee.amount if fee else None,
        provider_fee_currency=fee.currency if fee else None,
        provider_request_id=getattr(outcome, "request_id", ""),
    )
