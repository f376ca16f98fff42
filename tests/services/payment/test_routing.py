"""Several providers: routing rules over the public API, their limits and previews."""

from __future__ import annotations

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tallystick import Client, InvalidArgumentError, UnavailableError, new_order
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_core.payment.routing import RoutingRule
from tallystick_server.app.database.connections import DatabaseUrls
from tests.support.charges import (
    SLOW_RETRY,
    WAIT_FOR_ACCEPTANCE,
    is_paid,
    retry_reason,
)
from tests.support.payments import create_payment
from tests.support.platform import (
    eventually,
    run_command,
    unique_id,
)
from tests.support.routing import (
    EUR_RULE,
    attempts_of,
    list_open,
    order_details,
    routing_settings,
    three_sandboxes,
)


def test_changed_rules_move_no_stored_charge(scratch_database: DatabaseUrls) -> None:
    """A charge keeps the provider and the fallback that were chosen when it was stored, whatever
    the rules say after a restart.
    """
    slow = routing_settings(EUR_RULE, retry=SLOW_RETRY)
    with three_sandboxes(scratch_database, slow) as (_, client, _):
        unknown = create_payment(
            client, "5.00", token="tok_lost_before", wait_for=WAIT_FOR_ACCEPTANCE
        )
        charge_id = unknown.payment_orders[0].charge_id
        assert eventually(lambda: retry_reason(scratch_database, charge_id) == "NO_ANSWER")
    with psycopg.connect(scratch_database.admin) as connection:
        connection.execute("update payment.operation set next_try_time = now()")
    moved = replace(EUR_RULE, provider="b", fallback="c")
    with three_sandboxes(scratch_database, routing_settings(moved)) as (_, client, _):
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
    chosen = routing_settings(
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


ROUTING_REASONS = {
    (1, "a", "half"): r"the checkout is at \d+, within the share of 50 percent",
    (1, "b", "rest"): r"the checkout is at \d+, within the share of 60 percent",
    (1, "c", ""): "no rule matches",
    (2, "b", "half"): (
        "fallback: nothing was sent to a: (the connection was refused|the circuit breaker is open)"
    ),
}
"""The reason of an attempt, by its number, provider and rule."""


def test_shares_during_an_outage(
    scratch_database: DatabaseUrls, thorough: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Many orders over three providers by share, of which one is unreachable for a third of
    them: every order is paid, by exactly one provider, which is the one that the order shows; the
    orders of the failed provider are charged by its fallback. Each attempt has its rule and reason.
    """
    count = 10_000 if thorough else 300
    rules = (
        RoutingRule(name="half", provider="a", fallback="b", share=50),
        RoutingRule(name="rest", provider="b", share=60),
    )
    chosen = routing_settings(*rules, breaker__reset_timeout=0.3, breaker__max_reset_timeout=0.3)
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
            attempts = connection.execute(
                "select attempt_number, provider, routing_rule, routing_reason from attempt"
            ).fetchall()
        with psycopg.connect(scratch_database.reader("sandbox")) as connection:
            charges = connection.execute("select charge_id, provider, state from charge").fetchall()
    assert len(orders) == 3 * (count // 3)
    assert {status for _, _, status, _ in orders} == {"SUCCESS"}
    assert Counter((id_, provider) for id_, provider, _, _ in orders) == Counter(
        (id_, provider) for id_, provider, state in charges if state == "SUCCEEDED"
    )
    assert len(attempts) == sum(attempt_count for _, _, _, attempt_count in orders)
    for number, provider, rule, reason in attempts:
        assert re.fullmatch(ROUTING_REASONS[number, provider, rule], reason), reason
    fallback_share = sum(attempt_count > 1 for _, _, _, attempt_count in orders) / len(orders)
    providers_share = Counter(provider for _, provider, _, _ in orders)
    with capsys.disabled():
        print(
            f"\n{len(orders)} orders, {dict(sorted(providers_share.items()))}, "
            f"by the fallback: {fallback_share:.1%}"
        )
    assert 0.10 < fallback_share < 0.24  # about half of a third


def test_the_command_shows_the_decision(scratch_database: DatabaseUrls) -> None:
    """`tallystick routing preview` prints the provider, the fallback, the reason and the skipped
    rules; a wrong value is an error that names it.
    """
    rules = (RoutingRule(name="us", provider="b", countries=frozenset({"US"})), EUR_RULE)
    with three_sandboxes(scratch_database, routing_settings(*rules)) as (platform, _, _):
        base = ("routing", "preview", "--address", platform.address, "--currency", "EUR")
        result = run_command(*base, "--amount", "5.00", "--country", "DE")
        assert result.returncode == 0, result.stderr
        words = " ".join(result.stdout.split())
        for text in ("provider a", "fallback_provider b", "routing_rule eur", "currency EUR"):
            assert text in words
        assert "us country DE is not among US" in words
        as_json = run_command(*base, "--amount", "5.00", "--country", "US", "--json")
        assert json.loads(as_json.stdout)["routing_rule"] == "us"
        wrong = run_command(*base, "--amount", "5.001")
        assert wrong.returncode == 1
        assert "amount" in wrong.stderr


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
    with three_sandboxes(scratch_database, routing_settings(*rules)) as (_, client, _):
        for number in range(4):
            checkout_id = unique_id(f"c{number}")
            decision = preview(client, checkout_id=checkout_id)
            payment = create_payment(client, "5.00", checkout_id=checkout_id)
            attempt = order_details(client, payment).attempts[0]
            assert (attempt.provider, attempt.routing_rule, attempt.routing_reason) == (
                decision.provider,
                decision.routing_rule,
                decision.routing_reason,
            )
            assert [one.routing_rule for one in decision.skipped_rules] == (
                ["us"] if decision.routing_rule == "half" else ["us", "half"]
            )
            assert decision.skipped_rules[0].reason == "country not given is not among US"
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
