"""`POST /v1/traces`: receives spans by OTLP over HTTP, in protobuf, for MonitoringService."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any

import grpc
from aiohttp import web
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp

from tallystick.monitoring.v1 import monitoring_service_pb2, trace_pb2
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.errors import HttpError, error_response
from tallystick_server.http.request import Request
from tallystick_server.http.routing import Handler, Route
from tallystick_server.http.transcoder import read_metadata, require_loopback
from tallystick_server.rpc.grpc_status import status_of
from tallystick_server.rpc.message_limits import MAX_ITEMS

PATH = "/v1/traces"
_CONTENT_TYPE = "application/x-protobuf"
_TIMEOUT_SECONDS = 10.0
_MAX_SPANS = 10_000  # of a request; OpenTelemetry sends 512
_MAX_GROUPS = 1_000  # by resource, and by instrumentation scope
_SERVICE_NAME = "service.name"

_KINDS = {
    otlp.Span.SPAN_KIND_INTERNAL: trace_pb2.SPAN_KIND_INTERNAL,
    otlp.Span.SPAN_KIND_SERVER: trace_pb2.SPAN_KIND_SERVER,
    otlp.Span.SPAN_KIND_CLIENT: trace_pb2.SPAN_KIND_CLIENT,
    otlp.Span.SPAN_KIND_PRODUCER: trace_pb2.SPAN_KIND_PRODUCER,
    otlp.Span.SPAN_KIND_CONSUMER: trace_pb2.SPAN_KIND_CONSUMER,
}
RecordSpans = Callable[..., Awaitable[monitoring_service_pb2.BatchRecordSpansResponse]]


def trace_route(
    record: RecordSpans, attribute_names: Collection[str], *, authenticates: bool
) -> Route:
    """The route. `record`: BatchRecordSpans, which decides who may call it. `attribute_names`: of
    the attributes that are forwarded. If the platform does not authenticate callers, only requests
    to and from a loopback host are accepted.
    """

    async def receive(request: Request) -> web.StreamResponse:
        if authenticates and "Authorization" not in request.http.headers:
            raise HttpError(
                ApiError(
                    ErrorReason.CREDENTIALS_MISSING,
                    "The header Authorization is required: Bearer and the token of a caller with "
                    "the role service.",
                )
            )
        try:
            metadata = read_metadata(request.http.headers)
            # without spans it only checks the caller, before the body is read
            await record(
                monitoring_service_pb2.BatchRecordSpansRequest(),
                timeout=_TIMEOUT_SECONDS,
                metadata=metadata,
            )
            spans = list(_read_spans(await _read_export(request), attribute_names))
        except ApiError as error:
            raise HttpError(error) from None
        except grpc.aio.AioRpcError as error:
            return error_response(status_of(error))
        dropped_count, invalid_count, first_error = 0, 0, ""
        try:
            for start in range(0, len(spans), MAX_ITEMS):
                message = monitoring_service_pb2.BatchRecordSpansRequest(
                    spans=spans[start : start + MAX_ITEMS]
                )
                response = await record(message, timeout=_TIMEOUT_SECONDS, metadata=metadata)
                dropped_count += response.dropped_count
                invalid_count += response.invalid_count
                first_error = first_error or response.first_error
        except grpc.aio.AioRpcError as error:
            return error_response(status_of(error))
        invalid_text = f"Invalid spans: {invalid_count}. The first error: {first_error}"
        if invalid_count and invalid_count == len(spans):
            raise HttpError(ApiError(ErrorReason.FIELD_INVALID, invalid_text, field="spans"))
        answer = trace_service_pb2.ExportTraceServiceResponse()
        if dropped_count or invalid_count:
            answer.partial_success.rejected_spans = dropped_count + invalid_count
            answer.partial_success.error_message = " ".join(
                ["A trace has too many spans."] * bool(dropped_count)
                + [invalid_text] * bool(invalid_count)
            )
        return web.Response(body=answer.SerializeToString(), content_type=_CONTENT_TYPE)

    handler: Handler = receive
    return Route("POST", PATH, handler if authenticates else require_loopback(handler))


async def _read_export(request: Request) -> trace_service_pb2.ExportTraceServiceRequest:
    """Raises HttpError, MESSAGE_MALFORMED, TOO_MANY_ITEMS."""
    body = await request.read_body()
    if request.http.content_type != _CONTENT_TYPE:
        raise HttpError(
            ApiError(
                ErrorReason.MESSAGE_MALFORMED,
                "The body must be OTLP in protobuf: send the header Content-Type: "
                f"{_CONTENT_TYPE}.",
            ),
            415,
        )
    try:
        export = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
    except DecodeError:
        raise ApiError(
            ErrorReason.MESSAGE_MALFORMED, "The body must be an ExportTraceServiceRequest."
        ) from None
    request.release_body()
    _require_few(len(export.resource_spans), _MAX_GROUPS, "resource_spans")
    scope_count = sum(len(item.scope_spans) for item in export.resource_spans)
    _require_few(scope_count, _MAX_GROUPS, "scope_spans")
    count = sum(len(scope.spans) for item in export.resource_spans for scope in item.scope_spans)
    _require_few(count, _MAX_SPANS, "spans")
    return export


def _require_few(count: int, maximum: int, name: str) -> None:
    if count > maximum:
        raise ApiError(
            ErrorReason.TOO_MANY_ITEMS, f"The body must have at most {maximum} {name}.", field=name
        )


def _read_spans(
    export: trace_service_pb2.ExportTraceServiceRequest, attribute_names: Collection[str]
) -> Iterator[trace_pb2.Span]:
    for item in export.resource_spans:
        service_name = _texts(item.resource.attributes, (_SERVICE_NAME,)).get(_SERVICE_NAME, "")
        for scope in item.scope_spans:
            for span in scope.spans:
                yield _to_message(span, service_name, attribute_names)


def _to_message(
    span: otlp.Span, service_name: str, attribute_names: Collection[str]
) -> trace_pb2.Span:
    nanoseconds = max(span.end_time_unix_nano - span.start_time_unix_nano, 0)
    message = trace_pb2.Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        name=span.name,
        kind=_KINDS.get(span.kind, trace_pb2.SPAN_KIND_UNSPECIFIED),
        service_name=service_name,
        failed=span.status.code == otlp.Status.STATUS_CODE_ERROR,
        attributes=_texts(span.attributes, attribute_names),
    )
    message.start_time.seconds, message.start_time.nanos = divmod(span.start_time_unix_nano, 10**9)
    message.duration.seconds, message.duration.nanos = divmod(nanoseconds, 10**9)
    return message


def _texts(attributes: Any, names: Collection[str]) -> dict[str, str]:
    """The attributes of these names that are texts, whole numbers or booleans, as texts. Others may
    hold personal data, and stay here.
    """
    texts = {}
    for attribute in attributes:
        if attribute.key not in names:
            continue
        value: common_pb2.AnyValue = attribute.value
        match value.WhichOneof("value"):
            case "string_value":
                texts[attribute.key] = value.string_value
            case "int_value":
                texts[attribute.key] = str(value.int_value)
            case "bool_value":
                texts[attribute.key] = str(value.bool_value).lower()
    return texts
