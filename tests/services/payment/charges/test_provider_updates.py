"""`apply_provider_update`: what a provider says about a charge, whatever its source and order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

import psycopg
import pytest

from tallystick import Client
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.errors import ApiError, ErrorReason
from tallystick_core.operations.kind import KindName
from tallystick_core.operations.next_action import NextAction
from tallystick_core.payment.state import OrderStatus
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
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.verify.run import verify
from tests.fakes.payment_provider import ScriptedPaymentProvider
from tests.support.charges import (
    SLOW_RETRY,
    WAIT_FOR_ACCEPTANCE,
    booked_unapplied_charges,
    dead_letter_state,
    event_versions,
    failure_reason,
    get_order,
    is_paid,
    leased_charge,
    record_outcomes,
    reschedule,
    retry_reason,
    wait_for_dead_letter,
    wait_for_final_order,
)
from tests.support.payments import create_payment
from tests.support.platform import (
    ServedPlatform,
    eventually,
    payment_worker_of,
    serve_platform,
)

DECLINED = Declined(FailureReason.PROVIDER_DECLINED, "no")


def apply(platform: ServedPlatform, charge_id: str, *outcomes: ChargeOutcome) -> None:
    """Applies outcomes one after the other, as webhooks would."""
    for outcome in outcomes:
        platform.run_in_loop(
            payment_worker_of(platform).apply_provider_update, KindName.CHARGE, charge_id, outcome
        )


def unanswered_payment(client: Client, platform: ServedPlatform) -> payment_pb2.Payment:
    """A payment whose provider has not answered, and whose next attempt is in ten minutes."""
    payment = create_payment(
        client, "5.00", token="tok_lost_before:1000000", wait_for=WAIT_FOR_ACCEPTANCE
    )
    charge_id = payment.payment_orders[0].charge_id
    assert eventually(lambda: retry_reason(platform.databases, charge_id) == "NO_ANSWER")
    return payment


def take_lease(databases: DatabaseUrls, charge_id: str) -> int:
    """Leases the charge as another process, and returns its lease token."""
    with psycopg.connect(databases.service("payment").replace("+psycopg", "")) as connection:
        row = connection.execute(
            "update operation set lease_until = clock() + interval '100 seconds', lease_token = "
            "lease_token + 1, is_leased = true where operation_id = %s returning lease_token",
            (charge_id,),
        ).fetchone()
    assert row is not None
    return int(row[0])


def conflict_reports(client: Client, payment: payment_pb2.Payment) -> list[str]:
    request = payment_service_pb2.GetPaymentOrderRequest(
        payment_order_id=payment.payment_orders[0].payment_order_id
    )
    return [report.report for report in client.payment.GetPaymentOrder(request).conflicting_reports]


@pytest.mark.parametrize("is_paid_at_last", [True, False])
def test_a_late_outcome_counts_while_another_process_holds_the_lease(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform, is_paid_at_last: bool
) -> None:
    """An outcome that comes after the lease has moved on changes the orders at once, although
    another process holds the lease and fails to get an answer. It is booked as soon as that process
    releases the lease.
    """
    payment = unanswered_payment(slow_retry_client, slow_retry_platform)
    charge_id = payment.payment_orders[0].charge_id
    token = take_lease(slow_retry_platform.databases, charge_id)
    holder = leased_charge(slow_retry_platform, charge_id, token)
    outcome = Succeeded(f"late-{charge_id}", 500, "EUR") if is_paid_at_last else DECLINED
    apply(slow_retry_platform, charge_id, outcome)
    order = get_order(slow_retry_client, payment)
    assert order.payment_order_status == (
        payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        if is_paid_at_last
        else payment_pb2.PAYMENT_ORDER_STATUS_FAILED
    )
    reschedule(
        slow_retry_platform, FailedStep(holder, RetryReason.NO_ANSWER, "lost", NextAction.LOOK_UP)
    )
    assert is_paid(slow_retry_client, payment) == is_paid_at_last


def test_a_reported_cancellation_of_an_expired_charge_is_an_expiry(
    scratch_database: DatabaseUrls,
) -> None:
    """If the buyer did not act in time and the answer to the cancellation is lost, a webhook may
    report it first: the order is FAILED(EXPIRED), because its caller has not cancelled it.
    """
    settings = Settings().replace(retry=SLOW_RETRY, payment__buyer_action_timeout=2.0)
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        payment = create_payment(client, "5.00", token="tok_pending:action")
        order = payment.payment_orders[0]
        take_lease(scratch_database, order.charge_id)
        assert eventually(lambda: datetime.now(UTC) > order.resolve_by_time.ToDatetime(UTC))
        apply(platform, order.charge_id, Declined(FailureReason.CALLER_CANCELLED, "void"))
        assert failure_reason(get_order(client, payment)) == "EXPIRED"


@pytest.mark.parametrize(
    "response",
    [Succeeded("hook", 500, "EUR"), Unknown("lost"), Pending(PendingReason.PROVIDER_REVIEW)],
    ids=lambda response: type(response).__name__,
)
def test_an_update_before_the_response_counts_once(
    scratch_database: DatabaseUrls, response: ChargeOutcome
) -> None:
    """The provider's update arrives before its response to the send: the order is paid and booked
    at once, by the process that sent it, whatever the response is.
    """
    platforms: list[ServedPlatform] = []

    async def send(request: ChargeRequest) -> ChargeOutcome:
        await payment_worker_of(platforms[0]).apply_provider_update(
            KindName.CHARGE, request.charge_id, Succeeded("hook", 500, "EUR")
        )
        return response

    provider = ScriptedPaymentProvider(lambda _: Unknown("lost"), send)
    with (
        serve_platform(
            scratch_database,
            Settings().replace(retry=SLOW_RETRY, worker__scan_interval=60),
            dependencies=Dependencies(providers={"sandbox": provider}),
        ) as platform,
        platform.client() as client,
    ):
        platforms.append(platform)
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        order = wait_for_final_order(client, payment)
        assert order.payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        # created, executing, paid, booked: nothing twice
        assert order.version == 4
        assert not booked_unapplied_charges(client, payment)
    assert verify(scratch_database).passed


def test_an_outcome_applied_twice_changes_nothing(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """The same outcome, before and after the payment is final, makes no version and no money."""
    payment = unanswered_payment(slow_retry_client, slow_retry_platform)
    order = payment.payment_orders[0]
    outcome = Succeeded(f"twice-{order.charge_id}", 500, "EUR")
    apply(slow_retry_platform, order.charge_id, outcome, outcome)
    assert is_paid(slow_retry_client, payment)
    apply(slow_retry_platform, order.charge_id, outcome)
    assert get_order(slow_retry_client, payment).version == 4
    assert eventually(
        lambda: (
            event_versions(slow_retry_client, f"paymentOrders/{order.payment_order_id}")
            == [1, 2, 3, 4]
        )
    )
    assert not booked_unapplied_charges(slow_retry_client, payment)
    assert conflict_reports(slow_retry_client, payment) == []


def test_a_success_then_a_decline_is_paid_and_reported(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """P2: the first final outcome decides. A decline after it changes nothing, and an operator sees
    it once.
    """
    payment = unanswered_payment(slow_retry_client, slow_retry_platform)
    charge_id = payment.payment_orders[0].charge_id
    apply(slow_retry_platform, charge_id, Succeeded(f"first-{charge_id}", 500, "EUR"), DECLINED)
    assert is_paid(slow_retry_client, payment)
    apply(slow_retry_platform, charge_id, DECLINED)
    assert conflict_reports(slow_retry_client, payment) == [
        "Declined PROVIDER_DECLINED, reported before as succeeded"
    ]


def test_a_decline_then_a_success_is_unapplied_money(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """P2: the first final outcome decides. Money that comes after it is booked, once, as an
    unapplied charge.
    """
    payment = unanswered_payment(slow_retry_client, slow_retry_platform)
    charge_id = payment.payment_orders[0].charge_id
    late = Succeeded(f"late-{charge_id}", 500, "EUR")
    apply(slow_retry_platform, charge_id, DECLINED, late, late)
    assert failure_reason(wait_for_final_order(slow_retry_client, payment)) == "PROVIDER_DECLINED"
    (charge,) = eventually(lambda: booked_unapplied_charges(slow_retry_client, payment))
    assert (charge.provider_reference, charge.amount, charge.cause) == (
        late.reference,
        "5.00",
        payment_pb2.UNAPPLIED_CAUSE_LATE,
    )


def test_an_outcome_counts_although_its_charge_has_changed_since_it_was_loaded(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """A process loads a charge, another update makes it pending, and then the process records a
    success: it is applied at once to the charge as it is now.
    """
    payment = unanswered_payment(slow_retry_client, slow_retry_platform)
    charge_id = payment.payment_orders[0].charge_id
    stale_charge = leased_charge(slow_retry_platform, charge_id, 0)
    apply(slow_retry_platform, charge_id, Pending(PendingReason.PROVIDER_REVIEW))
    assert get_order(slow_retry_client, payment).version == 3
    record_outcomes(slow_retry_platform, (stale_charge, Succeeded(f"s-{charge_id}", 500, "EUR")))
    order = get_order(slow_retry_client, payment)
    assert order.payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    assert is_paid(slow_retry_client, payment)


def test_a_holder_learns_what_another_source_recorded_in_the_same_batch(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """A poll and a webhook report the same success. The poll loaded the charge before it succeeded,
    the webhook afterwards: the poll, which holds the lease, gets the charge as it is now, and so
    books it.
    """
    payment = unanswered_payment(slow_retry_client, slow_retry_platform)
    charge_id = payment.payment_orders[0].charge_id
    stale_charge = leased_charge(slow_retry_platform, charge_id, 0)
    success = Succeeded(f"s-{charge_id}", 500, "EUR")
    apply(slow_retry_platform, charge_id, success)
    current_charge = slow_retry_platform.run_in_loop(
        payment_worker_of(slow_retry_platform).find, KindName.CHARGE, charge_id
    )
    recorded = record_outcomes(
        slow_retry_platform, (stale_charge, success), (current_charge, success)
    )
    assert [charge.orders[0].status for charge in recorded] == [OrderStatus.SUCCESS] * 2
    assert is_paid(slow_retry_client, payment)


def test_concurrent_updates_are_applied_once(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """Updates that arrive at the same time, with one charge and another, pay the order once; the
    other charge is unapplied.
    """
    payment = unanswered_payment(slow_retry_client, slow_retry_platform)
    charge_id = payment.payment_orders[0].charge_id
    outcomes: Sequence[ChargeOutcome] = [
        Succeeded(f"{name}-{charge_id}", 500, "EUR") for name in "aabbab"
    ]

    async def apply_all() -> None:
        worker = payment_worker_of(slow_retry_platform)
        await asyncio.gather(
            *(
                worker.apply_provider_update(KindName.CHARGE, charge_id, outcome)
                for outcome in outcomes
            )
        )

    slow_retry_platform.run_in_loop(apply_all)
    assert is_paid(slow_retry_client, payment)
    (unapplied,) = eventually(lambda: booked_unapplied_charges(slow_retry_client, payment))
    paid_reference = get_order(slow_retry_client, payment).provider_reference
    assert {unapplied.provider_reference, paid_reference} == {f"a-{charge_id}", f"b-{charge_id}"}


def test_an_update_resolves_a_dead_letter(client: Client, two_try_platform: ServedPlatform) -> None:
    """A dead letter whose outcome arrives needs no operator any more, and is booked."""
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    dead_letter = wait_for_dead_letter(client, payment)
    charge_id = payment.payment_orders[0].charge_id
    apply(two_try_platform, charge_id, Succeeded(f"hook-{charge_id}", 500, "EUR"))
    assert is_paid(client, payment)
    assert dead_letter_state(client, dead_letter) == "RESOLVED"


def test_an_update_of_an_unknown_or_another_charge_is_rejected(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """An unknown charge is NOT_FOUND. An outcome that names another operation, or has no valid
    amount, changes nothing.
    """
    with pytest.raises(ApiError) as error:
        apply(slow_retry_platform, "o-unknown", DECLINED)
    assert error.value.reason is ErrorReason.NOT_FOUND
    payment = unanswered_payment(slow_retry_client, slow_retry_platform)
    charge_id = payment.payment_orders[0].charge_id
    for outcome in (Succeeded("ref", 500, "EUR", "another"), Succeeded("ref", 0, "EUR")):
        with pytest.raises(ValueError, match="cannot have the outcome"):
            apply(slow_retry_platform, charge_id, outcome)
    assert get_order(slow_retry_client, payment).version == 2
    apply(slow_retry_platform, charge_id, DECLINED)
    wait_for_final_order(slow_retry_client, payment)
