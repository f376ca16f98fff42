"""A sandbox as a payout provider: in this process, or over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tallystick_core.provider.outcome import (
    Declined,
    InTransit,
    NotFound,
    NotSent,
    PayoutFailure,
    PayoutLookupOutcome,
    PayoutOutcome,
    Pending,
    PendingReason,
    Returned,
    Submitted,
    Succeeded,
    Unknown,
    VerificationOutcome,
    Verified,
)
from tallystick_core.provider.payout_provider import PayoutProvider, PayoutRequest
from tallystick_sandbox.payouts import SandboxPayouts as Sandbox
from tallystick_sandbox.rules import Reply
from tallystick_server.providers.provider_type import BuiltProvider, OpenDatabase, ProviderTerms
from tallystick_server.providers.sandbox.client import (
    REJECTION_CODES,
    HttpPayouts,
    has_valid_texts,
    is_not_found,
    is_well_formed,
    noted,
    to_inconclusive_outcome,
)
from tallystick_server.providers.sandbox.settings import SandboxSettings

MAX_BATCH_SIZE = 100
"""Maximum payouts of one submission."""


class PayoutClient(Protocol):
    """A sandbox in this process (`SandboxPayouts`), or over HTTP (`HttpPayouts`)."""

    async def submit(
        self, requests: Sequence[PayoutRequest]
    ) -> Sequence[Reply] | NotSent | Unknown: ...
    async def look_up(self, payout_id: str) -> Reply | NotSent | Unknown: ...
    async def verify(self, bank_account_token: str) -> Reply | NotSent | Unknown: ...


class SandboxPayoutProvider:
    """The payouts of a sandbox."""

    max_batch_size = MAX_BATCH_SIZE

    def __init__(self, name: str, client: PayoutClient, key_window: float) -> None:
        self.name = name
        self.key_window = key_window
        self._client = client

    def reject_amount(self, amount: int, currency: str) -> str | None:
        """The sandbox pays every amount."""
        return None

    async def submit(self, requests: Sequence[PayoutRequest]) -> Sequence[PayoutOutcome]:
        replies = await self._client.submit(requests)
        if isinstance(replies, NotSent | Unknown):
            return [replies] * len(requests)
        return [to_payout_outcome(noted(reply)) for reply in replies]

    async def look_up(self, request: PayoutRequest) -> PayoutLookupOutcome:
        reply = noted(await self._client.look_up(request.payout_id))
        return to_payout_lookup_outcome(reply) if isinstance(reply, Reply) else reply

    async def verify(self, bank_account_token: str, currency: str) -> VerificationOutcome:
        """The sandbox pays in every currency."""
        reply = noted(await self._client.verify(bank_account_token))
        return to_verification_outcome(reply) if isinstance(reply, Reply) else reply


def build(
    terms: ProviderTerms, settings: SandboxSettings, open_database: OpenDatabase
) -> BuiltProvider[PayoutProvider]:
    """The adapter, and the sandbox itself if it runs in this process."""
    window = terms.key_window_seconds
    if settings.url:
        remote = HttpPayouts(settings.url)
        adapter = SandboxPayoutProvider(terms.name, remote, window)
        return BuiltProvider(adapter, close_hooks=[remote.close])
    database = open_database("sandbox")
    sandbox = Sandbox(
        database, name=terms.name, latency_seconds=settings.latency, key_window_seconds=window
    )
    return BuiltProvider(SandboxPayoutProvider(terms.name, sandbox, window), [sandbox], [database])


def to_payout_outcome(reply: Reply) -> PayoutOutcome:
    """The outcome of an answer to a payout. An answer that is not definite and well-formed is
    Unknown, never Declined.
    """
    match reply.status:
        case 200 | 402:
            return (
                _to_definite_payout_outcome(reply)
                if is_well_formed(reply)
                else Unknown(f"status {reply.status} with an unreadable answer")
            )
        case 400 if reply.code in REJECTION_CODES:
            return Declined(PayoutFailure.PROVIDER_REJECTED, reply.code)
        case _:
            return to_inconclusive_outcome(reply)


def to_payout_lookup_outcome(reply: Reply) -> PayoutLookupOutcome:
    """The outcome of a payout lookup."""
    return NotFound() if is_not_found(reply) else to_payout_outcome(reply)


def _to_definite_payout_outcome(reply: Reply) -> PayoutOutcome:
    client_reference = reply.subject
    if reply.status == 402:
        is_account_rejected = reply.code in _ACCOUNT_REJECTED_CODES
        return Declined(
            PayoutFailure.DESTINATION_REJECTED
            if is_account_rejected
            else PayoutFailure.PROVIDER_DECLINED,
            reply.code,
            reply.reference,
            client_reference,
        )
    match reply.state:
        case "SUBMITTED":
            return Submitted(reply.reference, client_reference)
        case "IN_TRANSIT":
            return InTransit(reply.reference, client_reference)
        case "PAID":
            return Succeeded(reply.reference, reply.amount, reply.currency, client_reference)
        case "RETURNED":
            return Returned(
                reply.reference,
                reply.amount,
                reply.currency,
                reply.code,
                account_rejected=reply.code in _ACCOUNT_REJECTED_CODES,
                client_reference=client_reference,
            )
        case _:
            return Unknown("an unknown state")


_ACCOUNT_REJECTED_CODES = frozenset({"account_closed", "no_account"})


def to_verification_outcome(reply: Reply) -> VerificationOutcome:
    """Whether the account can receive payouts."""
    match reply.status:
        case 200:
            return Verified()
        case 202:
            return Pending(PendingReason.PROVIDER_REVIEW)
        case 402 if has_valid_texts(reply):
            return Declined(PayoutFailure.DESTINATION_REJECTED, reply.code)
        case _:
            return to_inconclusive_outcome(reply)
