"""Payment providers for answers that no sandbox gives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from google.protobuf.timestamp_pb2 import Timestamp

from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    Declined,
    FailureReason,
    FinalNotFound,
    NotFound,
    Pending,
    PendingReason,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_sandbox.sandbox import Sandbox
from tallystick_server.providers.sandbox.charges import SandboxCharges
from tallystick_storage.database import Database


class SandboxProvider(SandboxCharges):
    """A sandbox in the test's process, under any name."""

    def __init__(self, database: Database, name: str = "sandbox") -> None:
        self.sandbox = Sandbox(database, name=name)
        super().__init__(name, self.sandbox, 86_400.0, FinalNotFound(60.0, min_responses=2))


class PageProvider(SandboxProvider):
    """A sandbox that also hosts pages. Nobody pays on them."""

    def __init__(self, database: Database, name: str = "sandbox") -> None:
        super().__init__(database, name)
        self.hosts_pages = True

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        return _open_page(request) if request.page else await super().send(request)

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return _open_page(request) if request.page else await super().look_up(request)

    async def cancel(self, request: ChargeRequest) -> ChargeLookupOutcome:
        if request.page is None:
            return await super().cancel(request)
        return Declined(FailureReason.PAGE_EXPIRED, "expired", f"cs_{request.charge_id}")


def _open_page(request: ChargeRequest) -> Pending:
    url = f"https://pages.example/{request.charge_id}"
    return Pending(PendingReason.BUYER_ACTION, f"cs_{request.charge_id}", url)


class SlowLookupProvider(SandboxProvider):
    """A sandbox with slow lookups."""

    def __init__(self, database: Database, delay_seconds: float) -> None:
        super().__init__(database)
        self.delay_seconds = delay_seconds
        self.lookup_count = 0

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        self.lookup_count += 1
        await asyncio.sleep(self.delay_seconds)
        return await super().look_up(request)


class BreakableProvider(SandboxProvider):
    """A sandbox that can be slow, by a clock of the test, and reject the platform's credentials."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.latency_seconds = 0.0
        self.passed_seconds = 0.0
        """The sum of the latencies so far."""
        self.rejects_credentials = False

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        if self.rejects_credentials:
            return Unknown("401: this key was revoked", RetryReason.UNAUTHORIZED)
        self.passed_seconds += self.latency_seconds
        return await super().send(request)


class HoldingProvider(SandboxProvider):
    """A sandbox that holds its calls until it is released."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.sent_charge_ids: list[str] = []
        self.release_event = asyncio.Event()

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        self.sent_charge_ids.append(request.charge_id)
        await self.release_event.wait()
        return await super().send(request)


class ScriptedPaymentProvider:
    """A provider that answers every request with `outcome_of`, or a charge with `send`."""

    name = "sandbox"
    key_window = 86_400.0
    final_not_found: FinalNotFound | None = FinalNotFound(0.2, 1)
    hosts_pages: bool = True

    def __init__(
        self,
        outcome_of: Callable[[ChargeRequest], ChargeLookupOutcome],
        send: Callable[[ChargeRequest], Awaitable[ChargeOutcome]] | None = None,
    ) -> None:
        self._outcome_of = outcome_of
        self._send = send

    def reject_amount(self, amount: int, currency: str, method: str) -> str | None:
        return None

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        if self._send is not None:
            return await self._send(request)
        outcome = self._outcome_of(request)
        assert not isinstance(outcome, NotFound)
        return outcome

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return self._outcome_of(request)

    cancel = look_up


def succeed(request: ChargeRequest) -> ChargeLookupOutcome:
    return Succeeded(f"ch_{request.charge_id}", request.amount, request.currency)


async def succeed_first(request: ChargeRequest) -> ChargeOutcome:
    return Succeeded("first", request.amount, request.currency)


async def unknown_outcome(request: ChargeRequest) -> ChargeOutcome:
    return Unknown("lost")


async def outcome_after(not_before: Timestamp, outcome: ChargeOutcome) -> ChargeOutcome:
    """A provider outcome that is delayed until a given time has passed."""
    await asyncio.sleep(max(not_before.ToNanoseconds() - time.time_ns(), 0) / 1e9 + 0.2)
    return outcome
