"""Helpers for tests of routing: rules, three sandboxes, and what is stored of their charges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from tallystick import Client
from tallystick.history.v1 import history_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_core.payment.routing import RoutingRule
from tallystick_core.provider.outcome import (
    RetryReason,
)
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.verify.run import verify
from tests.fakes.payment_provider import SandboxProvider
from tests.support.charges import (
    FAST_RETRY_POLICY,
    sandbox_database,
    serve_sandboxes,
)
from tests.support.platform import (
    ServedPlatform,
)

EUR_RULE = RoutingRule(name="eur", provider="a", fallback="b", currencies=frozenset({"EUR"}))
FAST_RETRY = {("", reason): FAST_RETRY_POLICY for reason in RetryReason}


def routing_settings(*rules: RoutingRule, **values: Any) -> Settings:
    """Settings with these rules; c takes the charges that no rule matches."""
    return Settings().replace(
        **{"retry": FAST_RETRY, **values},
        routing=rules,
        providers__payment="c",
        worker__scan_interval=0.2,
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


def sandbox_log(databases: DatabaseUrls, payment: payment_pb2.Payment) -> list[tuple[str, str]]:
    """Provider and state of each charge that a sandbox has of the payment."""
    charge_id = payment.payment_orders[0].charge_id
    with psycopg.connect(databases.reader("sandbox")) as connection:
        return connection.execute(
            "select provider, state from charge where charge_id = %s order by provider",
            (charge_id,),
        ).fetchall()


def provider_balances(databases: DatabaseUrls) -> dict[str, int]:
    """The balance of each ledger account of a provider."""
    with psycopg.connect(databases.reader("ledger")) as connection:
        return dict(
            connection.execute(
                "select a.account, sum(e.amount)::bigint from entry e join account a using "
                "(account_id) where a.account ~ '^(psp|unapplied)/' group by a.account"
            ).fetchall()
        )


def list_open(client: Client) -> list[str]:
    request = pb.ListPaymentsRequest(payment_state=payment_pb2.PAYMENT_STATE_OPEN, page_size=200)
    return [one.checkout_id for one in client.payment.ListPayments(request).payments]
