"""The sandbox behind the port: in this process, or over HTTP."""

from __future__ import annotations

import re
from typing import Any

import aiohttp
import orjson

from tallystick_core.money import MAX_AMOUNT
from tallystick_core.provider import ChargeDemand, Declined, FailureReason, NotSent, Outcome, Pending, PendingReason, Succeeded, Trouble, Unknown
from tallystick_sandbox.rules import UNREACHED, Reply
from tallystick_sandbox.sandbox import Sandbox

NAME = "sandbox"
_MOST_BYTES = 64 * 1024

_DECLINES = {
    "insufficient_funds": FailureReason.INSUFFICIENT_FUNDS,
    "expired_card": FailureReason.PAYMENT_METHOD_INVALID,
    "authentication_failed": FailureReason.AUTHENTICATION_FAILED,
    "cancelled": FailureReason.CALLER_CANCELLED,
}


_REFUSALS = frozenset({"amount_too_small"})
"""Codes by which a provider surely charges nothing, however often it is asked."""


class InProcess:
    """The sandbox as an object of this process."""

    name = NAME

    def __init__(self, sandbox: Sandbox, key_window: float) -> None:
        self.key_window = key_window
        self._sandbox = sandbox

    async def send(self, demand: ChargeDemand) -> Outcome:
        return outcome(await self._sandbox.charge(demand))

    async def look_up(self, demand: ChargeDemand) -> Outcome:
        return outcome(await self._sandbox.look_up(demand.charge_id))

    async def cancel(self, demand: ChargeDemand) -> Outcome:
        return outcome(await self._sandbox.cancel(demand.charge_id))


class OverHttp:
    """The sandbox as a server of its own."""

    name = NAME

    def __init__(self, url: str, key_window: float) -> None:
        self.key_window = key_window
        self._url = f"{url.rstrip('/')}/charges"
        self._session: aiohttp.ClientSession | None = None

    async def send(self, demand: ChargeDemand) -> Outcome:
        body = {
            "charge_id": demand.charge_id,
            "amount": demand.amount,
            "currency": demand.currency,
            "payment_token": demand.payment_token,
            "method": demand.method,
        }
        return await self._ask("POST", self._url, json=body, headers={"Idempotency-Key": demand.key})

    async def look_up(self, demand: ChargeDemand) -> Outcome:
        return await self._ask("GET", f"{self._url}/{demand.charge_id}")

    async def cancel(self, demand: ChargeDemand) -> Outcome:
        return await self._ask("POST", f"{self._url}/{demand.charge_id}/cancel")

    async def _ask(self, method: str, url: str, **values: Any) -> Outcome:
        if self._session is None:  # made inside the loop it is used in
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        try:
            async with self._session.request(method, url, allow_redirects=False, **values) as response:
                answer = orjson.loads(await response.content.read(_MOST_BYTES))
                told = (answer["reference"], answer["amount"], answer["currency"], answer["code"])
                return outcome(Reply(response.status, *told, retry_after=_seconds(response.headers.get("Retry-After", ""))))
        except aiohttp.ClientConnectorError as error:
            return NotSent(f"no connection: {type(error).__name__}")
        except (aiohttp.ClientError, ValueError, KeyError, TypeError) as error:
            return Unknown(f"no usable answer: {type(error).__name__}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _seconds(header: str) -> float:
    """A Retry-After in seconds, at most a day; 0 for none and for what is no such number."""
    return min(float(header), 86_400.0) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", header, re.ASCII) else 0.0


def outcome(reply: Reply) -> Outcome:
    """What an answer means. What is no definite and well-formed answer is Unknown, never a decline."""
    match reply.status:
        case 200 | 202 | 402:
            return _definite(reply) if _well_formed(reply) else Unknown(f"status {reply.status} with an answer that cannot be read")
        case 0 if reply == UNREACHED:
            return NotSent("the connection was refused")
        case 400 if reply.code in _REFUSALS:
            return Declined(FailureReason.PROVIDER_REFUSED, reply.code)
        case status:
            other = Trouble.SERVER_ERROR if status >= 500 else Trouble.NO_ANSWER
            return Unknown(f"status {status} {reply.code}".strip(), _TROUBLES.get(status, other), reply.retry_after)


def _definite(reply: Reply) -> Outcome:
    if reply.status == 200:
        return Succeeded(reply.reference, reply.amount, reply.currency)
    if reply.status == 402:
        return Declined(_DECLINES.get(reply.code, FailureReason.PROVIDER_DECLINED), reply.code, reply.reference)
    action = reply.code == "action"
    url = f"https://sandbox.invalid/act/{reply.reference}" if action else ""
    return Pending(PendingReason.BUYER_ACTION if action else PendingReason.PROVIDER_REVIEW, reply.reference, url)


_TROUBLES = {400: Trouble.REJECTED, 401: Trouble.FORBIDDEN, 403: Trouble.FORBIDDEN, 404: Trouble.REJECTED, 409: Trouble.BUSY, 429: Trouble.BUSY}


def _well_formed(reply: Reply) -> bool:
    """Whether the answer's values are of their kinds and can be stored. Over HTTP they are whatever was sent."""
    amount: object = reply.amount
    texts: tuple[object, ...] = (reply.reference, reply.currency, reply.code)
    if type(amount) is not int or not 0 < amount <= MAX_AMOUNT or not reply.reference:
        return False
    return all(isinstance(text, str) and len(text) <= 255 and text.isascii() and (text == "" or text.isprintable()) for text in texts)
