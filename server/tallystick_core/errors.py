"""The closed list of error reasons, and the exception that carries one."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from tallystick_core.card_numbers import contains_card_number


class ErrorReason(StrEnum):
    """Why a call or an item is rejected. The names are those of `tallystick.error.v1.Reason`, which
    describes each.
    """

    FIELD_REQUIRED = "FIELD_REQUIRED"
    FIELD_INVALID = "FIELD_INVALID"
    AMOUNT_INVALID = "AMOUNT_INVALID"
    AMOUNT_PRECISION = "AMOUNT_PRECISION"
    AMOUNT_OUT_OF_RANGE = "AMOUNT_OUT_OF_RANGE"
    CURRENCY_UNKNOWN = "CURRENCY_UNKNOWN"
    TOO_MANY_ITEMS = "TOO_MANY_ITEMS"
    DUPLICATE_ITEM = "DUPLICATE_ITEM"
    SAME_ACCOUNT = "SAME_ACCOUNT"
    CARD_NUMBER_REJECTED = "CARD_NUMBER_REJECTED"
    ENTRIES_UNBALANCED = "ENTRIES_UNBALANCED"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"
    MESSAGE_MALFORMED = "MESSAGE_MALFORMED"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    CREDENTIALS_MISSING = "CREDENTIALS_MISSING"
    CREDENTIALS_INVALID = "CREDENTIALS_INVALID"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    SECOND_APPROVER_REQUIRED = "SECOND_APPROVER_REQUIRED"
    NOT_FOUND = "NOT_FOUND"
    IDEMPOTENCY_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    KEY_IN_USE = "KEY_IN_USE"
    CONFLICT = "CONFLICT"
    VERSION_MISMATCH = "VERSION_MISMATCH"
    INVALID_STATE = "INVALID_STATE"
    HOLD_ENDED = "HOLD_ENDED"
    ALREADY_REVERSED = "ALREADY_REVERSED"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    HOLD_EXCEEDED = "HOLD_EXCEEDED"
    BALANCE_OUT_OF_RANGE = "BALANCE_OUT_OF_RANGE"
    DESTINATION_UNUSABLE = "DESTINATION_UNUSABLE"
    RATE_LIMITED = "RATE_LIMITED"
    OVERLOADED = "OVERLOADED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    DEPENDENCY_UNAVAILABLE = "DEPENDENCY_UNAVAILABLE"
    PROVIDER_UNAVAILABLE = "PROVIDER_UNAVAILABLE"
    STREAM_EXPIRED = "STREAM_EXPIRED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    QUERY_TOO_SLOW = "QUERY_TOO_SLOW"
    CURSOR_EXPIRED = "CURSOR_EXPIRED"
    METHOD_NOT_IMPLEMENTED = "METHOD_NOT_IMPLEMENTED"
    METHOD_UNKNOWN = "METHOD_UNKNOWN"
    INTERNAL = "INTERNAL"


FAULTS = frozenset(
    {
        ErrorReason.INTERNAL,
        ErrorReason.DEPENDENCY_UNAVAILABLE,
        ErrorReason.PROVIDER_UNAVAILABLE,
        ErrorReason.DEADLINE_EXCEEDED,
        ErrorReason.QUERY_TOO_SLOW,
    }
)
"""The reasons that are a fault of the platform, or of what it depends on. A caller can cause all
others at will, so they are no failures in a trace.
"""


class ApiError(Exception):
    """A call or an item is rejected. Carries a reason for machines, a message for humans, and the
    invalid field, if there is one.

    `retry_after` is in seconds. It is set if the same request can be retried.
    """

    def __init__(
        self,
        reason: ErrorReason,
        message: str,
        *,
        field: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after

    def with_field_prefix(self, prefix: str) -> ApiError:
        """The same error with `prefix` before its field, such as "postings[3]". A message that
        begins with the field gets the prefix too.
        """
        field = f"{prefix}.{self.field}" if self.field else prefix
        message = (
            f"{prefix}.{self.message}"
            if self.field and self.message.startswith(self.field)
            else self.message
        )
        return ApiError(
            self.reason, message, field=field, metadata=self.metadata, retry_after=self.retry_after
        )


def key_reused_error(field: str) -> ApiError:
    """The same key was used before with another value in `field`."""
    return ApiError(
        ErrorReason.IDEMPOTENCY_KEY_REUSED,
        f"This id was used before with another value in {field}.",
        field=field,
        metadata={"field": field},
    )


def overloaded_error(resource: str) -> ApiError:
    """There are too many of `resource`. The message speaks of this call only, because an earlier
    call with its id may have been stored.
    """
    message = f"Too many {resource}; this call stored nothing. Retry with the same id after 1 s."
    return ApiError(ErrorReason.OVERLOADED, message, retry_after=1.0)


def id_taken_error(field: str) -> ApiError:
    """The id in `field` belongs to another owner or caller."""
    return ApiError(
        ErrorReason.ALREADY_EXISTS,
        f"{field} is taken: another owner or caller used this id first. Choose another id.",
        field=field,
    )


def seller_taken_error(field: str) -> ApiError:
    """The seller in `field` belongs to another owner."""
    message = (
        f"{field} is taken: the seller belongs to another owner, since a seller belongs to the "
        "owner that first names it. Choose another seller_account, or have two operators assign "
        "the seller to you (RequestSellerAssignment)."
    )
    return ApiError(ErrorReason.ALREADY_EXISTS, message, field=field)


def version_mismatch_error(version: int) -> ApiError:
    """The change was meant for another version of the resource."""
    message = (
        f"expected_version must be {version}, the current version of the resource. Read the "
        "resource again before you retry."
    )
    return ApiError(
        ErrorReason.VERSION_MISMATCH,
        message,
        field="expected_version",
        metadata={"version": str(version)},
    )


def state_error(
    message: str, state: str, verb: str, metadata: Mapping[str, str] | None = None
) -> ApiError:
    """The resource is in `state`, which does not allow `verb`, such as CANCEL. `metadata` is added
    to these two.
    """
    return ApiError(
        ErrorReason.INVALID_STATE,
        message,
        metadata={"state": state, "verb": verb, **(metadata or {})},
    )


def not_found_error(resource: str, name: str, field: str = "") -> ApiError:
    """The resource does not exist for this caller. `name` is the requested name; it is hidden if it
    could be a card number.
    """
    label = "with this id" if contains_card_number(name) else name
    return ApiError(ErrorReason.NOT_FOUND, f"There is no {resource} {label}.", field=field)
