"""Charges on pages of Stripe: what each status of a Checkout Session means."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    Declined,
    FailureReason,
    NotSent,
    Pending,
    PendingReason,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargePage, ChargeRequest
from tallystick_server.providers.stripe.charges import StripeCharges
from tallystick_server.providers.stripe.errors import NoAnswer, NotConnected
from tallystick_server.providers.stripe.hosted_pages import choose_locale
from tests.providers.stripe import test_charges
from tests.providers.stripe.scripted_stripe import (
    TERMS,
    Answer,
    ScriptedTransport,
    api_of,
    error,
)

CREATE, LIST = "POST /v1/checkout/sessions", "GET /v1/checkout/sessions"
READ, EXPIRE = "GET /v1/checkout/sessions/cs_1", "POST /v1/checkout/sessions/cs_1/expire"
URL = "https://checkout.stripe.com/c/pay/cs_1#fid"
TLS_URL = "https://stripe.invalid"
_TIME = datetime(2026, 11, 30, 12, tzinfo=UTC)
PAGE = ChargePage(
    "Order po1", "https://pay.example/p/token?returned", _TIME, _TIME + timedelta(hours=3), "de-CH"
)
REQUEST = ChargeRequest("dev-c-po1-1", "c-po1", 1234, "EUR", "", "CARD", page=PAGE)
WITH_SESSION, WITH_INTENT = replace(REQUEST, reference="cs_1"), replace(REQUEST, reference="pi_1")
_METADATA = {"charge_id": "c-po1", "key": "dev-c-po1-1"}
OPEN = Pending(PendingReason.BUYER_ACTION, "cs_1", URL, "c-po1")
IN_REVIEW = Pending(PendingReason.PROVIDER_REVIEW, "cs_1", client_reference="c-po1")
EXPIRED = Declined(FailureReason.PAGE_EXPIRED, "", "cs_1", "c-po1")
PAID = Succeeded("pi_1", 1234, "EUR", "c-po1")


def intent(status: str, **changes: Any) -> dict[str, Any]:
    return test_charges.intent(status, **{"metadata": _METADATA, **changes})


def session(status: str, **changes: Any) -> dict[str, Any]:
    """A Checkout Session as Stripe answers it, with its PaymentIntent expanded."""
    return {
        "id": "cs_1",
        "object": "checkout.session",
        "status": status,
        "payment_status": "unpaid",
        "url": URL if status == "open" else None,
        "metadata": _METADATA,
        "payment_intent": None,
        **changes,
    }


def run(
    transport: ScriptedTransport, call: str, request: ChargeRequest, suffix: str = "", **api: Any
) -> ChargeLookupOutcome:
    async def work() -> ChargeLookupOutcome:
        charges = StripeCharges(TERMS, api_of(transport, **api), suffix)
        outcome: ChargeLookupOutcome = await getattr(charges, call)(request)
        return outcome

    return asyncio.run(work())


def test_a_page_is_registered_under_the_key_of_its_charge() -> None:
    """The request has the amount, the return URL, the expiry, and the charge's id where Stripe
    copies nothing from one object to the other.
    """
    transport = ScriptedTransport()
    transport.script(CREATE, session("open"))
    assert run(transport, "send", REQUEST, suffix="SHOP") == OPEN
    (request,) = transport.requests
    assert request.key == "dev-c-po1-1"
    assert request.values == {
        "mode": "payment",
        "client_reference_id": "c-po1",
        "line_items[0][quantity]": "1",
        "line_items[0][price_data][currency]": "eur",
        "line_items[0][price_data][unit_amount]": "1234",
        "line_items[0][price_data][product_data][name]": "Order po1",
        "metadata[charge_id]": "c-po1",
        "metadata[key]": "dev-c-po1-1",
        "adaptive_pricing[enabled]": "false",
        "payment_intent_data[metadata][charge_id]": "c-po1",
        "payment_intent_data[metadata][key]": "dev-c-po1-1",
        "payment_intent_data[transfer_group]": "c-po1",
        "payment_intent_data[statement_descriptor_suffix]": "SHOP",
        "expires_at": str(int(PAGE.expire_time.timestamp())),
        "success_url": PAGE.return_url,
        "cancel_url": PAGE.return_url,
        "locale": "de",
        "expand[0]": "payment_intent.latest_charge.balance_transaction",
    }


def test_a_short_page_stays_open_at_stripe_for_an_hour() -> None:
    """Stripe accepts no less than 30 minutes, also from a registration that comes late. The
    platform closes the page earlier.
    """
    transport = ScriptedTransport()
    transport.script(CREATE, session("open"))
    page = replace(PAGE, expire_time=PAGE.create_time + timedelta(minutes=10, microseconds=1))
    run(transport, "send", replace(REQUEST, page=page))
    expires_at = int(transport.requests[0].values["expires_at"])
    assert datetime.fromtimestamp(expires_at, UTC) == PAGE.create_time + timedelta(hours=1)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (session("open"), OPEN),
        # declines and challenges on an open page are history: the buyer can try again
        (session("open", payment_intent=intent("requires_payment_method")), OPEN),
        (
            session(
                "open",
                payment_intent=intent(
                    "requires_payment_method", last_payment_error=test_charges.DECLINE
                ),
            ),
            OPEN,
        ),
        (session("open", payment_intent=intent("requires_action")), OPEN),
        (session("complete", payment_intent=intent("succeeded")), PAID),
        (session("complete", payment_intent=intent("processing")), IN_REVIEW),
        (
            session(
                "complete",
                payment_intent=intent(
                    "requires_payment_method", last_payment_error=test_charges.DECLINE
                ),
            ),
            Declined(FailureReason.INSUFFICIENT_FUNDS, "insufficient_funds", "cs_1", "c-po1"),
        ),
        (
            session("complete", payment_intent=intent("canceled")),
            Declined(FailureReason.PROVIDER_DECLINED, "canceled", "cs_1", "c-po1"),
        ),
        (session("expired"), EXPIRED),
        (session("expired", payment_intent=intent("canceled")), EXPIRED),
        (session("expired", payment_intent=intent("requires_payment_method")), EXPIRED),
        # a buyer was at the bank when the page ended: the money may still come
        (session("expired", payment_intent=intent("processing")), IN_REVIEW),
        (session("expired", payment_intent=intent("requires_action")), IN_REVIEW),
        # what took money counts, whatever the page says
        (session("expired", payment_intent=intent("succeeded")), PAID),
        (session("open", payment_intent=intent("succeeded")), PAID),
        (
            session("complete", payment_intent=intent("succeeded", amount_received=1000)),
            Succeeded("pi_1", 1000, "EUR", "c-po1"),
        ),
    ],
)
def test_each_status_of_a_session_has_an_outcome(
    answer: dict[str, Any], outcome: ChargeLookupOutcome
) -> None:
    """It is the same by the session's id, and by that of its PaymentIntent."""
    transport = ScriptedTransport()
    transport.script(READ, answer)
    transport.script(LIST, {"object": "list", "data": [answer], "has_more": False})
    assert run(transport, "look_up", WITH_SESSION) == outcome
    assert run(transport, "send", WITH_SESSION) == outcome
    assert run(transport, "look_up", WITH_INTENT) == outcome
    (by_intent,) = transport.sent(LIST)
    assert by_intent.values["payment_intent"] == "pi_1"


@pytest.mark.parametrize(
    "answer",
    [
        session("complete"),
        session("odd"),
        session("open", url=None),
        session("open", url="http://checkout.stripe.com/c/pay/cs_1"),
        session("open", url="javascript:alert(1)"),
        session("open", payment_intent="pi_1"),
        session("complete", payment_intent=intent("succeeded", amount_received="12")),
        session("open", object="payment_intent"),
        session("open", metadata={"charge_id": "c-po1", "key": "another"}),
        {},
    ],
)
def test_an_answer_that_does_not_fit_is_unknown(answer: dict[str, Any]) -> None:
    transport = ScriptedTransport()
    for request in (READ, CREATE):
        transport.script(request, answer)
    for call, charge in (("look_up", WITH_SESSION), ("send", REQUEST), ("cancel", REQUEST)):
        outcome = run(transport, call, charge, url=TLS_URL)
        assert isinstance(outcome, Unknown), (call, outcome)


@pytest.mark.parametrize("call", ["send", "look_up"])
def test_a_registration_with_a_lost_answer_is_repeated_and_read_again(call: str) -> None:
    """Stripe replays its first answer, which may be out of date: the buyer may have paid. The same
    key cannot register a second session.
    """
    transport = ScriptedTransport()
    transport.script(
        CREATE,
        NoAnswer("cut"),
        Answer(body=session("open"), headers={"Idempotent-Replayed": "true"}),
    )
    transport.script(READ, session("complete", payment_intent=intent("succeeded")))
    assert isinstance(run(transport, "send", REQUEST), Unknown)
    assert run(transport, call, REQUEST) == PAID
    assert {request.key for request in transport.sent(CREATE)} == {"dev-c-po1-1"}


def test_a_server_error_that_stripe_has_stored_does_not_keep_a_page_away() -> None:
    """Stripe replays it for the key for a day. The lookup then registers under another key."""
    transport = ScriptedTransport()
    replayed = error(500, "api_error", headers={"Idempotent-Replayed": "true"})
    transport.script(CREATE, error(500, "api_error"), replayed, replayed, session("open"))
    for _ in range(2):
        outcome = run(transport, "send", REQUEST)
        assert isinstance(outcome, Unknown)
        assert outcome.retry_reason is RetryReason.SERVER_ERROR
    assert run(transport, "look_up", REQUEST) == OPEN
    keys = [request.key for request in transport.sent(CREATE)]
    assert keys == ["dev-c-po1-1"] * 3 + ["dev-c-po1-1-lookup"]


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (NotConnected("down"), NotSent("no connection to Stripe")),
        (
            error(400, "invalid_request_error", param="expires_at"),
            Declined(FailureReason.PAGE_EXPIRED, "expires_at"),
        ),
        (
            error(400, "invalid_request_error", "amount_too_small"),
            Declined(FailureReason.PROVIDER_REJECTED, "amount_too_small"),
        ),
    ],
)
def test_a_registration_that_is_rejected_ends_the_charge(
    answer: Any, outcome: ChargeLookupOutcome
) -> None:
    """Nobody can pay on a page that Stripe did not register."""
    transport = ScriptedTransport()
    transport.script(CREATE, answer)
    assert run(transport, "send", REQUEST) == outcome


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (error(400, "invalid_request_error", param="mode"), RetryReason.REJECTED),
        (error(400, "idempotency_error"), RetryReason.REJECTED),
        (error(401, "invalid_request_error"), RetryReason.UNAUTHORIZED),
        (error(409, "invalid_request_error", "idempotency_key_in_use"), RetryReason.THROTTLED),
        (error(500, "api_error"), RetryReason.SERVER_ERROR),
    ],
)
def test_a_registration_that_may_have_happened_is_unknown(
    answer: Answer, reason: RetryReason
) -> None:
    transport = ScriptedTransport()
    transport.script(CREATE, answer)
    outcome = run(transport, "send", REQUEST)
    assert isinstance(outcome, Unknown)
    assert outcome.retry_reason is reason


def test_a_page_is_closed_by_expiring_its_session() -> None:
    """Only Stripe's confirmation ends the charge; a page that was paid meanwhile is paid."""
    transport = ScriptedTransport()
    transport.script(READ, session("open"))
    transport.script(EXPIRE, session("expired"))
    assert run(transport, "cancel", WITH_SESSION) == EXPIRED
    paid = session("complete", payment_intent=intent("succeeded"))
    transport.script(READ, session("open"), paid)
    transport.script(EXPIRE, error(400, "invalid_request_error"))
    assert run(transport, "cancel", WITH_SESSION) == PAID


def test_each_try_to_close_a_page_has_a_key_of_its_own() -> None:
    """Stripe would replay a stored server error for a day, and the page could be paid meanwhile."""
    transport = ScriptedTransport()
    transport.script(READ, session("open"))
    transport.script(EXPIRE, error(500, "api_error"), error(500, "api_error"), session("expired"))
    outcomes = [run(transport, "cancel", WITH_SESSION) for _ in range(3)]
    assert [isinstance(outcome, Unknown) for outcome in outcomes] == [True, True, False]
    assert outcomes[2] == EXPIRED
    assert len({request.key for request in transport.sent(EXPIRE)}) == 3


@pytest.mark.parametrize("answer", [NoAnswer("cut"), error(500, "api_error"), error(429, "x")])
def test_a_page_that_may_still_be_open_is_no_decline(answer: Any) -> None:
    """Stripe does not confirm the end: the charge waits, and is closed again."""
    transport = ScriptedTransport()
    transport.script(READ, session("open", payment_intent=intent("requires_action")))
    transport.script(EXPIRE, answer)
    outcome = run(transport, "cancel", WITH_SESSION)
    assert isinstance(outcome, Unknown)
    assert outcome.reference == "cs_1"


def test_a_page_whose_registration_was_lost_is_registered_to_be_closed() -> None:
    """Its URL was never stored, so nobody has it; the same key finds the session, if there is
    one.
    """
    transport = ScriptedTransport()
    transport.script(CREATE, session("open"))
    transport.script(EXPIRE, session("expired"))
    assert run(transport, "cancel", REQUEST) == EXPIRED


@pytest.mark.parametrize("status", ["complete", "expired"])
def test_a_page_that_has_ended_is_not_closed(status: str) -> None:
    transport = ScriptedTransport()
    payment = intent("succeeded") if status == "complete" else None
    transport.script(READ, session(status, payment_intent=payment))
    outcome = run(transport, "cancel", WITH_SESSION)
    assert outcome == (PAID if status == "complete" else EXPIRED)
    assert not transport.sent(EXPIRE)


def test_a_plain_url_is_used_only_of_a_plain_server() -> None:
    """A page without TLS is that of a look-alike on this machine."""
    transport = ScriptedTransport()
    transport.script(READ, session("open", url="http://127.0.0.1:8420/c/pay/cs_1"))
    outcome = run(transport, "look_up", WITH_SESSION)
    assert isinstance(outcome, Pending)
    assert outcome.next_action_url == "http://127.0.0.1:8420/c/pay/cs_1"
    tls = ScriptedTransport()
    tls.script(READ, session("open", url="http://checkout.stripe.com/c/pay/cs_1"))
    assert isinstance(run(tls, "look_up", WITH_SESSION, url=TLS_URL), Unknown)


@pytest.mark.parametrize(
    ("language", "locale"),
    [
        ("", ""),
        ("de", "de"),
        ("DE-at", "de"),
        ("pt-br", "pt-BR"),
        ("es-419", "es-419"),
        ("zh-Hant-TW", "zh"),
        ("xx", ""),
    ],
)
def test_a_language_that_stripe_does_not_have_is_left_to_the_browser(
    language: str, locale: str
) -> None:
    assert choose_locale(language) == locale
