"""Traces with an error or a slow call are kept, and a part of the others; memory is bounded."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from tallystick_server.observability import metrics
from tallystick_server.observability.tail_sampling import (
    UNDECIDED,
    RecordingSampler,
    TailSampler,
    TailSettings,
)

SECOND = 10**9


class _Sink(SpanProcessor):
    def __init__(self) -> None:
        self.names: list[str] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.names.append(span.name)


class _Ids(IdGenerator):
    """Trace ids and span ids, counted from 1."""

    def __init__(self, trace_ids: Sequence[int]) -> None:
        self._trace_ids = iter(trace_ids)
        self._span_id = 0

    def generate_trace_id(self) -> int:
        return next(self._trace_ids)

    def generate_span_id(self) -> int:
        self._span_id += 1
        return self._span_id


class _Process:
    """The tracing of a process."""

    def __init__(
        self, ratio: float = 0.0, trace_ids: Sequence[int] = range(1, 10_000), **limits: float
    ) -> None:
        self.sink = _Sink()
        self.sampler = TailSampler(
            [self.sink],
            TailSettings(ratio, slow_seconds=1.0),
            **limits,  # type: ignore[arg-type]
        )
        provider = TracerProvider(sampler=RecordingSampler(), id_generator=_Ids(trace_ids))
        provider.add_span_processor(self.sampler)
        self._tracer = provider.get_tracer("test")

    def start(
        self,
        name: str,
        parent: Span | SpanContext | None = None,
        kind: SpanKind = SpanKind.SERVER,
    ) -> Span:
        if isinstance(parent, SpanContext):
            parent = NonRecordingSpan(parent)
        context = None if parent is None else trace.set_span_in_context(parent)
        return self._tracer.start_span(name, context, kind, start_time=SECOND)


def end(span: Span, seconds: float = 0.0, *, failed: bool = False) -> None:
    if failed:
        span.set_status(Status(StatusCode.ERROR, "INTERNAL"))
    span.end(SECOND + int(seconds * SECOND))


def remote(*, sampled: bool, state: TraceState | None = None) -> SpanContext:
    """The context of a caller."""
    return SpanContext(
        7, 8, is_remote=True, trace_flags=TraceFlags(int(sampled)), trace_state=state
    )


@pytest.mark.parametrize(("failed", "seconds"), [(True, 0.0), (False, 1.0)])
def test_all_spans_of_a_failed_or_slow_trace_are_kept(failed: bool, seconds: float) -> None:
    """Also those that ended before, and those that began afterwards."""
    process = _Process()
    root = process.start("root")
    end(process.start("first", root, SpanKind.INTERNAL))
    end(process.start("bad", root), seconds, failed=failed)
    assert process.sink.names == []
    end(root)
    assert process.sink.names == ["first", "bad", "root"]
    end(process.start("late", root, SpanKind.INTERNAL))
    assert process.sink.names == ["first", "bad", "root", "late"]


def test_other_traces_are_dropped() -> None:
    """With a ratio of 0. An internal span that is slow is no slow call, and neither is a stream."""
    process = _Process()
    root = process.start("tallystick.payment.v1.PaymentService/WatchPayment")
    end(process.start("work", root, SpanKind.INTERNAL), 50)
    end(process.start("call", root, SpanKind.CLIENT), 0.999)
    end(root, 50)
    assert process.sink.names == []


def test_the_ratio_follows_from_the_trace_id() -> None:
    """So that all processes keep the same traces."""
    low, high = 2**62, 2**63 + 2**62
    for _ in range(2):
        process = _Process(0.5, [low, high, 2**64 + low, 2**64 + high])
        for name in "abcd":
            end(process.start(name))
        assert process.sink.names == ["a", "c"]
    process = _Process(1.0, [2**128 - 1])
    end(process.start("all"))
    assert process.sink.names == ["all"]


def test_a_trace_that_the_caller_records_is_kept() -> None:
    """A caller outside the platform has decided; another service of the platform has not. What the
    caller does not record is kept if it fails.
    """
    process = _Process()
    end(process.start("recorded", remote(sampled=True)))
    assert process.sink.names == ["recorded"]
    process = _Process()
    end(process.start("undecided", remote(sampled=True, state=UNDECIDED)))
    end(process.start("unrecorded", remote(sampled=False)))
    assert process.sink.names == []
    end(process.start("unrecorded", remote(sampled=False)), failed=True)
    assert process.sink.names == ["unrecorded"]


def test_the_next_service_learns_whether_the_caller_has_decided() -> None:
    """The trace state marks a trace that is undecided, and only that."""
    process = _Process()
    for parent, expected in (
        (None, UNDECIDED),
        (remote(sampled=False), UNDECIDED),
        (remote(sampled=True, state=UNDECIDED), UNDECIDED),
        (remote(sampled=True), TraceState()),
    ):
        root = process.start("root", parent)
        child = process.start("child", root, SpanKind.CLIENT)
        assert child.get_span_context().trace_state == expected


def test_a_flood_of_traces_is_bounded() -> None:
    """Traces that do not end are decided, the oldest first, with what they have."""
    process = _Process(max_traces=10)
    roots = [process.start(f"root-{number}") for number in range(100)]
    assert len(process.sampler._open) == 10
    failed = process.start("failed", roots[95])
    end(failed, failed=True)
    for root in roots:
        end(root)
    assert process.sink.names == ["failed", "root-95"]
    assert not process.sampler._open
    assert process.sampler._held_count == 0


def test_a_flood_of_spans_is_bounded() -> None:
    """Of one trace, and of all together. Those that a kept trace lacks are counted."""
    lost_before = metrics.SPANS_LOST.observe().get(("too_many",), 0)
    process = _Process(1.0, max_spans=5, max_held=8)
    root = process.start("root")
    for number in range(20):
        end(process.start(f"span-{number}", root))
    assert process.sampler._held_count == 5
    other = process.start("other")
    for number in range(4):
        end(process.start(f"other-{number}", other))
    assert process.sampler._held_count <= 8
    assert process.sink.names == [f"span-{number}" for number in range(5)]
    end(other)
    end(root)
    assert process.sink.names[-1] == "root"
    assert process.sampler._held_count == 0
    assert metrics.SPANS_LOST.observe()["too_many",] - lost_before == 15


def test_an_old_trace_is_decided_before_its_end() -> None:
    process = _Process(max_seconds=0)
    root = process.start("root")
    end(process.start("failed", root), failed=True)
    assert process.sink.names == ["failed"]
    end(root)
    assert process.sink.names == ["failed", "root"]


def test_open_traces_are_decided_at_the_stop() -> None:
    process = _Process(1.0)
    root = process.start("root")
    end(process.start("child", root))
    process.sampler.shutdown()
    assert process.sink.names == ["child"]
