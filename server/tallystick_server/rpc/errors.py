"""Errors as gRPC statuses; the only module that maps reasons to status codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from tallystick_core.errors import ApiError, ErrorReason

Context = grpc.aio.ServicerContext[Any, Any]
"""gRPC's context of a call."""
DOMAIN = "tallystick"

_REASONS_BY_CODE: dict[grpc.StatusCode, tuple[ErrorReason, ...]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (
        ErrorReason.FIELD_REQUIRED,
        ErrorReason.FIELD_INVALID,
        ErrorReason.AMOUNT_INVALID,
        ErrorReason.AMOUNT_PRECISION,
        ErrorReason.AMOUNT_OUT_OF_RANGE,
        ErrorReason.CURRENCY_UNKNOWN,
        ErrorReason.TOO_MANY_ITEMS,
        ErrorReason.DUPLICATE_ITEM,
        ErrorReason.SAME_ACCOUNT,
        ErrorReason.CARD_NUMBER_REJECTED,
        ErrorReason.ENTRIES_UNBALANCED,
        ErrorReason.PAGE_TOKEN_INVALID,
        ErrorReason.MESSAGE_MALFORMED,
        ErrorReason.MESSAGE_TOO_LARGE,
    ),
    grpc.StatusCode.UNAUTHENTICATED: (
        ErrorReason.CREDENTIALS_MISSING,
        ErrorReason.CREDENTIALS_INVALID,
    ),
    grpc.StatusCode.PERMISSION_DENIED: (
        ErrorReason.PERMISSION_DENIED,
        ErrorReason.SECOND_APPROVER_REQUIRED,
    ),
    grpc.StatusCode.NOT_FOUND: (ErrorReason.NOT_FOUND,),
    grpc.StatusCode.ALREADY_EXISTS: (
        ErrorReason.IDEMPOTENCY_KEY_REUSED,
        ErrorReason.ALREADY_EXISTS,
    ),
    grpc.StatusCode.ABORTED: (
        ErrorReason.KEY_IN_USE,
        ErrorReason.CONFLICT,
        ErrorReason.VERSION_MISMATCH,
    ),
    grpc.StatusCode.FAILED_PRECONDITION: (
        ErrorReason.INVALID_STATE,
        ErrorReason.HOLD_ENDED,
        ErrorReason.ALREADY_REVERSED,
        ErrorReason.INSUFFICIENT_FUNDS,
        ErrorReason.HOLD_EXCEEDED,
        ErrorReason.BALANCE_OUT_OF_RANGE,
        ErrorReason.DESTINATION_UNUSABLE,
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (ErrorReason.RATE_LIMITED,),
    grpc.StatusCode.UNAVAILABLE: (
        ErrorReason.OVERLOADED,
        ErrorReason.SHUTTING_DOWN,
        ErrorReason.DEPENDENCY_UNAVAILABLE,
        ErrorReason.PROVIDER_UNAVAILABLE,
        ErrorReason.STREAM_EXPIRED,
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (ErrorReason.DEADLINE_EXCEEDED, ErrorReason.QUERY_TOO_SLOW),
    grpc.StatusCode.OUT_OF_RANGE: (ErrorReason.CURSOR_EXPIRED,),
    grpc.StatusCode.UNIMPLEMENTED: (ErrorReason.METHOD_NOT_IMPLEMENTED, ErrorReason.METHOD_UNKNOWN),
    grpc.StatusCode.INTERNAL: (ErrorReason.INTERNAL,),
}
CODE_BY_REASON: dict[ErrorReason, grpc.StatusCode] = {
    reason: code for code, reasons in _REASONS_BY_CODE.items() for reason in reasons
}


def to_status(error: ApiError) -> status_pb2.Status:
    """The status of an error: ErrorInfo, BadRequest with the field, and RetryInfo if the same
    request may be retried.
    """
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    ]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message, reason=error.reason
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed_details = []
    for detail in details:
        packed_detail = AnyMessage()
        packed_detail.Pack(detail)
        packed_details.append(packed_detail)
    code = CODE_BY_REASON[error.reason].value[0]
    return status_pb2.Status(code=code, message=error.message, details=packed_details)


def stream_expired_error() -> ApiError:
    return ApiError(
        ErrorReason.STREAM_EXPIRED,
        "The stream has reached its time limit; reopen it after the last message.",
        retry_after=0.1,
    )


def shutting_down_error() -> ApiError:
    return ApiError(
        ErrorReason.SHUTTING_DOWN, "The process is shutting down; retry.", retry_after=0.5
    )


async def abort_with_error(
    context: Context, error: ApiError, trailing: Sequence[tuple[str, str]] = ()
) -> NoReturn:
    """Aborts the call of this context with an error."""
    await context.abort(
        CODE_BY_REASON[error.reason],
        error.message,
        (("grpc-status-details-bin", to_status(error).SerializeToString()), *trailing),
    )
    raise AssertionError("unreachable: abort raises")


def from_status(status: status_pb2.Status) -> ApiError:
    """The error of a batch item, from another service's status."""
    error_info, bad_request, retry_info = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    for detail in status.details:
        for message in (error_info, bad_request, retry_info):
            detail.Unpack(message)  # only if the detail has that type
    if error_info.domain != DOMAIN or error_info.reason not in ErrorReason.__members__:
        return ApiError(ErrorReason.INTERNAL, status.message)
    field = bad_request.field_violations[0].field if bad_request.field_violations else ""
    retry_after = (
        retry_info.retry_delay.ToTimedelta().total_seconds()
        if retry_info.HasField("retry_delay")
        else None
    )
    return ApiError(
        ErrorReason(error_info.reason),
        status.message,
        field=field,
        metadata=dict(error_info.metadata),
        retry_after=retry_after,
    )
