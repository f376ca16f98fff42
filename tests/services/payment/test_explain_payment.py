"""ExplainPayment: the story of a payment from its first request to its next step, in one call."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from itertools import count

import httpx
import pytest

from tallystick import (
    Client,
    InvalidArgumentError,
    NotFoundError,
    new_order,
)
from tallystick.history.v1 import explanation_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_core.access import Role
from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    NotSent,
    Pending,
    PendingReason,
    RetryReason,
    RiskOutcome,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_core.provider.risk_provider import RiskRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import (
    DEFAULT_POLICIES,
    RetryPolicy,
    RetryStrategy,
)
from tests.fakes.payment_provider import PageProvider, ScriptedPaymentProvider
from tests.support.callers import settings_with_callers, token_of
from tests.support.charges import (
    WAIT_FOR_ACCEPTANCE,
    booked_unapplied_charges,
    close_dead_letter,
    sandbox_database,
    timestamp_in,
    wait_for_dead_letter,
)
from tests.support.explanations import actions, actors, explain_payment, sources, story
from tests.support.hosted_pages import SHOP, page
from tests.support.payments import create_payment
from tests.support.platform import (
    eventually,
    free_address,
    serve_platform,
    unique_id,
)
from tests.support.routing import EUR_RULE, routing_settings, three_sandboxes
from tests.support.webhooks import new_event, receive, wait_for_event

_ALWAYS_SLOW = Settings().replace(
    retry={
        ("", reason): RetryPolicy(RetryStrategy.FIXED, 600, 600, None)
        for reason in DEFAULT_POLICIES
    }
    | {("", RetryReason.REJECTED): RetryPolicy(RetryStrategy.CANCEL)},
    worker__scan_interval=0.1,
    worker__monitor_interval=0.2,
)
"""Whatever fails waits for ten minutes."""


class SilentRiskProvider:
    """A risk provider that cannot be reached."""

    name = "silent"

    async def check(self, _request: RiskRequest) -> RiskOutcome:
        return NotSent("connection reset")


def _answer(outcome: ChargeLookupOutcome) -> Dependencies:
    """A provider that always answers the same."""
    return Dependencies(providers={"sandbox": ScriptedPaymentProvider(lambda _: outcome)})


def test_the_story_of_a_paid_order_goes_from_the_request_to_the_ledger(client: Client) -> None:
    """It has the request with its trace, the risk check, the routing, the attempt with its key, the
    answer, the booking, and the entries of wallet, ledger and events; nobody must act.
    """
    payment = create_payment(client, "24.90")
    order = payment.payment_orders[0]
    assert eventually(lambda: "EVENT" in sources(explain_payment(client, payment.checkout_id)))
    explanation = explain_payment(client, payment.checkout_id)
    assert (explanation.resource_name, explanation.state) == (
        f"payments/{payment.checkout_id}",
        "PAID",
    )
    assert actors(explanation) == ["NOBODY"]
    assert not explanation.omissions
    text = story(explanation)
    for part in (
        "dev created the payment with 1 order.",
        f"{order.payment_order_id}: 24.90 EUR for the seller {order.seller_account}",
        f"The risk check of the order {order.payment_order_id} passed.",
        f"sandbox was chosen for the charge {order.charge_id}. Reason: it is the default provider.",
        f"idempotency key dev-{order.charge_id}-1.",
        "Attempt 1 at sandbox ended: SUCCEEDED.",
        "The provider's id of the request is req_",
        f"The order {order.payment_order_id} became SUCCESS, as the provider reported.",
        f"The order {order.payment_order_id} was booked",
        f"The wallet of {order.seller_account} has the entry CREDIT of 24.90 EUR.",
        "debit psp/sandbox/clearing 24.90 EUR",
        "The payment ended as PAID.",
    ):
        assert part in text, part
    first = explanation.entries[0]
    assert len(first.trace_id) == 32
    assert {"REQUEST", "STATE", "ROUTING", "PROVIDER", "WALLET", "LEDGER", "EVENT"} == set(
        sources(explanation)
    )
    assert text.index("ended: SUCCEEDED") < text.index("became SUCCESS")


def name_of_payment(client: Client, id_: str) -> explanation_pb2.Explanation:
    """The explanation of which only the resource is asked for."""
    request = pb.ExplainPaymentRequest(id=id_, name_only=True)
    return client.payment.ExplainPayment(request).explanation


def test_any_id_finds_the_payment(client: Client) -> None:
    """The ids of the payment, its orders, charges and unapplied charges, and the provider's id of a
    charge, find it; with the id of one order the others are left out, and the answer says so.
    """
    payment = create_payment(client, "1.00", "2.00")
    order = payment.payment_orders[1]
    for id_ in (order.payment_order_id, order.charge_id, order.provider_reference):
        explanation = explain_payment(client, id_)
        assert explanation.resource_name == f"payments/{payment.checkout_id}", id_
        assert name_of_payment(client, id_) == explanation_pb2.Explanation(
            resource_name=explanation.resource_name
        )
        assert payment.payment_orders[0].payment_order_id not in story(explanation)
        assert explanation.omissions == [
            f"Only the orders of the charge {order.charge_id} are explained; explain the others by "
            "the checkout_id."
        ]
    whole = explain_payment(client, payment.checkout_id)
    assert all(item.payment_order_id in story(whole) for item in payment.payment_orders)
    mismatched = create_payment(client, "5.00", token="tok_other_amount")
    assert eventually(lambda: booked_unapplied_charges(client, mismatched))
    (unapplied,) = booked_unapplied_charges(client, mismatched)
    for id_ in (unapplied.unapplied_charge_id, unapplied.provider_reference):
        assert explain_payment(client, id_).resource_name == f"payments/{mismatched.checkout_id}"
    with pytest.raises(NotFoundError):
        name_of_payment(client, unique_id("c"))


def test_a_pending_charge_is_found_by_the_providers_id(scratch_database: DatabaseUrls) -> None:
    """Also before money has moved."""
    pending = Pending(PendingReason.PROVIDER_REVIEW, "pi_review_1")
    with (
        serve_platform(scratch_database, _ALWAYS_SLOW, dependencies=_answer(pending)) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00")
        explanation = explain_payment(client, "pi_review_1")
        assert explanation.resource_name == f"payments/{payment.checkout_id}"
        assert actors(explanation) == ["PROVIDER", "PLATFORM"]
        assert "The provider reviews the charge." in story(explanation)
        wait_seconds = explanation.next_steps[1].time.seconds - time.time()
        assert 500 < wait_seconds < 601  # the next poll, by the retry policy


def test_a_declined_order_names_the_reason_and_the_code(client: Client) -> None:
    """And that a new payment is the way to try again."""
    payment = create_payment(client, "5.00", token="tok_decline:insufficient_funds")
    explanation = explain_payment(client, payment.checkout_id)
    assert explanation.state == "FAILED"
    assert "The buyer does not have enough money." in explanation.summary
    assert 'The provider\'s code is "insufficient_funds".' in story(explanation)
    assert "The provider's id of the request is req_" in story(explanation)
    assert actors(explanation) == ["NOBODY"]
    assert "creates another payment with new ids" in actions(explanation)


def test_a_risk_rejected_order_was_never_sent(scratch_database: DatabaseUrls) -> None:
    """Its story ends before the routing."""
    settings = Settings().replace(risk__blocked_accounts=frozenset({"mallory"}))
    with (
        serve_platform(scratch_database, settings) as platform,
        platform.client() as client,
    ):
        order = new_order(unique_id("o"), "mallory", "seller-1", "1.00", "EUR")
        payment = client.create_payment(unique_id("c"), [order], credit_card_info="tok_visa")
        explanation = explain_payment(client, payment.checkout_id)
        assert "The risk check rejected the order" in story(explanation)
        assert "blocked accounts" in story(explanation)
        assert not {"ROUTING", "PROVIDER"} & set(sources(explanation))
        assert actors(explanation) == ["NOBODY"]
        assert "mallory" not in str(explanation)  # the buyer is not shown


def test_a_buyer_action_names_the_buyer_and_the_deadline(client: Client) -> None:
    """The buyer must act until resolve_by_time; the platform cancels then."""
    payment = create_payment(client, "5.00", token="tok_pending:action")
    order = payment.payment_orders[0]
    explanation = explain_payment(client, payment.checkout_id)
    assert actors(explanation) == ["BUYER", "PLATFORM", "PLATFORM"]
    buyer, _, cancel = explanation.next_steps
    assert buyer.deadline == cancel.time == order.resolve_by_time
    assert "waits for the buyer" in explanation.summary
    assert order.next_action_url not in str(explanation)


def test_a_hosted_page_waits_for_the_buyer_until_it_expires(scratch_database: DatabaseUrls) -> None:
    """Its story has the page and its end; at the end the platform closes it at the provider."""
    settings = _ALWAYS_SLOW.replace(payment__return_origins={"dev": frozenset({SHOP})})
    with sandbox_database(scratch_database) as database:
        dependencies = Dependencies(providers={"sandbox": PageProvider(database)})
        with (
            serve_platform(scratch_database, settings, dependencies=dependencies) as platform,
            platform.client() as client,
        ):
            orders = [new_order(unique_id("o"), "buyer-1", "seller-1", "5.00", "EUR")]
            payment = client.create_payment(unique_id("c"), orders, hosted_page=page())
            explanation = explain_payment(client, payment.checkout_id)
            assert "The buyer pays on a hosted page" in story(explanation)
            assert actors(explanation)[0] == "BUYER"
            deadline = explanation.next_steps[0].deadline
            assert deadline == payment.hosted_page.expire_time
            assert payment.status_url not in str(explanation)


@pytest.mark.parametrize(
    ("outcome", "action", "reason"),
    [
        (
            NotSent("connection reset", "req_1"),
            "sends the charge to sandbox.",
            "certainly nothing was sent",
        ),
        (
            Unknown("timeout", request_id="req_1"),
            "again, under the same idempotency key",
            "did not answer",
        ),
        (
            Unknown("status 429", RetryReason.THROTTLED, request_id="req_1"),
            "again, under the same idempotency key",
            "asked the platform to retry later",
        ),
        (
            Unknown("status 401", RetryReason.UNAUTHORIZED, request_id="req_1"),
            "correct the credentials of sandbox",
            "rejects the platform's credentials",
        ),
        (
            Unknown("status 500", RetryReason.SERVER_ERROR, request_id="req_1"),
            "again, under the same idempotency key",
            "server error",
        ),
    ],
    ids=["not sent", "no answer", "throttled", "unauthorized", "server error"],
)
def test_a_retry_names_its_reason_the_last_answer_and_its_time(
    scratch_database: DatabaseUrls, outcome: ChargeLookupOutcome, action: str, reason: str
) -> None:
    """What is retried, why, what the provider answered last, and when the next try is."""
    with (
        serve_platform(scratch_database, _ALWAYS_SLOW, dependencies=_answer(outcome)) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: "last answer" in actions(explain_payment(client, payment.checkout_id))
        )
        explanation = explain_payment(client, payment.checkout_id)
        text = actions(explanation)
        assert action in text
        assert reason in text
        assert str(getattr(outcome, "detail", "")) in text
        entry = explanation.entries[-1]
        charge_id = payment.payment_orders[0].charge_id
        assert entry.title.startswith(f"The try to send the charge {charge_id} to sandbox failed: ")
        assert reason in entry.title
        assert "The provider's id of the request is req_1." in entry.detail
        assert re.search("The next try was scheduled (9|10) min later, at 20", entry.detail)
        step = explanation.next_steps[-1]
        assert 500 < step.time.seconds - time.time() < 601


def test_a_charge_waits_for_an_open_circuit(scratch_database: DatabaseUrls) -> None:
    """Nothing is sent, which uses no try; the next step has the time of the next one."""
    settings = _ALWAYS_SLOW.replace(breaker__reset_timeout=600, breaker__max_reset_timeout=600)
    dependencies = _answer(Unknown("status 401", RetryReason.UNAUTHORIZED))
    with (
        serve_platform(scratch_database, settings, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        first = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: "last answer" in actions(explain_payment(client, first.checkout_id))
        )
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: (
                "no calls are sent to the provider"
                in actions(explain_payment(client, payment.checkout_id))
            )
        )
        explanation = explain_payment(client, payment.checkout_id)
        assert actors(explanation) == ["PLATFORM"]
        assert explanation.next_steps[0].time.seconds > time.time()
        assert "failed: no calls are sent to the provider" in story(explanation)


def explanation_once_paid(
    databases: DatabaseUrls,
    reason: RetryReason,
    answer: Callable[[ChargeRequest], ChargeLookupOutcome],
) -> explanation_pb2.Explanation:
    """The explanation of a payment that is retried at once until the provider's answer is final."""
    settings = Settings().replace(
        retry={("", reason): RetryPolicy(RetryStrategy.FIXED, 0.01, 0.01, None)},
        worker__scan_interval=0.02,
    )
    dependencies = Dependencies(providers={"sandbox": ScriptedPaymentProvider(answer)})
    with (
        serve_platform(databases, settings, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: explain_payment(client, payment.checkout_id).state == "PAID", timeout_seconds=60
        )
        return explain_payment(client, payment.checkout_id)


def test_the_failed_tries_stay_in_the_story_of_a_paid_order(
    scratch_database: DatabaseUrls,
) -> None:
    """The last 20 tries, oldest first, with what the provider answered to each. After them comes
    the success, with its request.
    """
    answers = count(1)

    def answer(request: ChargeRequest) -> ChargeLookupOutcome:
        number = next(answers)
        if number > 25:
            return Succeeded(
                f"ch_{request.charge_id}",
                request.amount,
                request.currency,
                request_id=f"req_{number}",
            )
        return Unknown("status 429", RetryReason.THROTTLED, request_id=f"req_{number}")

    text = story(explanation_once_paid(scratch_database, RetryReason.THROTTLED, answer))
    assert re.findall(r"req_\d+", text) == [f"req_{number}" for number in range(6, 27)]
    assert text.index("req_25") < text.index("ended: SUCCEEDED") < text.index("req_26")


def test_an_answer_without_a_request_id_keeps_the_earlier_one(
    scratch_database: DatabaseUrls,
) -> None:
    """As that of a webhook: the provider's support finds the charge by the id of its request."""
    answers = count(1)

    def answer(request: ChargeRequest) -> ChargeLookupOutcome:
        reference = f"ch_{request.charge_id}"
        if next(answers) == 1:
            return Pending(PendingReason.PROVIDER_REVIEW, reference, request_id="req_1")
        return Succeeded(reference, request.amount, request.currency)

    entries = explanation_once_paid(scratch_database, RetryReason.PENDING, answer).entries
    (ended,) = (entry for entry in entries if "ended: SUCCEEDED" in entry.title)
    assert "The provider's id of the request is req_1." in ended.detail


def test_the_tries_of_an_outage_are_one_entry(scratch_database: DatabaseUrls) -> None:
    """A booking is retried as long as the ledger is away: one entry counts the tries, so that the
    earlier ones stay.
    """
    addresses = {"ledger": free_address(), "event": free_address()}
    policy = RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, None)
    settings = Settings().replace(
        service_addresses=addresses,
        retry={("", RetryReason.BOOKING_UNAVAILABLE): policy},
        worker__scan_interval=0.05,
    )
    with (
        serve_platform(scratch_database, settings, names=("payment", "wallet")) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)

        def failures() -> list[str]:
            return [
                entry.detail
                for entry in explain_payment(client, payment.checkout_id).entries
                if "update the seller's wallet and the ledger failed" in entry.title
            ]

        assert eventually(lambda: any("It failed 3 times" in text for text in failures()), 60)
        assert len(failures()) == 1


def test_a_dead_letter_waits_for_an_operator_and_its_end_is_part_of_the_story(
    scratch_database: DatabaseUrls,
) -> None:
    """The operator's step names the dead letter; its alert, and who closed it with which evidence,
    are entries.
    """
    with serve_platform(scratch_database, _ALWAYS_SLOW) as platform, platform.client() as client:
        payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
        dead_letter = wait_for_dead_letter(client, payment)
        assert eventually(lambda: "ALERT" in sources(explain_payment(client, payment.checkout_id)))
        explanation = explain_payment(client, payment.checkout_id)
        assert actors(explanation) == ["OPERATOR"]
        assert f"retry or close the dead letter {dead_letter.dead_letter_id}" in actions(
            explanation
        )
        assert 'The last answer was: "status 400 request_malformed".' in story(explanation)
        assert "waits for an operator" in explanation.summary
        close_dead_letter(client, dead_letter)
        explanation = explain_payment(client, payment.checkout_id)
        assert 'Evidence: "ticket 7: no charge".' in story(explanation)
        assert "became CLOSED by dev" in story(explanation)
        assert explanation.state == "FAILED"


def test_an_unapplied_charge_waits_for_an_operator(client: Client) -> None:
    """The money that the provider took is named, with its booking, until it is acknowledged."""
    payment = create_payment(client, "5.00", token="tok_other_amount")
    assert eventually(lambda: booked_unapplied_charges(client, payment))
    (unapplied,) = booked_unapplied_charges(client, payment)
    explanation = explain_payment(client, payment.checkout_id)
    assert actors(explanation)[0] == "OPERATOR"
    assert f"5.01 EUR that sandbox took as {unapplied.provider_reference}" in actions(explanation)
    assert "credit unapplied/sandbox 5.01 EUR" in story(explanation)
    client.payment.AcknowledgeUnappliedCharge(
        pb.AcknowledgeUnappliedChargeRequest(
            unapplied_charge_id=unapplied.unapplied_charge_id, reason="refunded there"
        )
    )
    explanation = explain_payment(client, payment.checkout_id)
    assert "OPERATOR" not in actors(explanation)
    assert 'Reason: "refunded there".' in story(explanation)


def test_a_cancelled_charge_that_may_have_been_sent_is_being_cancelled(
    scratch_database: DatabaseUrls,
) -> None:
    """The cancellation and its reason are named, and what the platform does next."""
    dependencies = _answer(Unknown("timeout"))
    with (
        serve_platform(scratch_database, _ALWAYS_SLOW, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: "last answer" in actions(explain_payment(client, payment.checkout_id))
        )
        client.payment.CancelPayment(
            pb.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="out of stock"),
            timeout=1.0,
        )
        explanation = explain_payment(client, payment.checkout_id)
        assert 'The caller cancelled it: "out of stock".' in explanation.summary
        assert "asks sandbox to cancel the charge" in actions(explanation)


def test_a_charge_that_expires_while_it_waits_is_cancelled_then(
    scratch_database: DatabaseUrls,
) -> None:
    """The next try is at the expiry, and it is a cancellation: not another send."""
    dependencies = _answer(Unknown("timeout"))
    with (
        serve_platform(scratch_database, _ALWAYS_SLOW, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        payment = create_payment(
            client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE, expire_time=timestamp_in(60)
        )
        assert eventually(
            lambda: "last answer" in actions(explain_payment(client, payment.checkout_id))
        )
        (step,) = explain_payment(client, payment.checkout_id).next_steps
        assert "asks sandbox to cancel the charge" in step.action
        assert step.time.seconds - payment.expire_time.seconds in range(-1, 2)


def test_a_delivery_is_part_of_the_story(client: Client) -> None:
    """And with it nothing more happens."""
    payment = create_payment(client, "5.00")
    client.payment.ConfirmDelivery(
        pb.ConfirmDeliveryRequest(payment_order_id=payment.payment_orders[0].payment_order_id)
    )
    assert eventually(lambda: actors(explain_payment(client, payment.checkout_id)) == ["NOBODY"])
    explanation = explain_payment(client, payment.checkout_id)
    assert "The caller confirmed the delivery of the order" in story(explanation)
    assert "paid, booked and delivered" in actions(explanation)


def test_a_webhook_event_is_part_of_the_story(client: Client) -> None:
    """With the provider's id of the event."""
    payment = create_payment(client, "5.00")
    event = new_event(reference=payment.payment_orders[0].provider_reference)
    receive(client.payment, event)
    wait_for_event(client.payment, event, "APPLIED")
    explanation = explain_payment(client, payment.checkout_id)
    (entry,) = [
        entry
        for entry, source in zip(explanation.entries, sources(explanation), strict=True)
        if source == "WEBHOOK"
    ]
    assert entry.title == "sandbox sent the webhook event charge.changed."
    assert entry.reference == event.event_id


def test_a_webhook_event_that_names_only_the_charge_is_part_of_the_story(client: Client) -> None:
    """A provider may echo the platform's id alone."""
    payment = create_payment(client, "5.00")
    charge_id = payment.payment_orders[0].charge_id
    event = new_event(reference="", client_reference=charge_id)
    receive(client.payment, event)
    wait_for_event(client.payment, event, "APPLIED")
    explanation = explain_payment(client, payment.checkout_id)
    assert event.event_id in [entry.reference for entry in explanation.entries]


def test_a_fallback_is_two_attempts_with_their_reasons(scratch_database: DatabaseUrls) -> None:
    """Each attempt has its provider, its rule and its key; the first one was certainly not sent."""
    settings = routing_settings(EUR_RULE)
    with three_sandboxes(scratch_database, settings) as (_, client, providers):
        providers["a"].sandbox.down = True
        payment = create_payment(client, "5.00")
        explanation = explain_payment(client, payment.checkout_id)
        text = story(explanation)
        charge_id = payment.payment_orders[0].charge_id
        for part in (
            f"a was chosen for the charge {charge_id} by the routing rule",
            "The fallback is b.",
            "Attempt 1 at a ended: NOT_SENT. Certainly nothing was sent.",
            "goes to the fallback provider",
            f"b was chosen for the charge {charge_id}",
            "Attempt 2 at b ended: SUCCEEDED.",
        ):
            assert part in text, part
        assert f"{charge_id}-1" in text
        assert f"{charge_id}-2" in text


def test_a_service_that_does_not_answer_is_named(scratch_database: DatabaseUrls) -> None:
    """The call is answered all the same, within seconds: without the entries of that service."""
    with serve_platform(scratch_database) as platform, platform.client() as client:
        payment = create_payment(client, "5.00")
    addresses = {"wallet": free_address(), "ledger": free_address(), "event": free_address()}
    settings = Settings().replace(service_addresses=addresses)
    with (
        serve_platform(scratch_database, settings, names=("payment",)) as platform,
        platform.client() as client,
    ):
        start = time.monotonic()
        explanation = explain_payment(client, payment.checkout_id)
        assert time.monotonic() - start < 5
        assert explanation.state == "PAID"
        assert explanation.omissions == [
            f"{name} did not answer; its entries are missing."
            for name in ("WalletService", "LedgerService", "EventService")
        ]
        assert not {"WALLET", "LEDGER", "EVENT"} & set(sources(explanation))


def test_a_team_gets_its_own_story_without_what_only_operators_read(
    scratch_database: DatabaseUrls,
) -> None:
    """A team may explain its own payments. Wallet, ledger, webhooks, alerts, the texts of dead
    letters and those of operators are for operators; another team's payment is not found, by no id.
    """
    settings = settings_with_callers(
        {
            "shop": ("", {Role.TEAM}),
            "rival": ("", {Role.TEAM}),
            "office": ("", {Role.OPERATOR}),
        },
        worker__scan_interval=0.1,
        worker__monitor_interval=0.2,
    )
    with (
        serve_platform(scratch_database, settings) as platform,
        platform.client(token_of("shop")) as shop,
        platform.client(token_of("rival")) as rival,
        platform.client(token_of("office")) as office,
    ):
        paid = create_payment(shop, "5.00")
        rejected = create_payment(shop, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
        wait_for_dead_letter(office, rejected)
        assert eventually(lambda: "ALERT" in sources(explain_payment(office, rejected.checkout_id)))
        assert {"WALLET", "LEDGER"} <= set(sources(explain_payment(office, paid.checkout_id)))
        for payment in (paid, rejected):
            explanation = explain_payment(shop, payment.checkout_id)
            assert not {"WALLET", "LEDGER", "ALERT", "WEBHOOK"} & set(sources(explanation))
            assert "request_malformed" not in str(explanation)
            assert "id of the request" not in str(explanation)
            order = payment.payment_orders[0]
            for id_ in filter(
                None,
                (
                    payment.checkout_id,
                    order.payment_order_id,
                    order.charge_id,
                    order.provider_reference,
                ),
            ):
                with pytest.raises(NotFoundError):
                    explain_payment(rival, id_)
        assert actors(explain_payment(shop, rejected.checkout_id)) == ["OPERATOR"]
        other = create_payment(shop, "5.00", token="tok_other_amount")
        assert eventually(lambda: booked_unapplied_charges(office, other))
        (unapplied,) = booked_unapplied_charges(office, other)
        office.payment.AcknowledgeUnappliedCharge(
            pb.AcknowledgeUnappliedChargeRequest(
                unapplied_charge_id=unapplied.unapplied_charge_id, reason="refunded there"
            )
        )
        for client, is_shown in ((office, True), (shop, False)):
            text = story(explain_payment(client, other.checkout_id))
            assert ("office acknowledged the unapplied charge" in text) is is_shown
            assert ("refunded there" in text) is is_shown
            assert "acknowledged the unapplied charge" in text


def test_many_orders_are_bounded_and_the_open_ones_come_first(client: Client) -> None:
    """Of 60 orders 20 are explained: those that need attention first. The answer says how many are
    left out, and how to read them.
    """
    checkout_id = unique_id("c")
    orders = [
        new_order(f"{checkout_id}-{number:03}", "b-1", f"s-{checkout_id}", "1.00", "EUR")
        for number in range(60)
    ]
    client.create_payment(checkout_id, orders, credit_card_info="tok_visa")
    explanation = explain_payment(client, checkout_id)
    assert explanation.omissions[0] == (
        "40 of 60 orders are left out; explain them by their payment_order_id."
    )
    assert "20 of 60 orders are PAID and booked. 40 orders are left out." in explanation.summary
    assert f"{checkout_id}-059" not in story(explanation)
    assert f"{checkout_id}-059" in story(explain_payment(client, f"{checkout_id}-059"))


def test_of_many_orders_those_that_wait_are_explained_first(
    scratch_database: DatabaseUrls,
) -> None:
    """Whatever their ids are."""

    def answer(request: ChargeRequest) -> ChargeLookupOutcome:
        if request.charge_id.endswith("-24"):
            return Pending(PendingReason.PROVIDER_REVIEW, "pi_24")
        return Succeeded(f"ch_{request.charge_id}", request.amount, request.currency)

    dependencies = Dependencies(providers={"sandbox": ScriptedPaymentProvider(answer)})
    with (
        serve_platform(scratch_database, _ALWAYS_SLOW, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        checkout_id = unique_id("c")
        orders = [
            new_order(f"{checkout_id}-{number:02}", "b-1", "s-1", "1.00", "EUR")
            for number in range(25)
        ]
        client.create_payment(checkout_id, orders, credit_card_info="tok_visa")
        explanation = explain_payment(client, checkout_id)
        assert eventually(lambda: sources(explain_payment(client, checkout_id)).count("EVENT") > 77)
        assert sources(explanation).count("WALLET") == 19
        assert sources(explanation).count("LEDGER") == 19
        assert "1 of 25 orders is PENDING" in explanation.summary
        assert explanation.omissions[0].startswith("5 of 25 orders are left out")
        assert actors(explanation) == ["PROVIDER", "PLATFORM"]


def test_a_charge_waits_for_the_risk_provider(scratch_database: DatabaseUrls) -> None:
    """Nothing is sent before it approves: the next step asks it again."""
    dependencies = Dependencies(risk_provider=SilentRiskProvider())
    with (
        serve_platform(scratch_database, _ALWAYS_SLOW, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: "last answer" in actions(explain_payment(client, payment.checkout_id))
        )
        explanation = explain_payment(client, payment.checkout_id)
        assert "NOT_STARTED and waits for the risk check" in explanation.summary
        (step,) = explanation.next_steps
        assert "asks the risk provider whether the charge may be sent" in step.action
        assert 500 < step.time.seconds - time.time() < 601


def test_the_story_is_read_by_http(scratch_database: DatabaseUrls) -> None:
    """As JSON, under the paths of payments, payouts and explanations."""
    with (
        serve_platform(scratch_database, names=(*service_names(), HTTP_SERVER)) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00")
        order_id = payment.payment_orders[0].payment_order_id
        for path in (f"payments/{order_id}:explain", f"explanations/{order_id}"):
            response = httpx.get(f"{platform.url}/v1/{path}", timeout=10)
            explanation = response.json()["explanation"]
            assert explanation["resource_name"] == f"payments/{payment.checkout_id}"
            assert explanation["next_steps"][0]["actor"] == "ACTOR_NOBODY"
        missing = httpx.get(f"{platform.url}/v1/payouts/{order_id}:explain", timeout=10)
        assert missing.status_code == 404


@pytest.mark.parametrize(
    ("id_", "message"),
    [
        ("", "id is required: an id of the platform, or a provider's id."),
        ("two words", "id must be 1 to 255 visible ASCII characters."),
        ("x" * 256, "id must be 1 to 255 visible ASCII characters."),
    ],
    ids=["empty", "space", "long"],
)
def test_an_invalid_id_names_the_field(client: Client, id_: str, message: str) -> None:
    """A clear error, not an empty story."""
    with pytest.raises(InvalidArgumentError) as error:
        explain_payment(client, id_)
    assert error.value.message == message


def test_an_unknown_id_is_not_found(client: Client) -> None:
    """Also one with the form of a charge id."""
    for id_ in ("missing", "o-missing", "pi_missing"):
        with pytest.raises(NotFoundError):
            explain_payment(client, id_)
