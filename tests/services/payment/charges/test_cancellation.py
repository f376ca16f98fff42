"""CancelPayment: what becomes of a charge in each state of its operation."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import psycopg
import pytest

from tallystick import (
    AlreadyExistsError,
    Client,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.provider.outcome import (
    ChargeOutcome,
    Declined,
    FailureReason,
    RetryReason,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tests.fakes.payment_provider import ScriptedPaymentProvider, SlowLookupProvider
from tests.support.charges import (
    WAIT_FOR_ACCEPTANCE,
    cancel_payment,
    client_of_platform,
    dead_letter_state,
    failure_reason,
    fast_final_settings,
    may_have_been_sent,
    no_retry_settings,
    retry_dead_letter,
    retry_reason,
    sandbox_database,
    serve_sandboxes,
    timestamp_in,
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
    payments_of,
    serve_platform,
)
from tests.support.rows import update_rows


@pytest.mark.parametrize(
    "token", ["tok_lost_before:1000000", "tok_busy:1000000", "tok_error_before:1000000"]
)
def test_a_cancelled_charge_unknown_to_the_provider_fails(
    scratch_database: DatabaseUrls, token: str
) -> None:
    """A charge that may have been sent and was cancelled is FAILED(CALLER_CANCELLED) once "not
    found" is proof, and not before.
    """
    with client_of_platform(scratch_database, fast_final_settings()) as client:
        payment = create_payment(client, "5.00", token=token, wait_for=WAIT_FOR_ACCEPTANCE)
        charge = payment.payment_orders[0].charge_id
        assert eventually(lambda: may_have_been_sent(scratch_database, charge))
        cancel_payment(client, payment)
        order = wait_for_final_order(client, payment)
        assert failure_reason(order) == "CALLER_CANCELLED"
        assert order.update_time.ToNanoseconds() - order.create_time.ToNanoseconds() > 0.6e9
        assert charge_log(scratch_database, payment.checkout_id) == []
    assert verify(scratch_database).passed


def test_a_cancellation_during_a_lookup_takes_effect_immediately(
    scratch_database: DatabaseUrls,
) -> None:
    """A CancelPayment during a lookup of a pending charge takes effect immediately, and does not
    wait for the next poll an hour later.
    """
    settings = Settings().replace(
        retry={("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 3600, 3600, None)},
        worker__scan_interval=0.1,
    )
    with (
        sandbox_database(scratch_database) as database,
        serve_sandboxes(
            scratch_database, settings, provider := SlowLookupProvider(database, 3.0)
        ) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", token="tok_pending:review")
        assert eventually(
            lambda: retry_reason(scratch_database, payment.payment_orders[0].charge_id) == "PENDING"
        )
        with psycopg.connect(scratch_database.admin) as connection:
            update_rows(connection, "update payment.operation set next_try_time = now()")
        assert eventually(lambda: provider.lookup_count)
        cancel_payment(client, payment, timeout=1.5)
        assert failure_reason(wait_for_final_order(client, payment)) == "CALLER_CANCELLED"


@pytest.mark.parametrize("expires", [False, True])
def test_a_cancellation_or_expiry_ends_a_dead_letter(
    scratch_database: DatabaseUrls, expires: bool
) -> None:
    """A dead letter whose payment is cancelled or expires is claimed again without an operator. It
    is not sent, and fails once its provider proves not to know it; the dead letter records the
    reason and the caller.
    """
    with client_of_platform(scratch_database, fast_final_settings()) as client:
        expire_time = timestamp_in(3) if expires else None
        payment = create_payment(
            client,
            "5.00",
            token="tok_rejected",
            wait_for=WAIT_FOR_ACCEPTANCE,
            expire_time=expire_time,
        )
        dead_letter = wait_for_dead_letter(client, payment)
        if not expires:
            cancel_payment(client, payment, "sold out")
        assert failure_reason(wait_for_final_order(client, payment)) == (
            "EXPIRED" if expires else "CALLER_CANCELLED"
        )
        response = client.payment.GetDeadLetter(
            operator_pb2.GetDeadLetterRequest(dead_letter_id=dead_letter.dead_letter_id)
        ).dead_letter
        assert response.state == operator_pb2.DEAD_LETTER_STATE_RETRIED
        assert response.operator == ("platform" if expires else "dev")
        assert ("expired" if expires else "sold out") in response.reason
        assert charge_log(scratch_database, payment.checkout_id) == []
    assert verify(scratch_database).passed


def test_a_dead_letter_names_its_failed_cancellation(
    scratch_database: DatabaseUrls,
) -> None:
    """A charge that its provider fails to cancel is a dead letter again, which says that its
    payment is cancelled; a repeated cancellation does not requeue it.
    """
    provider = ScriptedPaymentProvider(
        lambda request: Unknown("what?", RetryReason.MISMATCHED_OPERATION)
    )
    with client_of_platform(scratch_database, fast_final_settings(), provider) as client:
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        first = wait_for_dead_letter(client, payment)
        request = payment_service_pb2.CancelPaymentRequest(
            checkout_id=payment.checkout_id, reason="sold out"
        )
        client.payment.CancelPayment(request, timeout=1)
        assert dead_letter_state(client, first) == "RETRIED"
        second_letter = wait_for_dead_letter(client, payment)
        assert second_letter.dead_letter_id != first.dead_letter_id
        assert second_letter.detail.startswith("CALLER_CANCELLED")
        client.payment.CancelPayment(request, timeout=1)
        assert dead_letter_state(client, second_letter) == "OPEN"
    assert verify(scratch_database).passed


def test_a_cancellation_concurrent_with_dead_lettering_is_not_lost(
    scratch_database: DatabaseUrls,
) -> None:
    """CancelPayment arrives while a process has the answer for which a charge would be
    dead-lettered: the charge is cancelled at its provider instead.
    """
    lookup_started, go = Event(), Event()

    async def send(request: ChargeRequest) -> ChargeOutcome:
        lookup_started.set()
        assert await asyncio.to_thread(go.wait, 30)
        return Unknown("what?", RetryReason.REJECTED)

    provider = ScriptedPaymentProvider(
        lambda request: Declined(FailureReason.CALLER_CANCELLED), send
    )
    settings = fast_final_settings().replace(
        retry={("", RetryReason.REJECTED): RetryPolicy(RetryStrategy.CANCEL)}
    )
    with client_of_platform(scratch_database, settings, provider) as client:
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert lookup_started.wait(30)
        cancel_payment(client, payment, timeout=1)
        go.set()
        assert failure_reason(wait_for_final_order(client, payment)) == "CALLER_CANCELLED"
        assert not client.payment.ListDeadLetters(
            operator_pb2.ListDeadLettersRequest()
        ).dead_letters
    assert verify(scratch_database).passed


def test_a_retry_and_a_cancellation_of_one_dead_letter_do_not_deadlock(
    scratch_database: DatabaseUrls,
) -> None:
    """RetryDeadLetter and CancelPayment that concur on one dead letter lock it in the same order,
    after its operation: neither fails as a deadlock victim.
    """
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    with (
        client_of_platform(scratch_database, no_retry_settings()) as client,
        ThreadPoolExecutor(2) as pool,
        psycopg.connect(scratch_database.admin) as holder,
        psycopg.connect(scratch_database.admin, autocommit=True) as admin,
    ):
        payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
        dead_letter = wait_for_dead_letter(client, payment)
        holder.execute(
            "select from payment.dead_letter where dead_letter_id = %s for update",
            (dead_letter.dead_letter_id,),
        )
        retry_future = pool.submit(retry_dead_letter, client, dead_letter)
        assert eventually(lambda: admin.execute(WAITING_FOR_LOCK_QUERY).fetchone() == (1,))
        cancelled = pool.submit(cancel_payment, client, payment)
        assert eventually(lambda: admin.execute(WAITING_FOR_LOCK_QUERY).fetchone() == (2,))
        holder.commit()
        assert retry_future.result(30).state == operator_pb2.DEAD_LETTER_STATE_RETRIED
        cancelled.result(30)
        assert admin.execute(deadlocks).fetchone() == (0,)


def test_a_payment_that_was_never_sent_is_cancelled_permanently(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """An order that waits for an unreachable provider fails immediately, and nothing is ever
    sent.
    """
    payment = create_payment(
        slow_retry_client, "5.00", token="tok_unreachable:3", wait_for=WAIT_FOR_ACCEPTANCE
    )
    charge = payment.payment_orders[0].charge_id
    assert eventually(lambda: retry_reason(slow_retry_platform.databases, charge) == "NOT_SENT")
    cancelled = cancel_payment(slow_retry_client, payment)
    assert failure_reason(cancelled.payment_orders[0]) == "CALLER_CANCELLED"
    assert cancelled.payment_state == payment_pb2.PAYMENT_STATE_FAILED
    assert cancel_payment(slow_retry_client, payment) == cancelled
    with pytest.raises(AlreadyExistsError) as reused:
        cancel_payment(slow_retry_client, payment, "another reason")
    assert (reused.value.reason, reused.value.metadata) == (
        "IDEMPOTENCY_KEY_REUSED",
        {"field": "reason"},
    )
    assert charge_log(slow_retry_platform.databases, payment.checkout_id) == []


def test_a_pending_payment_is_cancelled_at_the_provider(
    client: Client, two_try_platform: ServedPlatform
) -> None:
    """A charge that was sent is first cancelled at the provider: only the provider's answer makes
    the order FAILED.
    """
    payment = create_payment(client, "5.00", token="tok_pending:action")
    cancelled = cancel_payment(client, payment)
    assert failure_reason(cancelled.payment_orders[0]) == "CALLER_CANCELLED"
    assert [
        state for _, state, _ in charge_log(two_try_platform.databases, payment.checkout_id)
    ] == ["DECLINED"]


def test_a_late_cancellation_finds_the_charge(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """A cancellation that comes too late finds the charge: the order is SUCCESS, and the seller is
    paid.
    """
    payment = create_payment(
        slow_retry_client, "5.00", token="tok_lost_after", wait_for=WAIT_FOR_ACCEPTANCE
    )
    assert eventually(
        lambda: (
            retry_reason(slow_retry_platform.databases, payment.payment_orders[0].charge_id)
            == "NO_ANSWER"
        )
    )
    assert cancel_payment(slow_retry_client, payment).is_payment_done
    with pytest.raises(FailedPreconditionError) as error:
        cancel_payment(slow_retry_client, create_payment(slow_retry_client, "5.00"))
    assert error.value.reason == "INVALID_STATE"


def test_an_unknown_payment_cannot_be_cancelled(client: Client) -> None:
    """A payment that does not exist is NOT_FOUND, and cancelling requires a reason."""
    with pytest.raises(NotFoundError):
        client.payment.CancelPayment(
            payment_service_pb2.CancelPaymentRequest(checkout_id="nobody", reason="x")
        )
    with pytest.raises(InvalidArgumentError):
        client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id="nobody"))


def test_a_cancelled_call_leaves_no_orphaned_lease(scratch_database: DatabaseUrls) -> None:
    """CancelPayment calls that are cancelled at any point leave no orphaned lease on a charge."""
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
        own_checkout_id = create_payment(client, "1.00", token="tok_pending").checkout_id
        checkouts = waiting_charges(client, 12)
        assert eventually(lambda: payment_worker_of(platform).in_flight_count == 0)

        async def cancel_and_go(milliseconds: int) -> None:
            task = asyncio.ensure_future(
                payments_of(platform).cancel(own_checkout_id, "dev", "gone")
            )
            await asyncio.wait({task}, timeout=milliseconds / 1000)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        # The last ones wait until they have started a scan, however slow the machine is.
        for milliseconds in (*range(0, 30, 2), 1_000, 10_000):
            platform.run_in_loop(cancel_and_go, milliseconds)
        assert eventually(
            lambda: all(client.get_payment(checkout).is_payment_done for checkout in checkouts)
        )
