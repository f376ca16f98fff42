"""Exceptions of rejected calls: one class for each gRPC status, with the data of ErrorInfo. A
failed payment is data, not an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS = "grpc-status-details-bin"
_TRACE_ID = "tallystick-trace-id"
_DOMAIN = "tallystick"


@dataclass(frozen=True)
class FieldViolation:
    """An invalid field: its path in the request, and a description of valid values."""

    field: str
    description: str


class TallystickError(Exception):
    """A call was rejected, or did not reach the platform.

    `reason`: the name of a `tallystick.error.v1.Reason`, or "" if the call did not reach the
    platform. `retry_after`: seconds after which the same request may be retried, or None.
    `trace_id`: identifies the call for support, or "".
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field_violations: Sequence[FieldViolation] = (),
        metadata: dict[str, str] | None = None,
        retry_after: float | None = None,
        trace_id: str = "",
    ) -> None:
        super().__init__(f"{reason}: {message}" if reason else message)
        self.message = message
        self.reason = reason
        self.field_violations = tuple(field_violations)
        self.metadata = metadata or {}
        self.retry_after = retry_after
        self.trace_id = trace_id

    def with_message(self, message: str, reason: str = "") -> TallystickError:
        """Returns a copy with another message, and with another reason if one is given."""
        return type(self)(
            message,
            reason=reason or self.reason,
            field_violations=self.field_violations,
            metadata=dict(self.metadata),
            retry_after=self.retry_after,
            trace_id=self.trace_id,
        )

    @property
    def may_retry(self) -> bool:
        """Whether the same request may be retried: the platform gave a delay, or could not be
        reached.
        """
        return self.retry_after is not None or isinstance(self, UnavailableError)


class InvalidArgumentError(TallystickError):
    """The request is invalid; `field_violations` describe what to fix."""


class UnauthenticatedError(TallystickError):
    """The credentials are missing or invalid."""


class PermissionDeniedError(TallystickError):
    """The caller may not call this method."""


class NotFoundError(TallystickError):
    """The resource does not exist, or it belongs to another owner."""


class AlreadyExistsError(TallystickError):
    """The id was used before with other values, or it belongs to another owner."""


class AbortedError(TallystickError):
    """The call conflicted with another one. Unless its reason is VERSION_MISMATCH, the same request
    may be retried.
    """


class FailedPreconditionError(TallystickError):
    """The resource's state does not allow this."""


class ResourceExhaustedError(TallystickError):
    """Too many calls, or too large a message."""


class UnavailableError(TallystickError):
    """The platform or one of its dependencies is unavailable."""


class DeadlineExceededError(TallystickError):
    """The deadline passed, or the tries were exhausted, before the outcome was known. Retry with
    the same id.
    """


class OutOfRangeError(TallystickError):
    """Events after the cursor were deleted at the end of their retention."""


class UnimplementedError(TallystickError):
    """The method is not implemented, or does not exist."""


class InternalError(TallystickError):
    """An internal error of the platform. Retrying with the same id is safe."""


_CLASSES: dict[grpc.StatusCode, type[TallystickError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    # sent by a proxy or a stopping server; for the caller it is a lost response
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRangeError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.INTERNAL: InternalError,
}


def client_closed_error() -> TallystickError:
    """The exception for a call of a closed client."""
    return TallystickError("the client is closed")


def client_closed_in_flight_error() -> TallystickError:
    """The exception for a call that was in flight when its client was closed."""
    return TallystickError(
        "the client is closed; this call was in flight, so its outcome is not known"
    )


def wrong_event_loop_error() -> TallystickError:
    """The exception for a call outside the client's event loop."""
    return TallystickError(
        "the client is used in another event loop; create an AsyncClient for each event loop"
    )


def closed_in_wrong_event_loop_error() -> TallystickError:
    """The exception for closing a client outside its event loop."""
    return TallystickError("the client is used in another event loop; close it there")


def unreadable_response_error() -> TallystickError:
    """The exception for a response that cannot be parsed."""
    return InternalError("the response cannot be parsed")


def from_rpc(error: grpc.RpcError) -> TallystickError:
    """Converts the error of a stub to a TallystickError."""
    pairs: Any = error.trailing_metadata() or ()
    trailing: dict[str, Any] = dict(pairs)
    raw = trailing.get(_DETAILS)
    status = (
        status_pb2.Status.FromString(raw)
        if isinstance(raw, bytes)
        else status_pb2.Status(message=error.details() or "")
    )
    return from_status(
        status, _CLASSES.get(error.code(), TallystickError), str(trailing.get(_TRACE_ID, ""))
    )


def from_status(
    status: status_pb2.Status, kind: type[TallystickError] = TallystickError, trace_id: str = ""
) -> TallystickError:
    """Converts a `google.rpc.Status`, such as the error of a batch item, to a TallystickError."""
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    request = error_details_pb2.BadRequest()
    retry_after = None
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(request.DESCRIPTOR):
            detail.Unpack(request)
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return kind(
        status.message,
        reason=info.reason if info.domain == _DOMAIN else "",
        field_violations=[FieldViolation(v.field, v.description) for v in request.field_violations],
        metadata=dict(info.metadata),
        retry_after=retry_after,
        trace_id=trace_id,
    )
