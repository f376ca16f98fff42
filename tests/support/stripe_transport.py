"""The Stripe adapter's requests to a look-alike in this process, without sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    PayoutLookupOutcome,
    PayoutOutcome,
    VerificationOutcome,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_core.provider.payout_provider import PayoutRequest
from tallystick_server.providers.stripe.charges import StripeCharges
from tallystick_server.providers.stripe.client import RequestBody, Transport
from tallystick_server.providers.stripe.errors import ForeignAnswer, NoAnswer, NotConnected
from tallystick_server.providers.stripe.payouts import StripePayouts

R = TypeVar("R")

OPERATION_ID: ContextVar[str] = ContextVar("operation_id", default="")
"""The operation for which an adapter calls Stripe in this task; "": none."""


class Answer(NamedTuple):
    """An answer over HTTP. `status` 0: none."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Server(Protocol):
    """What answers: `StripeSandbox`, or anything with its method."""

    async def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, /
    ) -> tuple[int, Mapping[str, str], bytes]: ...


async def serve(
    server: Server, method: str, url: str, headers: Mapping[str, str], body: RequestBody
) -> Answer:
    """The answer of a server to a request of the adapter."""
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    content = body.encode() if isinstance(body, str) else body or b""
    return Answer(*await server.handle(method.upper(), path, headers, content))


def check_answer(answer: Answer) -> Answer:
    """The answer, if the whole of it arrives. Raises NoAnswer."""
    length = answer.headers.get("Content-Length", str(len(answer.body)))
    if not answer.status or int(length) > len(answer.body):
        raise NoAnswer("the connection was closed")
    return answer


class InProcessTransport(Transport):
    """Calls a server in this process. `is_down`: no connection can be made."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.is_down = False
        self._server = server

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: RequestBody
    ) -> tuple[int, Mapping[str, str], bytes]:
        if self.is_down:
            raise NotConnected("down")
        return check_answer(await serve(self._server, method, url, headers, body))

    async def download(
        self, url: str, headers: Mapping[str, str], max_bytes: int
    ) -> AsyncIterator[bytes]:
        status, answer_headers, body = await self.send("GET", url, headers, None)
        if status != 200 or len(body) > max_bytes:
            raise ForeignAnswer(status, answer_headers)
        yield body


class NamedCharges:
    """The charges of an adapter. Its HTTP calls know their operation."""

    def __init__(self, charges: StripeCharges) -> None:
        self._charges = charges
        self.name, self.key_window = charges.name, charges.key_window
        self.final_not_found = charges.final_not_found
        self.hosts_pages = charges.hosts_pages
        self.reject_amount = charges.reject_amount

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        return await _call(request.charge_id, self._charges.send, request)

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return await _call(request.charge_id, self._charges.look_up, request)

    async def cancel(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return await _call(request.charge_id, self._charges.cancel, request)


class NamedPayouts:
    """The payouts of an adapter. Its HTTP calls know their operation."""

    def __init__(self, payouts: StripePayouts) -> None:
        self._payouts = payouts
        self.name, self.key_window = payouts.name, payouts.key_window
        self.max_batch_size = payouts.max_batch_size
        self.reject_amount = payouts.reject_amount

    async def submit(self, requests: Sequence[PayoutRequest]) -> Sequence[PayoutOutcome]:
        (request,) = requests
        return await _call(request.payout_id, self._payouts.submit, requests)

    async def look_up(self, request: PayoutRequest) -> PayoutLookupOutcome:
        return await _call(request.payout_id, self._payouts.look_up, request)

    async def verify(self, bank_account_token: str, currency: str) -> VerificationOutcome:
        return await self._payouts.verify(bank_account_token, currency)


async def _call(operation_id: str, method: Callable[[Any], Awaitable[R]], argument: Any) -> R:
    token = OPERATION_ID.set(operation_id)
    try:
        return await method(argument)
    finally:
        OPERATION_ID.reset(token)
