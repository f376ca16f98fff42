"""The fences of a fallback: what other holders do, and what the first provider reports later."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import psycopg
import pytest

from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import NextAction
from tallystick_core.provider.outcome import (
    ChargeOutcome,
    Declined,
    FailureReason,
    Pending,
    PendingReason,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.operation import NO_LEASE
from tallystick_server.payment.charge import Charge, charges_from_rows
from tallystick_storage.payment import charges as charge_store
from tests.support.charges import (
    SLOW_RETRY,
    WAIT_FOR_ACCEPTANCE,
    booked_unapplied_charges,
    is_paid,
    leased_charge,
    record_outcomes,
    retry_reason,
)
from tests.support.payments import create_payment
from tests.support.platform import (
    ServedPlatform,
    database_of,
    eventually,
    payment_worker_of,
)
from tests.support.routing import (
    EUR_RULE,
    attempts_of,
    list_open,
    order_details,
    routing_settings,
    three_sandboxes,
)


def apply_report(
    platform: ServedPlatform, charge_id: str, outcome: ChargeOutcome, provider: str
) -> None:
    """Applies what a provider reports of its attempt, as by a webhook."""
    attempt = charge_store.AttemptSelector(charge_id, provider=provider)
    rows = platform.run_in_loop(
        database_of(platform, "payment").read,
        lambda connection: charge_store.find_charges(connection, [attempt]),
    )
    (charge,) = charges_from_rows(rows, {charge_id: NO_LEASE}, 0.0, 60.0)
    platform.run_in_loop(payment_worker_of(platform).record_reported, charge, outcome)


@pytest.mark.parametrize("is_early", [True, False])
def test_late_words_of_the_first_provider(scratch_database: DatabaseUrls, is_early: bool) -> None:
    """What the first provider says after a fallback never changes the order: a decline, a pending
    or an unknown outcome do nothing, and money is an unapplied charge, once. So before and after
    the fallback's outcome.
    """
    with three_sandboxes(scratch_database, routing_settings(EUR_RULE, retry=SLOW_RETRY)) as (
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
            apply_report(platform, charge_id, late, "a")
        after = order_details(client, payment)
        assert after.payment_order.payment_order_status == before.payment_order.payment_order_status
        assert attempts_of(client, payment) == [("a", "NOT_SENT"), ("b", outcome)]
        assert not after.conflicting_reports
        for _ in range(2):
            apply_report(platform, charge_id, Succeeded("late", 500, "EUR"), "a")
        (unapplied,) = eventually(lambda: booked_unapplied_charges(client, payment))
        assert (unapplied.provider, unapplied.provider_reference) == ("a", "late")
        if is_early:
            apply_report(platform, charge_id, Succeeded("at-b", 500, "EUR"), "b")
        assert is_paid(client, payment)
        assert order_details(client, payment).payment_order.provider == "b"


def test_the_fallback_is_fenced(scratch_database: DatabaseUrls) -> None:
    """No fallback begins if the charge may have been sent: by another holder of the lease, under a
    lease that was lost, or because its provider has said anything else meanwhile; nor if a
    cancellation has changed the charge. The attempt stays the only one.
    """
    chosen = routing_settings(EUR_RULE, retry=SLOW_RETRY, breaker__failure_threshold=1)
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
            assert eventually(partial(retry_reason, scratch_database, charge_id))
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


def fall_back(platform: ServedPlatform, charge: Charge) -> Charge | None:
    """Begins the fallback of a charge that, as its holder knows it, was not sent."""
    kind = payment_worker_of(platform).kinds[KindName.CHARGE]
    assert kind.fall_back is not None
    failed_step = FailedStep(
        replace(charge, maybe_sent=False), RetryReason.NOT_SENT, "no connection", NextAction.SEND
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
    with three_sandboxes(scratch_database, routing_settings(EUR_RULE, retry=SLOW_RETRY)) as (
        platform,
        client,
        providers,
    ):
        providers["a"].sandbox.down = True
        providers["b"].sandbox.down = True
        for is_stale_first in (True, False):
            payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
            charge_id = payment.payment_orders[0].charge_id
            # both attempts are not sent: the second waits
            assert eventually(partial(retry_reason, scratch_database, charge_id)) == "NOT_SENT"
            assert len(order_details(client, payment).attempts) == 2
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
            (unapplied,) = eventually(partial(booked_unapplied_charges, client, payment))
            assert (unapplied.provider, unapplied.provider_reference) == ("a", f"a-{charge_id}")
