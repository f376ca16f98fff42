"""The status of a call that failed, also where gRPC has no details of it."""

from __future__ import annotations

import grpc
from google.rpc import status_pb2

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.rpc.errors import to_status

_DETAILS = "grpc-status-details-bin"


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    """The status of a failed call. A failure of the transport says nothing of addresses."""
    raw = dict(error.trailing_metadata() or ()).get(_DETAILS)
    if isinstance(raw, bytes):
        return status_pb2.Status.FromString(raw)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return to_status(
            ApiError(
                ErrorReason.DEADLINE_EXCEEDED,
                "The deadline passed before the result was known; retry with the same id.",
            )
        )
    return to_status(
        ApiError(
            ErrorReason.DEPENDENCY_UNAVAILABLE,
            "The service does not answer; retry with the same id.",
            retry_after=1.0,
        )
    )
