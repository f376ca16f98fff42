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
_INITIAL_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.05, 2.0
_MAX_DOUBLINGS = 16  # more reach _LONGEST_WAIT anyway, and in the end no float holds the result
_MIN_ATTEMPT_SECONDS = 0.01  # seconds that a sending is worth
# seconds after which the platform's word that a stream has reached its time is believed
_MIN_STREAM_SECONDS = 1.0
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.lb_policy_name", "round_robin"),  # over all addresses that the target's name has
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2000),  # an attempt to connect has at least so long
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 10_000),  # a host that has vanished is noticed
    ("grpc.keepalive_timeout_ms", 5_000),
    # while the kernel of a process that is frozen still acknowledges
    ("grpc.http2.ping_timeout_ms", 5_000),
)
"""How a channel connects, and connects again."""


@dataclass(frozen=True)
class ClientSettings:
    """`token`: a bearer token. `credentials`: TLS; None: plain text. `deadlines`: seconds by method
    name, over the defaults (30 s for CreatePayment and CreatePayout, 10 s for the others).
    `attempts`: the most sendings of one call; None: as many as its one deadline has time for.

    Raises ValueError for a token that cannot be sent.
    """

    token: str = field(default="", repr=False)
    credentials: grpc.ChannelCredentials | None = None
    deadlines: Mapping[str, float] = field(default_factory=dict)
    attempts: int | None = None
    stream_attempts: int | None = 30
    """The most openings of a stream in a row that fail and bring no message; past them its error is
    raised. None: no limit.
    """
    stream_seconds: float = 310.0
    """A stream's deadline, longer than the platform keeps one. `events`, `watch_payment` and
    `watch_payout` go on after it, from where they were.
    """
    jitter: Callable[[], float] = random.random
    """A number from 0 to 1."""

    def __post_init__(self) -> None:
        if not _is_sendable(self.token):  # which is not shown
            raise ValueError(
                "token must have visible ASCII characters only, without a line break or a space "
                "at either end."
            )

    def deadline(self, method: str) -> float:
        return self.deadlines.get(method, DEFAULT_DEADLINES.get(method, DEFAULT_DEADLINE))

    def seconds(self, method: str, timeout: float | None) -> float:
        """How long a call may take. Raises ValueError for a timeout that is no time."""
        if timeout is None:
            return self.deadline(method)
        if not 0 < timeout < math.inf:
            raise ValueError("timeout must be a number of seconds above 0.")
        return timeout

    def metadata(
        self, call_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> tuple[tuple[str, str | bytes], ...]:
        """What is given for one call, credentials, and the trace context of the current span.
        Raises ValueError for what cannot be sent.
        """
        checked: list[tuple[str, str | bytes]] = []
        for key, value in call_metadata:
            if not re.fullmatch(r"[0-9a-z_.-]+", key) or key.startswith("grpc-"):
                raise ValueError(
                    f"metadata cannot have the key {key!r}: it must be of a-z 0-9 _ . - and not "
                    "begin with grpc-."
                )
            if not (
                isinstance(value, bytes)
                if key.endswith("-bin")
                else isinstance(value, str) and _is_sendable(value)
            ):
                raise ValueError(
                    f"metadata {key} must be bytes where its name ends with -bin, else visible "
                    "ASCII characters."
                )
            checked.append((key, value))
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        pairs = [*checked, *carrier.items()]
        if self.token:
            pairs.append(("authorization", f"Bearer {self.token}"))
        return tuple(pairs)

    def wait(self, error: TallystickError, attempt: int) -> float:
        """Seconds before the next sending: what the platform said, or exponential; jittered, so
        that callers do not come back together.
        """
        doublings = min(attempt - 1, _MAX_DOUBLINGS)
        base = (
            error.retry_after
            if error.retry_after is not None
            else min(_INITIAL_BACKOFF_SECONDS * 2**doublings, _MAX_BACKOFF_SECONDS)
        )
        return base * (1 + self.jitter() / 2)

    def retries(
        self, deadline: float, now: Callable[[], float], attempts: CallAttempts
    ) -> dict[str, Any]:
        """How tenacity sends one call again: what the platform lets come back, until the time until
        `deadline`, or the attempts, are used up.
        """

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            remaining = deadline - now()
            seconds = (
                self.wait(error, state.attempt_number)
                if isinstance(error, TallystickError)
                else 0.0
            )
            if isinstance(error, TallystickError) and error.retry_after is None:
                # the last sending is just before the end
                seconds = min(seconds, remaining - _MIN_ATTEMPT_SECONDS)
            if not 0 <= seconds < remaining:
                raise error or DeadlineExceededError("no time is left")
            return seconds

        stop = stop_never if self.attempts is None else stop_after_attempt(self.attempts)
        return {
            "stop": stop,
            "wait": wait,
            "retry": retry_if_exception(attempts.should_retry),
            "reraise": True,
        }


class CallAttempts:
    """How often one call was sent, and what its last error says of the call as a whole.

    A refusal is said of one try. An earlier try may have taken effect all the same where its
    outcome is not known. It got no answer: the error has no reason, since there was no connection,
    it broke, or the call was cancelled on its way. Or its refusal does not exclude it:
    SHUTTING_DOWN also ends calls in flight, KEY_IN_USE means that one is in flight, and
    DEPENDENCY_UNAVAILABLE may follow a COMMIT whose answer was lost. Only a reason of
    NOT_STARTED_REASONS says that the try did nothing.

    After such a try a refusal stands as it is only where it is CONCLUSIVE, whatever happened
    before. That is what follows from the request alone: each try sends the same bytes, so an
    earlier one was refused for the same. It is also IDEMPOTENCY_KEY_REUSED: what an earlier try had
    stored under the id would have the same values, and the repeat would find it. Nothing else is
    conclusive:

    - Refusals by a state (INVALID_STATE, HOLD_ENDED, ALREADY_REVERSED, VERSION_MISMATCH,
      INSUFFICIENT_FUNDS, DESTINATION_UNUSABLE,
      AMOUNT_OUT_OF_RANGE of a payout): an earlier try may have caused that state, or may be in
      flight and be carried out after this refusal.
    - FIELD_INVALID: a time in the request may have passed since. NOT_FOUND, ALREADY_EXISTS: the
      owner of
      a seller may have changed since.
    - Credentials, roles, unknown methods: a process of another version, or with other callers, may
      have answered.
    - What may come again (OVERLOADED, PROVIDER_UNAVAILABLE, and so on): it is true of the last try
      alone, also where it says "Nothing was
      stored".
    """

    def __init__(self) -> None:
        self._count = 0
        self._last_error: TallystickError | None = None
        """The last error that the same request may come back after."""
        self._ambiguous_errors: set[tuple[str, str]] = set()
        """Reason and message of the tries that may have taken effect."""

    def should_retry(self, error: BaseException) -> bool:
        """Whether the call may be sent again after what its last sending raised."""
        self._count += 1
        if not isinstance(error, TallystickError) or not error.may_retry:
            return False
        if not _is_timeout(error):
            self._last_error = error
        if error.reason not in NOT_STARTED_REASONS:
            self._ambiguous_errors.add((error.reason, error.message))
        return True

    def final_error(self, error: TallystickError) -> TallystickError:
        """What is raised in the end: with the number of tries.

        The outcome of the call is not known where the last try got no answer in time, or is refused
        for the moment after a try whose outcome is not known. Then this is the error of the
        deadline, caused by a refusal, whose reason and text, such as "Nothing was stored", would be
        wrong of the call. Any other refusal that is not conclusive keeps its class and reason, and
        says that it is of the last try.
        """
        if _is_timeout(error):
            message = (
                f"{error.message} (after {_format_attempt_count(self._count)}; the last got no "
                "answer in time, so the outcome is not known"
            )
            if self._last_error is not None:
                message += (
                    f"; an earlier one was refused with {self._last_error.reason}"
                    if self._last_error.reason
                    else "; an earlier one did not get through"
                )
            timeout_error = error.with_message(f"{message})", reason="DEADLINE_EXCEEDED")
            timeout_error.__cause__ = self._last_error
            return timeout_error
        if isinstance(error, UnavailableError) and not error.reason:
            return error.with_message(
                f"{error.message} (after {_format_attempt_count(self._count)}; the last got no "
                "answer, so the outcome is not known)"
            )
        # those that say the same leave no more doubt than the last
        other_errors = self._ambiguous_errors - {(error.reason, error.message)}
        if other_errors and error.reason not in CONCLUSIVE_REASONS:
            return self._ambiguous_error(error)
        return (
            error.with_message(f"{error.message} (after {self._count} tries)")
            if self._count > 1 and error is self._last_error
            else error
        )

    def _ambiguous_error(self, error: TallystickError) -> TallystickError:
        """A refusal after a try whose outcome is not known."""
        attempts = _format_attempt_count(self._count)
        if not (error.may_retry and error.reason):
            return error.with_message(
                f"{error.message} (after {attempts}; this is said of the last one: the outcome of "
                "an earlier one is not known)"
            )
        message = (
            f"the outcome is not known (after {attempts}; an earlier one may have taken effect, "
            f"and the last was refused with {error.reason})"
        )
        timeout_error = DeadlineExceededError(
            message, reason="DEADLINE_EXCEEDED", trace_id=error.trace_id
        )
        timeout_error.__cause__ = error
        return timeout_error


NOT_STARTED_REASONS = frozenset({"OVERLOADED", "RATE_LIMITED", "PROVIDER_UNAVAILABLE"})
"""Reasons by which a try certainly did nothing: it was refused before it began. The rule is at
`Tries`.
"""
CONCLUSIVE_REASONS = frozenset(
    {
        "FIELD_REQUIRED",
        "AMOUNT_INVALID",
        "AMOUNT_PRECISION",
        "CURRENCY_UNKNOWN",
        "TOO_MANY_ITEMS",
        "DUPLICATE_ITEM",
        "SAME_ACCOUNT",
        "CARD_NUMBER_REJECTED",
        "ENTRIES_UNBALANCED",
        "PAGE_TOKEN_INVALID",
        "MESSAGE_MALFORMED",
        "MESSAGE_TOO_LARGE",
        "IDEMPOTENCY_KEY_REUSED",
        "SECOND_APPROVER_REQUIRED",
    }
)
"""Reasons that hold for every try of a call, whatever became of an earlier one. The rule is at
`Tries`.
"""


def _format_attempt_count(count: int) -> str:
    return "1 try" if count == 1 else f"{count} tries"


def _is_timeout(error: TallystickError) -> bool:
    """Whether it says only that the time was up."""
    return isinstance(error, DeadlineExceededError) and error.reason in ("", "DEADLINE_EXCEEDED")


class StreamBackoff:
    """When a stream that ended early is opened again: not for ever without a message between."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._failures = 0
        self._opened_at = 0.0

    def mark_opened(self) -> None:
        """The stream is opened now."""
        self._opened_at = time.monotonic()

    def reset(self) -> None:
        """A message has come."""
        self._failures = 0

    def delay(self, error: TallystickError) -> float:
        """Seconds to rest before the next opening. Raises the error if there is to be none."""
        expired, is_timeout = (
            error.reason == "STREAM_EXPIRED",
            _is_timeout(error),
        )  # by the platform; by the deadline here, as when messages are read slowly
        # a stream that ends so much earlier has not had its time
        min_seconds = _MIN_STREAM_SECONDS if expired else self._settings.stream_seconds / 2
        ran_full_time = (
            expired or is_timeout
        ) and time.monotonic() - self._opened_at >= min_seconds
        self._failures = 0 if ran_full_time else self._failures + 1
        max_attempts = self._settings.stream_attempts
        if not (expired or is_timeout or error.may_retry) or (
            max_attempts is not None and self._failures >= max_attempts
        ):
            raise error
        return self._settings.wait(error, max(self._failures, 1))


M = TypeVar("M", bound=Message)

# digits could look like a card number
_DIGITS_TO_LETTERS = str.maketrans("0123456789", "ghijklmnop")


def _is_sendable(text: str) -> bool:
    """Whether HTTP/2 can carry a text as the value of a header."""
    return text.isascii() and text.isprintable() and text == text.strip()


def get_tracer() -> trace.Tracer:
    return trace.get_tracer("tallystick")


def ensure_request_id(request: M) -> M:
    """The request with a request_id of its own, where there is such a field and it is empty:
    however often it is then sent, it counts once.
    """
    if "request_id" not in request.DESCRIPTOR.fields_by_name or request.request_id:  # type: ignore[attr-defined]
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    copy.request_id = uuid4().hex.translate(_DIGITS_TO_LETTERS)  # type: ignore[attr-defined]
    return copy


def short_name(method: str) -> str:
    """CreatePayment of /tallystick.payment.v1.PaymentService/CreatePayment."""
    return method.rsplit("/", 1)[1]
