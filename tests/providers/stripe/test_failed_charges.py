"""Charges of Stripe that fail or are cancelled: how their PaymentIntents end."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick_core.provider.outcome import (
    Declined,
    FailureReason,
    Pending,
    PendingReason,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.providers.stripe.errors import NoAnswer, NotConnected
from tests.providers.stripe.scripted_stripe import ScriptedTransport, error
from tests.providers.stripe.test_charges import (
    CANCEL,
    CREATE,
    DECLINE,
    DECLINED,
    READ,
    REQUEST,
    WITH_REFERENCE,
    canceled,
    card_error,
    intent,
    run,
)


def test_a_decline_counts_only_once_its_payment_intent_has_ended() -> None:
    """The buyer could still pay a declined PaymentIntent. It is canceled, under a key of its own;
    the code is that of the bank.
    """
    transport = ScriptedTransport()
    transport.script(CREATE, card_error())
    transport.script(CANCEL, canceled(last_payment_error=DECLINE, cancellation_reason="abandoned"))
    assert run(transport, "send") == DECLINED
    _, cancellation = transport.requests
    assert cancellation.key == "dev-o-po1-1-abandoned-requires_payment_method"
    assert cancellation.values["cancellation_reason"] == "abandoned"


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (NoAnswer("reset"), RetryReason.NO_ANSWER),
        (NotConnected("no server"), RetryReason.NO_ANSWER),
        (error(500, "api_error"), RetryReason.SERVER_ERROR),
        (error(429, "api_error", "rate_limit"), RetryReason.THROTTLED),
        (error(401, "api_error"), RetryReason.UNAUTHORIZED),
    ],
)
def test_a_decline_whose_end_is_not_answered_is_unknown(failure: Any, reason: RetryReason) -> None:
    """It carries the reference, so that the next lookup ends it."""
    transport = ScriptedTransport()
    transport.script(CREATE, card_error())
    transport.script(CANCEL, failure)
    outcome = run(transport, "send")
    assert isinstance(outcome, Unknown)
    assert (outcome.reference, outcome.retry_reason) == ("pi_1", reason)
    transport.script(READ, intent("requires_payment_method", last_payment_error=DECLINE))
    transport.script(CANCEL, canceled(last_payment_error=DECLINE, cancellation_reason="abandoned"))
    assert run(transport, "look_up", WITH_REFERENCE) == DECLINED


def test_a_decline_that_was_paid_meanwhile_is_a_success() -> None:
    """A cancellation that comes too late is rejected; the PaymentIntent is read again."""
    transport = ScriptedTransport()
    transport.script(CREATE, card_error())
    transport.script(CANCEL, error(400, "invalid_request_error", "payment_intent_unexpected_state"))
    transport.script(READ, intent("succeeded"))
    assert run(transport, "send") == Succeeded("pi_1", 1234, "EUR")


def test_a_decline_without_its_payment_intent_is_unknown() -> None:
    """Something may be open that cannot be ended."""
    transport = ScriptedTransport()
    transport.script(CREATE, error(402, "card_error", "card_declined"))
    assert isinstance(run(transport, "send"), Unknown)


@pytest.mark.parametrize(
    ("call", "request_"),
    [("send", REQUEST), ("send", WITH_REFERENCE), ("look_up", WITH_REFERENCE)],
)
@pytest.mark.parametrize("status", ["requires_confirmation", "requires_payment_method"])
def test_a_charge_that_has_not_failed_is_not_ended(
    status: str, call: str, request_: ChargeRequest
) -> None:
    """A PaymentIntent without a failed payment may be the one that a request is confirming right
    now, so neither a lookup nor a repeat cancels it; only `cancel` does.
    """
    transport = ScriptedTransport()
    transport.script(CREATE, intent(status))
    transport.script(READ, intent(status))
    outcome = run(transport, call, request_)
    assert isinstance(outcome, Unknown)
    assert outcome.reference == "pi_1"
    assert not transport.sent(r".*/cancel")
    transport.script(CANCEL, canceled(cancellation_reason="requested_by_customer"))
    outcome = run(transport, "cancel", WITH_REFERENCE)
    assert isinstance(outcome, Declined)
    assert outcome.reason is FailureReason.CALLER_CANCELLED


def test_a_rejected_creation_ends_what_it_has_created() -> None:
    """No request confirms it any more: this one was to, and Stripe definitely rejects it."""
    transport = ScriptedTransport()
    created = intent("requires_confirmation")
    rejection = "payment_method_unactivated"
    transport.script(CREATE, error(400, "invalid_request_error", rejection, payment_intent=created))
    transport.script(CANCEL, canceled(cancellation_reason="abandoned"))
    assert run(transport, "send") == Declined(
        FailureReason.PROVIDER_DECLINED, "abandoned", "pi_1", "o-po1"
    )


def test_a_failure_without_a_code_has_its_type() -> None:
    """A payment that has failed for a reason without a code is ended as well."""
    failure = {"type": "api_error"}
    transport = ScriptedTransport()
    transport.script(READ, intent("requires_payment_method", last_payment_error=failure))
    transport.script(CANCEL, canceled(last_payment_error=failure, cancellation_reason="abandoned"))
    outcome = run(transport, "look_up", WITH_REFERENCE)
    assert outcome == Declined(FailureReason.PROVIDER_DECLINED, "api_error", "pi_1", "o-po1")


def test_a_cancellation_ends_what_is_pending_and_reports_what_has_ended() -> None:
    """A pending charge is canceled for the caller, a failed one keeps the reason of its failure,
    and one that has succeeded is not touched.
    """
    transport = ScriptedTransport()
    transport.script(
        READ,
        intent("requires_action"),
        intent("requires_payment_method", last_payment_error=DECLINE),
        intent("succeeded"),
    )
    transport.script(
        CANCEL,
        canceled(cancellation_reason="requested_by_customer"),
        canceled(last_payment_error=DECLINE, cancellation_reason="abandoned"),
    )
    outcome = run(transport, "cancel", WITH_REFERENCE)
    assert isinstance(outcome, Declined)
    assert outcome.reason is FailureReason.CALLER_CANCELLED
    assert run(transport, "cancel", WITH_REFERENCE) == DECLINED
    assert run(transport, "cancel", WITH_REFERENCE) == Succeeded("pi_1", 1234, "EUR")
    assert [request.key for request in transport.sent("POST .*")] == [
        "dev-o-po1-1-requested_by_customer-requires_action",
        "dev-o-po1-1-abandoned-requires_payment_method",
    ]


def test_a_charge_in_progress_cannot_be_cancelled_yet() -> None:
    """Stripe rejects the cancellation of a payment that its bank decides; it stays pending."""
    transport = ScriptedTransport()
    transport.script(READ, intent("processing"))
    transport.script(CANCEL, error(400, "invalid_request_error", "payment_intent_unexpected_state"))
    assert run(transport, "cancel", WITH_REFERENCE) == Pending(
        PendingReason.PROVIDER_REVIEW, "pi_1"
    )
