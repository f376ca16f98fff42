"""Answers that replace the correct one, as the token of a request asks for."""

from __future__ import annotations

from collections import OrderedDict
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
