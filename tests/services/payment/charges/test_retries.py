"""Retries: which charges are sent again, and which are never sent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tallystick import Client
from tallystick.operator.v1 import operator_pb2
from tallystick_core.operations.next_action import NextAction
from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    FailureReason,
    NotFound,
    NotSent,
    RetryReason,
    Succeeded,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tests.fakes.payment_provider import ScriptedPaymentProvider
from tests.support.charges import (
    WAIT_FOR_ACCEPTANCE,
    client_of_platform,
    failure_reason,
    fast_final_settings,
    is_paid,
    leased_charge,
    payment_of_dead_process,
    reschedule,
    retry_reason,
    scheduled_operation,
    wait_for_dead_letter,
    wait_for_final_order,
    waiting_charges,
)
from tests.support.payments import charge_log, create_payment
from tests.support.platform import (
    WAITING_FOR_LOCK_QUERY,
    ServedPlatform,
    eventually,
    payment_worker_of,
    serve_platform,
)
from tests.support.retry_policies import scaled_defaults
from tests.support.rows import update_rows


@pytest.mark.parametrize(
    "token", ["tok_unreachable", "tok_busy", "tok_lost_before", "tok_error_after"]
)
def test_a_temporary_failure_is_retried(
    client: Client, two_try_platform: ServedPlatform, token: str
) -> None:
    """A charge that fails once is retried under the same key, and charged once."""
    payment = create_payment(client, "5.00", token=token)
    assert payment.is_payment_done
    assert len(charge_log(two_try_platform.databases, payment.checkout_id)) == 1


def test_an_order_fails_if_its_provider_is_never_reached(
    client: Client, two_try_platform: ServedPlatform
) -> None:
    """If only NotSent was answered until retries are exhausted: FAILED(PROVIDER_UNREACHABLE), and
    the provider knows of no charge.
    """
    payment = create_payment(client, "5.00", token="tok_unreachable:9")
    order = wait_for_final_order(client, payment)
    assert failure_reason(order) == "PROVIDER_UNREACHABLE"
    assert charge_log(two_try_platform.databases, payment.checkout_id) == []
    assert scheduled_operation(two_try_platform.databases, order.charge_id) is None


def test_a_permanent_rejection_fails_immediately(client: Client) -> None:
    """A charge that the provider declines with a 400 is FAILED(PROVIDER_REJECTED), and is not
    retried.
    """
    payment = create_payment(client, "0.01", token="tok_amount_too_small")
    assert failure_reason(payment.payment_orders[0]) == "PROVIDER_REJECTED"
    assert payment.payment_orders[0].decline_code == "amount_too_small"


def test_an_unsent_charge_is_sent_after_any_outage(
    scratch_database: DatabaseUrls,
) -> None:
    """K3: a provider that was unreachable until after the key window is looked up once, and
    receives the charge because it does not know it. No operator is needed, and it is charged once.
    """
    away = [True]
    actions: list[NextAction] = []

    def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
        actions.append(NextAction.LOOK_UP)
        return NotFound()

    async def send(request: ChargeRequest) -> ChargeOutcome:
        if away[0]:
            return NotSent("nobody listens")
        actions.append(NextAction.SEND)
        return Succeeded(f"ch_{request.charge_id}", request.amount, request.currency)

    provider = ScriptedPaymentProvider(outcome_of, send)
    provider.key_window = 4.5
    settings = Settings().replace(
        retry={
            ("", reason): RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 1000)
            for reason in RetryReason
        },
        worker__scan_interval=0.1,
        worker__lease_duration=2.5,
        providers__timeout=0.1,
    )
    with client_of_platform(scratch_database, settings, provider) as client:
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(lambda: actions), "it was not looked up"
        away[0] = False
        assert is_paid(client, payment)
        assert actions == [NextAction.LOOK_UP, NextAction.SEND]
    assert verify(scratch_database).passed


@pytest.mark.parametrize("token", ["tok_error_before:9", "tok_lost_before:9", "tok_busy:9"])
def test_a_charge_unknown_to_the_provider_is_sent_again(
    client: Client, two_try_platform: ServedPlatform, token: str
) -> None:
    """A charge that fails more often than its policy allows is alternately looked up and sent while
    its key is honored. It is paid once, and is not dead-lettered.
    """
    payment = create_payment(client, "5.00", token=token)
    assert is_paid(client, payment)
    assert [
        state for _, state, _ in charge_log(two_try_platform.databases, payment.checkout_id)
    ] == ["SUCCEEDED"]


def test_an_order_without_a_passed_risk_check_is_never_sent(scratch_database: DatabaseUrls) -> None:
    """A due charge of an order that is still NOT_STARTED sends nothing to the provider: it is a
    dead letter with that cause.
    """
    with (
        serve_platform(
            scratch_database, fast_final_settings(worker__lease_duration=4, providers__timeout=0.4)
        ) as platform,
        platform.client() as client,
    ):
        payment = payment_of_dead_process(platform, client)
        with psycopg.connect(scratch_database.admin) as connection:
            connection.execute("set session_replication_role = replica")
            update_rows(connection, "update payment.payment_order set status = 'NOT_STARTED'")
        dead_letter = wait_for_dead_letter(client, payment)
        assert (dead_letter.cause, dead_letter.detail) == (
            operator_pb2.DEAD_LETTER_CAUSE_REJECTED,
            "the order has not passed the risk check",
        )
        assert charge_log(scratch_database, payment.checkout_id) == []


def test_a_charge_recovers_from_a_few_server_errors(scratch_database: DatabaseUrls) -> None:
    """With the default policies, at another speed: a provider that answers 5xx seven times in a row
    charges once it works again, without an operator.
    """
    retry = {("", reason): policy for reason, policy in scaled_defaults(0.1).items()}
    with client_of_platform(
        scratch_database, Settings().replace(retry=retry, worker__scan_interval=0.1)
    ) as client:
        payment = create_payment(
            client, "5.00", token="tok_error_before:7", wait_for=WAIT_FOR_ACCEPTANCE
        )
        assert is_paid(client, payment)
        assert len(charge_log(scratch_database, payment.checkout_id)) == 1


def test_a_rescheduled_batch_locks_its_operations_by_id(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """If one charge of a batch fails and another waits, the operations of both are locked by id: a
    transaction that waits for the first holds no lock on the second.
    """
    payments = [
        create_payment(
            slow_retry_client, "5.00", token="tok_unreachable:1000", wait_for=WAIT_FOR_ACCEPTANCE
        )
        for _ in range(2)
    ]
    first, last = sorted(payment.payment_orders[0].charge_id for payment in payments)
    for charge_id in (first, last):
        assert eventually(
            lambda charge_id=charge_id: (  # type: ignore[misc]
                retry_reason(slow_retry_platform.databases, charge_id) == "NOT_SENT"
            )
        )
    with (
        psycopg.connect(slow_retry_platform.databases.admin) as holder,
        psycopg.connect(slow_retry_platform.databases.admin, autocommit=True) as admin,
    ):
        tokens: dict[str, int] = dict(
            admin.execute("select operation_id, lease_token from payment.operation").fetchall()
        )
        waiting_charge = leased_charge(slow_retry_platform, first, tokens[first])
        failing_charge = leased_charge(slow_retry_platform, last, tokens[last])
        batch = [
            FailedStep(waiting_charge, RetryReason.NOT_SENT, "away", NextAction.SEND),
            FailedStep(
                failing_charge,
                RetryReason.NOT_SENT,
                "away",
                NextAction.GIVE_UP,
                failure_reason=FailureReason.EXPIRED,
            ),
        ]
        holder.execute("select from payment.operation where operation_id = %s for update", (first,))
        with ThreadPoolExecutor(1) as pool:
            reschedule_future = pool.submit(reschedule, slow_retry_platform, *batch)
            assert eventually(lambda: admin.execute(WAITING_FOR_LOCK_QUERY).fetchone() == (1,))
            admin.execute(
                "select from payment.operation where operation_id = %s for update nowait", (last,)
            )
            holder.commit()
            reschedule_future.result(30)
    assert scheduled_operation(slow_retry_platform.databases, last) is None


def test_a_full_scan_is_followed_by_another_immediately(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While more operations are due than one scan claims, scans follow without a pause."""
    monkeypatch.setattr("tallystick_server.operations.claim._MAX_CLAIMED", 3)
    retry_immediately = {
        ("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 0.0, 0.0, 1000)
    }
    with (
        serve_platform(
            scratch_database,
            Settings().replace(
                retry=retry_immediately,
                worker__scan_interval=3600,
                breaker__failure_threshold=1000,
            ),
        ) as platform,
        platform.client() as client,
    ):
        checkouts = waiting_charges(client, 12)
        assert eventually(lambda: payment_worker_of(platform).in_flight_count == 0)

        async def wake() -> None:
            payment_worker_of(platform).wake()

        platform.run_in_loop(wake)
        assert eventually(
            lambda: all(client.get_payment(checkout).is_payment_done for checkout in checkouts)
        )
