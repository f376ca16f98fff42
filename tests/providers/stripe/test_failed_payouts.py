"""Payouts of Stripe that fail after they were created, or after they were paid."""

from __future__ import annotations

import pytest

from tallystick_core.provider.outcome import (
    Declined,
    PayoutFailure,
    ProviderOutcome,
    Returned,
    Unknown,
)
from tests.providers.stripe.scripted_stripe import Answer, ScriptedTransport, error
from tests.providers.stripe.test_payouts import (
    EVENTS,
    LIST_PAYOUTS,
    PAYOUT,
    READ_TRANSFER,
    REVERSAL,
    REVERSE,
    look_up,
    new_transport,
    page,
    paid_event,
    payout,
    submit,
    transfer,
)


@pytest.mark.parametrize(
    ("was_paid", "code", "expected"),
    [
        (
            False,
            "could_not_process",
            Declined(PayoutFailure.PROVIDER_DECLINED, "could_not_process", "tr_1"),
        ),
        (
            False,
            "account_closed",
            Declined(PayoutFailure.DESTINATION_REJECTED, "account_closed", "tr_1"),
        ),
        (True, "could_not_process", Returned("tr_1", 900, "EUR", "could_not_process")),
        (True, "account_closed", Returned("tr_1", 900, "EUR", "account_closed", True)),
        (
            False,
            "invalid_account_number",
            Declined(PayoutFailure.DESTINATION_REJECTED, "invalid_account_number", "tr_1"),
        ),
        (True, "account_frozen", Returned("tr_1", 900, "EUR", "account_frozen", True)),
    ],
)
def test_a_failed_payout_is_declined_or_returned(
    was_paid: bool,
    code: str,
    expected: ProviderOutcome,
) -> None:
    """A payout may fail days after it was paid, which Stripe's events tell; its transfer is
    reversed first, and each later lookup says the same.
    """
    transport = ScriptedTransport()
    transport.script(READ_TRANSFER, transfer())
    transport.script(LIST_PAYOUTS, page(payout("failed", failure_code=code)))
    events = page(paid_event("po_1")) if was_paid else page()
    transport.script(EVENTS, page(paid_event("po_0"), has_more=True), events)
    transport.script(REVERSE, REVERSAL)
    assert look_up(transport) == expected
    (reversal,) = transport.sent(REVERSE)
    assert transport.requests[-1] is reversal
    assert transport.sent(EVENTS)[0].headers["Stripe-Account"] == "acct_1"
    recorded = {
        name.removeprefix("metadata[").rstrip("]"): value
        for name, value in reversal.values.items()
        if name.startswith("metadata[")
    }
    reversals = page(REVERSAL | {"metadata": recorded})
    transport.script(READ_TRANSFER, transfer(reversed=True, reversals=reversals))
    assert look_up(transport) == expected
    assert len(transport.sent(REVERSE)) == 1


def test_a_failed_payout_whose_events_are_not_answered_is_unknown() -> None:
    """Whether it was paid decides what is booked, so it is not guessed."""
    transport = ScriptedTransport()
    transport.script(READ_TRANSFER, transfer())
    transport.script(LIST_PAYOUTS, page(payout("failed")))
    transport.script(EVENTS, error(500, "api_error"))
    outcome = look_up(transport)
    assert isinstance(outcome, Unknown)
    assert outcome.reference == "tr_1"
    assert not transport.sent(REVERSE)


def test_a_failed_payout_whose_events_are_forgotten_is_unknown() -> None:
    """Stripe lists an event for 30 days. Later none proves nothing, while one still counts."""
    transport = ScriptedTransport()
    late = {"Date": "Fri, 26 Jun 2026 21:00:00 GMT"}
    transport.script(READ_TRANSFER, Answer(body=transfer(), headers=late))
    transport.script(LIST_PAYOUTS, page(payout("failed")))
    transport.script(EVENTS, page(), page(paid_event("po_1")))
    transport.script(REVERSE, REVERSAL)
    outcome = look_up(transport)
    assert isinstance(outcome, Unknown)
    assert outcome.reference == "tr_1"
    assert not transport.sent(REVERSE)
    assert look_up(transport) == Returned("tr_1", 900, "EUR", "failed")


def test_a_canceled_payout_is_declined() -> None:
    """It was canceled at Stripe before it was sent."""
    transport = new_transport()
    transport.script(PAYOUT, payout("canceled"))
    transport.script(REVERSE, REVERSAL)
    assert submit(transport) == Declined(PayoutFailure.PROVIDER_DECLINED, "canceled", "tr_1")


def test_a_rejected_reversal_is_made_once_the_money_is_there() -> None:
    """Stripe replays a rejection for its key, and rejects the key with another outcome. So each
    request has a key of its own; Stripe reverses no more than the amount of the transfer.
    """
    transport = ScriptedTransport()
    transport.script(READ_TRANSFER, transfer())
    transport.script(LIST_PAYOUTS, page(payout("canceled")), page(payout("failed")))
    transport.script(EVENTS, page(paid_event("po_1")))
    transport.script(REVERSE, error(400, "invalid_request_error", "balance_insufficient"), REVERSAL)
    assert isinstance(look_up(transport), Unknown)
    assert look_up(transport) == Returned("tr_1", 900, "EUR", "failed")
    first, second = transport.sent(REVERSE)
    assert first.key != second.key
    assert first.values["amount"] == second.values["amount"] == "900"
