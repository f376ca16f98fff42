"""How a client calls: deadlines, retries, credentials."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

import grpc
from google.protobuf.message import Message
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from tenacity import RetryCallState, retry_if_exception, stop_after_attempt

from tallystick._errors import DeadlineExceededError, TallystickError

DEFAULT_DEADLINES = {"CreatePayment": 30.0, "CreatePayout": 30.0}
DEFAULT_DEADLINE = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 2.0


@dataclass(frozen=True)
class ClientSettings:
    """`token`: a bearer token. `credentials`: TLS; None: plain text. `deadlines`: seconds by method name, over the defaults (30 s for CreatePayment
    and CreatePayout, 10 s for the others). `attempts`: the most sendings of one call, all within its one deadline."""

    token: str = ""
    credentials: grpc.ChannelCredentials | None = None
    deadlines: Mapping[str, float] = field(default_factory=dict)
    attempts: int = 5
    stream_attempts: int = 30
    """The most openings of a stream in a row that bring no message; past them its error is raised."""
    jitter: Callable[[], float] = random.random
    """A number from 0 to 1."""

    def deadline(self, method: str) -> float:
        return self.deadlines.get(method, DEFAULT_DEADLINES.get(method, DEFAULT_DEADLINE))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Credentials and the trace context of the current span."""
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        pairs = list(carrier.items())
        if self.token:
            pairs.append(("authorization", f"Bearer {self.token}"))
        return tuple(pairs)

    def wait(self, error: TallystickError, attempt: int) -> float:
        """Seconds before the next sending: what the platform said, or exponential; jittered, so that callers do not come back together."""
        base = error.retry_after if error.retry_after is not None else min(_FIRST_WAIT * 2 ** (attempt - 1), _LONGEST_WAIT)
        return base * (1 + self.jitter() / 2)

    def retries(self, end: float, now: Callable[[], float]) -> dict[str, Any]:
        """How tenacity sends one call again: what the platform lets come back, until the attempts or the time until `end` are used up."""

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            seconds = self.wait(error, state.attempt_number) if isinstance(error, TallystickError) else 0.0
            if seconds >= end - now():
                raise error or DeadlineExceededError("no time is left")
            return seconds

        may_retry = retry_if_exception(lambda error: isinstance(error, TallystickError) and error.may_retry)
        return {"stop": stop_after_attempt(self.attempts), "wait": wait, "retry": may_retry, "reraise": True}


class Reopening:
    """When a stream that ended early is opened again: not for ever without a message between."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._failures = 0

    def went_well(self) -> None:
        """A message has come."""
        self._failures = 0

    def rest(self, error: TallystickError) -> float:
        """Seconds to rest before the next opening. Raises the error if there is to be none."""
        self._failures = 0 if error.reason == "STREAM_EXPIRED" else self._failures + 1
        if not error.may_retry or self._failures >= self._settings.stream_attempts:
            raise error
        return self._settings.wait(error, max(self._failures, 1))


STREAM_SECONDS = 310.0
"""A stream's deadline: longer than the platform keeps one."""


M = TypeVar("M", bound=Message)

_LETTERS = str.maketrans("0123456789", "ghijklmnop")  # digits could look like a card number


def tracer() -> trace.Tracer:
    return trace.get_tracer("tallystick")


def complete(request: M) -> M:
    """The request with a request_id of its own, where there is such a field and it is empty: however often it is then sent, it counts once."""
    if "request_id" not in request.DESCRIPTOR.fields_by_name or request.request_id:  # type: ignore[attr-defined]
        return request
    made = type(request)()
    made.CopyFrom(request)
    made.request_id = uuid4().hex.translate(_LETTERS)  # type: ignore[attr-defined]
    return made


def short_name(method: str) -> str:
    """CreatePayment of /tallystick.payment.v1.PaymentService/CreatePayment."""
    return method.rsplit("/", 1)[1]
