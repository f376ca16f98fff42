"""A Checkout Session: Stripe's page on which a buyer pays, and what its status means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tallystick_core.provider.outcome import (
    ChargeOutcome,
    Declined,
    FailureReason,
    Pending,
    PendingReason,
    Unknown,
)
from tallystick_server.providers.stripe.errors import decline_reason
from tallystick_server.providers.stripe.json_fields import (
    read_optional_table,
    read_optional_text,
    read_optional_url,
    read_text,
    require_kind,
)
from tallystick_server.providers.stripe.payment_intent import (
    PaymentIntent,
    parse_payment_intent,
    to_outcome,
)

STATUSES = frozenset({"open", "complete", "expired"})


@dataclass(frozen=True, slots=True)
class CheckoutSession:
    """What the platform uses of a Checkout Session."""

    id: str
    status: str
    url: str
    """Where the buyer pays; "": it is not open."""
    charge_id: str
    """The platform's id of the charge; "": it is not the platform's."""
    key: str
    """The idempotency key under which it was created."""
    intent: PaymentIntent | None
    """None: the buyer has not tried to pay yet."""


def parse_checkout_session(fields: Mapping[str, Any], *, allow_http: bool) -> CheckoutSession:
    """Reads a session whose PaymentIntent is expanded. Raises ValueError if it is none.
    `allow_http`: its page may be without TLS, as that of a server on this machine.
    """
    require_kind(fields, "checkout.session")
    status = read_text(fields, "status")
    if status not in STATUSES:
        raise ValueError("an unknown status")
    intent = fields.get("payment_intent")
    if intent is not None and not read_optional_table(fields, "payment_intent"):
        raise ValueError("payment_intent is not expanded")
    url = read_optional_url(fields, "url", allow_http=allow_http)
    if status == "open" and not url:
        raise ValueError("url is missing")
    metadata = read_optional_table(fields, "metadata")
    return CheckoutSession(
        id=read_text(fields, "id"),
        status=status,
        url=url,
        charge_id=read_optional_text(metadata, "charge_id"),
        key=read_optional_text(metadata, "key"),
        intent=parse_payment_intent(intent) if isinstance(intent, dict) else None,
    )


_ENDED = frozenset({"canceled", "requires_confirmation", "requires_payment_method"})
"""The statuses of a PaymentIntent that nobody can pay once its session has ended."""


def to_page_outcome(session: CheckoutSession) -> ChargeOutcome:
    """The outcome of a charge by a page. Declines on an open page end nothing: the buyer can try
    again. Raises ValueError if the money cannot be read.
    """
    intent = session.intent
    if intent is not None and intent.status == "succeeded":
        return _paid(intent, session)
    if session.status == "open":
        return Pending(PendingReason.BUYER_ACTION, session.id, session.url, session.charge_id)
    if intent is not None and intent.status not in _ENDED:
        # a delayed method, or a buyer who was at the bank when the page ended
        return Pending(
            PendingReason.PROVIDER_REVIEW, session.id, client_reference=session.charge_id
        )
    if session.status == "expired":
        return Declined(FailureReason.PAGE_EXPIRED, "", session.id, session.charge_id)
    if intent is None:
        return Unknown("the session is complete without a payment", reference=session.id)
    code = intent.error_code or intent.status
    return Declined(decline_reason(code), code, session.id, session.charge_id)


def _paid(intent: PaymentIntent, session: CheckoutSession) -> ChargeOutcome:
    return to_outcome(intent) or Unknown("a payment without an outcome", reference=session.id)
