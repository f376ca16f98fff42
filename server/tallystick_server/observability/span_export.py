"""Sends spans to a collector by OTLP over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from threading import Lock

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from tallystick_server.observability import metrics
from tallystick_server.observability.redaction import redact_errors

_MAX_WAITING = 2_048


class SpanExporter(OTLPSpanExporter):
    """Counts the spans that the collector does not accept. `waiting_count`: those that wait in an
    ExportQueue, under the lock.
    """

    def __init__(self, endpoint: str) -> None:
        """`endpoint`: the base URL of the collector."""
        super().__init__(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(redact_errors)
        self.waiting_count = 0
        self.lock = Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        with self.lock:
            self.waiting_count -= len(spans)
        result = super().export(spans)
        if result is not SpanExportResult.SUCCESS:
            metrics.SPANS_LOST.add(len(spans), "not_exported")
        return result


class ExportQueue(BatchSpanProcessor):
    """The spans that have ended and wait to be exported, at most 2,048: further ones are lost, and
    counted. The queue of OpenTelemetry would drop the oldest ones uncounted.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        super().__init__(exporter, max_queue_size=_MAX_WAITING)
        self._exporter = exporter

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is None or not span.context.trace_flags.sampled:
            return
        with self._exporter.lock:
            has_capacity = self._exporter.waiting_count < _MAX_WAITING
            self._exporter.waiting_count += has_capacity
        if has_capacity:
            super().on_end(span)
        else:
            metrics.SPANS_LOST.add(1, "too_many")
