"""The spans of this process, recorded while tests examine them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    DEFAULT_ON,
    Sampler,
    SamplingResult,
)

from tallystick_server.observability.tracing import SeedableIdGenerator


class _SwitchedSampler(Sampler):
    """Samples while spans are recorded. A process keeps its provider, and each call of later tests
    would be recorded too.
    """

    is_on = False

    def should_sample(self, *arguments: Any, **values: Any) -> SamplingResult:
        return (DEFAULT_ON if self.is_on else ALWAYS_OFF).should_sample(*arguments, **values)

    def get_description(self) -> str:
        return "recorded by a test"


_sampler = _SwitchedSampler()
_provider = TracerProvider(sampler=_sampler, id_generator=SeedableIdGenerator())
_exporter = InMemorySpanExporter()
_provider.add_span_processor(SimpleSpanProcessor(_exporter))


@contextmanager
def record_spans() -> Iterator[InMemorySpanExporter]:
    """Records every span of this process, the server's thread included, until the block ends."""
    if trace.get_tracer_provider() is not _provider:
        trace.set_tracer_provider(_provider)
    _exporter.clear()
    _sampler.is_on = True
    try:
        yield _exporter
    finally:
        _sampler.is_on = False
