"""Which received calls are recorded, and which of them count as failed."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tallystick.payment.v1 import payment_service_pb2, payment_service_pb2_grpc
from tallystick_core.access import Role
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.observability import tracing
from tallystick_server.observability.tracing import client_span
from tallystick_server.rpc.authentication import BearerTokens
from tallystick_server.rpc.errors import CODE_BY_REASON
from tallystick_server.rpc.server import RpcServer
from tests.support.callers import make_callers, token_of
from tests.support.errors import from_rpc
from tests.support.rpc import UniformHandlers, serve_rpc

_CALLERS = {"shop": ("", {Role.TEAM}), "ours": ("", {Role.SERVICE})}


@dataclass
class CallResult:
    """`trace_id`: that of the answer. `spans`: what was recorded in it."""

    reason: str
    caller_trace_id: str
    trace_id: str
    spans: list[ReadableSpan]


def call(
    exporter: InMemorySpanExporter,
    caller: str,
    respond: Callable[[], Awaitable[payment_service_pb2.GetPaymentResponse]],
    method: str = "GetPayment",
    *,
    has_trace: bool = True,
) -> CallResult:
    """Makes a call. `has_trace`: of a caller that wants its trace recorded."""
    caller_trace_id = f"{random.getrandbits(127) + 2**127:032x}"
    metadata = [("authorization", f"Bearer {token_of(caller)}")]
    if has_trace:
        parent = f"00-{caller_trace_id}-{random.getrandbits(63) + 1:016x}-01"
        metadata.append(("traceparent", parent))
    rpc_server = RpcServer(BearerTokens(make_callers(_CALLERS)))
    with (
        serve_rpc(rpc_server, {"PaymentService": UniformHandlers(respond)}) as (address, _),
        grpc.insecure_channel(address) as channel,
    ):
        stub = payment_service_pb2_grpc.PaymentServiceStub(channel)
        reason = ""
        try:
            _, answer = getattr(stub, method).with_call(
                payment_service_pb2.GetPaymentRequest(), metadata=metadata, timeout=30
            )
        except grpc.RpcError as error:
            answer, reason = error, from_rpc(error).reason
    trace_id = str(dict(answer.trailing_metadata())["tallystick-trace-id"])
    return CallResult(
        reason,
        caller_trace_id,
        trace_id,
        [
            span
            for span in exporter.get_finished_spans()
            if span.context is not None and f"{span.context.trace_id:032x}" == trace_id
        ],
    )


async def succeed() -> payment_service_pb2.GetPaymentResponse:
    return payment_service_pb2.GetPaymentResponse()


async def fail() -> payment_service_pb2.GetPaymentResponse:
    raise ValueError("the card 4242 of Ada")


def test_only_an_authenticated_caller_has_its_trace_recorded(
    span_exporter: InMemorySpanExporter,
) -> None:
    """A flood of wrong tokens records nothing, whatever it asks for. Its answers have the trace id
    of their caller all the same.
    """
    answered = call(span_exporter, "shop", succeed)
    assert [span.name for span in answered.spans] == [
        "tallystick.payment.v1.PaymentService/GetPayment"
    ]
    rejected = call(span_exporter, "nobody", succeed)
    assert rejected.reason == "CREDENTIALS_INVALID"
    assert rejected.spans == []
    assert rejected.trace_id == rejected.caller_trace_id


def test_a_wrong_token_is_not_recorded_where_all_traces_are(
    span_exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that exports spans, a call without a trace of its own begins one."""
    monkeypatch.setattr(tracing, "_is_exporting", True)
    assert call(span_exporter, "shop", succeed, has_trace=False).spans
    assert call(span_exporter, "nobody", succeed, has_trace=False).spans == []


@pytest.mark.parametrize("reason", list(ErrorReason))
def test_only_faults_of_the_platform_are_failed_spans(
    span_exporter: InMemorySpanExporter, reason: ErrorReason
) -> None:
    """What a caller can cause at will is no failure: it would displace traces of real ones. Of the
    statuses that a client may not have caused, the conditions of load and drain are none either.
    """

    async def reject() -> payment_service_pb2.GetPaymentResponse:
        with client_span("transaction"):
            raise ApiError(reason, "the card 4242 of Ada")

    result = call(span_exporter, "shop", reject)
    assert result.reason == reason
    is_fault = CODE_BY_REASON[reason].name in ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED")
    is_fault = is_fault and reason not in ("OVERLOADED", "SHUTTING_DOWN", "STREAM_EXPIRED")
    status = StatusCode.ERROR if is_fault else StatusCode.UNSET
    assert [span.status.status_code for span in result.spans] == [status, status]
    assert {(span.attributes or {})["error.type"] for span in result.spans} == {str(reason)}


def test_a_call_that_a_role_may_not_make_is_not_failed(span_exporter: InMemorySpanExporter) -> None:
    result = call(span_exporter, "ours", succeed, "ListUnappliedCharges")
    assert result.reason == "PERMISSION_DENIED"
    assert [span.status.status_code for span in result.spans] == [StatusCode.UNSET]


def test_a_span_has_no_text_of_an_error(span_exporter: InMemorySpanExporter) -> None:
    """An exception may show a row or a name: spans have its type or its reason only."""

    async def fail_within() -> payment_service_pb2.GetPaymentResponse:
        with client_span("transaction"):
            return await fail()

    result = call(span_exporter, "shop", fail_within)
    assert result.reason == "INTERNAL"
    inner, outer = result.spans
    for span, error_type in ((inner, "ValueError"), (outer, "INTERNAL")):
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, error_type)
        assert (span.attributes or {})["error.type"] == error_type
        assert "Ada" not in span.to_json()
        assert not span.events
