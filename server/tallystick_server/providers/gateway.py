"""Calls providers for operations, concurrently and within limits."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tallystick_core.operations.next_action import Circuit, NextAction
from tallystick_core.provider.outcome import (
    FinalNotFound,
    NotSent,
    ProviderOutcome,
    RetryReason,
    Unknown,
    has_valid_amounts,
    is_outcome_of,
)
from tallystick_server.observability import metrics, names
from tallystick_server.observability.tracing import SpanContext, client_span, resume_trace
from tallystick_server.providers.circuit_breaker import Breaker, BreakerSettings
from tallystick_server.providers.provider_type import CallLimits
from tallystick_server.providers.request_ids import collect_request_ids
from tallystick_storage.database import in_transaction

log = logging.getLogger(__name__)

LEASE_MARGIN_SECONDS = 2.0
"""Seconds of a lease that must remain after the provider's answer, to record it."""


UNCONFIGURED_RETRY_SECONDS = 60.0
"""Seconds until an operation is retried whose provider is not configured."""


@dataclass(frozen=True, slots=True)
class NotCalled:
    """The provider was not called, because its circuit is open, it is not configured, no slot was
    free in time, or the operation has expired or changed.
    """

    retry_after: float
    """Seconds."""
    detail: str
    provider_unavailable: bool = False
    """Whether no call to the provider is made now: its circuit is open, or it is not configured."""
    retry_reason: RetryReason = RetryReason.CIRCUIT_OPEN


def changed_before_call(detail: str) -> NotCalled:
    """The provider was not called, because the operation has expired or changed."""
    return NotCalled(0, detail, retry_reason=RetryReason.CHANGED_BEFORE_CALL)


class ProviderOperation(Protocol):
    """The parts of an operation that a provider call needs."""

    @property
    def operation_id(self) -> str: ...
    @property
    def subject_id(self) -> str:
        """The id of what the provider is asked about; "": `perform` does not call it."""

    @property
    def provider(self) -> str: ...
    @property
    def provider_key(self) -> str: ...
    @property
    def resource_name(self) -> str: ...
    @property
    def context(self) -> SpanContext: ...
    @property
    def lease_deadline(self) -> float: ...
    @property
    def expires_at(self) -> float: ...


Perform = Callable[[Any, Any, NextAction], Awaitable[ProviderOutcome]]
"""Calls a provider for an operation and an action."""


class ProviderGateway:
    """Calls providers, each within its own limits. The attempt is committed, under the same key,
    before it is sent. `limits_of`: the limits of a provider by name.

    `is_still_leased`: whether this process still leases the operation, and no cancellation has
    changed it.
    """

    def __init__(
        self,
        providers: Mapping[str, Any],
        is_still_leased: Callable[[Any], Awaitable[bool]],
        *,
        limits_of: Callable[[str], CallLimits],
        breaker_settings: BreakerSettings,
    ) -> None:
        self._providers = providers
        self._limits = {name: limits_of(name) for name in providers}
        self._semaphores = {
            name: asyncio.Semaphore(limits.max_calls) for name, limits in self._limits.items()
        }
        # Separate circuits: lookups continue while sends fail, and sends continue while lookups
        # fail.
        self._breakers = {
            (name, circuit): Breaker(f"provider {name}, {circuit}", breaker_settings)
            for name in providers
            for circuit in Circuit
        }
        self._is_still_leased = is_still_leased

    def is_circuit_open(self, provider: str) -> bool:
        """Whether the circuit for sends to a provider is open, or it is not configured."""
        return not self.is_configured(provider) or self._breakers[provider, Circuit.SENDS].is_open()

    def needs_probe(self, provider: str, now: float, *, others_waiting: bool) -> bool:
        """Whether the circuit for sends to a provider is open and needs a probe."""
        has_capacity = self.is_configured(provider) and not self._semaphores[provider].locked()
        return has_capacity and self._breakers[provider, Circuit.SENDS].needs_probe(
            now, others_waiting=others_waiting
        )

    def is_configured(self, provider: str) -> bool:
        """Whether the provider is configured."""
        return provider in self._providers

    def key_window(self, provider: str) -> float:
        """Seconds for which the provider honors a key; 0 if it is not configured."""
        return float(self._providers[provider].key_window) if self.is_configured(provider) else 0.0

    def final_not_found(self, provider: str) -> FinalNotFound | None:
        """When the provider's "not found" is conclusive; None: never."""
        final: FinalNotFound | None = (
            self._providers[provider].final_not_found if self.is_configured(provider) else None
        )
        return final

    async def call(
        self, operation: ProviderOperation, action: NextAction, circuit: Circuit, perform: Perform
    ) -> ProviderOutcome | NotCalled:
        """Performs an action of an operation. `circuit`: the part of the provider that it uses."""
        if in_transaction():
            raise RuntimeError("a provider must not be called inside a transaction")
        if not self.is_configured(operation.provider):
            return NotCalled(
                UNCONFIGURED_RETRY_SECONDS,
                f"the provider {operation.provider} is not configured; configure it again, or "
                "close the operation with evidence",
                provider_unavailable=True,
            )
        with resume_trace(operation.context):
            if not operation.subject_id:
                return await self._call(operation, action, perform)
            return await self._call_within_limits(operation, action, circuit, perform)

    async def _call_within_limits(
        self, operation: ProviderOperation, action: NextAction, circuit: Circuit, perform: Perform
    ) -> ProviderOutcome | NotCalled:
        """Calls a provider once it has a free slot, unless its circuit is open."""
        semaphore, loop = self._semaphores[operation.provider], asyncio.get_running_loop()
        timeout_seconds = self._limits[operation.provider].timeout_seconds
        had_to_wait = semaphore.locked()
        if not await _acquire_slot(
            semaphore, operation.lease_deadline - timeout_seconds - LEASE_MARGIN_SECONDS
        ):
            return NotCalled(
                0, "too many concurrent calls to the provider: the lease would expire first"
            )
        try:
            if action is NextAction.SEND and loop.time() >= operation.expires_at:
                return changed_before_call("expired before it was sent")
            if (
                action is NextAction.SEND
                and had_to_wait
                and not await self._is_still_leased(operation)
            ):
                return changed_before_call("changed before it was sent")
            breaker = self._breakers[operation.provider, circuit]
            retry_after = breaker.admit_or_delay(loop.time(), operation.subject_id)
            if retry_after is not None:
                return NotCalled(
                    retry_after, "the circuit breaker is open", provider_unavailable=True
                )
            span_name = names.PROVIDER_CALL_SPAN.format(
                provider=operation.provider, action=action.lower()
            )
            with client_span(span_name, operation.context) as span:
                start_time = time.perf_counter()
                try:
                    outcome = await self._call(operation, action, perform)
                except (
                    asyncio.CancelledError
                ):  # nothing would complete it, so nothing may wait for it
                    breaker.record_failure(loop.time(), operation.subject_id)
                    raise
                _update_breaker(breaker, operation, outcome, loop.time())
                metrics.PROVIDER_CALLS.record(
                    time.perf_counter() - start_time,
                    operation.provider,
                    action.lower(),
                    type(outcome).__name__,
                )
                span.set_attribute("tallystick.outcome", type(outcome).__name__)
                return outcome
        finally:
            semaphore.release()

    async def _call(
        self, operation: ProviderOperation, action: NextAction, perform: Perform
    ) -> ProviderOutcome:
        with collect_request_ids() as request_ids:
            try:
                async with asyncio.timeout(self._limits[operation.provider].timeout_seconds):
                    outcome = await perform(self._providers[operation.provider], operation, action)
            except TimeoutError:
                outcome = Unknown("the provider did not answer in time")
            except Exception:  # the call may have been sent, so its outcome is unknown
                log.exception(
                    "the adapter of %s failed on %s",
                    operation.provider,
                    operation.resource_name,
                    extra=names.ADAPTER_FAILED.extra,
                )
                outcome = Unknown("the provider's adapter failed")
        return request_ids.add_to(_checked(outcome, operation))


def _checked(outcome: ProviderOutcome, operation: ProviderOperation) -> ProviderOutcome:
    """The outcome, or Unknown if it is of another operation or has an invalid amount."""
    if not is_outcome_of(outcome, operation.operation_id, operation.provider_key):
        return Unknown(
            f"the provider answered about another operation: {type(outcome).__name__}",
            RetryReason.MISMATCHED_OPERATION,
            request_id=getattr(outcome, "request_id", ""),
        )
    if not has_valid_amounts(outcome):
        return Unknown(
            f"the provider answered with an invalid amount: {type(outcome).__name__}",
            request_id=getattr(outcome, "request_id", ""),
        )
    return outcome


def _update_breaker(
    breaker: Breaker, operation: ProviderOperation, outcome: ProviderOutcome, now: float
) -> None:
    """Updates the breaker with what an outcome says about the provider."""
    match outcome:
        case Unknown(retry_reason=RetryReason.UNAUTHORIZED):
            breaker.record_failure(now, operation.subject_id, trip=True)
        case NotSent() | Unknown(retry_reason=RetryReason.NO_ANSWER | RetryReason.SERVER_ERROR):
            breaker.record_failure(now, operation.subject_id)
        case _:
            breaker.record_success()


async def _acquire_slot(semaphore: asyncio.Semaphore, deadline: float) -> bool:
    """Waits for a slot until `deadline` (loop time). Returns whether it was acquired."""
    if asyncio.get_running_loop().time() > deadline:
        return False
    if not semaphore.locked():  # the usual case needs no timer
        return await semaphore.acquire()
    try:
        async with asyncio.timeout_at(deadline):
            return await semaphore.acquire()
    except TimeoutError:
        return False
