"""Decides which traces are kept once their spans in this process have ended: those with an error or
a slow call always, and a part of the others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from time import monotonic
from typing import NamedTuple

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace import Span as RecordingSpan
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceState,
    get_current_span,
)
from opentelemetry.util.types import Attributes

from tallystick_server.observability import metrics

UNDECIDED = TraceState([("tallystick", "undecided")])
"""The trace state of a trace that the platform began, or that its caller does not record. Each
process decides for its own spans.
"""
_MAX_TRACES = 2_000
_MAX_SPANS = 1_000
_MAX_HELD = 20_000
_MAX_KEPT = 10_000
_MAX_SECONDS = 60.0
_MAX_ID = 2**64
_LONG_CALLS = ("Watch", "Stream")
"""Calls that last as long as their callers want."""


class TailSettings(NamedTuple):
    """`ratio`: the part of the traces without an error and a slow call that is kept."""

    ratio: float
    slow_seconds: float


class RecordingSampler(Sampler):
    """Records every span, so that a tail sampler can decide."""

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        parent = get_current_span(parent_context).get_span_context()
        is_decided = parent.is_valid and parent.trace_flags.sampled
        state = parent.trace_state if is_decided else UNDECIDED
        return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, state)

    def get_description(self) -> str:
        return "RecordingSampler"


@dataclass(slots=True)
class _OpenTrace:
    """A trace with spans that have not ended in this process."""

    start_time: float
    open_count: int = 0
    is_kept: bool = False
    spans: list[ReadableSpan] = field(default_factory=list)
    left_out_count: int = 0


class TailSampler(SpanProcessor):
    """Holds the spans of a trace until none of it is open in this process, and then sends all of
    them to the sinks, or none. At most 2,000 traces of 1,000 spans are held, 20,000 spans together,
    for at most a minute: above a limit the oldest trace is decided with what it has.
    """

    def __init__(
        self,
        sinks: Sequence[SpanProcessor],
        settings: TailSettings,
        *,
        max_traces: int = _MAX_TRACES,
        max_spans: int = _MAX_SPANS,
        max_held: int = _MAX_HELD,
        max_seconds: float = _MAX_SECONDS,
    ) -> None:
        self._sinks = sinks
        self._threshold = round(settings.ratio * _MAX_ID)
        self._slow_nanoseconds = settings.slow_seconds * 1e9
        self._max_traces, self._max_spans, self._max_seconds = max_traces, max_spans, max_seconds
        self._max_held, self._held_count = max_held, 0
        self._lock = Lock()
        self._open: OrderedDict[int, _OpenTrace] = OrderedDict()
        self._kept: OrderedDict[int, None] = OrderedDict()

    def on_start(self, span: RecordingSpan, parent_context: Context | None = None) -> None:
        context = span.get_span_context()
        if context is None:
            return
        now = monotonic()
        with self._lock:
            trace = self._open.get(context.trace_id)
            if trace is None:
                trace = self._open[context.trace_id] = _OpenTrace(now)
                trace.is_kept = context.trace_id in self._kept
            trace.open_count += 1
            if span.kind is SpanKind.SERVER and _is_recorded_by_caller(span.parent):
                trace.is_kept = True
            decided = self._decide_oldest(now)
        self._send(decided)

    def on_end(self, span: ReadableSpan) -> None:
        context = span.get_span_context()
        if context is None:
            return
        with self._lock:
            trace = self._open.get(context.trace_id)
            if trace is None:  # decided before its end
                trace = self._open[context.trace_id] = _OpenTrace(monotonic(), 1)
                trace.is_kept = context.trace_id in self._kept
            trace.open_count -= 1
            trace.is_kept = trace.is_kept or self._must_be_kept(span)
            if len(trace.spans) < self._max_spans:
                trace.spans.append(span)
                self._held_count += 1
            else:
                trace.left_out_count += 1
            if trace.open_count <= 0:
                decided = self._decide(context.trace_id)
            else:
                decided = self._decide_oldest(monotonic())
        self._send(decided)

    def shutdown(self) -> None:
        """Decides all traces, and shuts the sinks down."""
        with self._lock:
            decided = [span for trace_id in [*self._open] for span in self._decide(trace_id)]
        self._send(decided)
        for sink in self._sinks:
            sink.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return all(sink.force_flush(timeout_millis) for sink in self._sinks)

    def _must_be_kept(self, span: ReadableSpan) -> bool:
        if span.status.status_code is StatusCode.ERROR:
            return True
        if span.kind not in (SpanKind.SERVER, SpanKind.CLIENT):
            return False
        nanoseconds = (span.end_time or 0) - (span.start_time or 0)
        is_long = span.name.rpartition("/")[2].startswith(_LONG_CALLS)
        return nanoseconds >= self._slow_nanoseconds and not is_long

    def _decide_oldest(self, now: float) -> list[ReadableSpan]:
        """Decides the oldest trace if there are too many traces or spans, or if it is too old."""
        trace_id, trace = next(iter(self._open.items()))
        is_over = len(self._open) > self._max_traces or self._held_count > self._max_held
        is_old = now - trace.start_time > self._max_seconds
        return self._decide(trace_id) if is_old or is_over else []

    def _decide(self, trace_id: int) -> list[ReadableSpan]:
        """The spans of a trace that are kept. It is no longer held."""
        trace = self._open.pop(trace_id)
        self._held_count -= len(trace.spans)
        if not trace.is_kept and trace_id % _MAX_ID >= self._threshold:
            return []
        self._kept[trace_id] = None
        self._kept.move_to_end(trace_id)
        while len(self._kept) > _MAX_KEPT:
            self._kept.popitem(last=False)
        if trace.left_out_count:
            metrics.SPANS_LOST.add(trace.left_out_count, "too_many")
        return trace.spans

    def _send(self, spans: Sequence[ReadableSpan]) -> None:
        for span in spans:
            for sink in self._sinks:
                sink.on_end(span)


def _is_recorded_by_caller(parent: SpanContext | None) -> bool:
    """Whether a caller outside the platform has decided to record the trace."""
    return (
        parent is not None
        and parent.is_remote
        and bool(parent.trace_flags.sampled)
        and parent.trace_state != UNDECIDED
    )
