"""Several providers: routing rules, the fallback's guarantee, and what a call shows of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tallystick import Client, InvalidArgumentError, UnavailableError, new_order
from tallystick.history.v1 import history_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payment.routing import RoutingRule
from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    Declined,
    FailureReason,
    NotSent,
    Pending,
    PendingReason,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.configuration import Settings, load
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.payment.charge import Charge
from tallystick_server.verify.run import verify
from tests.fakes.payment_provider import SandboxProvider, ScriptedPaymentProvider
from tests.support.charges import (
    FAST_RETRY_POLICY,
    SLOW_RETRY,
    WAIT_FOR_ACCEPTANCE,
    booked_unapplied_charges,
    is_paid,
    leased_charge,
    record_outcomes,
    retry_reason,
    sandbox_database,
    serve_sandboxes,
    wait_for_final_order,
)
from tests.support.payments import create_payment
from tests.support.platform import (
    ServedPlatform,
    eventually,
    free_address,
    payment_worker_of,
    serve_platform,
    unique_id,
)

EUR_RULE = RoutingRule(name="eur", provider="a", fallback="b", currencies=frozenset({"EUR"}))
FAST_RETRY = {("", reason): FAST_RETRY_POLICY for reason in RetryReason}


def settings(*rules: RoutingRule, **values: Any) -> Settings:
    """Settings with these rules; c takes the charges that no rule matches."""
    return Settings().replace(
        **{"retry": FAST_RETRY, **values},
        routing=rules,
        providers__payment="c",
        worker__scan_interval=0.1,
    )


@contextmanager
def three_sandboxes(
    databases: DatabaseUrls, chosen: Settings
) -> Iterator[tuple[ServedPlatform, Client, dict[str, SandboxProvider]]]:
    """A platform with the sandboxes a, b and c, which the test can stop."""
    with sandbox_database(databases) as database:
        providers = {name: SandboxProvider(database, name) for name in "abc"}
        with (
            serve_sandboxes(databases, chosen, *providers.values()) as platform,
            platform.client() as client,
        ):
            yield platform, client, providers
    assert (report := verify(databases)).passed, report.as_text()


def order_details(client: Client, payment: payment_pb2.Payment) -> pb.GetPaymentOrderResponse:
    order_id = payment.payment_orders[0].payment_order_id
    return client.payment.GetPaymentOrder(pb.GetPaymentOrderRequest(payment_order_id=order_id))


def attempts_of(client: Client, payment: payment_pb2.Payment) -> list[tuple[str, str]]:
    """Provider and outcome of each attempt."""
    return [
        (
            one.provider,
            history_pb2.AttemptOutcome.Name(one.outcome).removeprefix("ATTEMPT_OUTCOME_"),
        )
        for one in order_details(client, payment).attempts
    ]


def provider_log(databases: DatabaseUrls, payment: payment_pb2.Payment) -> list[tuple[str, str]]:
    """Provider and state of each charge that a sandbox has of the payment."""
    charge_id = payment.payment_orders[0].charge_id
    with psycopg.connect(databases.reader("sandbox")) as connection:
        return connection.execute(
            "select provider, state from charge where charge_id = %s order by provider",
            (charge_id,),
        ).fetchall()


def balances(databases: DatabaseUrls) -> dict[str, int]:
    """The balance of each ledger account of a provider."""
    with psycopg.connect(databases.reader("ledger")) as connection:
        return dict(
            connection.execute(
                "select a.account, sum(e.amount)::bigint from entry e join account a using "
                "(account_id) where a.account ~ '^(psp|unapplied)/' group by a.account"
            ).fetchall()
        )


def test_a_provider_that_refuses_connections_is_replaced(scratch_database: DatabaseUrls) -> None:
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
        shown = [event.payment_order for event in client.events(aggregate_id=aggregate)]
        assert [(one.provider, one.attempt_count) for one in shown] == [
            ("a", 0),
            ("a", 1),
            ("b", 2),
            ("b", 2),
            ("b", 2),
        ]
        assert provider_log(scratch_database, payment) == [("b", "SUCCEEDED")]
        other = client.create_payment(
            unique_id("c"),
            [new_order(unique_id("o"), "buyer-1", "seller-usd", "7.00", "USD")],
            credit_card_info="tok_visa",
        )
        assert attempts_of(client, other) == [("c", "SUCCEEDED")]
        assert order_details(client, other).attempts[0].routing_reason == "no rule matches"
        assert balances(scratch_database) == {"psp/b/clearing": -500, "psp/c/clearing": -700}
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
    if the provider then refuses connections or its circuit opens; the fallback never sees it.
    """
    chosen = settings(EUR_RULE, breaker__reset_timeout=0.2, breaker__max_reset_timeout=0.2)
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
        assert provider_log(scratch_database, payment) == [("a", "SUCCEEDED")]


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
    chosen = settings(
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
    """If the fallback refuses connections too, the charge stays there and is retried until it
    answers. It is charged once, and never returns to the first provider.
    """
    with three_sandboxes(scratch_database, settings(EUR_RULE)) as (_, client, providers):
        providers["a"].sandbox.down = providers["b"].sandbox.down = True
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: attempts_of(client, payment) == [("a", "NOT_SENT"), ("b", "NOT_SENT")]
        )
        providers["a"].sandbox.down = providers["b"].sandbox.down = False
        assert is_paid(client, payment)
        assert provider_log(scratch_database, payment) == [("b", "SUCCEEDED")]


def test_a_failing_fallback_is_not_used(scratch_database: DatabaseUrls) -> None:
    """While the circuit of the fallback is open, the charge waits at its provider, and is charged
    there once it answers.
    """
    chosen = settings(
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


def test_changed_rules_move_no_stored_charge(scratch_database: DatabaseUrls) -> None:
    """A charge keeps the provider and the fallback that were chosen when it was stored, whatever
    the rules say after a restart.
    """
    slow = settings(EUR_RULE, retry=SLOW_RETRY)
    with three_sandboxes(scratch_database, slow) as (_, client, _):
        unknown = create_payment(
            client, "5.00", token="tok_lost_before", wait_for=WAIT_FOR_ACCEPTANCE
        )
        charge_id = unknown.payment_orders[0].charge_id
        assert eventually(lambda: retry_reason(scratch_database, charge_id) == "NO_ANSWER")
    with psycopg.connect(scratch_database.admin) as connection:
        connection.execute("update payment.operation set next_try_time = now()")
    moved = replace(EUR_RULE, provider="b", fallback="c")
    with three_sandboxes(scratch_database, settings(moved)) as (_, client, _):
        assert is_paid(client, unknown)
        assert attempts_of(client, unknown) == [("a", "SUCCEEDED")]


def test_only_charges_that_must_wait_are_limited(scratch_database: DatabaseUrls) -> None:
    """The limit of queued charges is that of each provider: while one fails, payments for others,
    and payments with a fallback that answers, are accepted.
    """
    rules = (
        replace(EUR_RULE, max_amount=1000),
        replace(EUR_RULE, name="alone", fallback=""),
    )
    chosen = settings(
        *rules,
        breaker__failure_threshold=1,
        breaker__reset_timeout=60,
        payment__max_queued_charges=1,
        retry=SLOW_RETRY,
    )
    with three_sandboxes(scratch_database, chosen) as (platform, client, providers):
        providers["a"].sandbox.down = True
        waiting = create_payment(client, "50.00", wait_for=WAIT_FOR_ACCEPTANCE)
        charge_id = waiting.payment_orders[0].charge_id
        assert eventually(lambda: retry_reason(scratch_database, charge_id) == "NOT_SENT")
        with platform.client(tries=1) as single_try_client:
            with pytest.raises(UnavailableError) as error:
                create_payment(single_try_client, "50.00")
            assert error.value.reason == "PROVIDER_UNAVAILABLE"
            assert create_payment(single_try_client, "5.00").is_payment_done
            order = new_order(unique_id("o"), "buyer-1", "seller-usd", "70.00", "USD")
            assert single_try_client.create_payment(
                unique_id("c"), [order], credit_card_info="tok_visa"
            ).is_payment_done
        providers["a"].sandbox.down = False
        client.payment.CancelPayment(
            pb.CancelPaymentRequest(checkout_id=waiting.checkout_id, reason="waited")
        )
        assert not is_paid(client, waiting)


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
                scratch_database, settings(EUR_RULE, retry=retry), *providers
            ) as platform,
            platform.client() as client,
        ):
            payment = create_payment(client, "5.00")
            assert payment.is_payment_done
            assert attempts_of(client, payment) == [("a", "NOT_SENT"), ("b", "SUCCEEDED")]
            (unapplied,) = eventually(lambda: booked_unapplied_charges(client, payment))
            assert (unapplied.provider, unapplied.amount) == ("a", "5.00")
            assert unapplied.cause == payment_pb2.UNAPPLIED_CAUSE_DUPLICATE_CHARGE
            assert balances(scratch_database) == {
                "psp/a/clearing": -500,
                "psp/b/clearing": -500,
                "unapplied/a": 500,
            }
    assert (report := verify(scratch_database)).passed, report.as_text()


def apply(platform: ServedPlatform, charge_id: str, outcome: ChargeOutcome, attempt: int) -> None:
    """Applies what the provider of an attempt says, as by a webhook."""
    platform.run_in_loop(
        payment_worker_of(platform).apply_provider_update,
        KindName.CHARGE,
        charge_id,
        outcome,
        attempt,
    )


@pytest.mark.parametrize("is_early", [True, False])
def test_late_words_of_the_first_provider(scratch_database: DatabaseUrls, is_early: bool) -> None:
    """What the first provider says after a fallback never changes the order: a decline, a pending
    or an unknown outcome do nothing, and money is an unapplied charge, once. So before and after
    the fallback's outcome.
    """
    with three_sandboxes(scratch_database, settings(EUR_RULE, retry=SLOW_RETRY)) as (
        platform,
        client,
        providers,
    ):
        providers["a"].sandbox.down = True
        token = "tok_lost_before" if is_early else "tok_visa"
        payment = create_payment(client, "5.00", token=token, wait_for=WAIT_FOR_ACCEPTANCE)
        charge_id = payment.payment_orders[0].charge_id
        outcome = "UNKNOWN" if is_early else "SUCCEEDED"
        assert eventually(
            lambda: attempts_of(client, payment) == [("a", "NOT_SENT"), ("b", outcome)]
        )
        before = order_details(client, payment)
        for late in (
            Declined(FailureReason.PROVIDER_DECLINED),
            Pending(PendingReason.BUYER_ACTION, "late", "https://example.com"),
            Unknown("lost"),
        ):
            apply(platform, charge_id, late, 1)
        after = order_details(client, payment)
        assert after.payment_order.payment_order_status == before.payment_order.payment_order_status
        assert attempts_of(client, payment) == [("a", "NOT_SENT"), ("b", outcome)]
        assert not after.conflicting_reports
        for _ in range(2):
            apply(platform, charge_id, Succeeded("late", 500, "EUR"), 1)
        (unapplied,) = eventually(lambda: booked_unapplied_charges(client, payment))
        assert (unapplied.provider, unapplied.provider_reference) == ("a", "late")
        if is_early:
            apply(platform, charge_id, Succeeded("at-b", 500, "EUR"), 2)
        assert is_paid(client, payment)
        assert order_details(client, payment).payment_order.provider == "b"


def test_the_fallback_is_fenced(scratch_database: DatabaseUrls) -> None:
    """No fallback begins if the charge may have been sent: by another holder of the lease, under a
    lease that was lost, or because its provider has said anything else meanwhile; nor if a
    cancellation has changed the charge. The attempt stays the only one.
    """
    chosen = settings(EUR_RULE, retry=SLOW_RETRY, breaker__failure_threshold=1)
    with three_sandboxes(scratch_database, chosen) as (platform, client, providers):
        providers["a"].sandbox.down = providers["b"].sandbox.down = True
        # the circuit of b opens, so charges stay at a
        create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        gateway = payment_worker_of(platform).gateway
        assert eventually(lambda: gateway.is_circuit_open("b"))
        for statement in (
            "update payment.operation set lease_token = lease_token + 1 where operation_id = %s",
            "update payment.operation set maybe_sent = true where operation_id = %s",
            "update payment.operation set has_changed = true where operation_id = %s",
            "update payment.attempt set outcome = 'UNKNOWN' where operation_id = %s",
            "update payment.attempt set outcome = 'PENDING' where operation_id = %s",
        ):
            payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
            charge_id = payment.payment_orders[0].charge_id
            assert eventually(lambda charge_id=charge_id: retry_reason(scratch_database, charge_id))
            holder = leased_charge(platform, charge_id, 1)
            with psycopg.connect(
                scratch_database.service("payment").replace("+psycopg", "")
            ) as connection:
                connection.execute(statement.replace("payment.", ""), (charge_id,))
            assert fall_back(platform, holder) is None
            assert len(order_details(client, payment).attempts) == 1
        for payment_id in list_open(client):
            client.payment.CancelPayment(
                pb.CancelPaymentRequest(checkout_id=payment_id, reason="the end of the test")
            )


def list_open(client: Client) -> list[str]:
    request = pb.ListPaymentsRequest(payment_state=payment_pb2.PAYMENT_STATE_OPEN, page_size=200)
    return [one.checkout_id for one in client.payment.ListPayments(request).payments]


def fall_back(platform: ServedPlatform, charge: Charge) -> Charge | None:
    """Begins the fallback of a charge that, as its holder knows it, was not sent."""
    kind = payment_worker_of(platform).kinds[KindName.CHARGE]
    assert kind.fall_back is not None
    failed_step = FailedStep(
        replace(charge, maybe_sent=False), RetryReason.NOT_SENT, "refused", NextAction.SEND
    )
    successor: Charge | None = platform.run_in_loop(
        kind.fall_back, failed_step, lambda _provider: True
    )
    return successor


def test_a_stale_answer_of_the_replaced_attempt(scratch_database: DatabaseUrls) -> None:
    """A process that loaded the first attempt before the fallback records its outcome after it, in
    one batch with that of the second attempt: the second pays the order, the first is an unapplied
    charge, whichever comes first.
    """
    with three_sandboxes(scratch_database, settings(EUR_RULE, retry=SLOW_RETRY)) as (
        platform,
        client,
        providers,
    ):
        providers["a"].sandbox.down = True
        providers["b"].sandbox.down = True
        for is_stale_first in (True, False):
            payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
            charge_id = payment.payment_orders[0].charge_id
            assert eventually(
                lambda payment=payment: len(order_details(client, payment).attempts) == 2
            )
            assert eventually(
                lambda charge_id=charge_id: retry_reason(scratch_database, charge_id) == "NOT_SENT"
            )
            current = leased_charge(platform, charge_id, 2)
            stale = replace(current, attempt_number=1, provider="a", lease_token=1)
            pairs = [
                (stale, Succeeded(f"a-{charge_id}", 500, "EUR")),
                (current, Succeeded(f"b-{charge_id}", 500, "EUR")),
            ]
            record_outcomes(platform, *(pairs if is_stale_first else reversed(pairs)))
            with psycopg.connect(scratch_database.admin) as connection:
                connection.execute("update payment.operation set next_try_time = now()")
            assert is_paid(client, payment)
            order = order_details(client, payment).payment_order
            assert (order.provider, order.provider_reference) == ("b", f"b-{charge_id}")
            (unapplied,) = eventually(
                lambda payment=payment: booked_unapplied_charges(client, payment)
            )
            assert (unapplied.provider, unapplied.provider_reference) == ("a", f"a-{charge_id}")


def test_an_unknown_outcome_before_a_refused_connection(scratch_database: DatabaseUrls) -> None:
    """An attempt that once had no answer is never moved, although later sends are certainly not
    sent.
    """
    answers: list[ChargeOutcome] = [Unknown("lost"), NotSent("refused"), NotSent("refused")]

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
            settings(EUR_RULE),
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


def test_shares_during_an_outage(
    scratch_database: DatabaseUrls, thorough: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Many orders over three providers by share, of which one refuses connections for a third of
    them: every order is paid, by exactly one provider, which is the one that the order shows; the
    orders of the failed provider are charged by its fallback.
    """
    count = 10_000 if thorough else 300
    rules = (
        RoutingRule(name="half", provider="a", fallback="b", share=50),
        RoutingRule(name="rest", provider="b", share=60),
    )
    chosen = settings(*rules, breaker__reset_timeout=0.3, breaker__max_reset_timeout=0.3)
    with three_sandboxes(scratch_database, chosen) as (_, client, providers):
        with ThreadPoolExecutor(8) as pool:
            for part in range(3):
                providers["a"].sandbox.down = part == 1
                list(pool.map(lambda _: create_payment(client, "1.00"), range(count // 3)))
        assert eventually(lambda: not list_open(client), timeout_seconds=60)
        with psycopg.connect(scratch_database.reader("payment")) as connection:
            orders = connection.execute(
                "select charge_id, provider, status, attempt_count from payment_order"
            ).fetchall()
        with psycopg.connect(scratch_database.reader("sandbox")) as connection:
            charges = connection.execute("select charge_id, provider, state from charge").fetchall()
    assert len(orders) == 3 * (count // 3)
    assert {status for _, _, status, _ in orders} == {"SUCCESS"}
    assert Counter((id_, provider) for id_, provider, _, _ in orders) == Counter(
        (id_, provider) for id_, provider, state in charges if state == "SUCCEEDED"
    )
    fallback_share = sum(attempts > 1 for _, _, _, attempts in orders) / len(orders)
    providers_share = Counter(provider for _, provider, _, _ in orders)
    with capsys.disabled():
        print(
            f"\n{len(orders)} orders, {dict(sorted(providers_share.items()))}, "
            f"by the fallback: {fallback_share:.1%}"
        )
    assert 0.10 < fallback_share < 0.24  # about half of a third


def preview(client: Client, **values: Any) -> pb.PreviewRoutingResponse:
    request = pb.PreviewRoutingRequest(**{"currency": "EUR", "amount": "5.00", **values})
    return client.payment.PreviewRouting(request)


def test_a_preview_shows_the_decision(scratch_database: DatabaseUrls) -> None:
    """A preview names the provider, the fallback, the rule and its reason, and why earlier rules do
    not match; it is what a payment with these values gets. Invalid fields are named.
    """
    rules = (
        RoutingRule(name="us", provider="b", countries=frozenset({"US"})),
        RoutingRule(name="half", provider="b", share=50),
        EUR_RULE,
    )
    with three_sandboxes(scratch_database, settings(*rules)) as (_, client, _):
        for number in range(4):
            checkout_id = unique_id(f"c{number}")
            shown = preview(client, checkout_id=checkout_id)
            payment = create_payment(client, "5.00", checkout_id=checkout_id)
            attempt = order_details(client, payment).attempts[0]
            assert (attempt.provider, attempt.routing_rule, attempt.routing_reason) == (
                shown.provider,
                shown.routing_rule,
                shown.routing_reason,
            )
            assert [one.routing_rule for one in shown.skipped_rules] == (
                ["us"] if shown.routing_rule == "half" else ["us", "half"]
            )
            assert shown.skipped_rules[0].reason == "country not given is not among US"
        us = preview(client, buyer_country="US")
        assert (us.provider, us.routing_rule, us.routing_reason) == ("b", "us", "country US")
        usd = preview(client, currency="USD", checkout_id="nobody-2")
        assert usd.provider in ("b", "c")
        for field, values in (
            ("currency", {"currency": "XXQ"}),
            ("amount", {"amount": "5.001"}),
            ("buyer_country", {"buyer_country": "de"}),
            ("seller_accounts[1]", {"seller_accounts": ["one", "-"]}),
            ("seller_accounts", {"seller_accounts": [f"s{n}" for n in range(201)]}),
            ("checkout_id", {"checkout_id": "-"}),
            ("caller", {"caller": "-"}),
            ("payment_method_type", {"payment_method_type": 99}),
        ):
            with pytest.raises(InvalidArgumentError) as error:
                preview(client, **values)
            assert [one.field for one in error.value.field_violations] == [field]
