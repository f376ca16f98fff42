"""Sends the spans of this process to MonitoringService."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from tallystick.monitoring.v1 import monitoring_service_pb2, monitoring_service_pb2_grpc, trace_pb2
from tallystick_core.errors import ApiError
from tallystick_server.app.configuration import Settings
from tallystick_server.app.errors import StartupError
from tallystick_server.app.metrics_recording import SERVICE, MetricsRecorder, create_recorder
from tallystick_server.observability import metrics
from tallystick_server.observability.tracing import finished_spans
from tallystick_server.operations.periodic import Periodic
from tallystick_server.rpc.message_limits import MAX_ITEMS
from tallystick_server.rpc.service_client import ServiceCallRejected, ServiceClient

_INTERVAL_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0
_LAST_SECONDS = 1.0  # for the last requests, while the process stops
_KINDS = {
    SpanKind.INTERNAL: trace_pb2.SPAN_KIND_INTERNAL,
    SpanKind.SERVER: trace_pb2.SPAN_KIND_SERVER,
    SpanKind.CLIENT: trace_pb2.SPAN_KIND_CLIENT,
    SpanKind.PRODUCER: trace_pb2.SPAN_KIND_PRODUCER,
    SpanKind.CONSUMER: trace_pb2.SPAN_KIND_CONSUMER,
}


class SpanRecorder:
    """Sends the spans that have ended, once a second. Those of a failed request are lost. All that
    are not stored are counted.
    """

    def __init__(self, service_client: ServiceClient, address: str) -> None:
        stub = service_client.stub(monitoring_service_pb2_grpc.MonitoringServiceStub, address)
        self._method = stub.BatchRecordSpans
        self._service_client = service_client
        self._task = Periodic("spans.recording", _INTERVAL_SECONDS, self.run_once)

    def start(self) -> None:
        self._task.start()

    async def stop(self) -> None:
        """Sends the last spans. Takes a second if MonitoringService does not answer."""
        await self._task.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                await self.run_once()

    async def run_once(self) -> None:
        """Sends all spans that wait."""
        while spans := finished_spans.take(MAX_ITEMS):
            request = monitoring_service_pb2.BatchRecordSpansRequest(
                spans=[_to_message(span) for span in spans]
            )
            lost_count = len(spans)
            try:
                response = await self._service_client.call(self._send, request)
                lost_count = response.dropped_count + response.invalid_count
            except (ApiError, ServiceCallRejected):
                return
            finally:
                metrics.SPANS_LOST.add(lost_count, "not_stored")

    async def _send(
        self, request: Any, **options: Any
    ) -> monitoring_service_pb2.BatchRecordSpansResponse:
        response: monitoring_service_pb2.BatchRecordSpansResponse = await self._method(
            request, **{**options, "timeout": _TIMEOUT_SECONDS}
        )
        return response


def check_span_store(settings: Settings, addresses: Mapping[str, str]) -> None:
    """Raises StartupError if spans are to be stored, and there is no address for them."""
    if settings.tracing.store_spans and not addresses.get(SERVICE):
        raise StartupError(
            "tracing.store_spans (TALLYSTICK_TRACING__STORE_SPANS) needs the address of "
            "MonitoringService in service_addresses (TALLYSTICK_SERVICE_ADDRESSES), such as "
            "monitoring=127.0.0.1:7076."
        )


def create_recorders(
    process_name: str,
    settings: Settings,
    service_client: ServiceClient,
    addresses: Mapping[str, str],
) -> list[MetricsRecorder | SpanRecorder]:
    """What this process sends to MonitoringService."""
    recorders: list[MetricsRecorder | SpanRecorder] = []
    if settings.tracing.store_spans:
        recorders.append(SpanRecorder(service_client, addresses[SERVICE]))
    metrics_recorder = create_recorder(process_name, settings, service_client, addresses)
    return [*recorders, metrics_recorder] if metrics_recorder else recorders


def _to_message(span: ReadableSpan) -> trace_pb2.Span:
    context = span.get_span_context()
    start = span.start_time or 0
    message = trace_pb2.Span(
        trace_id=f"{context.trace_id:032x}" if context else "",
        span_id=f"{context.span_id:016x}" if context else "",
        parent_span_id=f"{span.parent.span_id:016x}" if span.parent else "",
        name=span.name,
        kind=_KINDS[span.kind],
        service_name=str(span.resource.attributes.get("service.name", "")),
        failed=span.status.status_code is StatusCode.ERROR,
        attributes={name: str(value) for name, value in (span.attributes or {}).items()},
    )
    message.start_time.FromNanoseconds(start)
    message.duration.FromNanoseconds(max((span.end_time or start) - start, 0))
    return message
