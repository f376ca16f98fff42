"""How a client calls: deadlines, retries, credentials."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

import grpc
from google.protobuf.message import Message
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from tenacity import RetryCallState, retry_if_exception, stop_after_attempt, stop_never

from tallystick._errors import DeadlineExceededError, TallystickError, UnavailableError

DEFAULT_DEADLINES = {"CreatePayment": 30.0, "CreatePayout": 30.0}
DEFAULT_DEADLINE = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 2.0
_MAX_DOUBLINGS = 16  # more reach _LONGEST_WAIT anyway, and in the end no float holds the result
_LEAST_TIME = 0.01  # seconds that a sending is worth
_LEAST_STREAM = 1.0  # seconds after which the platform's word that a stream has reached its time is believed
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.lb_policy_name", "round_robin"),  # over all addresses that the target's name has
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2000),  # an attempt to connect has at least so long
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 10_000),  # a host that has vanished is noticed
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # while the kernel of a process that is frozen still acknowledges
)
"""How a channel connects, and connects again."""


@dataclass(frozen=True)
class ClientSettings:
    """`token`: a bearer token. `credentials`: TLS; None: plain text. `deadlines`: seconds by method name, over the defaults (30 s for CreatePayment
    and CreatePayout, 10 s for the others). `attempts`: the most sendings of one call; None: as many as its one deadline has time for.

    Raises ValueError for a token that cannot be sent.
    """

    token: str = field(default="", repr=False)
    credentials: grpc.ChannelCredentials | None = None
    deadlines: Mapping[str, float] = field(default_factory=dict)
    attempts: int | None = None
    stream_attempts: int | None = 30
    """The most openings of a stream in a row that fail and bring no message; past them its error is raised. None: no limit."""
    stream_seconds: float = 310.0
    """A stream's deadline, longer than the platform keeps one. `events`, `watch_payment` and `watch_payout` go on after it, from where they were."""
    jitter: Callable[[], float] = random.random
    """A number from 0 to 1."""

    def __post_init__(self) -> None:
        if not _sendable(self.token):  # which is not shown
            raise ValueError("token must have visible ASCII characters only, without a line break or a space at either end.")

    def deadline(self, method: str) -> float:
        return self.deadlines.get(method, DEFAULT_DEADLINES.get(method, DEFAULT_DEADLINE))

    def seconds(self, method: str, timeout: float | None) -> float:
        """How long a call may take. Raises ValueError for a timeout that is no time."""
        if timeout is None:
            return self.deadline(method)
        if not 0 < timeout < math.inf:
            raise ValueError("timeout must be a number of seconds above 0.")
        return timeout

    def metadata(self, given: Iterable[tuple[str, str | bytes]] = ()) -> tuple[tuple[str, str | bytes], ...]:
        """What is given for one call, credentials, and the trace context of the current span. Raises ValueError for what cannot be sent."""
        own: list[tuple[str, str | bytes]] = []
        for key, value in given:
            if not re.fullmatch(r"[0-9a-z_.-]+", key) or key.startswith("grpc-"):
                raise ValueError(f"metadata cannot have the key {key!r}: it must be of a-z 0-9 _ . - and not begin with grpc-.")
            if not (isinstance(value, bytes) if key.endswith("-bin") else isinstance(value, str) and _sendable(value)):
                raise ValueError(f"metadata {key} must be bytes where its name ends with -bin, else visible ASCII characters.")
            own.append((key, value))
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        pairs = [*own, *carrier.items()]
        if self.token:
            pairs.append(("authorization", f"Bearer {self.token}"))
        return tuple(pairs)

    def wait(self, error: TallystickError, attempt: int) -> float:
        """Seconds before the next sending: what the platform said, or exponential; jittered, so that callers do not come back together."""
        doublings = min(attempt - 1, _MAX_DOUBLINGS)
        base = error.retry_after if error.retry_after is not None else min(_FIRST_WAIT * 2**doublings, _LONGEST_WAIT)
        return base * (1 + self.jitter() / 2)

    def retries(self, end: float, now: Callable[[], float], tries: Tries) -> dict[str, Any]:
        """How tenacity sends one call again: what the platform lets come back, until the time until `end`, or the attempts, are used up."""

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            left = end - now()
            seconds = self.wait(error, state.attempt_number) if isinstance(error, TallystickError) else 0.0
            if isinstance(error, TallystickError) and error.retry_after is None:
                seconds = min(seconds, left - _LEAST_TIME)  # the last sending is just before the end
            if not 0 <= seconds < left:
                raise error or DeadlineExceededError("no time is left")
            return seconds

        stop = stop_never if self.attempts is None else stop_after_attempt(self.attempts)
        return {"stop": stop, "wait": wait, "retry": retry_if_exception(tries.may_go_on), "reraise": True}


class Tries:
    """How often one call was sent, and what its last error says of the call as a whole.

    A refusal is said of one try. An earlier try may have taken effect all the same where its outcome is not known. It got no answer: the
    error has no reason, since there was no connection, it broke, or the call was cancelled on its way. Or its refusal does not exclude it:
    SHUTTING_DOWN also ends calls in flight, KEY_IN_USE means that one is in flight, and DEPENDENCY_UNAVAILABLE may follow a COMMIT whose
    answer was lost. Only a reason of NOT_BEGUN says that the try did nothing.

    After such a try a refusal stands as it is only where it is CONCLUSIVE, whatever happened before. That is what follows from the request
    alone: each try sends the same bytes, so an earlier one was refused for the same. It is also KEY_REUSED: what an earlier try had stored
    under the id would have the same values, and the repeat would find it. Nothing else is conclusive:

    - Refusals by a state (STATE_FORBIDS, HOLD_ENDED, ALREADY_REVERSED, VERSION_MISMATCH, INSUFFICIENT_FUNDS, DESTINATION_UNUSABLE,
      AMOUNT_OUT_OF_RANGE of a payout): an earlier try may have caused that state, or may be in flight and be carried out after this refusal.
    - FIELD_INVALID: a time in the request may have passed since. NOT_FOUND, ID_TAKEN: the owner of a seller may have changed since.
    - Credentials, roles, unknown methods: a process of another version, or with other callers, may have answered.
    - What may come again (OVERLOADED, PROVIDER_UNAVAILABLE, and so on): it is true of the last try alone, also where it says "Nothing was
      stored".
    """

    def __init__(self) -> None:
        self._count = 0
        self._last: TallystickError | None = None
        """The last error that the same request may come back after."""
        self._doubtful: set[tuple[str, str]] = set()
        """Reason and message of the tries that may have taken effect."""

    def may_go_on(self, error: BaseException) -> bool:
        """Whether the call may be sent again after what its last sending raised."""
        self._count += 1
        if not isinstance(error, TallystickError) or not error.may_retry:
            return False
        if not _ran_out(error):
            self._last = error
        if error.reason not in NOT_BEGUN:
            self._doubtful.add((error.reason, error.message))
        return True

    def explained(self, error: TallystickError) -> TallystickError:
        """What is raised in the end: with the number of tries.

        The outcome of the call is not known where the last try got no answer in time, or is refused for the moment after a try whose outcome is
        not known. Then this is the error of the deadline, caused by a refusal, whose reason and text, such as "Nothing was stored", would be wrong
        of the call. Any other refusal that is not conclusive keeps its class and reason, and says that it is of the last try.
        """
        if _ran_out(error):
            message = f"{error.message} (after {_tries(self._count)}; the last got no answer in time, so the outcome is not known"
            if self._last is not None:
                message += f"; an earlier one was refused with {self._last.reason}" if self._last.reason else "; an earlier one did not get through"
            unknown = error.again(f"{message})", reason="DEADLINE_EXCEEDED")
            unknown.__cause__ = self._last
            return unknown
        if isinstance(error, UnavailableError) and not error.reason:
            return error.again(f"{error.message} (after {_tries(self._count)}; the last got no answer, so the outcome is not known)")
        doubtful = self._doubtful - {(error.reason, error.message)}  # those that say the same leave no more doubt than the last
        if doubtful and error.reason not in CONCLUSIVE:
            return self._of_the_last_alone(error)
        return error.again(f"{error.message} (after {self._count} tries)") if self._count > 1 and error is self._last else error

    def _of_the_last_alone(self, error: TallystickError) -> TallystickError:
        """A refusal after a try whose outcome is not known."""
        tries = _tries(self._count)
        if not (error.may_retry and error.reason):
            return error.again(f"{error.message} (after {tries}; this is said of the last one: the outcome of an earlier one is not known)")
        message = f"the outcome is not known (after {tries}; an earlier one may have taken effect, and the last was refused with {error.reason})"
        unknown = DeadlineExceededError(message, reason="DEADLINE_EXCEEDED", trace_id=error.trace_id)
        unknown.__cause__ = error
        return unknown


NOT_BEGUN = frozenset({"OVERLOADED", "RATE_LIMITED", "PROVIDER_UNAVAILABLE"})
"""Reasons by which a try certainly did nothing: it was refused before it began. The rule is at `Tries`."""
CONCLUSIVE = frozenset(
    {
        "FIELD_REQUIRED",
        "AMOUNT_INVALID",
        "AMOUNT_PRECISION",
        "CURRENCY_UNKNOWN",
        "TOO_MANY_ITEMS",
        "DUPLICATE_ITEM",
        "SAME_ACCOUNT",
        "CARD_NUMBER_REFUSED",
        "ENTRIES_UNBALANCED",
        "PAGE_TOKEN_INVALID",
        "MESSAGE_MALFORMED",
        "MESSAGE_TOO_LARGE",
        "KEY_REUSED",
        "SECOND_PERSON_REQUIRED",
    }
)
"""Reasons that hold for every try of a call, whatever became of an earlier one. The rule is at `Tries`."""


def _tries(count: int) -> str:
    return "1 try" if count == 1 else f"{count} tries"


def _ran_out(error: TallystickError) -> bool:
    """Whether it says only that the time was up."""
    return isinstance(error, DeadlineExceededError) and error.reason in ("", "DEADLINE_EXCEEDED")


class Reopening:
    """When a stream that ended early is opened again: not for ever without a message between."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._failures = 0
        self._opened = 0.0

    def opened(self) -> None:
        """The stream is opened now."""
        self._opened = time.monotonic()

    def went_well(self) -> None:
        """A message has come."""
        self._failures = 0

    def rest(self, error: TallystickError) -> float:
        """Seconds to rest before the next opening. Raises the error if there is to be none."""
        expired, ran_out = (
            error.reason == "STREAM_EXPIRED",
            _ran_out(error),
        )  # by the platform; by the deadline here, as when messages are read slowly
        least = _LEAST_STREAM if expired else self._settings.stream_seconds / 2  # a stream that ends so much earlier has not had its time
        had_its_time = (expired or ran_out) and time.monotonic() - self._opened >= least
        self._failures = 0 if had_its_time else self._failures + 1
        most = self._settings.stream_attempts
        if not (expired or ran_out or error.may_retry) or (most is not None and self._failures >= most):
            raise error
        return self._settings.wait(error, max(self._failures, 1))


M = TypeVar("M", bound=Message)

_LETTERS = str.maketrans("0123456789", "ghijklmnop")  # digits could look like a card number


def _sendable(text: str) -> bool:
    """Whether HTTP/2 can carry a text as the value of a header."""
    return text.isascii() and text.isprintable() and text == text.strip()


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
