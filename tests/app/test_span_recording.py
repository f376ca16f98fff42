"""A process stores its traces at MonitoringService: those that failed, and a part of the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from threading import Event
from typing import Any

import psycopg
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from tallystick import Client, InternalError, InvalidArgumentError
from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.span_recording import SpanRecorder
from tallystick_server.observability import metrics
from tallystick_server.observability.span_export import ExportQueue, SpanExporter
from tallystick_server.observability.tracing import finished_spans
from tallystick_server.rpc.authentication import NoAuthentication
from tallystick_server.rpc.call import Call
from tallystick_server.rpc.server import RpcServer
from tallystick_server.rpc.service_client import ServiceClient
from tests.support.payments import create_payment
from tests.support.platform import eventually, free_address
from tests.support.processes import environment_of, expect_startup_error, running_process
from tests.support.rpc import UniformHandlers, serve_rpc

_CREATE_PAYMENT = "tallystick.payment.v1.PaymentService/CreatePayment"
_GET_PAYMENT = "tallystick.payment.v1.PaymentService/GetPayment"
_RECORD_SPANS = "tallystick.monitoring.v1.MonitoringService/BatchRecordSpans"


def traces(client: Client, **filters: Any) -> list[Any]:
    request = pb.ListTracesRequest(page_size=200, **filters)
    return list(client.monitoring.ListTraces(request).traces)


def process_environment(databases: DatabaseUrls, address: str, ratio: str) -> dict[str, str]:
    return {
        **environment_of(databases),
        "TALLYSTICK_SERVER__LISTEN": address,
        "TALLYSTICK_TRACING__STORE_SPANS": "true",
        "TALLYSTICK_TRACING__TAIL_SAMPLING": "true",
        "TALLYSTICK_TRACING__SLOW_THRESHOLD": "60",
        "TALLYSTICK_TRACING__RATIO": ratio,
    }


def test_only_failed_traces_are_stored(scratch_database: DatabaseUrls) -> None:
    """With a ratio of 0. A caller's invalid input is no failure, and the call that stores spans has
    no trace of its own.
    """
    address = free_address()
    environment = process_environment(scratch_database, address, "0")
    with running_process(["serve", "all"], environment, address), Client(address) as client:
        payment = create_payment(client, "5.00")
        with pytest.raises(InvalidArgumentError):
            create_payment(client, "-1")
        with psycopg.connect(scratch_database.admin, autocommit=True) as connection:
            connection.execute("alter table payment.checkout rename to gone")
            try:
                with pytest.raises(InternalError):
                    client.get_payment(payment.checkout_id)
            finally:
                connection.execute("alter table payment.gone rename to checkout")
        # a scan of the worker may fail meanwhile too
        (trace,) = eventually(
            lambda: [trace for trace in traces(client) if trace.name == _GET_PAYMENT]
        )
        assert trace.service_name == "tallystick-all"
        response = client.monitoring.GetTrace(pb.GetTraceRequest(trace_id=trace.trace_id))
        (span,) = [span for span in response.spans if span.name == _GET_PAYMENT]
        assert span.failed
        assert span.attributes["error.type"] == "INTERNAL"
        assert all(trace.failed for trace in traces(client))
        assert not {trace.name for trace in traces(client)} & {_CREATE_PAYMENT, _RECORD_SPANS}


def test_a_trace_of_a_payment_has_all_its_calls(scratch_database: DatabaseUrls) -> None:
    """With a ratio of 1: calls, batches, transactions and the provider, each below its parent."""
    address = free_address()
    environment = process_environment(scratch_database, address, "1")
    with running_process(["serve", "all"], environment, address), Client(address) as client:
        assert create_payment(client, "5.00").is_payment_done
        assert eventually(lambda: traces(client, name=_CREATE_PAYMENT))
        (trace,) = traces(client, name=_CREATE_PAYMENT)
        request = pb.GetTraceRequest(trace_id=trace.trace_id)
        expected = {
            _CREATE_PAYMENT,
            "payment.create",
            "sandbox send",
            "tallystick.wallet.v1.WalletService/BatchCredit",
            "tallystick.ledger.v1.LedgerService/BatchPost",
            "transaction",
        }

        def names() -> set[str]:
            return {span.name for span in client.monitoring.GetTrace(request).spans}

        assert eventually(lambda: names() >= expected)
        spans = client.monitoring.GetTrace(request).spans
        ids = {span.span_id for span in spans}
        assert [span.name for span in spans if span.parent_span_id not in ids] == [_CREATE_PAYMENT]


def new_spans(count: int) -> list[ReadableSpan]:
    """Spans that have ended."""
    provider = TracerProvider(sampler=ALWAYS_ON)
    spans = [provider.get_tracer("test").start_span("work") for _ in range(count)]
    for span in spans:
        span.end()
    return [span for span in spans if isinstance(span, ReadableSpan)]


class _Store(UniformHandlers):
    """A MonitoringService that stores all but two spans of each request, or rejects them."""

    def __init__(self) -> None:
        super().__init__(dict)
        self.rejects = False

    async def BatchRecordSpans(
        self, _request: pb.BatchRecordSpansRequest, _call: Call
    ) -> pb.BatchRecordSpansResponse:
        if self.rejects:
            raise ApiError(ErrorReason.PERMISSION_DENIED, "no")
        return pb.BatchRecordSpansResponse(dropped_count=1, invalid_count=1)


def lost_counts() -> dict[str, float]:
    return {reason: count for (reason,), count in metrics.SPANS_LOST.observe().items()}


def test_every_span_that_is_lost_is_counted() -> None:
    """What MonitoringService leaves out or does not accept, and what waits in too great numbers."""

    store = _Store()

    async def run(address: str) -> list[float]:
        service_client = ServiceClient()
        recorder = SpanRecorder(service_client, address)
        counts = []
        for rejects in (False, True):
            store.rejects = rejects
            before = lost_counts().get("not_stored", 0)
            for span in new_spans(5):
                finished_spans.on_end(span)
            await recorder.run_once()
            counts.append(lost_counts()["not_stored"] - before)
        await service_client.close()
        return counts

    with serve_rpc(RpcServer(NoAuthentication()), {"MonitoringService": store}) as (address, _):
        assert asyncio.run(run(address)) == [2, 5]
    before = lost_counts().get("too_many", 0)
    (span,) = new_spans(1)
    for _ in range(10_003):
        finished_spans.on_end(span)
    assert lost_counts()["too_many"] - before == 3
    finished_spans.take(10_000)


def test_spans_that_wait_for_a_slow_collector_in_too_great_numbers_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At most 2,048 wait, besides the batch that is being sent."""
    is_sending, may_answer = Event(), Event()
    sent: list[ReadableSpan] = []

    def export(_: OTLPSpanExporter, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        is_sending.set()
        may_answer.wait(30)
        sent.extend(spans)
        return SpanExportResult.SUCCESS

    monkeypatch.setattr(OTLPSpanExporter, "export", export)
    before = lost_counts().get("too_many", 0)
    queue = ExportQueue(SpanExporter("http://127.0.0.1:1"))
    (span,) = new_spans(1)
    for _ in range(512):
        queue.on_end(span)
    assert is_sending.wait(10)
    for _ in range(2_048 + 3):
        queue.on_end(span)
    assert lost_counts()["too_many"] - before == 3
    may_answer.set()
    queue.shutdown()  # type: ignore[no-untyped-call]
    assert len(sent) == 512 + 2_048


def test_spans_need_a_place_to_be_stored(scratch_database: DatabaseUrls) -> None:
    """A process that could never store its spans does not start, and says which setting is
    missing.
    """
    environment = {
        **environment_of(scratch_database),
        "TALLYSTICK_SERVER__LISTEN": free_address(),
        "TALLYSTICK_TRACING__STORE_SPANS": "true",
    }
    line = expect_startup_error(["serve", "event"], environment)
    assert "tracing.store_spans" in line
    assert "monitoring=127.0.0.1:7076" in line
