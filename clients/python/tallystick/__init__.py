"""Client of the Tallystick payment platform.

    from tallystick import Client, new_order

    with Client("127.0.0.1:7070") as client:
        payment = client.create_payment("checkout-1", [new_order("order-1", "buyer-1", "seller-1",
        "12.50", "EUR")], credit_card_info="tok_visa")

The generated stubs are available as `client.payment`, `client.ledger`, `client.wallet`,
`client.payout` and `client.event`, with deadlines, retries and typed errors. The client's own
methods cover the most common calls.
"""

from tallystick._async_client import AsyncClient
from tallystick._client import Client
from tallystick._errors import (
    AbortedError,
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    TallystickError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from tallystick._money import new_order
from tallystick._settings import ClientSettings

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "AsyncClient",
    "Client",
    "ClientSettings",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "FieldViolation",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "TallystickError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "new_order",
]
