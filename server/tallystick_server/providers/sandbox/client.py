"""The sandbox's answers: read over HTTP, and what they mean if they are not definite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tallystick_core.money import MAX_AMOUNT
from tallystick_core.provider.outcome import NotSent, RetryReason, Unknown
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_sandbox.rules import CONNECTION_REFUSED, NOT_FOUND, Reply
from tallystick_server.providers.request_ids import note_request_id

if TYPE_CHECKING:
    from tallystick_server.providers.http_client import HttpClient

R = TypeVar("R", bound="Reply | NotSent | Unknown")

REJECTION_CODES = frozenset({"amount_too_small"})
"""Codes that guarantee that the provider moves no money, also after a repeat."""
_MAX_RETRY_AFTER_SECONDS = 86_400.0
_RETRY_REASONS = {
    400: RetryReason.REJECTED,
    401: RetryReason.UNAUTHORIZED,
    403: RetryReason.UNAUTHORIZED,
    404: RetryReason.REJECTED,
    409: RetryReason.THROTTLED,
    429: RetryReason.THROTTLED,
}


class HttpCharges:
    """The charges of a sandbox on a server of its own: the methods of `Sandbox`. A call without a
    usable answer has its outcome in place of the reply.
    """

    def __init__(self, url: str) -> None:
        self._http = _new_http_client(url)
        self.close = self._http.close

    async def charge(self, request: ChargeRequest) -> Reply | NotSent | Unknown:
        body = {
            "charge_id": request.charge_id,
            "amount": request.amount,
            "currency": request.currency,
            "payment_token": request.payment_token,
            "method": request.method,
        }
        headers = {"Idempotency-Key": request.key}
        return await self._http.request(
            "POST", "/charges", _parse_reply, json=body, headers=headers
        )

    async def look_up(self, charge_id: str) -> Reply | NotSent | Unknown:
        return await self._http.request("GET", f"/charges/{charge_id}", _parse_reply)

    async def cancel(self, charge_id: str) -> Reply | NotSent | Unknown:
        return await self._http.request("POST", f"/charges/{charge_id}/cancel", _parse_reply)


class HttpPayouts:
    """The payouts of a sandbox on a server of its own: the methods of `SandboxPayouts`."""

    def __init__(self, url: str) -> None:
        self._http = _new_http_client(url)
        self.close = self._http.close

    async def submit(
        self, requests: Sequence[PayoutRequest]
    ) -> Sequence[Reply] | NotSent | Unknown:
        """One reply per request, in order. Another number of replies is no usable answer."""

        def parse(status: int, body: Any, retry_after: float) -> Sequence[Reply]:
            if status != 200:
                return [_parse_reply(status, body, retry_after)] * len(requests)
            if len(body) != len(requests):
                raise ValueError("the number of answers must be the number of payouts")
            return [
                _parse_reply(item["status"], item, _parse_retry_after(item["retry_after"]))
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
        return await self._http.request("POST", "/payouts", parse, json=items)

    async def look_up(self, payout_id: str) -> Reply | NotSent | Unknown:
        return await self._http.request("GET", f"/payouts/{payout_id}", _parse_reply)

    async def verify(self, bank_account_token: str) -> Reply | NotSent | Unknown:
        body = {"bank_account_token": bank_account_token}
        return await self._http.request("POST", "/accounts/verify", _parse_reply, json=body)


def _new_http_client(url: str) -> HttpClient:
    # slow to import, and needed only where the sandbox is a server of its own
    from tallystick_server.providers.http_client import HttpClient  # noqa: PLC0415

    return HttpClient(url)


def _parse_reply(status: int, body: Any, retry_after: float) -> Reply:
    """Parses the answer to one request. Raises KeyError, TypeError, ValueError."""
    reply = Reply(
        status,
        body["reference"],
        body["amount"],
        body["currency"],
        body["code"],
        retry_after,
        body.get("state", ""),
        body.get("subject", ""),
        body.get("fee"),
    )
    if type(status) is not int or not has_valid_texts(reply):
        raise ValueError("the answer's values must have their types")
    return reply


def _parse_retry_after(value: Any) -> float:
    """Parses the retry delay of one answer in a batch, at most a day. Raises ValueError if it is no
    number of seconds.
    """
    if type(value) not in (int, float) or value < 0:
        raise ValueError("retry_after must be a number of seconds")
    return min(float(value), _MAX_RETRY_AFTER_SECONDS)


def noted(reply: R) -> R:
    """The same reply, after its request is noted. One over HTTP is noted where it is read."""
    if isinstance(reply, Reply):
        note_request_id(reply.request_id, reply.status)
    return reply


def is_not_found(reply: Reply) -> bool:
    """Whether it says explicitly that the sandbox does not know the operation."""
    return reply.status == NOT_FOUND.status and reply.code == NOT_FOUND.code


def to_inconclusive_outcome(reply: Reply) -> NotSent | Unknown:
    """The outcome of an answer that says nothing about the operation."""
    if reply == CONNECTION_REFUSED:
        return NotSent("the connection was refused")
    default_reason = RetryReason.SERVER_ERROR if reply.status >= 500 else RetryReason.NO_ANSWER
    return Unknown(
        f"status {reply.status} {reply.code}".strip(),
        _RETRY_REASONS.get(reply.status, default_reason),
        reply.retry_after,
    )


def is_well_formed(reply: Reply) -> bool:
    """Whether the values of a definite answer have valid types and can be stored."""
    amount: object = reply.amount
    if type(amount) is not int or not 0 < amount <= MAX_AMOUNT or not reply.reference:
        return False
    fee: object = reply.fee
    if fee is not None and (type(fee) is not int or not 0 <= fee <= MAX_AMOUNT):
        return False
    return has_valid_texts(reply)


def has_valid_texts(reply: Reply) -> bool:
    """Whether the texts of an answer are short and printable. Over HTTP they may be anything."""
    texts: tuple[object, ...] = (
        reply.reference,
        reply.currency,
        reply.code,
        reply.state,
        reply.subject,
    )
    return all(
        isinstance(text, str) and len(text) <= 255 and text.isascii() and text.isprintable()
        for text in texts
    )
