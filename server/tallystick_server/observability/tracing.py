"""Traces: one per payment, from the SDK through every call, batch, provider and transaction."""

from __future__ import annotations

import random
import re
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from tallystick_core.card_numbers import is_card_number
from tallystick_core.errors import FAULTS, ApiError
from tallystick_server.observability import metrics, names
from tallystick_server.observability.tail_sampling import (
    UNDECIDED,
    RecordingSampler,
    TailSampler,
    TailSettings,
)
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection

T = TypeVar("T")
SpanContext = trace.SpanContext

_tracer = trace.get_tracer("tallystick")
_propagator = TraceContextTextMapPropagator()
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)
# no secrets; and not the global one, whose sequence belongs to the code that seeded it
_id_random = random.Random()  # noqa: S311
_is_exporting = False
_MAX_FINISHED_SPANS = 10_000
_UNTRACED_METHODS = frozenset({"tallystick.monitoring.v1.MonitoringService/BatchRecordSpans"})
"""A trace of the call that stores spans would never end."""


class SeedableIdGenerator(IdGenerator):
    """Generates trace and span ids, which are never zero."""

    def generate_trace_id(self) -> int:
        return _id_random.getrandbits(128) or 1

    def generate_span_id(self) -> int:
        return _id_random.getrandbits(64) or 1


_id_generator = SeedableIdGenerator()


def seed(number: int) -> None:
    """Makes ids follow from a number, for reproducible runs."""
    _id_random.seed(number)


class FinishedSpans(SpanProcessor):
    """The spans that have ended and wait to be stored, at most 10,000: further ones are lost."""

    def __init__(self) -> None:
        self._spans: deque[ReadableSpan] = deque()

    def on_end(self, span: ReadableSpan) -> None:
        if len(self._spans) < _MAX_FINISHED_SPANS:
            self._spans.append(span)
        else:
            metrics.SPANS_LOST.add(1, "too_many")

    def take(self, max_count: int) -> list[ReadableSpan]:
        """Removes and returns the oldest spans."""
        return [self._spans.popleft() for _ in range(min(max_count, len(self._spans)))]


finished_spans = FinishedSpans()
"""The spans of this process that wait to be stored."""


def configure(
    service: str,
    endpoint: str | None,
    sample_ratio: float,
    *,
    stores_spans: bool = False,
    slow_seconds: float | None = None,
) -> Callable[[], None]:
    """Starts tracing for the process, and sends spans to the OTLP endpoint if there is one. Returns
    a function that flushes and stops it.

    `sample_ratio`: the part of new traces that is recorded. A trace that was recorded by the caller
    stays recorded. `stores_spans`: spans are held in `finished_spans`, for MonitoringService.
    `slow_seconds`: all spans are recorded; traces with an error or a call that takes so long are
    kept, and the part of the others. None: the decision is made at the start of a trace.
    """
    global _is_exporting  # noqa: PLW0603 - tracing is the process's
    _is_exporting = bool(endpoint) or stores_spans
    ratio = sample_ratio if _is_exporting else 0.0
    sampler: Sampler = (
        ParentBased(TraceIdRatioBased(ratio))
        if slow_seconds is None or not _is_exporting
        else RecordingSampler()
    )
    provider = TracerProvider(
        sampler=sampler,
        resource=Resource.create({"service.name": service}),
        id_generator=_id_generator,
    )
    sinks: list[SpanProcessor] = [finished_spans] if stores_spans else []
    if endpoint:
        # slow to import, and seldom needed
        from tallystick_server.observability.span_export import (  # noqa: PLC0415
            ExportQueue,
            SpanExporter,
        )

        sinks.append(ExportQueue(SpanExporter(endpoint)))
    if slow_seconds is not None:
        sinks = [TailSampler(sinks, TailSettings(ratio, slow_seconds))]
    for sink in sinks:
        provider.add_span_processor(sink)
    trace.set_tracer_provider(provider)
    return provider.shutdown


def current_context() -> SpanContext:
    return trace.get_current_span().get_span_context()


def trace_id() -> str:
    """The current trace id in hex."""
    return trace.format_trace_id(current_context().trace_id)


def traceparent() -> str:
    """The current W3C trace context, or ""."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent", "")


def is_traceparent(header: str) -> bool:
    """Whether a caller's header is a W3C trace context that may be stored: its ids must not be card
    numbers. A random trace id of digits only does not occur.
    """
    match = _TRACEPARENT.fullmatch(header)
    return match is not None and not match[1].isdigit() and not is_card_number(match[2])


def tracestate() -> str:
    """The header for other services if this process has not decided whether the trace is kept."""
    is_undecided = current_context().trace_state == UNDECIDED
    return UNDECIDED.to_header() if is_undecided else ""


def parse_traceparent(header: str, state: str = "") -> SpanContext:
    """The span context of a stored traceparent, or of a received one with its tracestate."""
    carrier = {"traceparent": header}
    if state == UNDECIDED.to_header():  # others have no meaning here, and are not forwarded
        carrier["tracestate"] = state
    context = _propagator.extract(carrier)
    return trace.get_current_span(context).get_span_context()


def caller_trace(headers: Mapping[str, str], *, is_authenticated: bool) -> SpanContext:
    """The span of a caller, from the headers of its request; invalid if it has sent none. Only a
    caller that is authenticated decides that the trace is recorded.
    """
    header = headers.get("traceparent", "")
    if not is_traceparent(header):
        return trace.INVALID_SPAN_CONTEXT
    context = parse_traceparent(header, headers.get("tracestate", ""))
    if is_authenticated:
        return context
    return SpanContext(context.trace_id, context.span_id, is_remote=True)


@contextmanager
def server_span(
    method: str, metadata: Mapping[str, str], *, is_authenticated: bool
) -> Iterator[Span]:
    """The span of an incoming call, a child of the caller's span. It only carries the ids, for
    errors and outgoing calls, if tracing is off or the caller is not authenticated: a flood of such
    calls must not displace traces of others.
    """
    caller_context = caller_trace(metadata, is_authenticated=is_authenticated)
    is_traced = is_authenticated and (_is_exporting or caller_context.trace_flags.sampled)
    if not is_traced or method in _UNTRACED_METHODS:
        span = trace.NonRecordingSpan(
            SpanContext(
                caller_context.trace_id or _id_generator.generate_trace_id(),
                _id_generator.generate_span_id(),
                is_remote=False,
            )
        )
        token = attach(trace.set_span_in_context(span))
        try:
            yield span
        finally:
            detach(token)
        return
    parent = trace.set_span_in_context(trace.NonRecordingSpan(caller_context), Context())
    attributes = {"rpc.system.name": "grpc", "rpc.method": method}
    with _tracer.start_as_current_span(
        method,
        parent,
        SpanKind.SERVER,
        attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as recording_span:
        yield recording_span


@contextmanager
def _recorded_span(
    name: str,
    context: Context,
    kind: SpanKind = SpanKind.INTERNAL,
    *,
    attributes: Mapping[str, int] | None = None,
    links: Sequence[Link] = (),
) -> Iterator[Span]:
    """A recorded span. Of an exception it has the reason or the type: a text may hold data."""
    with _tracer.start_as_current_span(
        name,
        context,
        kind,
        attributes,
        links,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield span
        except Exception as error:
            set_error(span, error)
            raise


@contextmanager
def client_span(name: str, parent: SpanContext | None = None) -> Iterator[Span]:
    """The span of an outgoing call, a child of the current span or of `parent`. If the parent is
    not recorded, the span is the parent itself.
    """
    parent_span = trace.get_current_span() if parent is None else trace.NonRecordingSpan(parent)
    if not parent_span.get_span_context().trace_flags.sampled:
        yield parent_span
        return
    context = trace.set_span_in_context(parent_span)
    with _recorded_span(name, context, SpanKind.CLIENT) as span:
        yield span


@contextmanager
def resume_trace(context: SpanContext) -> Iterator[None]:
    """Makes the trace of an operation current, unless the trace of a call is: log lines have its
    id. It records no spans.
    """
    if current_context().is_valid or not context.is_valid:
        yield
        return
    token = attach(trace.set_span_in_context(trace.NonRecordingSpan(context)))
    try:
        yield
    finally:
        detach(token)


@contextmanager
def batch_span(name: str, members: Sequence[SpanContext]) -> Iterator[None]:
    """The span of a batch, if any of its members is recorded: a child of the first recorded one,
    linked to the others.
    """
    sampled_members = list(
        {member.span_id: member for member in members if member.trace_flags.sampled}.values()
    )
    if not sampled_members:
        yield
        return
    context = trace.set_span_in_context(trace.NonRecordingSpan(sampled_members[0]))
    links = [Link(member) for member in sampled_members[1:]]
    with _recorded_span(name, context, attributes={"batch.size": len(members)}, links=links):
        yield


def set_error(span: Span, error: Exception) -> None:
    """Sets the error with which a span ends. The span has failed if it is a fault of the platform,
    or of what it depends on.
    """
    error_type = _error_type(error)
    span.set_attribute("error.type", error_type)
    if not isinstance(error, ApiError) or error.reason in FAULTS:
        span.set_status(Status(StatusCode.ERROR, error_type))


def _error_type(error: BaseException) -> str:
    """The error reason, or the type of an exception."""
    return str(error.reason) if isinstance(error, ApiError) else type(error).__name__


@dataclass(slots=True)
class _Pool:
    """Connections for one kind of work. `in_progress`: what uses one or waits for one."""

    name: str
    connections: int
    in_progress: int = 0


def function_name(work: Callable[..., object]) -> str:
    """The name of a function, also if some of its arguments are bound."""
    return function_name(work.func) if isinstance(work, partial) else work.__qualname__


class TracedDatabase(Database):
    """A database whose transactions and reads are spans, and are measured. `service`: its name in
    metrics.
    """

    def __init__(
        self,
        url: str,
        *,
        connections: int,
        readers: int = 2,
        service: str = "",
        **options: Any,
    ) -> None:
        super().__init__(url, connections=connections, readers=readers, **options)
        self._service = service
        self._work_pool = _Pool(service, connections)
        self._read_pool = _Pool(f"{service}.reads", readers)
        metrics.DB_CONNECTIONS.track(self, TracedDatabase._observe_connections)
        metrics.DB_PENDING_REQUESTS.track(self, TracedDatabase._observe_pending)

    async def transact(self, work: Callable[[Connection], T], *, idempotent: bool = False) -> T:
        call = super().transact(work, idempotent=idempotent)
        return await self._measure(names.TRANSACTION_SPAN, self._work_pool, work, call)

    async def load(self, work: Callable[[Connection], T]) -> T:
        return await self._measure(names.LOAD_SPAN, self._work_pool, work, super().load(work))

    async def read(self, work: Callable[[Connection], T], *, changed: bool = False) -> T:
        if changed:  # it runs as `load` does
            return await self.load(work)
        return await self._measure(names.READ_SPAN, self._read_pool, work, super().read(work))

    def close(self) -> None:
        metrics.DB_CONNECTIONS.untrack(self)
        metrics.DB_PENDING_REQUESTS.untrack(self)
        super().close()

    async def _measure(
        self,
        span_name: names.SpanName,
        pool: _Pool,
        work: Callable[[Connection], T],
        call: Coroutine[Any, Any, T],
    ) -> T:
        start_time, error_type = time.perf_counter(), ""
        pool.in_progress += 1
        try:
            if not trace.get_current_span().is_recording():
                return await call
            with client_span(span_name.format()) as span:
                span.set_attribute("code.function.name", function_name(work))
                return await call
        except BaseException as error:
            error_type = _error_type(error)
            raise
        finally:
            pool.in_progress -= 1
            metrics.DB_OPERATIONS.record(
                time.perf_counter() - start_time, self._service, span_name.pattern, error_type
            )

    def _observe_connections(self) -> Mapping[tuple[str, ...], int]:
        numbers: dict[tuple[str, ...], int] = {}
        for pool in (self._work_pool, self._read_pool):
            used = min(pool.in_progress, pool.connections)
            numbers[pool.name, "used"] = used
            numbers[pool.name, "idle"] = pool.connections - used
        return numbers

    def _observe_pending(self) -> Mapping[tuple[str, ...], int]:
        return {
            (pool.name,): max(pool.in_progress - pool.connections, 0)
            for pool in (self._work_pool, self._read_pool)
        }
