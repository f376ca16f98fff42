"""A demand in hand: what a process knows of the work it holds the lease of, whatever is demanded of
a provider.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Generic, TypeVar

from tallystick_core.operations.next_action import Circuit, NextAction
from tallystick_core.provider.outcome import (
    Declined,
    FailureReason,
    ProviderOutcome,
    RetryReason,
    Succeeded,
)
from tallystick_server.observability.tracing import SpanContext
from tallystick_storage import operations as operation_store


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedOperation(ABC):
    """One demand on a provider, leased to this process until `lease_deadline` (the loop's time)."""

    operation_id: str
    caller: str
    attempt_number: int
    provider: str
    provider_key: str
    lease_token: int
    lease_deadline: float
    traceparent: str
    context: SpanContext
    age_seconds: float = 0.0
    """Seconds from the attempt's start until it was taken up."""
    expires_at: float = inf
    """The loop's time after which it must not be sent for the first time."""
    next_poll_deadline: float = inf
    """The loop's time at which its time is up, and it is taken up again at the latest; inf: it has
    none, or that had passed when it was taken up.
    """
    recorded_outcome: ProviderOutcome | None = None
    """The attempt's outcome, if that is on disk and final."""
    maybe_sent: bool = False
    lookup_only: bool = False
    tries: Mapping[RetryReason, int] = field(default_factory=dict)
    """How often each kind of trouble has come since it last progressed."""
    seconds_since_sent: float | None = None
    """Seconds from when it may last have been sent until it was taken up; None: it was not sent
    before that.
    """
    not_found_count: int = 0
    """How often the provider did not know it since it may last have been sent."""

    @property
    @abstractmethod
    def resource_name(self) -> str:
        """What it is to people: "{collection}/{id}"."""

    @abstractmethod
    def call_provider(self, provider: Any, action: NextAction) -> Awaitable[ProviderOutcome]:
        """Asks its provider for what the step needs; the provider is of the port that such demands
        are made on.
        """

    def is_key_honored(self, key_window_seconds: float, lease_seconds: float) -> bool:
        """Whether it may be sent to a provider that honours a key for so many seconds.

        Either the provider surely still knows the key when a lease from now ends; or it never got
        the key, and has said so too: a restored database may have lost a sending.
        """
        return self.age_seconds + lease_seconds < key_window_seconds or (
            not self.maybe_sent and self.not_found_count > 0
        )

    @abstractmethod
    def next_action(
        self, now: float, key_window_seconds: float, lease_seconds: float
    ) -> NextAction:
        """What is to be done with it, where its provider honours a key for so many seconds. A lease
        ends before the key does.
        """

    @abstractmethod
    def failure_if_not_sent(self, now: float) -> FailureReason | None:
        """Why it is to fail, if nothing has been moved, at this time of the loop."""

    def circuit(self, action: NextAction) -> Circuit:
        """Which of its provider's circuits a step takes."""
        return Circuit.SENDS if action is NextAction.SEND else Circuit.LOOK_UPS

    @property
    def weight(self) -> int:
        """How much of a batch it is."""
        return 1

    @property
    @abstractmethod
    def needs_booking(self) -> bool:
        """Whether it has come to where wallet and ledger are to be told."""

    @property
    @abstractmethod
    def phase(self) -> str:
        """What it waits for, if it has to wait, for the monitor, whose thresholds differ; "":
        nothing but being done.
        """

    @property
    @abstractmethod
    def awaits_provider(self) -> bool:
        """Whether the provider has it, and will tell in its own time."""


def parse_tries(counts: Mapping[str, int] | None) -> dict[RetryReason, int]:
    """The tries of a row; None: there were none."""
    return {RetryReason(reason): count for reason, count in (counts or {}).items()}


H = TypeVar("H", bound=LeasedOperation)
A = TypeVar("A", bound=ProviderOutcome)


@dataclass(frozen=True, slots=True)
class OperationResult(Generic[H, A]):
    """A demand, and what its provider said to it."""

    operation: H
    outcome: A


def attempt_result(
    operation: LeasedOperation, outcome_code: str, outcome: ProviderOutcome
) -> operation_store.AttemptResult:
    """What a provider said to a demand, as its attempt keeps it; `outcome_code`: what that is
    called there.
    """
    succeeded = outcome if isinstance(outcome, Succeeded) else None
    declined = outcome if isinstance(outcome, Declined) else None
    return operation_store.AttemptResult(
        operation_id=operation.operation_id,
        attempt_number=operation.attempt_number,
        outcome=outcome_code,
        provider_reference=getattr(outcome, "reference", ""),
        moved_amount=succeeded.amount if succeeded else None,
        moved_currency=succeeded.currency if succeeded else None,
        failure_reason=declined.reason if declined else "",
        decline_code=declined.code if declined else "",
    )
