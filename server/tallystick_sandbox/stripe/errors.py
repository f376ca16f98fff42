"""Errors in Stripe's shape."""

from __future__ import annotations

from typing import Any


class StripeFailure(Exception):
    """An answer with an error object. `status`: of HTTP; `type_`, `code` and `param`: Stripe's.

    `is_kept`: the request was executed, so its idempotency key keeps this answer. An error of
    validation is not kept. `is_retryable`: the header Stripe-Should-Retry.
    """

    def __init__(
        self,
        status: int,
        type_: str,
        code: str,
        message: str,
        *,
        param: str = "",
        is_kept: bool = False,
        is_retryable: bool = False,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.is_kept = is_kept
        self.is_retryable = is_retryable
        error = {"type": type_, "code": code, "message": message, "param": param}
        self.body = {
            "error": {name: value for name, value in error.items() if value} | (details or {})
        }


def invalid(message: str, param: str = "", code: str = "") -> StripeFailure:
    """The parameters are invalid; nothing was executed."""
    return StripeFailure(400, "invalid_request_error", code, message, param=param)


def missing(kind: str, id_: str, *, param: str = "id", status: int = 404) -> StripeFailure:
    """An object does not exist. `status` is 400 if a parameter names it, 404 if the path does."""
    message = f"No such {kind}: '{id_[:100]}'"
    return StripeFailure(status, "invalid_request_error", "resource_missing", message, param=param)


def unexecutable(
    code: str, message: str, *, param: str = "", details: dict[str, Any] | None = None
) -> StripeFailure:
    """The state of an object or a balance does not allow it. `code` "": Stripe has none."""
    return StripeFailure(
        400, "invalid_request_error", code, message, param=param, is_kept=True, details=details
    )


def unknown_path(method: str, path: str) -> StripeFailure:
    message = f"Unrecognized request URL ({method}: {path[:200]})."
    return StripeFailure(404, "invalid_request_error", "", message)


def unauthorized(message: str) -> StripeFailure:
    return StripeFailure(401, "invalid_request_error", "", message)


def account_invalid(account: str) -> StripeFailure:
    """A connected account does not exist, or the key has no access to it."""
    message = (
        f"The provided key does not have access to account '{account[:100]}' (or that account does "
        "not exist). Application access may have been revoked."
    )
    return StripeFailure(403, "invalid_request_error", "account_invalid", message)


def key_in_use() -> StripeFailure:
    message = "There is currently another in-progress request using this Idempotency-Key."
    return StripeFailure(
        409, "idempotency_error", "idempotency_key_in_use", message, is_retryable=True
    )


def key_mismatch(key: str) -> StripeFailure:
    message = (
        "Keys for idempotent requests can only be used with the same parameters they were first "
        f"used with. Try using a key other than '{key}' if you meant to execute a different "
        "request."
    )
    return StripeFailure(400, "idempotency_error", "", message)


def server_error(*, is_kept: bool = False) -> StripeFailure:
    message = "An unknown error occurred."
    return StripeFailure(500, "api_error", "", message, is_kept=is_kept)


def rate_limited() -> StripeFailure:
    message = "Request rate limit exceeded."
    return StripeFailure(429, "invalid_request_error", "rate_limit", message, is_retryable=True)
