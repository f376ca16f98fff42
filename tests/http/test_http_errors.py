"""The HTTP status and the headers of an error."""

from __future__ import annotations

import pytest

from tallystick_core.errors import ApiError, ErrorReason
from tallystick_server.http.errors import HttpError, rejection


@pytest.mark.parametrize(
    ("reason", "retry_after", "status", "headers"),
    [
        (ErrorReason.KEY_IN_USE, 0.2, 429, {"Retry-After": "1"}),
        (ErrorReason.RATE_LIMITED, 3.0, 429, {"Retry-After": "3"}),
        (ErrorReason.OVERLOADED, 2.1, 429, {"Retry-After": "3"}),
        (ErrorReason.DEPENDENCY_UNAVAILABLE, 1.0, 503, {"Retry-After": "1"}),
        (ErrorReason.CONFLICT, None, 409, {}),
        (ErrorReason.MESSAGE_TOO_LARGE, None, 413, {}),
        (ErrorReason.CREDENTIALS_MISSING, None, 401, {"WWW-Authenticate": "Bearer"}),
        (ErrorReason.INVALID_STATE, None, 400, {}),
    ],
)
def test_each_reason_has_a_status(
    reason: ErrorReason, retry_after: float | None, status: int, headers: dict[str, str]
) -> None:
    """Seconds until a retry are rounded up, to at least one."""
    response = rejection(HttpError(ApiError(reason, "text", retry_after=retry_after)))
    assert response.status == status
    assert {
        name: value
        for name, value in response.headers.items()
        if name in ("Retry-After", "WWW-Authenticate")
    } == headers
