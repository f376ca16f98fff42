"""What a call that is refused raises: one class for each gRPC status, made from ErrorInfo. A
payment that failed is no error, but data.
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
    """A field that has to be mended: its path in the request, and what would be right."""

    field: str
    description: str


class TallystickError(Exception):
    """A call was refused, or did not get through.

    `reason`: the name of a `tallystick.error.v1.Reason`, or "" where the call did not reach the
    platform. `retry_after`: seconds after which the same request may come back, or None.
    `trace_id`: what to give to whoever looks into it, or "".
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
        """The same with another message, and another reason where one is given."""
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
        """Whether the same request may come back: the platform said when, or could not be
        reached.
        """
        return self.retry_after is not None or isinstance(self, UnavailableError)


class InvalidArgumentError(TallystickError):
    """The request is not one that can be carried out; `field_violations` say what to mend."""


class UnauthenticatedError(TallystickError):
    """The credentials are missing or not known."""


class PermissionDeniedError(TallystickError):
    """The caller may not call this method."""


class NotFoundError(TallystickError):
    """There is no such resource, or it belongs to another caller."""


class AlreadyExistsError(TallystickError):
    """The id was used before, with other values or by another caller."""


class AbortedError(TallystickError):
    """The call lost against another one; the same request may come back."""


class FailedPreconditionError(TallystickError):
    """The resource's state does not allow this."""


class ResourceExhaustedError(TallystickError):
    """Too many calls, or too large a message."""


class UnavailableError(TallystickError):
    """The platform, or a part of it, cannot be reached now."""


class DeadlineExceededError(TallystickError):
    """The outcome is not known, since the time, or the tries, were up before: come back with the
    same id.
    """


class UnimplementedError(TallystickError):
    """The method is not built, or not known."""


class InternalError(TallystickError):
    """A fault of the platform's; the same id is safe."""


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
    # by what lies between, or a server that ends: to whoever called it is a lost answer
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.INTERNAL: InternalError,
}


def client_closed_error() -> TallystickError:
    """The exception for a call by a client that was closed."""
    return TallystickError("the client is closed")


def client_closed_in_flight_error() -> TallystickError:
    """The exception for a call that was in flight when its client was closed."""
    return TallystickError(
        "the client is closed; this call was in flight, so its outcome is not known"
    )


def wrong_event_loop_error() -> TallystickError:
    """The exception for a call in another event loop than the client's."""
    return TallystickError(
        "this client is used in another event loop already; make an AsyncClient for each event loop"
    )


def closed_in_wrong_event_loop_error() -> TallystickError:
    """The exception for closing a client in another event loop than its own."""
    return TallystickError("this client is used in another event loop; close it there")


def unreadable_response_error() -> TallystickError:
    """The exception for an answer whose bytes are no message of the contract."""
    return InternalError("the answer cannot be read")


def from_rpc(error: grpc.RpcError) -> TallystickError:
    """The exception for what a stub raised."""
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
    """The exception for a `google.rpc.Status`, such as the error of an item of a batch."""
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
