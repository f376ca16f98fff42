"""The Stripe adapter, one of whose HTTP calls for each operation is cut."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import urlsplit

import orjson

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
from tallystick_server.providers.stripe.client import RequestBody
from tallystick_server.providers.stripe.errors import NoAnswer, NotConnected
from tallystick_server.providers.stripe.payouts import StripePayouts
from tests.support.stripe_transport import InProcessTransport, Server

R = TypeVar("R")
_ID = re.compile(r"/(?:pi|tr|po|acct)_[^/]+")
_operation_id: ContextVar[str] = ContextVar("operation_id", default="")
"""The operation whose call to the adapter runs in this task; "": it has no cuts."""

Answer = tuple[int, Mapping[str, str], bytes]


class Cut(StrEnum):
    """Where an HTTP call is cut."""

    REFUSED_CONNECTION = "no connection"
    REQUEST_LOST = "request lost"
    ANSWER_LOST = "answer lost"
    HALF_ANSWER = "half of the answer"
    ERROR_BEFORE = "500, nothing done"
    ERROR_AFTER = "500, done"
    KILLED_BEFORE = "process dies before"
    KILLED_AFTER = "process dies after"


ERRORS = frozenset({Cut.ERROR_BEFORE, Cut.ERROR_AFTER})
"""Stripe keeps the answer of a request with an idempotency key, and replays it."""
KILLS = frozenset({Cut.KILLED_BEFORE, Cut.KILLED_AFTER})
_BEFORE = frozenset({Cut.REFUSED_CONNECTION, Cut.REQUEST_LOST, Cut.ERROR_BEFORE, Cut.KILLED_BEFORE})


class CuttingTransport(InProcessTransport):
    """Cuts one call of each operation that has a cut. Records the calls of all operations."""

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.cuts: dict[str, tuple[int, Cut]] = {}
        """By the id of the operation: the index of the call, and where it is cut."""
        self.calls: defaultdict[str, list[str]] = defaultdict(list)
        """Method and path of each call, by the id of the operation. Ids are left out."""
        self._stored_errors: set[str] = set()
        """The idempotency keys whose requests are answered with 500."""

    def forget_keys(self) -> None:
        """Stored answers are no longer replayed."""
        self._stored_errors.clear()

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: RequestBody
    ) -> Answer:
        calls = self.calls[_operation_id.get()]
        calls.append(f"{method.upper()} {_ID.sub('/{id}', urlsplit(url).path)}")
        key = headers.get("Idempotency-Key", "")
        if key and key in self._stored_errors:
            return _error(is_replayed=True)
        index, cut = self.cuts.get(_operation_id.get(), (-1, None))
        if cut is None or index != len(calls) - 1:
            return await super().send(method, url, headers, body)
        if cut in ERRORS and key:
            self._stored_errors.add(key)
        answer = None if cut in _BEFORE else await super().send(method, url, headers, body)
        return _cut_answer(cut, answer)


def _cut_answer(cut: Cut, answer: Answer | None) -> Answer:
    """What arrives instead of an answer. Raises what the adapter's transport raises."""
    match cut:
        case Cut.REFUSED_CONNECTION:
            raise NotConnected("cut")
        case Cut.REQUEST_LOST | Cut.ANSWER_LOST:
            raise NoAnswer("cut")
        case Cut.ERROR_BEFORE | Cut.ERROR_AFTER:
            return _error(is_replayed=False)
        case Cut.KILLED_BEFORE | Cut.KILLED_AFTER:
            raise asyncio.CancelledError  # ends the operation's task, whose lease remains
        case Cut.HALF_ANSWER:
            assert answer is not None
            status, headers, body = answer
            return status, headers, body[: len(body) // 2]


def _error(*, is_replayed: bool) -> Answer:
    error = {"error": {"type": "api_error", "message": "cut"}}
    headers = {"Idempotent-Replayed": "true"} if is_replayed else {}
    return 500, headers, orjson.dumps(error)


class CutCharges:
    """The charges of an adapter, whose HTTP calls belong to their operation."""

    def __init__(self, charges: StripeCharges) -> None:
        self._charges = charges
        self.name, self.key_window = charges.name, charges.key_window
        self.final_not_found = charges.final_not_found
        self.reject_amount = charges.reject_amount

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        return await _call(request.charge_id, self._charges.send, request)

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return await _call(request.charge_id, self._charges.look_up, request)

    async def cancel(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return await _call(request.charge_id, self._charges.cancel, request)


class CutPayouts:
    """The payouts of an adapter, whose HTTP calls belong to their operation."""

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
    token = _operation_id.set(operation_id)
    try:
        return await method(argument)
    finally:
        _operation_id.reset(token)
