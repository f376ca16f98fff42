"""Execute: one provider call for each charge, concurrently and bounded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from opentelemetry import trace

from tallystick_core.provider import Demand, NotSent, Outcome, PaymentProvider, Trouble, Unknown
from tallystick_core.recovery import Step
from tallystick_server.payment.charge import Charge
from tallystick_server.runtime.breaker import Breaker, BreakerSettings
from tallystick_server.runtime.telemetry import client_span
from tallystick_storage.database import in_transaction

log = logging.getLogger(__name__)

LEASE_MARGIN = 2.0
"""Seconds that must be left of a lease when a provider has answered, to record it."""


@dataclass(frozen=True, slots=True)
class HeldBack:
    """The provider was not asked, and is not to be for so many seconds."""

    seconds: float


class Execute:
    """Asks providers, each within its own bounds. The attempt is on disk before it is sent, under the key that is sent."""

    def __init__(self, providers: Mapping[str, PaymentProvider], *, most: int, timeout: float, breaker: BreakerSettings) -> None:
        self._providers = providers
        self._room = {name: asyncio.Semaphore(most) for name in providers}
        self._breakers = {name: Breaker(f"provider {name}", breaker) for name in providers}
        self._timeout = timeout

    def is_held_back(self, provider: str) -> bool:
        """Whether a provider fails too often to be asked now."""
        return self._breakers[provider].is_open()

    async def charge(self, charge: Charge, step: Step) -> Outcome | HeldBack | None:
        """The provider's answer to the demand, or to what became of it; None if the lease would not outlast the call, which is left to the sweep."""
        if in_transaction():
            raise RuntimeError("a provider is not called inside a transaction")
        async with self._room[charge.provider]:
            loop = asyncio.get_running_loop()
            if loop.time() + self._timeout + LEASE_MARGIN > charge.lease_deadline:
                return None
            if step is Step.SEND and loop.time() >= charge.expires_at and not charge.maybe_sent:
                return NotSent("it expired before it was sent")
            seconds = self._breakers[charge.provider].held_back(loop.time())
            if seconds is not None:
                return HeldBack(seconds)
            provider = self._providers[charge.provider]
            ask = {Step.SEND: provider.charge, Step.LOOK_UP: provider.look_up, Step.CANCEL: provider.cancel}[step]
            with client_span(f"{charge.provider} {ask.__name__}", charge.context) as span:
                try:
                    outcome = await self._ask(ask, charge)
                except asyncio.CancelledError:  # nobody will tell how it ended, so it must not be waited for
                    self._breakers[charge.provider].failed(loop.time(), charge.charge_id)
                    raise
                self._report(charge, outcome, loop.time())
                span.set_attribute("tallystick.outcome", type(outcome).__name__)
                return outcome

    def _report(self, charge: Charge, outcome: Outcome, now: float) -> None:
        """What an outcome says of the provider itself."""
        breaker = self._breakers[charge.provider]
        match outcome:
            case Unknown(trouble=Trouble.FORBIDDEN):
                breaker.failed(now, charge.charge_id, at_once=True)
            case NotSent() | Unknown(trouble=Trouble.NO_ANSWER | Trouble.SERVER_ERROR):
                breaker.failed(now, charge.charge_id)
            case _:
                breaker.succeeded()

    async def _ask(self, ask: Callable[[Demand], Awaitable[Outcome]], charge: Charge) -> Outcome:
        try:
            async with asyncio.timeout(self._timeout):
                return await ask(charge.demand())
        except TimeoutError:
            return Unknown("the provider did not answer in time")
        except Exception:
            log.exception("the adapter of %s failed on charge %s (trace %s)", charge.provider, charge.charge_id, _trace(charge))
            return Unknown("the provider's adapter failed")


def _trace(charge: Charge) -> str:
    return trace.format_trace_id(charge.context.trace_id)
