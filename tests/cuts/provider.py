"""The Stripe adapter, one of whose HTTP calls for each operation is cut."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

import orjson

from tallystick_sandbox.stripe.checkout_sessions import BuyerCard
from tallystick_sandbox.stripe.sandbox import StripeSandbox
from tallystick_server.providers.stripe.client import RequestBody
from tallystick_server.providers.stripe.errors import NoAnswer, NotConnected
from tests.support.stripe_transport import OPERATION_ID, InProcessTransport

_ID = re.compile(r"/(?:cs|pi|tr|po|acct)_[^/]+")

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


@dataclass(frozen=True, slots=True)
class Buyer:
    """A buyer who pays on a hosted page with a card, just before a call reaches Stripe."""

    card: BuyerCard
    before: str


class CuttingTransport(InProcessTransport):
    """Cuts one call of each operation that has a cut. Records the calls of all operations."""

    def __init__(self, stripe: StripeSandbox) -> None:
        super().__init__(stripe)
        self._stripe = stripe
        self.buyers: dict[str, Buyer] = {}
        """By the id of the operation."""
        self.cuts: dict[str, tuple[int, Cut]] = {}
        """By the id of the operation: the index of the call, and where it is cut."""
        self.calls: defaultdict[str, list[str]] = defaultdict(list)
        """Method and path of each call, by the id of the operation. Ids are left out, and calls
        that read the same once more.
        """
        self._stored_errors: set[str] = set()
        """The idempotency keys whose requests are answered with 500."""

    def forget_keys(self) -> None:
        """Stored answers are no longer replayed."""
        self._stored_errors.clear()

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: RequestBody
    ) -> Answer:
        calls, path = self.calls[OPERATION_ID.get()], urlsplit(url).path
        call = f"{method.upper()} {_ID.sub('/{id}', path)}"
        if call != next(reversed(calls), "") or method.upper() != "GET":
            calls.append(call)
        buyer = self.buyers.get(OPERATION_ID.get())
        if buyer is not None and buyer.before == call:
            del self.buyers[OPERATION_ID.get()]
            await self._pay(path.split("/")[4], buyer.card)
        key = headers.get("Idempotency-Key", "")
        if key and key in self._stored_errors:
            return _error(is_replayed=True)
        index, cut = self.cuts.get(OPERATION_ID.get(), (-1, None))
        if cut is None or index != len(calls) - 1:
            return await super().send(method, url, headers, body)
        del self.cuts[OPERATION_ID.get()]
        if cut in ERRORS and key:
            self._stored_errors.add(key)
        answer = None if cut in _BEFORE else await super().send(method, url, headers, body)
        return _cut_answer(cut, answer)

    async def _pay(self, session_id: str, card: BuyerCard) -> None:
        await self._stripe.submit_checkout(session_id, card)
        await self._stripe.authenticate_checkout(session_id, passes=True)


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
