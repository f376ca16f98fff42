"""The fallback of a charge: used only if certainly nothing was sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tallystick import new_order
from tallystick.history.v1 import history_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_core.payment.routing import RoutingRule
from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    NotSent,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.configuration import load
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tests.fakes.payment_provider import SandboxProvider, ScriptedPaymentProvider
from tests.support.charges import (
    SLOW_RETRY,
    TWO_TRIES,
    WAIT_FOR_ACCEPTANCE,
    booked_unapplied_charges,
    is_paid,
    retry_reason,
    sandbox_database,
    serve_sandboxes,
    wait_for_final_order,
)
from tests.support.payments import create_payment
from tests.support.platform import (
    eventually,
    free_address,
    payment_worker_of,
    serve_platform,
    unique_id,
)
from tests.support.routing import (
    EUR_RULE,
    FAST_RETRY,
    attempts_of,
    order_details,
    provider_balances,
    routing_settings,
    sandbox_log,
    three_sandboxes,
)
from tests.support.webhooks import new_event, receive, state_of, wait_for_event


def test_an_unreachable_provider_is_replaced(scratch_database: DatabaseUrls) -> None:
    """A charge that certainly was not sent to its provider is charged by the fallback, once, as a
    second attempt under its own key. Each attempt shows its rule and reason, the order and its
    event show the provider that charged, and the ledger has the money there. Charges that no rule
    matches go to the default provider.
    """
    chosen = load(
        {
            "TALLYSTICK_PROVIDERS__A__TYPE": "sandbox",
            "TALLYSTICK_PROVIDERS__A__URL": f"http://{free_address()}",
            "TALLYSTICK_PROVIDERS__B__TYPE": "sandbox",
            "TALLYSTICK_PROVIDERS__C__TYPE": "sandbox",
            "TALLYSTICK_PROVIDERS__PAYMENT": "c",
            "TALLYSTICK_PROVIDERS__PAYOUT": "c",
            "TALLYSTICK_ROUTING": "name=eur;currencies=EUR;provider=a;fallback=b",
        }
    )
    with serve_platform(scratch_database, chosen) as platform, platform.client() as client:
        payment = create_payment(client, "5.00")
        assert payment.is_payment_done
        order = payment.payment_orders[0]
        assert (order.provider, order.attempt_count) == ("b", 2)
        details = order_details(client, payment)
        first, second = details.attempts
        assert (first.number, first.provider, first.routing_rule) == (1, "a", "eur")
        assert first.routing_reason == "currency EUR"
        assert first.outcome == history_pb2.ATTEMPT_OUTCOME_NOT_SENT
        assert first.HasField("end_time")
        assert (second.number, second.provider, second.routing_rule) == (2, "b", "eur")
        assert second.routing_reason.startswith("fallback: nothing was sent to a: ")
        assert second.outcome == history_pb2.ATTEMPT_OUTCOME_SUCCEEDED
        assert [one.provider_key for one in details.attempts] == [
            f"dev-{order.charge_id}-1",
            f"dev-{order.charge_id}-2",
        ]
        reasons = [one.transition_reason for one in details.history]
        assert reasons.count(history_pb2.TRANSITION_REASON_FALLBACK) == 1
        aggregate = f"paymentOrders/{order.payment_order_id}"
        assert eventually(lambda: len(list(client.events(aggregate_id=aggregate))) == order.version)
        orders = [event.payment_order for event in client.events(aggregate_id=aggregate)]
        assert [(one.provider, one.attempt_count) for one in orders] == [
            ("a", 0),
            ("a", 1),
            ("b", 2),
            ("b", 2),
            ("b", 2),
        ]
        assert sandbox_log(scratch_database, payment) == [("b", "SUCCEEDED")]
        other = client.create_payment(
            unique_id("c"),
            [new_order(unique_id("o"), "buyer-1", "seller-usd", "7.00", "USD")],
            credit_card_info="tok_visa",
        )
        assert attempts_of(client, other) == [("c", "SUCCEEDED")]
        assert order_details(client, other).attempts[0].routing_reason == "no rule matches"
        assert provider_balances(scratch_database) == {
            "psp/b/clearing": -500,
            "psp/c/clearing": -700,
        }
    assert (report := verify(scratch_database)).passed, report.as_text()


@pytest.mark.parametrize(
    "token",
    [
        "tok_lost_before:2",
        "tok_lost_after:2",
        "tok_error_before:2",
        "tok_error_after:2",
        "tok_busy:2",
        "tok_forbidden:1",
    ],
)
def test_an_unknown_outcome_stays_at_its_provider(
    scratch_database: DatabaseUrls, token: str
) -> None:
    """A charge whose outcome is unknown is sent again to the same provider under the same key, even
    if the provider is then unreachable or its circuit opens; the fallback never sees it.
    """
    chosen = routing_settings(EUR_RULE, breaker__reset_timeout=0.2, breaker__max_reset_timeout=0.2)
    with three_sandboxes(scratch_database, chosen) as (_, client, providers):
        payment = create_payment(client, "5.00", token=token, wait_for=WAIT_FOR_ACCEPTANCE)
        charge_id = payment.payment_orders[0].charge_id
        assert eventually(lambda: retry_reason(scratch_database, charge_id) != "")
        providers["a"].sandbox.down = True
        assert eventually(
            lambda: retry_reason(scratch_database, charge_id) in ("NOT_SENT", "CIRCUIT_OPEN")
        )
        providers["a"].sandbox.down = False
        assert is_paid(client, payment)
        assert attempts_of(client, payment) == [("a", "SUCCEEDED")]
        assert sandbox_log(scratch_database, payment) == [("a", "SUCCEEDED")]


def test_an_open_circuit_before_the_first_sending_uses_the_fallback(
    scratch_database: DatabaseUrls,
) -> None:
    """While the circuit of a provider is open, new charges go to the fallback without waiting, and
    the reason says so; charges without a fallback wait for the provider.
    """
    rules = (
        replace(EUR_RULE, sellers=frozenset({"seller-1"})),
        replace(EUR_RULE, name="alone", fallback=""),
    )
    chosen = routing_settings(
        *rules, breaker__failure_threshold=1, breaker__reset_timeout=60, retry=SLOW_RETRY
    )
    with three_sandboxes(scratch_database, chosen) as (_, client, providers):
        providers["a"].sandbox.down = True
        waiting = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        charge_id = waiting.payment_orders[0].charge_id
        assert eventually(lambda: retry_reason(scratch_database, charge_id) == "NOT_SENT")
        checkout_id = unique_id("c")
        order = new_order(f"{checkout_id}-1", "buyer-1", "seller-1", "5.00", "EUR")
        payment = client.create_payment(checkout_id, [order], credit_card_info="tok_visa")
        assert payment.is_payment_done
        assert attempts_of(client, payment) == [("a", "NOT_SENT"), ("b", "SUCCEEDED")]
        assert order_details(client, payment).attempts[1].routing_reason == (
            "fallback: nothing was sent to a: the circuit breaker is open"
        )
        assert attempts_of(client, waiting) == [("a", "NOT_SENT")]
        providers["a"].sandbox.down = False
        client.payment.CancelPayment(
            pb.CancelPaymentRequest(checkout_id=waiting.checkout_id, reason="waited")
        )
        assert not is_paid(client, waiting)


def test_there_is_one_fallback(scratch_database: DatabaseUrls) -> None:
    """If the fallback is unreachable too, the charge stays there and is retried until it
    answers. It is charged once, and never returns to the first provider.
    """
    with three_sandboxes(scratch_database, routing_settings(EUR_RULE)) as (_, client, providers):
        providers["a"].sandbox.down = providers["b"].sandbox.down = True
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: attempts_of(client, payment) == [("a", "NOT_SENT"), ("b", "NOT_SENT")]
        )
        providers["a"].sandbox.down = providers["b"].sandbox.down = False
        assert is_paid(client, payment)
        assert sandbox_log(scratch_database, payment) == [("b", "SUCCEEDED")]


def test_a_failing_fallback_is_not_used(scratch_database: DatabaseUrls) -> None:
    """While the circuit of the fallback is open, the charge waits at its provider, and is charged
    there once it answers.
    """
    chosen = routing_settings(
        EUR_RULE,
        RoutingRule(name="usd", provider="b", currencies=frozenset({"USD"})),
        breaker__failure_threshold=1,
        breaker__reset_timeout=0.3,
        breaker__max_reset_timeout=0.3,
    )
    with three_sandboxes(scratch_database, chosen) as (platform, client, providers):
        providers["a"].sandbox.down = providers["b"].sandbox.down = True
        usd_order = new_order(unique_id("o"), "buyer-1", "seller-usd", "7.00", "USD")
        at_b = client.create_payment(
            unique_id("c"), [usd_order], credit_card_info="tok_visa", wait_for=WAIT_FOR_ACCEPTANCE
        )
        gateway = payment_worker_of(platform).gateway
        assert eventually(lambda: gateway.is_circuit_open("b"))
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        charge_id = payment.payment_orders[0].charge_id
        assert eventually(
            lambda: retry_reason(scratch_database, charge_id) in ("NOT_SENT", "CIRCUIT_OPEN")
        )
        providers["a"].sandbox.down = False
        assert is_paid(client, payment)
        assert attempts_of(client, payment) == [("a", "SUCCEEDED")]
        providers["b"].sandbox.down = False
        assert is_paid(client, at_b)


class _ChargingNotSent(SandboxProvider):
    """It charges, and its adapter wrongly says that nothing was sent."""

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        await super().send(request)
        return NotSent("the connection was refused")


def test_a_wrong_not_sent_becomes_an_unapplied_charge_by_the_poll(
    scratch_database: DatabaseUrls,
) -> None:
    """If the first provider charged although nothing was reported as sent, its poll finds the
    money after the fallback: it is an unapplied charge of that provider, and the order is paid by
    the fallback alone.
    """
    retry = FAST_RETRY | {
        ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.FIXED, 0.2, 0.2, 5)
    }
    with sandbox_database(scratch_database) as database:
        providers = (_ChargingNotSent(database, "a"), SandboxProvider(database, "b"))
        with (
            serve_sandboxes(
                scratch_database, routing_settings(EUR_RULE, retry=retry), *providers
            ) as platform,
            platform.client() as client,
        ):
            payment = create_payment(client, "5.00")
            assert payment.is_payment_done
            assert attempts_of(client, payment) == [("a", "NOT_SENT"), ("b", "SUCCEEDED")]
            (unapplied,) = eventually(lambda: booked_unapplied_charges(client, payment))
            assert (unapplied.provider, unapplied.amount) == ("a", "5.00")
            assert unapplied.cause == payment_pb2.UNAPPLIED_CAUSE_DUPLICATE_CHARGE
            assert provider_balances(scratch_database) == {
                "psp/a/clearing": -500,
                "psp/b/clearing": -500,
                "unapplied/a": 500,
            }
    assert (report := verify(scratch_database)).passed, report.as_text()


def test_a_webhook_counts_for_the_attempt_of_its_provider(scratch_database: DatabaseUrls) -> None:
    """A webhook event of the first provider, which charged although nothing was reported as sent,
    is looked up there: the money is an unapplied charge of that provider. An event of the fallback
    is looked up at the fallback, and changes nothing. An event of a provider that never had the
    charge is about nothing that is known.
    """
    retry = FAST_RETRY | {("", RetryReason.OUTCOME_UNKNOWN): TWO_TRIES}
    with sandbox_database(scratch_database) as database:
        providers = (
            _ChargingNotSent(database, "a"),
            SandboxProvider(database, "b"),
            SandboxProvider(database, "c"),
        )
        settings = routing_settings(EUR_RULE, retry=retry)
        settings = settings.replace(
            retry={
                **settings.retry,
                ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.CANCEL),
            }
        )
        with (
            serve_sandboxes(scratch_database, settings, *providers) as platform,
            platform.client() as client,
        ):
            payment = create_payment(client, "5.00")
            charge_id = payment.payment_orders[0].charge_id
            events = {name: new_event(provider=name, client_reference=charge_id) for name in "abc"}
            receive(client.payment, *events.values())
            wait_for_event(client.payment, events["a"], "APPLIED")
            wait_for_event(client.payment, events["b"], "APPLIED")
            (unapplied,) = eventually(lambda: booked_unapplied_charges(client, payment))
            assert (unapplied.provider, unapplied.amount) == ("a", "5.00")
            assert attempts_of(client, payment) == [("a", "NOT_SENT"), ("b", "SUCCEEDED")]
            assert not order_details(client, payment).conflicting_reports
            assert state_of(client.payment, events["c"]) == "RECEIVED"
    assert (report := verify(scratch_database)).passed, report.as_text()


def test_an_unknown_outcome_before_an_unreachable_provider(scratch_database: DatabaseUrls) -> None:
    """An attempt that once had no answer is never moved, although later sends are certainly not
    sent.
    """
    answers: list[ChargeOutcome] = [
        Unknown("lost"),
        NotSent("no connection"),
        NotSent("no connection"),
    ]

    async def send(request: ChargeRequest) -> ChargeOutcome:
        return answers.pop(0) if answers else Succeeded("paid", request.amount, request.currency)

    def unknown(_: ChargeRequest) -> ChargeLookupOutcome:
        return Unknown("lost")

    provider = ScriptedPaymentProvider(unknown, send)
    provider.name = "a"
    with (
        sandbox_database(scratch_database) as database,
        serve_platform(
            scratch_database,
            routing_settings(EUR_RULE),
            dependencies=Dependencies(
                providers={"a": provider, "b": SandboxProvider(database, "b")}
            ),
        ) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert wait_for_final_order(client, payment).provider_reference == "paid"
        assert attempts_of(client, payment) == [("a", "SUCCEEDED")]
    assert verify(scratch_database).passed
