"""Settings of a client: deadlines, retries, credentials."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar
from uuid import uuid4

from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import Message
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from tenacity import RetryCallState, retry_if_exception, stop_after_attempt, stop_never

from tallystick._errors import DeadlineExceededError, TallystickError, UnavailableError
from tallystick._services import STUB_CLASSES, ServiceTargets

DEFAULT_DEADLINES = {
    "CreatePayment": 30.0,
    "CreatePayout": 30.0,
    "CloseDeadLetter": 60.0,
    "CloseDeadLetters": 60.0,
    "BatchAddStatementItems": 60.0,
    "ReconcileStatementFile": 600.0,
}
DEFAULT_DEADLINE = 10.0
_INITIAL_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.05, 2.0
_MAX_DOUBLINGS = 16  # more would exceed the maximum anyway, and overflow in the end
_MIN_TRY_SECONDS = 0.01  # a try with less time left is not sent
# a STREAM_EXPIRED that comes earlier counts as a failure
_MIN_STREAM_SECONDS = 1.0
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.lb_policy_name", "round_robin"),  # over all addresses of the target's name
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2000),  # minimum time for one connection attempt
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 10_000),  # detects a lost host
    ("grpc.keepalive_timeout_ms", 5_000),
    # detects a frozen process whose kernel still acknowledges
    ("grpc.http2.ping_timeout_ms", 5_000),
)
"""Channel options for connecting and reconnecting."""


@dataclass(frozen=True)
class ClientSettings:
    """`token`: a bearer token. `ca_file`: a PEM file with the CA certificates that verify the
    platform at https:// targets; "": the public CAs that gRPC knows. `deadlines`: seconds by method
    name; they override DEFAULT_DEADLINES, and 10 s for the others. `tries`: maximum tries of one
    call; None: limited only by its deadline.

    Raises ValueError for a token that cannot be sent in a header.
    """

    token: str = field(default="", repr=False)
    ca_file: str = ""
    deadlines: Mapping[str, float] = field(default_factory=dict)
    tries: int | None = None
    stream_tries: int | None = 30
    """Maximum consecutive failures of a stream without a message; then its error is raised. None:
    no limit.
    """
    stream_seconds: float = 310.0
    """Deadline of one stream, longer than the platform keeps it open. `events`, `watch_payment` and
    `watch_payout` resume at their position after it.
    """
    jitter: Callable[[], float] = random.random
    """Returns a random number from 0 to 1."""

    def __post_init__(self) -> None:
        if not _is_sendable(self.token):  # the message does not contain it
            raise ValueError(
                "token must have visible ASCII characters only, without a line break or a space "
                "at either end."
            )

    def timeout_seconds(self, method: str) -> float:
        return self.deadlines.get(method, DEFAULT_DEADLINES.get(method, DEFAULT_DEADLINE))

    def seconds(self, method: str, timeout: float | None) -> float:
        """The deadline of a call in seconds. Raises ValueError for an invalid timeout."""
        if timeout is None:
            return self.timeout_seconds(method)
        if not 0 < timeout < math.inf:
            raise ValueError("timeout must be a number of seconds above 0.")
        return timeout

    def metadata(
        self, call_metadata: Iterable[tuple[str, str | bytes]] = ()
    ) -> tuple[tuple[str, str | bytes], ...]:
        """Returns the metadata of one call, with credentials and the current trace context. Raises
        ValueError for metadata that cannot be sent.
        """
        checked: list[tuple[str, str | bytes]] = []
        for key, value in call_metadata:
            if not re.fullmatch(r"[0-9a-z_.-]+", key) or key.startswith("grpc-"):
                raise ValueError(
                    f"the metadata key {key!r} must have only a-z 0-9 _ . - and must not begin "
                    "with grpc-."
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

    def wait(self, error: TallystickError, tries: int) -> float:
        """Seconds before the next try: the platform's delay, or else exponential backoff.
        Jitter keeps callers from retrying at the same time.
        """
        doublings = min(tries - 1, _MAX_DOUBLINGS)
        base = (
            error.retry_after
            if error.retry_after is not None
            else min(_INITIAL_BACKOFF_SECONDS * 2**doublings, _MAX_BACKOFF_SECONDS)
        )
        return base * (1 + self.jitter() / 2)

    def retries(
        self, deadline: float, now: Callable[[], float], tries: CallTries
    ) -> dict[str, Any]:
        """The arguments of tenacity for one call: retries the errors that the platform allows to
        retry, until `deadline` or until the tries are exhausted.
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
                # makes the last try just before the deadline
                seconds = min(seconds, remaining - _MIN_TRY_SECONDS)
            if not 0 <= seconds < remaining:
                raise error or DeadlineExceededError("the deadline has passed")
            return seconds

        stop = stop_never if self.tries is None else stop_after_attempt(self.tries)
        return {
            "stop": stop,
            "wait": wait,
            "retry": retry_if_exception(tries.should_retry),
            "reraise": True,
        }


class CallTries:
    """Counts the tries of one call, and derives the error of the whole call from them.

    A rejection applies to one try. If the outcome of an earlier try is not known, that try may have
    taken effect. There are two such cases. The try got no response: its error has no reason,
    because there was no connection, the connection broke, or the call was cancelled in flight. Or
    its rejection does not exclude an effect: SHUTTING_DOWN also ends calls in flight, KEY_IN_USE
    means that a call is in flight, and DEPENDENCY_UNAVAILABLE may follow a COMMIT whose response
    was lost. Only the reasons in NOT_STARTED_REASONS prove that a try had no effect.

    After a try with unknown outcome, a rejection holds for the whole call only if its reason is in
    CONCLUSIVE_REASONS. Most of these follow from the request alone: each try sends the same bytes,
    so every earlier try was rejected too. IDEMPOTENCY_KEY_REUSED is conclusive because an earlier
    try would have stored the same values, and the repeat would match them. Other reasons are not
    conclusive:

    - Rejections by a state (INVALID_STATE, HOLD_ENDED, ALREADY_REVERSED, VERSION_MISMATCH,
      INSUFFICIENT_FUNDS, DESTINATION_UNUSABLE, AMOUNT_OUT_OF_RANGE of a payout): an earlier try may
      have caused that state, or may still be in flight and take effect later.
    - FIELD_INVALID: a time in the request may have passed in the meantime.
    - NOT_FOUND, ALREADY_EXISTS: the owner of a seller may have changed in the meantime.
    - Credentials, roles, unknown methods: a process of another version, or with other callers, may
      have answered.
    - Temporary errors (OVERLOADED, PROVIDER_UNAVAILABLE, and so on): they apply only to the last
      try, even if the message says "Nothing was stored".
    """

    def __init__(self, method: str) -> None:
        """`method`: its full name, such as /tallystick.payment.v1.PaymentService/GetPayment."""
        self._is_read = _is_read(method)
        self._count = 0
        self._last_error: TallystickError | None = None
        """The last retryable error that is not a timeout."""
        self._ambiguous_errors: set[tuple[str, str]] = set()
        """Reason and message of the errors after which a try may have taken effect."""

    def should_retry(self, error: BaseException) -> bool:
        """Counts a failed try. Returns whether the call may be retried after its error."""
        self._count += 1
        if not isinstance(error, TallystickError) or not error.may_retry:
            return False
        if not _is_timeout(error):
            self._last_error = error
        if error.reason not in NOT_STARTED_REASONS:
            self._ambiguous_errors.add((error.reason, error.message))
        return True

    def final_error(self, error: TallystickError) -> TallystickError:
        """Returns the error to raise for the whole call; its message contains the number of tries.

        The outcome of the call is not known in two cases: the last try timed out, or it was
        rejected temporarily after a try with unknown outcome. The error is then DEADLINE_EXCEEDED,
        with the rejection as its cause. The rejection's own reason and text, such as "Nothing was
        stored", would be wrong for the call. Any other rejection that is not conclusive keeps its
        class and reason; its message says that it applies to the last try.
        """
        if _is_timeout(error):
            message = (
                f"{error.message} (after {_format_tries(self._count)}; the last got no "
                "answer in time, so the outcome is not known"
            )
            if self._last_error is not None:
                message += (
                    f"; an earlier one was rejected with {self._last_error.reason}"
                    if self._last_error.reason
                    else "; an earlier one got no answer"
                )
            timeout_error = error.with_message(f"{message})", reason="DEADLINE_EXCEEDED")
            timeout_error.__cause__ = self._last_error
            return timeout_error
        if isinstance(error, UnavailableError) and not error.reason and not self._is_read:
            return error.with_message(
                f"{error.message} (after {_format_tries(self._count)}; the last got no "
                "answer, so the outcome is not known)"
            )
        # equal errors add no doubt to the last one
        other_errors = self._ambiguous_errors - {(error.reason, error.message)}
        if other_errors and error.reason not in CONCLUSIVE_REASONS:
            return self._ambiguous_error(error)
        return (
            error.with_message(f"{error.message} (after {self._count} tries)")
            if self._count > 1 and error is self._last_error
            else error
        )

    def _ambiguous_error(self, error: TallystickError) -> TallystickError:
        """Returns the error for a rejection after a try with unknown outcome."""
        tries = _format_tries(self._count)
        if not (error.may_retry and error.reason):
            return error.with_message(
                f"{error.message} (after {tries}; this applies to the last one: the outcome "
                "of an earlier one is not known)"
            )
        message = (
            f"the outcome is not known (after {tries}; an earlier one may have taken effect, "
            f"and the last was rejected with {error.reason})"
        )
        timeout_error = DeadlineExceededError(
            message, reason="DEADLINE_EXCEEDED", trace_id=error.trace_id
        )
        timeout_error.__cause__ = error
        return timeout_error


NOT_STARTED_REASONS = frozenset({"OVERLOADED", "RATE_LIMITED", "PROVIDER_UNAVAILABLE"})
"""Reasons that prove that a try had no effect: it was rejected before it began. See
`CallTries`.
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
"""Reasons that hold for every try of a call, regardless of earlier outcomes. See `CallTries`."""


def _format_tries(count: int) -> str:
    return "1 try" if count == 1 else f"{count} tries"


def _is_timeout(error: TallystickError) -> bool:
    """Whether the error says only that the deadline passed."""
    return isinstance(error, DeadlineExceededError) and error.reason in ("", "DEADLINE_EXCEEDED")


class StreamBackoff:
    """Delays between reopenings of a stream, and the limit of failures without a message."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._failures = 0
        self._opened_at = 0.0

    def mark_opened(self) -> None:
        """Records that the stream is being opened now."""
        self._opened_at = time.monotonic()

    def reset(self) -> None:
        """Resets the failures; call it for each received message."""
        self._failures = 0

    def delay(self, error: TallystickError) -> float:
        """Seconds to wait before reopening. Raises the error if the stream must not be reopened."""
        expired, is_timeout = (
            error.reason == "STREAM_EXPIRED",
            _is_timeout(error),
        )  # by the platform, or by the client's deadline (as with a slow reader)
        # a stream that ends earlier counts as a failure
        min_seconds = _MIN_STREAM_SECONDS if expired else self._settings.stream_seconds / 2
        ran_full_time = (
            expired or is_timeout
        ) and time.monotonic() - self._opened_at >= min_seconds
        self._failures = 0 if ran_full_time else self._failures + 1
        max_tries = self._settings.stream_tries
        if not (expired or is_timeout or error.may_retry) or (
            max_tries is not None and self._failures >= max_tries
        ):
            raise error
        return self._settings.wait(error, max(self._failures, 1))


M = TypeVar("M", bound=Message)

# digits could look like a card number
_DIGITS_TO_LETTERS = str.maketrans("0123456789", "ghijklmnop")


def _is_sendable(text: str) -> bool:
    """Whether the text is a valid HTTP/2 header value."""
    return text.isascii() and text.isprintable() and text == text.strip()


def get_tracer() -> trace.Tracer:
    return trace.get_tracer("tallystick")


def ensure_request_id(request: M) -> M:
    """Returns the request, with a new request_id if it has such a field and that is empty. The
    request then takes effect once, regardless of retries.
    """
    has_request_id = "request_id" in request.DESCRIPTOR.fields_by_name
    if not has_request_id or request.request_id:  # type: ignore[attr-defined]
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    copy.request_id = uuid4().hex.translate(_DIGITS_TO_LETTERS)  # type: ignore[attr-defined]
    return copy


@lru_cache
def _is_read(method: str) -> bool:
    """Whether the method has no effect, so that the outcome of a call is never in doubt."""
    name = method.removeprefix("/").replace("/", ".")
    try:
        descriptor = descriptor_pool.Default().FindMethodByName(name)
    except KeyError:  # a method that is not generated here
        return False
    level = descriptor.GetOptions().idempotency_level
    return bool(level == descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS)


def short_name(method: str) -> str:
    """Returns CreatePayment for /tallystick.payment.v1.PaymentService/CreatePayment."""
    return method.rsplit("/", 1)[1]


def span_name(method: str) -> str:
    """Returns the name that OpenTelemetry gives the spans of a method, at both ends: that of
    /tallystick.payment.v1.PaymentService/CreatePayment without the first slash.
    """
    return method.removeprefix("/")


def resolve_targets(target: str, targets: ServiceTargets) -> dict[str, str]:
    """The target of each service: its own, or else `target`. Raises TypeError for the name of no
    service.
    """
    unknown = targets.keys() - STUB_CLASSES.keys()
    if unknown:
        raise TypeError(f"There is no service {', '.join(sorted(unknown))}.")
    return {service: str(targets.get(service) or target) for service in STUB_CLASSES}
