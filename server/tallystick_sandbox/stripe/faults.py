"""Answers that replace the correct one, as the token of a request asks for."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from tallystick_sandbox.rules import TRANSIENT_FAULTS, Behavior, Fault
from tallystick_sandbox.stripe.errors import invalid, rate_limited, server_error, unauthorized

RETRY_AFTER_SECONDS = 0.3
REDIRECT_TARGET = "http://127.0.0.1:9/elsewhere"
_HUGE_BYTES = 3_000_000
_MAX_COUNTS = 10_000


class HttpAnswer(NamedTuple):
    """An answer over HTTP. `status` 0: the connection is closed without an answer. A Content-Length
    above the length of the body: the connection is closed after the body.
    """

    status: int
    headers: dict[str, str]
    body: bytes


NO_ANSWER = HttpAnswer(0, {}, b"")


@dataclass(frozen=True, slots=True)
class WebhookFaults:
    """How many percent of the deliveries have a fault. The id of the event decides, so that a
    repetition has the same faults. `duplicate_percent`: sent twice; `forged_percent`: preceded by
    one with another signature; `silent_percent`: never sent; `delayed_percent`: sent
    `delay_seconds` later. `is_reversed`: the newest events first.
    """

    duplicate_percent: int = 0
    forged_percent: int = 0
    silent_percent: int = 0
    delayed_percent: int = 0
    delay_seconds: float = 0.0
    is_reversed: bool = False

    def has(self, fault: str, event_id: str) -> bool:
        """Whether an event has a fault, such as "duplicate"."""
        percent: int = getattr(self, f"{fault}_percent")
        digest = sha256(f"{fault}/{event_id}".encode()).digest()
        return int.from_bytes(digest[:4], "big") % 100 < percent


NO_FAULTS = WebhookFaults()


@dataclass(slots=True)
class RequestFault:
    """A fault of the next `count` requests whose path begins with `path`."""

    fault: Fault
    path: str
    count: int


@dataclass(slots=True)
class Switches:
    """What the control surface has switched on, until the process ends."""

    webhook_faults: WebhookFaults = NO_FAULTS
    request_fault: RequestFault | None = None

    def take_fault(self, path: str) -> Fault:
        """The fault of this request. Counts it."""
        switch = self.request_fault
        if switch is None or switch.count < 1 or not path.startswith(switch.path):
            return Fault.NONE
        switch.count -= 1
        return switch.fault


class FaultCounts:
    """How many times a transient fault was applied to each key, for the last 10,000 keys."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, int] = OrderedDict()

    def applies(self, key: str, behavior: Behavior) -> bool:
        """Whether the fault applies to this request. Counts it."""
        if behavior.fault not in TRANSIENT_FAULTS:
            return True
        count = self._counts.pop(key, 0)
        self._counts[key] = count + 1
        if len(self._counts) > _MAX_COUNTS:
            self._counts.popitem(last=False)
        return count < behavior.times


BEFORE = frozenset(
    {
        Fault.UNREACHABLE,
        Fault.LOST_BEFORE,
        Fault.ERROR_BEFORE,
        Fault.BUSY,
        Fault.FORBIDDEN,
        Fault.REJECTED,
        Fault.AMOUNT_TOO_SMALL,
        Fault.HTML,
        Fault.HUGE,
        Fault.REDIRECT,
    }
)
"""Faults that replace the answer before anything is executed."""
AFTER = frozenset({Fault.LOST_AFTER, Fault.ERROR_AFTER, Fault.CUT, Fault.BATCH_LOST})
"""Faults that replace the answer after its effects are committed."""


def answer_before(fault: Fault) -> HttpAnswer:
    """The answer without any effect. Raises StripeFailure for an answer in Stripe's shape."""
    match fault:
        case Fault.ERROR_BEFORE:
            raise server_error()
        case Fault.BUSY:
            raise rate_limited()
        case Fault.FORBIDDEN:
            raise unauthorized("Invalid API Key provided: sk_test_****")
        case Fault.REJECTED:
            raise invalid("Invalid request.", code="parameter_invalid_empty")
        case Fault.AMOUNT_TOO_SMALL:
            raise invalid("Amount is too small.", "amount", "amount_too_small")
        case Fault.HTML:
            page = b"<html><body><h1>It works!</h1></body></html>"
            return HttpAnswer(200, {"Content-Type": "text/html"}, page)
        case Fault.HUGE:
            body = b'"' + b"x" * _HUGE_BYTES + b'"'
            return HttpAnswer(200, {"Content-Type": "application/json"}, body)
        case Fault.REDIRECT:
            return HttpAnswer(302, {"Location": REDIRECT_TARGET}, b"")
        case _:
            return NO_ANSWER


def answer_after(fault: Fault, answer: HttpAnswer) -> HttpAnswer:
    """What arrives instead of an answer whose effects are committed."""
    match fault:
        case Fault.ERROR_AFTER:
            raise server_error()
        case Fault.CUT:
            headers = {**answer.headers, "Content-Length": str(len(answer.body))}
            return answer._replace(headers=headers, body=answer.body[: len(answer.body) // 2])
        case _:
            return NO_ANSWER
