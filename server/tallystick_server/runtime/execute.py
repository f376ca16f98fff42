"""Execute: one provider call for each demand, concurrently and bounded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace

from tallystick_core.provider import Answer, FinalNotFound, NotSent, Trouble, Unknown, belongs, tells_money
from tallystick_core.recovery import Circuit, Step
from tallystick_server.runtime.breaker import Breaker, BreakerSettings
from tallystick_server.runtime.demand import InHand
from tallystick_server.runtime.telemetry import client_span
from tallystick_storage.database import in_transaction

log = logging.getLogger(__name__)

LEASE_MARGIN = 2.0
"""Seconds that must be left of a lease when a provider has answered, to record it."""


UNCONFIGURED_WAIT = 60.0
"""Seconds after which an operation is tried again whose provider is not configured."""


@dataclass(frozen=True, slots=True)
class HeldBack:
    """The provider was not asked, and is not to be for so many seconds."""

    seconds: float
    why: str


class Execute:
    """Asks providers, each within its own bounds. The attempt is on disk before it is sent, under the key that is sent.

    `still_ours`: whether a demand is still leased to this process, and nothing has changed of what is wanted of it.
    """

    def __init__(
        self,
        providers: Mapping[str, Any],
        still_ours: Callable[[InHand], Awaitable[bool]],
        *,
        most: int,
        timeout: float,
        breaker: BreakerSettings,
    ) -> None:
        self._providers = providers
        self._room = {name: asyncio.Semaphore(most) for name in providers}
        # what was sent is still asked about while sends fail, and a provider whose look-ups fail is still sent to
        self._breakers = {(name, circuit): Breaker(f"provider {name}, {circuit},", breaker) for name in providers for circuit in Circuit}
        self._timeout = timeout
        self._still_ours = still_ours

    def is_held_back(self, provider: str) -> bool:
        """Whether sends to a provider fail too often for more to be made now."""
        return not self.knows(provider) or self._breakers[provider, Circuit.SENDS].is_open()

    def lacks_probe(self, provider: str, now: float, *, others_wait: bool) -> bool:
        """Whether sends to a provider fail too often, and one more is to find out whether it answers again."""
        free = self.knows(provider) and not self._room[provider].locked()
        return free and self._breakers[provider, Circuit.SENDS].lacks_probe(now, others_wait=others_wait)

    def knows(self, provider: str) -> bool:
        """Whether a provider is configured."""
        return provider in self._providers

    def key_window(self, provider: str) -> float:
        """Seconds for which a provider honours a key; none if it is not configured."""
        return float(self._providers[provider].key_window) if self.knows(provider) else 0.0

    def final_not_found(self, provider: str) -> FinalNotFound | None:
        """When a provider's "not found" is conclusive; None: never."""
        final: FinalNotFound | None = self._providers[provider].final_not_found
        return final

    async def ask(self, item: InHand, step: Step) -> Answer | HeldBack:
        """The provider's answer to the demand, or to what became of it."""
        if in_transaction():
            raise RuntimeError("a provider is not called inside a transaction")
        if not self.knows(item.provider):
            return HeldBack(
                UNCONFIGURED_WAIT, f"the provider {item.provider} is not configured; configure it again, or close the operation with evidence"
            )
        room, loop = self._room[item.provider], asyncio.get_running_loop()
        waits = room.locked()
        if not await _entered(room, item.lease_deadline - self._timeout - LEASE_MARGIN):
            return HeldBack(0, "so many ask the provider that the lease would not outlast the call")
        try:
            if step is Step.SEND and loop.time() >= item.expires_at:
                return HeldBack(0, "it expired before it was sent")
            if step is Step.SEND and waits and not await self._still_ours(item):
                return HeldBack(0, "something else was wanted of it before it was sent")
            breaker = self._breakers[item.provider, item.circuit(step)]
            seconds = breaker.held_back(loop.time(), item.demand_id)
            if seconds is not None:
                return HeldBack(seconds, "the provider fails too often to be asked now")
            with client_span(f"{item.provider} {step.lower()}", item.context) as span:
                try:
                    outcome = await self._ask(item, step)
                except asyncio.CancelledError:  # nobody will tell how it ended, so it must not be waited for
                    breaker.failed(loop.time(), item.demand_id)
                    raise
                _report(breaker, item, outcome, loop.time())
                span.set_attribute("tallystick.outcome", type(outcome).__name__)
                return outcome
        finally:
            room.release()

    async def _ask(self, item: InHand, step: Step) -> Answer:
        try:
            async with asyncio.timeout(self._timeout):
                outcome = await item.ask(self._providers[item.provider], step)
        except TimeoutError:
            return Unknown("the provider did not answer in time")
        except Exception:
            log.exception("the adapter of %s failed on %s (trace %s)", item.provider, item.subject, _trace(item))
            return Unknown("the provider's adapter failed")
        if not belongs(outcome, item.demand_id, item.provider_key):
            return Unknown(f"{type(outcome).__name__} of another demand, as the provider says", Trouble.MISDIRECTED)
        return outcome if tells_money(outcome) else Unknown(f"{type(outcome).__name__} of what is no amount of money")


def _report(breaker: Breaker, item: InHand, outcome: Answer, now: float) -> None:
    """What an outcome says of the provider itself."""
    match outcome:
        case Unknown(trouble=Trouble.FORBIDDEN):
            breaker.failed(now, item.demand_id, at_once=True)
        case NotSent() | Unknown(trouble=Trouble.NO_ANSWER | Trouble.SERVER_ERROR):
            breaker.failed(now, item.demand_id)
        case _:
            breaker.succeeded()


async def _entered(room: asyncio.Semaphore, until: float) -> bool:
    """Takes a place as soon as there is one, at the latest at a time of the loop; whether it was taken."""
    if asyncio.get_running_loop().time() > until:
        return False
    if not room.locked():  # the usual case needs no timer
        return await room.acquire()
    try:
        async with asyncio.timeout_at(until):
            return await room.acquire()
    except TimeoutError:
        return False


def _trace(item: InHand) -> str:
    return trace.format_trace_id(item.context.trace_id)
