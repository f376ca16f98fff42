"""How a client calls: deadlines, retries, credentials."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import grpc
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tallystick._errors import TallystickError

DEFAULT_DEADLINES = {"CreatePayment": 30.0}
DEFAULT_DEADLINE = 10.0
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 2.0


@dataclass(frozen=True)
class ClientSettings:
    """`token`: a bearer token. `credentials`: TLS; None: plain text. `deadlines`: seconds by method name, over the defaults (30 s for CreatePayment,
    10 s for the others). `attempts`: the most sendings of one call, all within its one deadline."""

    token: str = ""
    credentials: grpc.ChannelCredentials | None = None
    deadlines: Mapping[str, float] = field(default_factory=dict)
    attempts: int = 5
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


def tracer() -> trace.Tracer:
    return trace.get_tracer("tallystick")


def short_name(method: str) -> str:
    """CreatePayment of /tallystick.payment.v1.PaymentService/CreatePayment."""
    return method.rsplit("/", 1)[1]
