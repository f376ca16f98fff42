"""`POST /v1/traces` receives OTLP over HTTP, from loopback or with a token."""

from __future__ import annotations

import gzip
import secrets
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Status, StatusCode

from tallystick.monitoring.v1 import monitoring_service_pb2
from tallystick_core.access import Role
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.http.trace_receiver import trace_route
from tests.support.callers import settings_with_callers, token_of
from tests.support.http import serve_routes
from tests.support.json_calls import reason_of
from tests.support.platform import ServedPlatform, serve_platform

_CONTENT_TYPE = {"Content-Type": "application/x-protobuf"}
_NAMES = (*service_names(), HTTP_SERVER)


@pytest.fixture(scope="module")
def http(database: DatabaseUrls) -> Iterator[ServedPlatform]:
    with serve_platform(database, Settings(), _NAMES) as platform:
        yield platform


def new_export(*span_ids: int) -> ExportTraceServiceRequest:
    """A request with spans of one trace."""
    export = ExportTraceServiceRequest()
    scope = export.resource_spans.add().scope_spans.add()
    for span_id in span_ids:
        scope.spans.add(
            trace_id=(0xABC).to_bytes(16, "big"),
            span_id=span_id.to_bytes(8, "big"),
            name="x",
            start_time_unix_nano=10**18,
            end_time_unix_nano=10**18 + 1,
        )
    return export


def post(http: ServedPlatform, body: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{http.url}/v1/traces", content=body, headers={**_CONTENT_TYPE, **headers})


def test_spans_of_opentelemetry_are_returned_by_trace(http: ServedPlatform) -> None:
    """What the exporter of OpenTelemetry sends is the trace: parents, kinds, duration, failure and
    attributes.
    """
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(
        SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{http.url}/v1/traces"))
    )
    tracer = provider.get_tracer("test")
    attributes: dict[str, int | str] = {"batch.size": 3, "enduser.id": "ada"}
    with (
        tracer.start_as_current_span("checkout") as root,
        tracer.start_as_current_span("query", attributes=attributes) as child,
    ):
        child.set_status(Status(StatusCode.ERROR, "ada@mail.example"))
    provider.shutdown()
    trace_id = f"{root.get_span_context().trace_id:032x}"
    response = httpx.get(f"{http.url}/v1/traces/{trace_id}").json()
    assert response["trace"]["name"] == "checkout"
    assert response["trace"]["service_name"] == "shop"
    assert response["trace"]["failed"]
    first, second = response["spans"]
    assert (first["name"], first["parent_span_id"], first["failed"]) == ("checkout", "", False)
    assert (second["name"], second["parent_span_id"]) == ("query", first["span_id"])
    assert (second["kind"], second["failed"]) == ("SPAN_KIND_INTERNAL", True)
    assert second["attributes"] == {"batch.size": "3"}
    assert "ada" not in str(response)
    listed = httpx.get(f"{http.url}/v1/traces", params={"name": "checkout"}).json()
    assert [trace["trace_id"] for trace in listed["traces"]] == [trace_id]


@pytest.mark.parametrize(
    "name",
    [
        "GET /cards/4242424242424242",
        "GET /cards/4242-4242-4242-4242",
        "charge card4242424242424242",
        "GET /users/ada@mail.example",
        "GET /users/ada%40mail.example",
        "GET /accounts/GB33BUKB20201555555555",
        "SMS to 4915112345678",
        "GET /users/Zoë",
    ],
)
def test_personal_data_in_a_name_is_not_stored(http: ServedPlatform, name: str) -> None:
    """Programs put the path of a request into the name of a span: one with a number of a card, an
    account or a telephone, or an e-mail address, is stored without it.
    """
    trace_id = secrets.token_hex(16)
    export = new_export(1)
    export.resource_spans[0].resource.attributes.add(key="service.name").value.string_value = name
    span = export.resource_spans[0].scope_spans[0].spans[0]
    span.trace_id, span.name = bytes.fromhex(trace_id), name
    span.attributes.add(key="http.route").value.string_value = name
    assert post(http, export.SerializeToString()).status_code == 200
    response = httpx.get(f"{http.url}/v1/traces/{trace_id}").json()
    (stored,) = response["spans"]
    assert stored["name"] == stored["service_name"] == "_OTHER"
    assert stored["attributes"] == {"http.route": "_OTHER"}
    assert response["trace"]["name"] == response["trace"]["service_name"] == "_OTHER"


def test_only_attributes_that_are_stored_are_forwarded() -> None:
    """Others stay in the HTTP server: they may hold personal data."""
    export = new_export(1)
    (resource_spans,) = export.resource_spans
    resource_spans.resource.attributes.add(key="host.name").value.string_value = "ada-laptop"
    span = resource_spans.scope_spans[0].spans[0]
    span.attributes.add(key="enduser.id").value.string_value = "ada"
    span.attributes.add(key="http.request.method").value.string_value = "GET"
    forwarded: list[monitoring_service_pb2.BatchRecordSpansRequest] = []

    async def record(
        request: monitoring_service_pb2.BatchRecordSpansRequest, **_: object
    ) -> monitoring_service_pb2.BatchRecordSpansResponse:
        forwarded.append(request)
        return monitoring_service_pb2.BatchRecordSpansResponse()

    with serve_routes(
        lambda: [trace_route(record, {"http.request.method"}, authenticates=False)]
    ) as url:
        response = httpx.post(
            f"{url}/v1/traces", content=export.SerializeToString(), headers=_CONTENT_TYPE
        )
    assert response.status_code == 200
    (message,) = [span for request in forwarded for span in request.spans]
    assert dict(message.attributes) == {"http.request.method": "GET"}
    assert "ada" not in str(message)


def test_a_request_is_answered_in_protobuf(http: ServedPlatform) -> None:
    """An export without spans too, and a repeat has no effect."""
    for export in (new_export(), new_export(1, 2), new_export(1, 2)):
        response = post(http, export.SerializeToString())
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "application/x-protobuf"
        answer = ExportTraceServiceResponse.FromString(response.content)
        assert answer.partial_success.rejected_spans == 0
    spans = httpx.get(f"{http.url}/v1/traces/{0xABC:032x}").json()["spans"]
    assert len(spans) == 2


def test_valid_spans_are_stored_although_others_are_invalid(http: ServedPlatform) -> None:
    """OTLP's partial success says how many were rejected, and why. Without any valid span the
    request is rejected: its sender does something wrong.
    """
    trace_id = secrets.token_hex(16)
    export = new_export(*range(1, 1_003))
    spans = export.resource_spans[0].scope_spans[0].spans
    for span in spans:
        span.trace_id = bytes.fromhex(trace_id)
    spans[0].span_id, spans[1_001].trace_id = b"short", b""
    response = post(http, export.SerializeToString())
    assert response.status_code == 200
    success = ExportTraceServiceResponse.FromString(response.content).partial_success
    assert success.rejected_spans == 2
    assert success.error_message == (
        "Invalid spans: 2. The first error: span_id must be 16 hexadecimal digits in lower case."
    )
    stored = httpx.get(f"{http.url}/v1/traces/{trace_id}").json()["spans"]
    assert len(stored) == 1_000
    del spans[1:1_001]
    rejected = post(http, export.SerializeToString())
    assert (rejected.status_code, reason_of(rejected)) == (400, "FIELD_INVALID")
    assert "span_id must be 16 hexadecimal digits" in rejected.text


def test_a_bad_request_is_rejected(http: ServedPlatform) -> None:
    """Other content, compression, and requests and spans that are too large or too many."""
    body = new_export(1).SerializeToString()
    too_many = post(http, new_export(*[0] * 10_001).SerializeToString())
    cases = (
        (post(http, b"\xff"), 400, "MESSAGE_MALFORMED"),
        (post(http, body, **{"Content-Type": "application/json"}), 415, "MESSAGE_MALFORMED"),
        (post(http, gzip.compress(body), **{"Content-Encoding": "gzip"}), 415, "MESSAGE_MALFORMED"),
        (post(http, b"\0" * (1024 * 1024 + 1)), 413, "MESSAGE_TOO_LARGE"),
        (too_many, 400, "TOO_MANY_ITEMS"),
        (post(http, new_export(0).SerializeToString()[:-1]), 400, "MESSAGE_MALFORMED"),
        (post(http, body, Host="tallystick.example"), 403, "PERMISSION_DENIED"),
        (post(http, body, Origin="https://other.example"), 403, "PERMISSION_DENIED"),
    )
    for response, status, reason in cases:
        assert (response.status_code, reason_of(response)) == (status, reason)


def test_spans_need_a_token(database: DatabaseUrls) -> None:
    """With authentication, only a caller with the role service sends spans, and only operators and
    auditors read them.
    """
    settings = settings_with_callers(
        {"service": ("ours", {Role.SERVICE}), "team": ("ours", {Role.TEAM})}
    )
    body = new_export(7).SerializeToString()
    with serve_platform(database, settings, _NAMES) as http:
        assert reason_of(post(http, body)) == "CREDENTIALS_MISSING"
        for name, reason in (("nobody", "CREDENTIALS_INVALID"), ("team", "PERMISSION_DENIED")):
            token = f"Bearer {token_of(name)}"
            assert reason_of(post(http, body, Authorization=token)) == reason
        token = f"Bearer {token_of('service')}"
        assert post(http, body, Authorization=token).status_code == 200
        response = httpx.get(f"{http.url}/v1/traces", headers={"Authorization": token})
        assert reason_of(response) == "PERMISSION_DENIED"


def test_many_groups_without_spans_are_rejected(http: ServedPlatform) -> None:
    """A megabyte of empty groups is not worked through."""
    for body, name in (
        (b"\x0a\x00" * 200_000, "resource_spans"),
        (b"\x0a\xd0\x0f" + b"\x12\x00" * 1_000, ""),
        (b"\x0a\xd2\x0f" + b"\x12\x00" * 1_001, "scope_spans"),
    ):
        response = post(http, body)
        assert (response.status_code == 200) == (name == "")
        if name:
            assert reason_of(response) == "TOO_MANY_ITEMS"
            assert name in response.text


def test_the_caller_is_checked_before_the_body(database: DatabaseUrls) -> None:
    """A caller whose token is unknown learns only that, whatever the body is."""
    settings = settings_with_callers({"collector": ("", {Role.SERVICE})})
    with serve_platform(database, settings, _NAMES) as http:
        response = post(http, b"no protobuf", Authorization="Bearer " + "x" * 20)
        assert reason_of(response) == "CREDENTIALS_INVALID"
        response = post(http, b"no protobuf", Authorization=f"Bearer {token_of('collector')}")
        assert reason_of(response) == "MESSAGE_MALFORMED"
