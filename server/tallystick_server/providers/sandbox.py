"""The sandbox behind the port: in this process, or over HTTP."""

from __future__ import annotations

import aiohttp
import orjson

from tallystick_core.money import MAX_AMOUNT
from tallystick_core.provider import Declined, Demand, FailureReason, NotSent, Outcome, Pending, PendingReason, Succeeded, Unknown
from tallystick_sandbox.rules import Reply
from tallystick_sandbox.sandbox import AnswerLost, Sandbox

NAME = "sandbox"
_MOST_BYTES = 64 * 1024

_DECLINES = {
    "insufficient_funds": FailureReason.INSUFFICIENT_FUNDS,
    "expired_card": FailureReason.PAYMENT_METHOD_INVALID,
    "authentication_failed": FailureReason.AUTHENTICATION_FAILED,
}


class InProcess:
    """The sandbox as an object of this process."""

    name = NAME

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def charge(self, demand: Demand) -> Outcome:
        try:
            return outcome(await self._sandbox.charge(demand))
        except AnswerLost:
            return Unknown("the answer was lost")


class OverHttp:
    """The sandbox as a server of its own."""

    name = NAME

    def __init__(self, url: str) -> None:
        self._url = f"{url.rstrip('/')}/charges"
        self._session: aiohttp.ClientSession | None = None

    async def charge(self, demand: Demand) -> Outcome:
        if self._session is None:  # made inside the loop it is used in
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = {
            "charge_id": demand.charge_id,
            "amount": demand.amount,
            "currency": demand.currency,
            "payment_token": demand.payment_token,
            "method": demand.method,
        }
        try:
            async with self._session.post(self._url, json=body, headers={"Idempotency-Key": demand.key}, allow_redirects=False) as response:
                answer = orjson.loads(await response.content.read(_MOST_BYTES))
                values = (answer["reference"], answer["amount"], answer["currency"], answer["code"])
                return outcome(Reply(response.status, *values))
        except aiohttp.ClientConnectorError as error:
            return NotSent(f"no connection: {type(error).__name__}")
        except (aiohttp.ClientError, ValueError, KeyError, TypeError) as error:
            return Unknown(f"no usable answer: {type(error).__name__}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def outcome(reply: Reply) -> Outcome:
    """What an answer means. What is no definite and well-formed answer is Unknown, never a decline."""
    if reply.status in (200, 202, 402) and not _well_formed(reply):
        return Unknown(f"status {reply.status} with an answer that cannot be read")
    match reply.status:
        case 200:
            return Succeeded(reply.reference, reply.amount, reply.currency)
        case 202:
            action = reply.code == "action"
            url = f"https://sandbox.invalid/act/{reply.reference}" if action else ""
            return Pending(PendingReason.BUYER_ACTION if action else PendingReason.PROVIDER_REVIEW, reply.reference, url)
        case 402:
            return Declined(_DECLINES.get(reply.code, FailureReason.PROVIDER_DECLINED), reply.code, reply.reference)
        case _:
            return Unknown(f"status {reply.status} {reply.code}".strip())


def _well_formed(reply: Reply) -> bool:
    """Whether the answer's values are of their kinds and can be stored. Over HTTP they are whatever was sent."""
    amount: object = reply.amount
    texts: tuple[object, ...] = (reply.reference, reply.currency, reply.code)
    if type(amount) is not int or not 0 < amount <= MAX_AMOUNT or not reply.reference:
        return False
    return all(isinstance(text, str) and len(text) <= 255 and text.isascii() and (text == "" or text.isprintable()) for text in texts)
