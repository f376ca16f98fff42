"""Charges of Stripe: what each status of a PaymentIntent means."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    Declined,
    FailureReason,
    FinalNotFound,
    NotFound,
    Pending,
    PendingReason,
    ProviderFee,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.providers.stripe.charges import StripeCharges
from tests.providers.stripe.scripted_stripe import (
    TERMS,
    Answer,
    ScriptedTransport,
    api_of,
    error,
)

CREATE, READ = "POST /v1/payment_intents", "GET /v1/payment_intents/pi_1"
CANCEL, SEARCH = "POST /v1/payment_intents/pi_1/cancel", "GET /v1/payment_intents/search"
REQUEST = ChargeRequest("dev-o-po1-1", "o-po1", 1234, "EUR", "pm_card_visa", "CARD")
WITH_REFERENCE = replace(REQUEST, reference="pi_1")
DECLINE = {"code": "card_declined", "decline_code": "insufficient_funds"}
DECLINED = Declined(FailureReason.INSUFFICIENT_FUNDS, "insufficient_funds", "pi_1", "o-po1")


def intent(status: str, **changes: Any) -> dict[str, Any]:
    """A PaymentIntent as Stripe answers it."""
    return {
        "id": "pi_1",
        "object": "payment_intent",
        "status": status,
        "amount_received": 1234 if status == "succeeded" else 0,
        "currency": "eur",
        "metadata": {"charge_id": "o-po1", "key": "dev-o-po1-1"},
        "last_payment_error": None,
        "cancellation_reason": None,
        "next_action": None,
        "latest_charge": None,
        **changes,
    }


def card_error(**changes: Any) -> Any:
    """A decline, whose PaymentIntent stays open."""
    declined = intent("requires_payment_method", last_payment_error=DECLINE)
    return error(402, "card_error", **DECLINE, payment_intent=declined, **changes)


def canceled(**changes: Any) -> dict[str, Any]:
    return intent("canceled", **changes)


def run(
    transport: ScriptedTransport,
    call: str,
    request: ChargeRequest = REQUEST,
    suffix: str = "",
) -> ChargeLookupOutcome:
    async def work() -> ChargeLookupOutcome:
        charges = StripeCharges(TERMS, api_of(transport), suffix)
        outcome: ChargeLookupOutcome = await getattr(charges, call)(request)
        return outcome

    return asyncio.run(work())


def test_a_charge_is_one_confirmed_payment_intent() -> None:
    """The request has the key of the attempt, the charge's id, and no redirect; the outcome has
    Stripe's money, its fee in the currency of the balance, and the charge's id.
    """
    transport = ScriptedTransport()
    balance = {"id": "txn_1", "fee": 63, "currency": "chf"}
    charge = {"id": "ch_1", "balance_transaction": balance}
    transport.script(CREATE, intent("succeeded", latest_charge=charge))
    outcome = run(transport, "send", suffix="SHOP")
    assert outcome == Succeeded("pi_1", 1234, "EUR", "o-po1")
    assert isinstance(outcome, Succeeded)
    assert (outcome.fee, outcome.client_reference) == (ProviderFee(63, "CHF"), "o-po1")
    (request,) = transport.requests
    assert request.key == "dev-o-po1-1"
    assert request.values == {
        "amount": "1234",
        "currency": "eur",
        "payment_method": "pm_card_visa",
        "confirm": "true",
        "automatic_payment_methods[enabled]": "true",
        "automatic_payment_methods[allow_redirects]": "never",
        "metadata[charge_id]": "o-po1",
        "metadata[key]": "dev-o-po1-1",
        "transfer_group": "o-po1",
        "expand[0]": "latest_charge.balance_transaction",
        "statement_descriptor_suffix": "SHOP",
    }
    assert "X-Stripe-Client-Telemetry" not in request.headers


def test_a_fee_that_is_not_known_is_not_zero() -> None:
    """Stripe books the fee later, and may show only the id of the charge."""
    for charge in (None, "ch_1", {"id": "ch_1", "balance_transaction": None}):
        transport = ScriptedTransport()
        transport.script(CREATE, intent("succeeded", latest_charge=charge))
        outcome = run(transport, "send")
        assert isinstance(outcome, Succeeded)
        assert outcome.fee is None


def test_money_that_cannot_be_read_is_unknown() -> None:
    """An amount against the rules of its currency, or an unknown currency, is no success."""
    for changes in (
        {"currency": "isk", "amount_received": 1234},
        {"currency": "xxx"},
        {"amount_received": 12.5},
        {"amount_received": True},
        {"status": "paid"},
        {"id": ""},
    ):
        transport = ScriptedTransport()
        transport.script(CREATE, intent("succeeded") | changes)
        assert isinstance(run(transport, "send"), Unknown), changes


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://b/" + "a" * 8_182, "https://b/" + "a" * 8_182),
        ("https://b/" + "a" * 8_183, ""),
        ("http://b/3ds", ""),
        ("javascript:alert(1)", ""),
        ("https://b/a b", ""),
        ("https://", ""),
        (7, ""),
    ],
)
def test_an_address_that_cannot_be_shown_leaves_the_charge_pending(
    url: object, expected: str
) -> None:
    """The address of the buyer's next step has at most 2,048 characters; another one is left out,
    which does not make the outcome unknown.
    """
    transport = ScriptedTransport()
    action = {"redirect_to_url": {"url": url}}
    transport.script(CREATE, intent("requires_action", next_action=action))
    outcome = run(transport, "send")
    assert isinstance(outcome, Pending)
    assert outcome.next_action_url == expected


@pytest.mark.parametrize(
    ("answer", "reason", "url"),
    [
        (intent("requires_action"), PendingReason.BUYER_ACTION, ""),
        (
            intent("requires_action", next_action={"redirect_to_url": {"url": "https://b/3ds"}}),
            PendingReason.BUYER_ACTION,
            "https://b/3ds",
        ),
        (intent("processing"), PendingReason.PROVIDER_REVIEW, ""),
        (intent("requires_capture"), PendingReason.PROVIDER_REVIEW, ""),
        (
            error(
                402,
                "card_error",
                "authentication_required",
                payment_intent=intent(
                    "requires_payment_method",
                    last_payment_error={"code": "authentication_required"},
                ),
            ),
            PendingReason.BUYER_ACTION,
            "",
        ),
    ],
)
def test_a_pending_charge_has_its_reason(answer: Any, reason: PendingReason, url: str) -> None:
    """What waits for the buyer, or for Stripe, is Pending with its reference; nothing ends it."""
    transport = ScriptedTransport()
    transport.script(CREATE, answer)
    assert run(transport, "send") == Pending(reason, "pi_1", url)
    assert len(transport.requests) == 1


def test_a_replayed_answer_is_read_again() -> None:
    """Stripe replays the first answer of a key, which says nothing about now."""
    replayed = {"Idempotent-Replayed": "true"}
    for first in (card_error(headers=replayed), Answer(200, intent("processing"), replayed)):
        transport = ScriptedTransport()
        transport.script(CREATE, first)
        transport.script(READ, canceled(cancellation_reason="requested_by_customer"))
        outcome = run(transport, "send")
        assert isinstance(outcome, Declined)
        assert outcome.reason is FailureReason.CALLER_CANCELLED


def test_a_replayed_final_answer_stays() -> None:
    """What has ended does not change, so no second request is needed."""
    replayed = {"Idempotent-Replayed": "true"}
    for status, kind in (("succeeded", Succeeded), ("canceled", Declined)):
        transport = ScriptedTransport()
        transport.script(CREATE, Answer(200, intent(status), replayed))
        assert isinstance(run(transport, "send"), kind)
        assert len(transport.requests) == 1


def test_a_known_charge_is_never_created_again() -> None:
    """A resend with a reference reads the PaymentIntent, whatever Stripe remembers of the key."""
    transport = ScriptedTransport()
    transport.script(READ, intent("succeeded"))
    assert run(transport, "send", WITH_REFERENCE) == Succeeded("pi_1", 1234, "EUR")
    assert [request.method for request in transport.requests] == ["GET"]


def test_a_method_that_cannot_be_charged_is_a_decline() -> None:
    """A definite rejection creates nothing: one that names the payment method is its fault."""
    for code, param, reason in (
        ("resource_missing", "payment_method", FailureReason.PAYMENT_METHOD_INVALID),
        ("amount_too_small", "amount", FailureReason.PROVIDER_REJECTED),
        ("payment_method_unactivated", "", FailureReason.PROVIDER_REJECTED),
    ):
        transport = ScriptedTransport()
        transport.script(CREATE, error(400, "invalid_request_error", code, param=param))
        assert run(transport, "send") == Declined(reason, code)


def test_a_charge_below_the_smallest_amount_is_left_to_stripe() -> None:
    """It was accepted before the rule, so an earlier request under its key may have been paid."""
    transport = ScriptedTransport()
    rejection = error(400, "invalid_request_error", "amount_too_small")
    transport.script(CREATE, intent("succeeded", amount_received=49), rejection)
    small = replace(REQUEST, amount=49)
    assert run(transport, "send", small) == Succeeded("pi_1", 49, "EUR")
    assert run(transport, "send", small) == Declined(
        FailureReason.PROVIDER_REJECTED, "amount_too_small"
    )


def test_a_charge_that_stripe_cannot_write_is_looked_up() -> None:
    """An earlier release may have sent it. It is never sent, nor declined without a proof."""
    transport = ScriptedTransport()
    page = {"object": "search_result", "has_more": False}
    found = {"id": "pi_1", "metadata": {"charge_id": "o-po1", "key": "dev-o-po1-1"}}
    transport.script(SEARCH, page | {"data": []}, page | {"data": [found]})
    transport.script(READ, intent("succeeded"))
    unknown_currency = replace(REQUEST, currency="XXX")
    outcome = run(transport, "send", unknown_currency)
    assert isinstance(outcome, Unknown)
    assert outcome.retry_reason is RetryReason.REJECTED
    assert run(transport, "send", unknown_currency) == Succeeded("pi_1", 1234, "EUR")
    assert not transport.sent(CREATE)


def test_a_lost_charge_is_searched_by_its_id_and_its_key() -> None:
    """The search lags, and may find what another environment has charged under the same id; the
    object itself is read afterwards.
    """
    foreign = {"id": "pi_2", "metadata": {"charge_id": "o-po1", "key": "prod-o-po1-1"}}
    found = {"id": "pi_1", "metadata": {"charge_id": "o-po1", "key": "dev-o-po1-1"}}
    transport = ScriptedTransport()
    page = {"object": "search_result", "has_more": False}
    transport.script(SEARCH, page | {"data": [foreign]}, page | {"data": [foreign, found]})
    transport.script(READ, intent("succeeded"))
    assert isinstance(run(transport, "look_up"), NotFound)
    assert run(transport, "look_up") == Succeeded("pi_1", 1234, "EUR")
    assert transport.requests[0].values["query"] == "metadata['charge_id']:'o-po1'"


def test_not_found_is_conclusive_only_after_the_lag_of_the_search() -> None:
    """Two hours, even if the settings allow less; and as many answers as they say."""
    charges = StripeCharges(TERMS, api_of(ScriptedTransport()))
    assert charges.final_not_found == FinalNotFound(7200.0, 2)
    slower = replace(TERMS, final_not_found=FinalNotFound(9000.0, 3))
    assert StripeCharges(slower, api_of(ScriptedTransport())).final_not_found == FinalNotFound(
        9000.0, 3
    )


def test_another_charge_is_never_ended() -> None:
    """An answer about another charge is not this one's, and nothing is canceled by mistake."""
    other = intent("requires_payment_method", metadata={"charge_id": "o-po2", "key": "dev-o-po2-1"})
    transport = ScriptedTransport()
    transport.script(CREATE, other)
    transport.script(READ, other)
    for call, request in (
        ("send", REQUEST),
        ("look_up", WITH_REFERENCE),
        ("cancel", WITH_REFERENCE),
    ):
        outcome = run(transport, call, request)
        assert isinstance(outcome, Unknown)
        assert outcome.retry_reason is RetryReason.MISMATCHED_OPERATION, call
    assert not transport.sent(r".*/cancel")


def test_a_charge_of_another_environment_is_not_this_one() -> None:
    """Two environments may share an account of Stripe, and the ids of their charges."""
    other = {"charge_id": "o-po1", "key": "prod-o-po1-1"}
    transport = ScriptedTransport()
    transport.script(READ, intent("succeeded", metadata=other))
    for call in ("send", "look_up", "cancel"):
        outcome = run(transport, call, WITH_REFERENCE)
        assert isinstance(outcome, Unknown)
        assert outcome.retry_reason is RetryReason.MISMATCHED_OPERATION, call


@pytest.mark.parametrize("call", ["send", "look_up", "cancel"])
def test_a_known_payment_intent_is_never_not_found(call: str) -> None:
    """Stripe deletes no PaymentIntent. If it does not know one, the API key belongs to another
    account, and the charge may still be paid.
    """
    transport = ScriptedTransport()
    transport.script(READ, error(404, "invalid_request_error", "resource_missing", param="intent"))
    outcome = run(transport, call, WITH_REFERENCE)
    assert isinstance(outcome, Unknown)
    assert outcome.retry_reason is RetryReason.REJECTED


def test_a_charge_that_the_search_found_is_never_not_found() -> None:
    """So it is if the search has found it, but it cannot be read."""
    transport = ScriptedTransport()
    found = {"id": "pi_1", "metadata": {"charge_id": "o-po1", "key": "dev-o-po1-1"}}
    transport.script(SEARCH, {"object": "search_result", "has_more": False, "data": [found]})
    transport.script(READ, error(404, "invalid_request_error", "resource_missing", param="intent"))
    outcome = run(transport, "look_up")
    assert isinstance(outcome, Unknown)
    assert outcome.reference == "pi_1"


def test_a_charge_may_be_among_more_results_of_the_search() -> None:
    """A page of other environments' charges with the same id proves nothing if there are more."""
    transport = ScriptedTransport()
    foreign = {"id": "pi_2", "metadata": {"charge_id": "o-po1", "key": "prod-o-po1-1"}}
    transport.script(SEARCH, {"object": "search_result", "has_more": True, "data": [foreign] * 100})
    assert isinstance(run(transport, "look_up"), Unknown)
    assert transport.requests[0].values["limit"] == "100"


def test_an_amount_is_rejected_by_its_rule() -> None:
    """As `PaymentProvider.reject_amount` says."""
    reject: Callable[..., str | None] = StripeCharges(
        TERMS, api_of(ScriptedTransport())
    ).reject_amount
    assert reject(49, "EUR", "CARD") == "must be at least 0.50 EUR for Stripe"
    assert reject(50, "EUR", "CARD") is None
