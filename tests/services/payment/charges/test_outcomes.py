"""Recorded outcomes: concurrent reports, lost leases, and orders that follow what is stored."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from tallystick import Client, FailedPreconditionError
from tallystick.history.v1 import history_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payment.state import OrderStatus, PaymentTransitionReason
from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    Declined,
    FailureReason,
    Pending,
    PendingReason,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.payment.charge import Charge
from tallystick_server.payment.transitions import OrderTransition, transition_orders
from tallystick_server.verify.run import verify
from tallystick_storage.database import ConstraintViolation
from tallystick_storage.operation_key import OperationKey
from tallystick_storage.operations import claim_dead_lettered, find_held
from tallystick_storage.payment import orders as payment_store
from tallystick_storage.sql import Connection
from tests.fakes.payment_provider import ScriptedPaymentProvider
from tests.support.charges import (
    WAIT_FOR_ACCEPTANCE,
    booked_unapplied_charges,
    client_of_platform,
    close_dead_letter,
    dead_letter_state,
    event_versions,
    is_paid,
    leased_charge,
    record_outcomes,
    reschedule,
    retry_dead_letter,
    retry_reason,
    scheduled_operation,
    wait_for_dead_letter,
    wait_for_final_order,
)
from tests.support.payments import create_payment
from tests.support.platform import (
    FAST_RETRY,
    ServedPlatform,
    database_of,
    eventually,
    payments_of,
    serve_platform,
    unique_id,
)
from tests.support.rows import update_rows


def test_a_recorded_outcome_is_applied_without_another_call(
    scratch_database: DatabaseUrls,
) -> None:
    """A process recorded a success and crashed before the order changed: the next process applies
    it, even if the provider is gone.
    """
    with client_of_platform(
        scratch_database, Settings().replace(retry=FAST_RETRY, worker__scan_interval=0.1)
    ) as client:
        payment = create_payment(
            client, "5.00", token="tok_lost_before:1000", wait_for=WAIT_FOR_ACCEPTANCE
        )
        order = payment.payment_orders[0]
        # as the lease holder would
        with psycopg.connect(scratch_database.service("payment")) as connection:
            update_rows(
                connection,
                "update attempt set outcome = 'SUCCEEDED', provider_reference = 'from-afar', "
                "moved_amount = 500, moved_currency = 'EUR', end_time = clock() "
                "where operation_id = %s",
                (order.charge_id,),
            )
        assert wait_for_final_order(client, payment).provider_reference == "from-afar"
    assert verify(scratch_database).passed


def test_a_second_amount_of_a_charge_raises_an_alert(
    client: Client, two_try_platform: ServedPlatform
) -> None:
    """A succeeded charge is reported again with another amount: it does not change, the amount is
    not booked, and an alert is raised.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    wait_for_dead_letter(client, payment)
    charge_id, reference = payment.payment_orders[0].charge_id, unique_id("ref")
    charge = leased_charge(two_try_platform, charge_id, 0)
    record_outcomes(
        two_try_platform,
        (charge, Succeeded(reference, 500, "EUR")),
    )
    assert is_paid(client, payment)
    record_outcomes(
        two_try_platform,
        (charge, Succeeded(reference, 501, "EUR")),
    )
    get = payment_service_pb2.GetPaymentOrderRequest(
        payment_order_id=payment.payment_orders[0].payment_order_id
    )
    (report,) = client.payment.GetPaymentOrder(get).conflicting_reports
    assert report.report == f"Succeeded {reference} 501 EUR, reported before as 500 EUR"
    assert not booked_unapplied_charges(client, payment)


def test_a_stale_transition_keeps_the_operation_scheduled(
    client: Client, two_try_platform: ServedPlatform
) -> None:
    """P5: a process with an older version of its orders changes none of them, and removes none of
    their operations from the queue.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    wait_for_dead_letter(client, payment)
    order = client.get_payment(payment.checkout_id).payment_orders[0]

    key = OperationKey(KindName.CHARGE, order.charge_id)

    async def move() -> tuple[int, bool]:
        def work(connection: Connection) -> tuple[int, bool]:
            # Rolled back, so that the dead letter is unchanged.
            with connection.transaction(force_rollback=True):
                token = claim_dead_lettered(connection, key, 1.0)
                assert token is not None
                stale = payment_store.OrderTransitionRow(
                    order.payment_order_id,
                    order.charge_id,
                    order.checkout_id,
                    order.version - 1,
                    "EXECUTING",
                    "FAILED",
                    "GIVEN_UP",
                    booked=False,
                    pending_reason="",
                    next_action_url="",
                    failure_reason="PROVIDER_UNREACHABLE",
                    decline_code="",
                    provider_reference="",
                    provider=None,
                )
                transitioned = payment_store.finish_orders(connection, [stale])
                return (
                    len(transitioned),
                    find_held(connection, [key]) == {key: token},
                )

        return await database_of(two_try_platform, "payment").transact(work)

    assert two_try_platform.run_in_loop(move) == (0, True)


def test_a_payment_is_final_at_the_time_of_its_last_order(
    client: Client, two_try_platform: ServedPlatform
) -> None:
    """A transaction that began before another order of the payment ended, and ends after it, gives
    the payment a time that is not before that of any of its orders.
    """
    payment = create_payment(
        client, "5.00", "6.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE
    )
    wait_for_dead_letter(client, payment)
    worker = payments_of(two_try_platform).worker

    async def fail_both() -> list[int]:
        first, last = [
            await worker.find(KindName.CHARGE, order.charge_id) for order in payment.payment_orders
        ]
        assert isinstance(first, Charge)
        assert isinstance(last, Charge)

        def work(connection: Connection) -> list[int]:
            with connection.transaction(force_rollback=True):
                failed = transition_orders(connection, [failure_of(first)])
                connection.set_begin_time(connection.begin_time - timedelta(seconds=10))
                failed.add(transition_orders(connection, [failure_of(last)]))
                return [
                    failed.final_payments[payment.checkout_id].update_time.ToNanoseconds(),
                    *(o.message.update_time.ToNanoseconds() for o in failed.orders.values()),
                ]

        return await database_of(two_try_platform, "payment").transact(work)

    payment_time, *order_times = two_try_platform.run_in_loop(fail_both)
    assert len(order_times) == 2
    assert payment_time == max(order_times)


def failure_of(charge: Charge) -> OrderTransition:
    return OrderTransition(
        charge,
        charge.orders[0],
        OrderStatus.FAILED,
        PaymentTransitionReason.GIVEN_UP,
        failure_reason="PROVIDER_UNREACHABLE",
    )


@pytest.mark.parametrize("in_one_batch", [True, False])
@pytest.mark.parametrize("paid", [True, False])
def test_orders_follow_the_first_recorded_outcome(
    client: Client, two_try_platform: ServedPlatform, paid: bool, in_one_batch: bool
) -> None:
    """A process that lost the lease records a success, then the lease holder gets another outcome:
    the orders follow the first record; a second charge is unapplied.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    wait_for_dead_letter(client, payment)
    order = payment.payment_orders[0]

    async def claim() -> int:
        token = await database_of(two_try_platform, "payment").transact(
            lambda connection: claim_dead_lettered(
                connection, OperationKey(KindName.CHARGE, order.charge_id), 1.0
            )
        )
        assert token is not None
        return token

    first = Succeeded(f"first-{order.charge_id}", 500, "EUR")
    second = (
        Succeeded(f"second-{order.charge_id}", 500, "EUR")
        if paid
        else Declined(FailureReason.PROVIDER_DECLINED, "no", "ref")
    )
    stale_charge = leased_charge(two_try_platform, order.charge_id, 0)
    own_charge = leased_charge(
        two_try_platform, order.charge_id, two_try_platform.run_in_loop(claim)
    )
    for charge_outcomes in (
        [((stale_charge, first), (own_charge, second))]
        if in_one_batch
        else [((stale_charge, first),), ((own_charge, second),)]
    ):
        record_outcomes(two_try_platform, *charge_outcomes)
    order = wait_for_final_order(client, payment)
    assert order.payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    assert order.provider_reference == first.reference
    assert eventually(
        lambda: (
            event_versions(client, f"paymentOrders/{order.payment_order_id}")[-1:]
            == [order.version]
        )
    )
    if paid:
        (twice,) = eventually(lambda: booked_unapplied_charges(client, payment))
        assert (twice.provider_reference, twice.cause) == (
            f"second-{order.charge_id}",
            payment_pb2.UNAPPLIED_CAUSE_DUPLICATE_CHARGE,
        )


@pytest.mark.parametrize("late", [Unknown("no answer"), Pending(PendingReason.PROVIDER_REVIEW)])
@pytest.mark.parametrize("first", [True, False])
def test_of_two_outcomes_in_one_batch_the_conclusive_one_counts(
    client: Client, two_try_platform: ServedPlatform, late: ChargeOutcome, first: bool
) -> None:
    """Outcomes of one operation from two processes in one batch: the conclusive one counts, in
    either order.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    wait_for_dead_letter(client, payment)
    charge_id = payment.payment_orders[0].charge_id
    charge = leased_charge(two_try_platform, charge_id, 1)
    charge_outcomes: list[tuple[Charge, ChargeOutcome]] = [
        (charge, late),
        (charge, Succeeded(f"ref-{charge_id}", 500, "EUR")),
    ]
    record_outcomes(two_try_platform, *(charge_outcomes if first else reversed(charge_outcomes)))
    order = wait_for_final_order(client, payment)
    request = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order.payment_order_id)
    (attempt,) = client.payment.GetPaymentOrder(request).attempts
    assert attempt.outcome == history_pb2.ATTEMPT_OUTCOME_SUCCEEDED
    assert order.payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS


def test_a_process_that_lost_its_lease_does_not_reschedule(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """A process whose lease another has claimed does not change when the charge is scheduled."""
    payment = create_payment(
        slow_retry_client, "5.00", token="tok_lost_before", wait_for=WAIT_FOR_ACCEPTANCE
    )
    charge_id = payment.payment_orders[0].charge_id
    assert eventually(lambda: retry_reason(slow_retry_platform.databases, charge_id) == "NO_ANSWER")

    before = scheduled_operation(slow_retry_platform.databases, charge_id)
    reschedule(
        slow_retry_platform,
        FailedStep(
            leased_charge(slow_retry_platform, charge_id, 0),
            RetryReason.SERVER_ERROR,
            "late",
            NextAction.SEND,
        ),
    )
    assert scheduled_operation(slow_retry_platform.databases, charge_id) == before


def test_a_process_that_lost_its_lease_fails_nothing(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """A process that gives up a charge, because it was certainly not sent, does not fail it once
    another process has the lease: that process may be sending it.
    """
    payment = create_payment(
        slow_retry_client, "5.00", token="tok_lost_before:1000000", wait_for=WAIT_FOR_ACCEPTANCE
    )
    charge_id = payment.payment_orders[0].charge_id
    assert eventually(lambda: retry_reason(slow_retry_platform.databases, charge_id) == "NO_ANSWER")
    stale_charge = leased_charge(slow_retry_platform, charge_id, 0)
    given_up = FailedStep(
        stale_charge,
        RetryReason.NOT_SENT,
        "never sent",
        NextAction.GIVE_UP,
        failure_reason=FailureReason.EXPIRED,
    )
    reschedule(slow_retry_platform, given_up)
    order = slow_retry_client.get_payment(payment.checkout_id).payment_orders[0]
    assert order.payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_EXECUTING
    outcome = Declined(FailureReason.PROVIDER_DECLINED, "no")
    record_outcomes(slow_retry_platform, (stale_charge, outcome))
    wait_for_final_order(slow_retry_client, payment)


@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        Succeeded("recorded", 500, "EUR"),
        Declined(FailureReason.PROVIDER_DECLINED, "no", "recorded"),
    ],
)
def test_an_outcome_recorded_without_the_lease_makes_its_charge_due(
    slow_retry_client: Client,
    slow_retry_platform: ServedPlatform,
    answer: ChargeOutcome,
    is_held: bool,
) -> None:
    """A charge whose outcome is recorded by a process that lost the lease is paid or fails
    immediately, not at its next attempt in ten minutes. If another process holds the lease, this
    happens as soon as that process releases it.
    """
    payment = create_payment(
        slow_retry_client, "5.00", token="tok_lost_before:1000000", wait_for=WAIT_FOR_ACCEPTANCE
    )
    charge_id = payment.payment_orders[0].charge_id
    assert eventually(lambda: retry_reason(slow_retry_platform.databases, charge_id) == "NO_ANSWER")
    holder: Charge | None = None
    if is_held:
        with psycopg.connect(slow_retry_platform.databases.service("payment")) as connection:
            row = connection.execute(
                "update operation set lease_until = clock() + interval '100 seconds', lease_token "
                "= lease_token + 1, is_leased = true where operation_id = %s returning lease_token",
                (charge_id,),
            ).fetchone()
        assert row is not None
        holder = leased_charge(slow_retry_platform, charge_id, row[0])
    stale_charge = leased_charge(slow_retry_platform, charge_id, 0)
    record_outcomes(
        slow_retry_platform,
        (stale_charge, replace(answer, reference=f"recorded-{charge_id}")),  # type: ignore[arg-type]
    )

    if holder is not None:
        reschedule(
            slow_retry_platform,
            FailedStep(holder, RetryReason.NO_ANSWER, "lost", NextAction.LOOK_UP),
        )
    order = wait_for_final_order(slow_retry_client, payment)
    assert order.provider_reference == f"recorded-{charge_id}"
    is_paid = isinstance(answer, Succeeded)
    assert order.payment_order_status == (
        payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        if is_paid
        else payment_pb2.PAYMENT_ORDER_STATUS_FAILED
    )


def test_an_outcome_that_cannot_be_applied_becomes_a_dead_letter(
    scratch_database: DatabaseUrls,
) -> None:
    """A success that the database cannot apply is rejected with everything that belongs to it. If
    it is stored all the same, it is retried by its policy, then a dead letter that cannot be
    closed. Requeued after the cause is removed it is applied, and its provider is never called
    again.
    """
    looked_up_ids: list[str] = []

    def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
        looked_up_ids.append(request.charge_id)
        return Unknown("lost")

    retry_as = {
        ("", RetryReason.NO_ANSWER): RetryPolicy(RetryStrategy.FIXED, 600, 600, 5),
        ("", RetryReason.APPLYING_FAILED): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 3),
    }
    settings, dependencies = (
        Settings().replace(retry=retry_as, worker__scan_interval=0.1),
        Dependencies(providers={"sandbox": ScriptedPaymentProvider(outcome_of)}),
    )
    with (
        serve_platform(scratch_database, settings, dependencies=dependencies) as platform,
        platform.client() as client,
        psycopg.connect(scratch_database.admin) as admin,
    ):
        admin.autocommit = True
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        charge_id = payment.payment_orders[0].charge_id
        assert eventually(lambda: retry_reason(scratch_database, charge_id) == "NO_ANSWER")
        admin.execute(
            "alter table payment.payment_order add constraint no_poison check (provider_reference "
            "<> 'poison')"
        )
        stale_charge = leased_charge(platform, charge_id, 0)
        with pytest.raises(ConstraintViolation, match="no_poison"):
            record_outcomes(platform, (stale_charge, Succeeded("poison", 500, "EUR")))
        with psycopg.connect(scratch_database.service("payment")) as connection:
            update_rows(
                connection,
                "update attempt set outcome = 'SUCCEEDED', provider_reference = 'poison', "
                "moved_amount = 500, moved_currency = 'EUR', end_time = clock() "
                "where operation_id = %s",
                (charge_id,),
            )
            update_rows(
                connection,
                "update operation set next_try_time = clock() where operation_id = %s",
                (charge_id,),
            )
        first = wait_for_dead_letter(client, payment)
        assert (first.cause, first.tries) == (operator_pb2.DEAD_LETTER_CAUSE_APPLYING_FAILED, 1 + 3)
        with pytest.raises(FailedPreconditionError) as error:
            close_dead_letter(client, first)
        assert "retry the dead letter" in str(error.value)
        assert dead_letter_state(client, first) == "OPEN"
        retry_dead_letter(client, first)
        second = wait_for_dead_letter(client, payment)
        assert (second.cause, second.tries) == (operator_pb2.DEAD_LETTER_CAUSE_APPLYING_FAILED, 3)
        admin.execute("alter table payment.payment_order drop constraint no_poison")
        retry_dead_letter(client, second)
        assert is_paid(client, payment)
        assert looked_up_ids == [charge_id]
    assert verify(scratch_database).passed


def test_a_charge_with_a_recorded_outcome_is_not_dead_lettered(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """A process dead-letters a charge while another's success has just been recorded: the charge
    stays scheduled, the success is applied, and it is paid.
    """
    payment = create_payment(
        slow_retry_client, "5.00", token="tok_lost_before", wait_for=WAIT_FOR_ACCEPTANCE
    )
    charge_id = payment.payment_orders[0].charge_id
    assert eventually(lambda: retry_reason(slow_retry_platform.databases, charge_id) == "NO_ANSWER")
    # as another process would
    with psycopg.connect(slow_retry_platform.databases.service("payment")) as connection:
        row = connection.execute(
            "update operation set next_try_time = clock(), lease_until = clock() + interval "
            "'1 second', lease_token = lease_token + 1, is_leased = true "
            "where operation_id = %s returning lease_token",
            (charge_id,),
        ).fetchone()
        update_rows(
            connection,
            "update attempt set outcome = 'SUCCEEDED', provider_reference = %s, moved_amount = "
            "500, moved_currency = 'EUR', end_time = clock() where operation_id = %s",
            (f"ref-{charge_id}", charge_id),
        )
    assert row is not None

    reschedule(
        slow_retry_platform,
        FailedStep(
            leased_charge(slow_retry_platform, charge_id, row[0]),
            RetryReason.REJECTED,
            "no use",
            NextAction.SEND,
        ),
    )
    assert is_paid(slow_retry_client, payment)
    request = operator_pb2.ListDeadLettersRequest(page_size=200)
    assert f"charges/{charge_id}" not in {
        dead_letter.resource_name
        for dead_letter in slow_retry_client.payment.ListDeadLetters(request).dead_letters
    }
