"""Errors as HTTP responses: the same `google.rpc.Status` as over gRPC, in JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping

from aiohttp import web
from google.protobuf.json_format import MessageToJson
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.responses import json_response
from tallystick_server.rpc.errors import CODE_BY_REASON, to_status

HTTP_STATUS_BY_CODE: Mapping[int, int] = {
    code_pb2.CANCELLED: 499,
    code_pb2.UNKNOWN: 500,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.DEADLINE_EXCEEDED: 504,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.ABORTED: 409,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.INTERNAL: 500,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DATA_LOSS: 500,
    code_pb2.UNAUTHENTICATED: 401,
}
"""By `google.rpc.Code`, as google/rpc/code.proto says."""
HTTP_STATUS_BY_REASON: Mapping[str, int] = {
    ErrorReason.KEY_IN_USE: 429,
    ErrorReason.OVERLOADED: 429,
    ErrorReason.MESSAGE_TOO_LARGE: 413,
}
"""Reasons whose HTTP status is not that of their code."""
OWN_HTTP_STATUSES: Mapping[int, ErrorReason] = {
    405: ErrorReason.METHOD_UNKNOWN,
    408: ErrorReason.DEADLINE_EXCEEDED,
    415: ErrorReason.MESSAGE_MALFORMED,
}
"""The statuses that only the HTTP server itself sends, and their reasons."""
RETRY_AFTER = "Retry-After"


class HttpError(Exception):
    """A request that the HTTP server rejects by itself. `status`: if not that of the reason."""

    def __init__(
        self, error: ApiError, status: int = 0, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.status = status
        self.headers = headers or {}


def error_response(
    status: status_pb2.Status, http_status: int = 0, headers: Mapping[str, str] | None = None
) -> web.Response:
    """The response for an error of a service. `http_status`: 0 is that of the error."""
    reason, retry_after = "", None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
            reason = info.reason
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    http_status = http_status or HTTP_STATUS_BY_REASON.get(
        reason, HTTP_STATUS_BY_CODE.get(status.code, 500)
    )
    all_headers = dict(headers or {})
    if retry_after is not None:
        all_headers[RETRY_AFTER] = str(max(1, math.ceil(retry_after)))
    if http_status == 401:
        all_headers["WWW-Authenticate"] = "Bearer"
    return json_response(status_json(status).encode(), http_status, all_headers)


def status_json(status: status_pb2.Status) -> str:
    """The JSON of a status, in one line, with the field names of the protos."""
    return MessageToJson(
        status,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        indent=None,
    )


def http_status_of(reason: ErrorReason) -> int:
    """The HTTP status of a reason."""
    code: int = CODE_BY_REASON[reason].value[0]
    return HTTP_STATUS_BY_REASON.get(reason, HTTP_STATUS_BY_CODE[code])


def reasons_by_http_status() -> dict[int, list[str]]:
    """The reasons that each HTTP status can have, by status in ascending order."""
    reasons: dict[int, list[str]] = {}
    for reason in CODE_BY_REASON:
        reasons.setdefault(http_status_of(reason), []).append(reason)
    for status, reason in OWN_HTTP_STATUSES.items():
        reasons.setdefault(status, []).append(reason)
    return dict(sorted(reasons.items()))


def rejection(error: HttpError) -> web.Response:
    """The response for a request that the HTTP server rejects by itself."""
    return error_response(to_status(error.error), error.status, error.headers)
