"""Calls of an adapter as the platform makes them, for the contract of adapters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from tallystick_core.operations.next_action import Circuit, NextAction
from tallystick_core.provider.outcome import ProviderOutcome, RetryReason, Unknown
from tallystick_server.observability.tracing import SpanContext, current_context
from tallystick_server.providers.circuit_breaker import BreakerSettings
from tallystick_server.providers.gateway import NotCalled, ProviderGateway
from tallystick_server.providers.provider_type import CallLimits

TIMEOUT_SECONDS = 30.0
SHORT_TIMEOUT_SECONDS = 0.1
"""The timeout of calls to a provider that stays silent."""


@dataclass
class _Operation:
    """The parts of an operation that the gateway needs."""

    operation_id: str
    provider_key: str
    provider: str = "tested"
    resource_name: str = "tested/1"
    context: SpanContext = field(default_factory=current_context)
    lease_deadline: float = float("inf")
    expires_at: float = float("inf")

    @property
    def subject_id(self) -> str:
        return self.operation_id


async def through_gateway(
    operation_id: str,
    key: str,
    call: Callable[[], Awaitable[ProviderOutcome]],
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> ProviderOutcome:
    """The outcome of a call as the platform sees it. An adapter that raises breaks the contract."""
    gateway = ProviderGateway(
        {"tested": None},
        lambda _: asyncio.sleep(0, result=True),
        limits_of=lambda _: CallLimits(timeout_seconds, 1),
        breaker_settings=BreakerSettings(),
    )
    outcome = await gateway.call(
        _Operation(operation_id, key), NextAction.LOOK_UP, Circuit.LOOK_UPS, lambda *_: call()
    )
    assert not isinstance(outcome, NotCalled)
    assert outcome != Unknown("the provider's adapter failed"), "the adapter raised"
    return outcome


async def first_of(*calls: Coroutine[Any, Any, ProviderOutcome]) -> ProviderOutcome:
    """The outcome of the call that is answered first; the others are abandoned."""
    tasks = [asyncio.create_task(call) for call in calls]
    done, running = await asyncio.wait(
        tasks, timeout=TIMEOUT_SECONDS, return_when=asyncio.FIRST_COMPLETED
    )
    for task in running:
        task.cancel()
    (outcome,) = (task.result() for task in done)
    return outcome


IN_USE = RetryReason.THROTTLED
"""Why a request is retried whose key is in use."""


def has_reason(outcome: ProviderOutcome, reason: RetryReason) -> bool:
    """Whether the outcome is unknown, for this reason."""
    return isinstance(outcome, Unknown) and outcome.retry_reason is reason
