"""The sandbox as a provider: in this process, or over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tallystick_core.money import MAX_AMOUNT
from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    Declined,
    FailureReason,
    FinalNotFound,
    InTransit,
    NotFound,
    NotSent,
    PayoutFailure,
    PayoutLookupOutcome,
    PayoutOutcome,
    Pending,
    PendingReason,
    RetryReason,
    Returned,
    Submitted,
    Succeeded,
    Unknown,
    VerificationOutcome,
    Verified,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_sandbox.payouts import SandboxPayouts
from tallystick_sandbox.rules import CONNECTION_REFUSED, NOT_FOUND, Reply
from tallystick_sandbox.sandbox import Sandbox

if TYPE_CHECKING:
    from tallystick_server.providers.http_client import HttpClient

NAME = "sandbox"
MAX_BATCH_SIZE = 100
"""Maximum payouts of one submission."""

_DECLINE_REASONS = {
    "insufficient_funds": FailureReason.INSUFFICIENT_FUNDS,
    "expired_card": FailureReason.PAYMENT_METHOD_INVALID,
    "authentication_failed": FailureReason.AUTHENTICATION_FAILED,
    "cancelled": FailureReason.CALLER_CANCELLED,
}


FINAL_NOT_FOUND = FinalNotFound(60.0, min_responses=2)
"""No charge is in transit to the sandbox for this long."""
_REJECTION_CODES = frozenset({"amount_too_small"})
"""Codes that guarantee that the provider charges nothing, also after a repeat."""


class InProcessSandbox:
    """The sandbox's charges, in this process."""

    name = NAME

    def __init__(
        self,
        sandbox: Sandbox,
        key_window: float,
        final_not_found: FinalNotFound | None = FINAL_NOT_FOUND,
    ) -> None:
        self.key_window = key_window
        self.final_not_found = final_not_found
        self._sandbox = sandbox

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        return to_outcome(await self._sandbox.charge(request))

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return to_lookup_outcome(await self._sandbox.look_up(request.charge_id))

    async def cancel(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return to_lookup_outcome(await self._sandbox.cancel(request.charge_id))


def _new_http_client(url: str) -> HttpClient:
    # slow to import, and needed only where the sandbox is a server of its own
    from tallystick_server.providers.http_client import HttpClient  # noqa: PLC0415

    return HttpClient(url)


def _parse_reply(status: int, body: Any, retry_after: float) -> Reply:
    """Parses the answer to one request. Raises KeyError, TypeError."""
    return Reply(
        status,
        body["reference"],
        body["amount"],
        body["currency"],
        body["code"],
        retry_after,
        body.get("state", ""),
        body.get("subject", ""),
    )


def _parse_retry_after(value: Any) -> float:
    """Parses the retry delay of one answer in a batch, at most a day. Raises ValueError if it is no
    number of seconds.
    """
    if type(value) not in (int, float) or value < 0:
        raise ValueError("retry_after must be a number of seconds")
    return min(float(value), 86_400.0)


class HttpSandbox:
    """The sandbox's charges, on a separate server."""

    name = NAME

    def __init__(
        self, url: str, key_window: float, final_not_found: FinalNotFound | None = FINAL_NOT_FOUND
    ) -> None:
        self.key_window = key_window
        self.final_not_found = final_not_found
        self._http = _new_http_client(url)
        self.close = self._http.close

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        body = {
            "charge_id": request.charge_id,
            "amount": request.amount,
            "currency": request.currency,
            "payment_token": request.payment_token,
            "method": request.method,
        }
        return await self._http.request(
            "POST", "/charges", _parse_outcome, json=body, headers={"Idempotency-Key": request.key}
        )

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return await self._http.request(
            "GET", f"/charges/{request.charge_id}", _parse_lookup_outcome
        )

    async def cancel(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return await self._http.request(
            "POST", f"/charges/{request.charge_id}/cancel", _parse_lookup_outcome
        )


def _parse_outcome(status: int, body: Any, retry_after: float) -> ChargeOutcome:
    return to_outcome(_parse_reply(status, body, retry_after))


def _parse_lookup_outcome(status: int, body: Any, retry_after: float) -> ChargeLookupOutcome:
    return to_lookup_outcome(_parse_reply(status, body, retry_after))


class InProcessSandboxPayouts:
    """The sandbox's payouts, in this process."""

    name = NAME
    max_batch_size = MAX_BATCH_SIZE

    def __init__(self, sandbox: SandboxPayouts, key_window: float) -> None:
        self.key_window = key_window
        self._sandbox = sandbox

    async def submit(self, requests: Sequence[PayoutRequest]) -> Sequence[PayoutOutcome]:
        return [to_payout_outcome(reply) for reply in await self._sandbox.submit(requests)]

    async def look_up(self, request: PayoutRequest) -> PayoutLookupOutcome:
        return to_payout_lookup_outcome(await self._sandbox.look_up(request.payout_id))

    async def verify(self, bank_account_token: str, currency: str) -> VerificationOutcome:
        return to_verification_outcome(await self._sandbox.verify(bank_account_token))


class HttpSandboxPayouts:
    """The sandbox's payouts, on a separate server."""

    name = NAME
    max_batch_size = MAX_BATCH_SIZE

    def __init__(self, url: str, key_window: float) -> None:
        self.key_window = key_window
        self._http = _new_http_client(url)
        self.close = self._http.close

    async def submit(self, requests: Sequence[PayoutRequest]) -> Sequence[PayoutOutcome]:
        def parse(status: int, body: Any, retry_after: float) -> Sequence[PayoutOutcome]:
            if status != 200:
                return [to_payout_outcome(_parse_reply(status, body, retry_after))] * len(requests)
            if len(body) != len(requests):
                raise ValueError("the number of answers must be the number of payouts")
            return [
                to_payout_outcome(
                    _parse_reply(item["status"], item, _parse_retry_after(item["retry_after"]))
                )
                for item in body
            ]

        items = [
            {
                "key": request.key,
                "payout_id": request.payout_id,
                "amount": request.amount,
                "currency": request.currency,
                "bank_account_token": request.bank_account_token,
            }
            for request in requests
        ]
        result = await self._http.request("POST", "/payouts", parse, json=items)
        return [result] * len(requests) if isinstance(result, NotSent | Unknown) else result

    async def look_up(self, request: PayoutRequest) -> PayoutLookupOutcome:
        return await self._http.request(
            "GET",
            f"/payouts/{request.payout_id}",
            lambda *answer: to_payout_lookup_outcome(_parse_reply(*answer)),
        )

    async def verify(self, bank_account_token: str, currency: str) -> VerificationOutcome:
        body = {"bank_account_token": bank_account_token, "currency": currency}
        return await self._http.request(
            "POST",
            "/accounts/verify",
            lambda *answer: to_verification_outcome(_parse_reply(*answer)),
            json=body,
        )


def to_outcome(reply: Reply) -> ChargeOutcome:
    """The outcome of an answer. An answer that is not definite and well-formed is Unknown, never
    Declined.
    """
    match reply.status:
        case 200 | 202 | 402:
            return (
                _to_definite_outcome(reply)
                if _is_well_formed(reply)
                else Unknown(f"status {reply.status} with an unreadable answer")
            )
        case 400 if reply.code in _REJECTION_CODES:
            return Declined(FailureReason.PROVIDER_REJECTED, reply.code)
        case _:
            return _to_inconclusive_outcome(reply)


def to_lookup_outcome(reply: Reply) -> ChargeLookupOutcome:
    """The outcome of a lookup or a cancellation. NotFound requires an explicit answer that the
    sandbox does not know the charge.
    """
    return NotFound() if _is_not_found(reply) else to_outcome(reply)


def _is_not_found(reply: Reply) -> bool:
    return reply.status == NOT_FOUND.status and reply.code == NOT_FOUND.code


def _to_inconclusive_outcome(reply: Reply) -> NotSent | Unknown:
    """The outcome of an answer that says nothing about the operation."""
    if reply == CONNECTION_REFUSED:
        return NotSent("the connection was refused")
    default_reason = RetryReason.SERVER_ERROR if reply.status >= 500 else RetryReason.NO_ANSWER
    return Unknown(
        f"status {reply.status} {reply.code}".strip(),
        _RETRY_REASONS.get(reply.status, default_reason),
        reply.retry_after,
    )


def _to_definite_outcome(reply: Reply) -> ChargeOutcome:
    if reply.status == 200:
        return Succeeded(reply.reference, reply.amount, reply.currency, reply.subject)
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


_RETRY_REASONS = {
    400: RetryReason.REJECTED,
    401: RetryReason.UNAUTHORIZED,
    403: RetryReason.UNAUTHORIZED,
    404: RetryReason.REJECTED,
    409: RetryReason.THROTTLED,
    429: RetryReason.THROTTLED,
}


def _is_well_formed(reply: Reply) -> bool:
    """Whether the answer's values have valid types and can be stored. Over HTTP they may be
    anything.
    """
    amount: object = reply.amount
    texts: tuple[object, ...] = (reply.reference, reply.currency, reply.code, reply.subject)
    if type(amount) is not int or not 0 < amount <= MAX_AMOUNT or not reply.reference:
        return False
    return all(
        isinstance(text, str)
        and len(text) <= 255
        and text.isascii()
        and (text == "" or text.isprintable())
        for text in texts
    )


def to_payout_outcome(reply: Reply) -> PayoutOutcome:
    """The outcome of an answer to a payout. An answer that is not definite and well-formed is
    Unknown, never Declined.
    """
    match reply.status:
        case 200 | 402:
            return (
                _to_definite_payout_outcome(reply)
                if _is_well_formed(reply)
                else Unknown(f"status {reply.status} with an unreadable answer")
            )
        case 400 if reply.code in _REJECTION_CODES:
            return Declined(PayoutFailure.PROVIDER_REJECTED, reply.code)
        case _:
            return _to_inconclusive_outcome(reply)


def to_payout_lookup_outcome(reply: Reply) -> PayoutLookupOutcome:
    """The outcome of a payout lookup."""
    return NotFound() if _is_not_found(reply) else to_payout_outcome(reply)


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
        case 402 if isinstance(reply.code, str) and reply.code.isascii():
            return Declined(PayoutFailure.DESTINATION_REJECTED, reply.code[:255])
        case _:
            return _to_inconclusive_outcome(reply)
