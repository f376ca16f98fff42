"""Refunds of Stripe, as one call."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tallystick_core.provider.outcome import (
    Declined,
    FailureReason,
    NotSent,
    Pending,
    PendingReason,
    RefundOutcome,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import RefundRequest
from tallystick_server.providers.stripe.charges import StripeCharges
from tallystick_server.providers.stripe.errors import NotConnected
from tests.providers.stripe.scripted_stripe import TERMS, ScriptedTransport, api_of, error


def refund(status: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": "re_1",
        "object": "refund",
        "status": status,
        "amount": 500,
        "currency": "eur",
        "metadata": {"refund_id": "r1"},
        **changes,
    }


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (refund("succeeded"), Succeeded("re_1", 500, "EUR")),
        (refund("pending"), Pending(PendingReason.PROVIDER_REVIEW, "re_1")),
        (refund("requires_action"), Pending(PendingReason.PROVIDER_REVIEW, "re_1")),
        (
            refund("failed", failure_reason="lost_or_stolen_card"),
            Declined(FailureReason.PROVIDER_DECLINED, "lost_or_stolen_card", "re_1"),
        ),
        (
            error(400, "invalid_request_error", "charge_already_refunded"),
            Declined(FailureReason.PROVIDER_REJECTED, "charge_already_refunded"),
        ),
        (refund("lost"), Unknown),
        (error(400, "invalid_request_error", "parameter_missing"), Unknown),
        (error(500, "api_error"), Unknown),
        (NotConnected("no server"), NotSent),
    ],
)
def test_a_refund_has_its_outcome(answer: Any, expected: RefundOutcome | type) -> None:
    """Under its own key; a refund may be pending, and fail later."""
    transport = ScriptedTransport()
    transport.script("POST /v1/refunds", answer)
    request = RefundRequest("dev-r-r1-1", "r1", "pi_1", 500, "EUR")

    async def work() -> RefundOutcome:
        return await StripeCharges(TERMS, api_of(transport)).refund(request)

    outcome = asyncio.run(work())
    assert isinstance(outcome, expected) if isinstance(expected, type) else outcome == expected
    (sent,) = transport.requests
    assert sent.key == "dev-r-r1-1"
    assert sent.values == {
        "payment_intent": "pi_1",
        "amount": "500",
        "metadata[refund_id]": "r1",
        "metadata[key]": "dev-r-r1-1",
    }


def test_a_refund_that_stripe_cannot_write_is_unknown() -> None:
    """An earlier release may have sent it."""
    transport = ScriptedTransport()
    request = RefundRequest("dev-r-r1-1", "r1", "pi_1", 500, "XXX")
    outcome = asyncio.run(StripeCharges(TERMS, api_of(transport)).refund(request))
    assert isinstance(outcome, Unknown)
    assert outcome.retry_reason is RetryReason.REJECTED
    assert not transport.requests
