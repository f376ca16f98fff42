"""Sends spans to a collector by OTLP over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from tallystick_server.observability import metrics
from tallystick_server.observability.redaction import redact_errors


class SpanExporter(OTLPSpanExporter):
    """Counts the spans that the collector does not accept."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint`: the base URL of the collector."""
        super().__init__(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(redact_errors)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = super().export(spans)
        if result is not SpanExportResult.SUCCESS:
            metrics.SPANS_LOST.add(len(spans), "not_exported")
        return result
