"""A sandbox as a payment provider: in this process, or over HTTP."""

from __future__ import annotations

from typing import Protocol

from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    Declined,
    FailureReason,
    FinalNotFound,
    NotFound,
    NotSent,
    Pending,
    PendingReason,
    ProviderFee,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest, PaymentProvider
from tallystick_sandbox.rules import Reply
from tallystick_sandbox.sandbox import Sandbox
from tallystick_server.providers.provider_type import BuiltProvider, OpenDatabase, ProviderTerms
from tallystick_server.providers.sandbox.client import (
    REJECTION_CODES,
    HttpCharges,
    is_not_found,
    is_well_formed,
    noted,
    to_inconclusive_outcome,
)
from tallystick_server.providers.sandbox.settings import SandboxSettings

_DECLINE_REASONS = {
    "insufficient_funds": FailureReason.INSUFFICIENT_FUNDS,
    "expired_card": FailureReason.PAYMENT_METHOD_INVALID,
    "authentication_failed": FailureReason.AUTHENTICATION_FAILED,
    "cancelled": FailureReason.CALLER_CANCELLED,
}


class ChargeClient(Protocol):
    """A sandbox in this process (`Sandbox`), or over HTTP (`HttpCharges`)."""

    async def charge(self, request: ChargeRequest) -> Reply | NotSent | Unknown: ...
    async def look_up(self, charge_id: str) -> Reply | NotSent | Unknown: ...
    async def cancel(self, charge_id: str) -> Reply | NotSent | Unknown: ...


class SandboxCharges:
    """The charges of a sandbox."""

    def __init__(
        self,
        name: str,
        client: ChargeClient,
        key_window: float,
        final_not_found: FinalNotFound | None,
    ) -> None:
        self.name = name
        self.key_window = key_window
        self.final_not_found = final_not_found
        self.hosts_pages = False
        self._client = client

    def reject_amount(self, amount: int, currency: str, method: str) -> str | None:
        """The sandbox charges every amount."""
        return None

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        if request.page is not None:
            return Unknown("the sandbox hosts no pages", RetryReason.REJECTED)
        reply = noted(await self._client.charge(request))
        return to_outcome(reply) if isinstance(reply, Reply) else reply

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        reply = noted(await self._client.look_up(request.charge_id))
        return to_lookup_outcome(reply) if isinstance(reply, Reply) else reply

    async def cancel(self, request: ChargeRequest) -> ChargeLookupOutcome:
        reply = noted(await self._client.cancel(request.charge_id))
        return to_lookup_outcome(reply) if isinstance(reply, Reply) else reply


def build(
    terms: ProviderTerms, settings: SandboxSettings, open_database: OpenDatabase
) -> BuiltProvider[PaymentProvider]:
    """The adapter, and the sandbox itself if it runs in this process."""
    window = terms.key_window_seconds
    if settings.url:
        remote = HttpCharges(settings.url)
        adapter = SandboxCharges(terms.name, remote, window, terms.final_not_found)
        return BuiltProvider(adapter, close_hooks=[remote.close])
    database = open_database("sandbox")
    sandbox = Sandbox(
        database,
        name=terms.name,
        latency_seconds=settings.latency,
        key_window_seconds=window,
        fee_ppm=settings.fee_rate,
    )
    adapter = SandboxCharges(terms.name, sandbox, window, terms.final_not_found)
    return BuiltProvider(adapter, [sandbox], [database])


def to_outcome(reply: Reply) -> ChargeOutcome:
    """The outcome of an answer. An answer that is not definite and well-formed is Unknown, never
    Declined.
    """
    match reply.status:
        case 200 | 202 | 402:
            return (
                _to_definite_outcome(reply)
                if is_well_formed(reply)
                else Unknown(f"status {reply.status} with an unreadable answer")
            )
        case 400 if reply.code in REJECTION_CODES:
            return Declined(FailureReason.PROVIDER_REJECTED, reply.code)
        case _:
            return to_inconclusive_outcome(reply)


def to_lookup_outcome(reply: Reply) -> ChargeLookupOutcome:
    """The outcome of a lookup or a cancellation. NotFound requires an explicit answer that the
    sandbox does not know the charge.
    """
    return NotFound() if is_not_found(reply) else to_outcome(reply)


def _to_definite_outcome(reply: Reply) -> ChargeOutcome:
    if reply.status == 200:
        fee = None if reply.fee is None else ProviderFee(reply.fee, reply.currency)
        return Succeeded(reply.reference, reply.amount, reply.currency, reply.subject, fee)
    if reply.status == 402:
        return Declined(
            _DECLINE_REASONS.get(reply.code, FailureReason.PROVIDER_DECLINED),
            reply.code,
            reply.reference,
            reply.subject,
        )
    needs_action = reply.code == "action"
    url = f"https://sandbox.invalid/act/{reply.reference}" if needs_action else ""
    return Pending(
        PendingReason.BUYER_ACTION if needs_action else PendingReason.PROVIDER_REVIEW,
        reply.reference,
        url,
        reply.subject,
    )
