"""Refusals as gRPC tells them: the one place that knows which reason has which status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from tallystick_core.refusal import Reason, Refused

DOMAIN = "tallystick"

_CODES: dict[grpc.StatusCode, tuple[Reason, ...]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (
        Reason.FIELD_REQUIRED,
        Reason.FIELD_INVALID,
        Reason.AMOUNT_INVALID,
        Reason.AMOUNT_PRECISION,
        Reason.AMOUNT_OUT_OF_RANGE,
        Reason.CURRENCY_UNKNOWN,
        Reason.TOO_MANY_ITEMS,
        Reason.DUPLICATE_ITEM,
        Reason.SAME_ACCOUNT,
        Reason.CARD_NUMBER_REFUSED,
        Reason.ENTRIES_UNBALANCED,
        Reason.PAGE_TOKEN_INVALID,
        Reason.MESSAGE_MALFORMED,
        Reason.MESSAGE_TOO_LARGE,
    ),
    grpc.StatusCode.UNAUTHENTICATED: (Reason.CREDENTIALS_MISSING, Reason.CREDENTIALS_INVALID),
    grpc.StatusCode.PERMISSION_DENIED: (Reason.METHOD_FORBIDDEN, Reason.SECOND_PERSON_REQUIRED),
    grpc.StatusCode.NOT_FOUND: (Reason.NOT_FOUND,),
    grpc.StatusCode.ALREADY_EXISTS: (Reason.KEY_REUSED, Reason.ID_TAKEN),
    grpc.StatusCode.ABORTED: (Reason.KEY_IN_USE, Reason.CONFLICT, Reason.VERSION_MISMATCH),
    grpc.StatusCode.FAILED_PRECONDITION: (
        Reason.STATE_FORBIDS,
        Reason.HOLD_ENDED,
        Reason.ALREADY_REVERSED,
        Reason.INSUFFICIENT_FUNDS,
        Reason.HOLD_EXCEEDED,
        Reason.BALANCE_OUT_OF_RANGE,
        Reason.DESTINATION_UNUSABLE,
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (Reason.RATE_LIMITED,),
    grpc.StatusCode.UNAVAILABLE: (
        Reason.OVERLOADED,
        Reason.SHUTTING_DOWN,
        Reason.DEPENDENCY_UNAVAILABLE,
        Reason.PROVIDER_UNAVAILABLE,
        Reason.STREAM_EXPIRED,
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (Reason.DEADLINE_EXCEEDED, Reason.QUERY_TOO_SLOW),
    grpc.StatusCode.UNIMPLEMENTED: (Reason.METHOD_NOT_BUILT, Reason.METHOD_UNKNOWN),
    grpc.StatusCode.INTERNAL: (Reason.INTERNAL,),
}
CODE: dict[Reason, grpc.StatusCode] = {reason: code for code, reasons in _CODES.items() for reason in reasons}


def to_status(refused: Refused) -> status_pb2.Status:
    """A refusal with ErrorInfo, the field in BadRequest, and RetryInfo where the same request may come back."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=refused.reason, domain=DOMAIN, metadata=refused.metadata)]
    if refused.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=refused.field, description=refused.message, reason=refused.reason)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if refused.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(int(refused.retry_after * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        one = AnyMessage()
        one.Pack(detail)
        packed.append(one)
    code = CODE[refused.reason].value[0]
    return status_pb2.Status(code=code, message=refused.message, details=packed)


async def refuse(context: Any, refused: Refused, trailing: Sequence[tuple[str, str]] = ()) -> NoReturn:
    """Ends a call, by its context, with a refusal."""
    await context.abort(CODE[refused.reason], refused.message, (("grpc-status-details-bin", to_status(refused).SerializeToString()), *trailing))
    raise AssertionError("unreachable: abort raises")


def from_status(status: status_pb2.Status) -> Refused:
    """The refusal of an item of a batch, as another service gave it."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        for message in (info, bad, retry):
            detail.Unpack(message)  # only what is of its type
    if info.domain != DOMAIN or info.reason not in Reason.__members__:
        return Refused(Reason.INTERNAL, status.message)
    field = bad.field_violations[0].field if bad.field_violations else ""
    retry_after = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    return Refused(Reason(info.reason), status.message, field=field, metadata=dict(info.metadata), retry_after=retry_after)
