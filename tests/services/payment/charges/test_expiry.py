"""Charges that expire before or while they are sent."""

from __future__ import annotations

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick import AlreadyExistsError, Client
from tallystick.operator.v1 import operator_pb2
from tallystick_core.provider.outcome import ChargeLookupOutcome, NotFound, RetryReason, Unknown
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.verify.run import verify
from tests.fakes.payment_provider import ScriptedPaymentProvider, outcome_after
from tests.support.charges import (
    WAIT_FOR_ACCEPTANCE,
    cancel_payment,
    client_of_platform,
    failure_reason,
    fast_final_settings,
    is_paid,
    no_retry_settings,
    payment_of_dead_process,
    scheduled_operation,
    timestamp_in,
    wait_for_dead_letter,
    wait_for_final_order,
)
from tests.support.payments import charge_log, create_payment
from tests.support.platform import ServedPlatform, eventually, serve_platform


def test_an_expired_charge_is_not_sent_again(scratch_database: DatabaseUrls) -> None:
    """A charge whose sends were lost is not sent after it has expired. The provider is asked to
    cancel it, does not know it, and it is FAILED(EXPIRED); nobody is charged.
    """
    with client_of_platform(scratch_database, fast_final_settings()) as client:
        payment = create_payment(
            client,
            "5.00",
            token="tok_lost_before:1000000",
            wait_for=WAIT_FOR_ACCEPTANCE,
            expire_time=timestamp_in(2),
        )
        assert failure_reason(wait_for_final_order(client, payment)) == "EXPIRED"
        assert charge_log(scratch_database, payment.checkout_id) == []
        assert scheduled_operation(scratch_database, payment.payment_orders[0].charge_id) is None
    assert verify(scratch_database).passed


def test_an_expired_charge_that_was_made_is_paid(scratch_database: DatabaseUrls) -> None:
    """A charge that the provider made before it expired counts: asked to cancel it, the provider
    reports the charge, and the order is SUCCESS.
    """
    with client_of_platform(scratch_database, fast_final_settings()) as client:
        payment = create_payment(
            client,
            "5.00",
            token="tok_lost_after:1000000",
            wait_for=WAIT_FOR_ACCEPTANCE,
            expire_time=timestamp_in(4),
        )
        assert is_paid(client, payment)


@pytest.mark.parametrize("reason", ["EXPIRED", "CALLER_CANCELLED"])
def test_an_unsent_charge_is_not_sent_after_expiry_or_cancellation(
    scratch_database: DatabaseUrls, reason: str
) -> None:
    """A process crashes with a charge that it has accepted and not sent. Another claims it after it
    has expired or was cancelled: "not found" fails it.
    """
    with (
        serve_platform(
            scratch_database, fast_final_settings(worker__lease_duration=4, providers__timeout=0.4)
        ) as platform,
        platform.client() as client,
    ):
        if reason == "EXPIRED":
            payment = payment_of_dead_process(platform, client, expire_time=timestamp_in(1.0))
        else:
            payment = payment_of_dead_process(platform, client)
            cancel_payment(client, payment)
        assert failure_reason(wait_for_final_order(client, payment)) == reason
        assert charge_log(scratch_database, payment.checkout_id) == []
    assert verify(scratch_database).passed


def test_a_charge_that_expires_while_it_is_dead_lettered_fails(
    scratch_database: DatabaseUrls,
) -> None:
    """A payment that expires while its provider rejects the charge needs no operator: the platform
    requeues the dead letter, and the charge is FAILED(EXPIRED) once its provider proves not to know
    it.
    """
    expire_time = timestamp_in(2)
    provider = ScriptedPaymentProvider(
        lambda request: NotFound(),
        lambda request: outcome_after(expire_time, Unknown("no such call", RetryReason.REJECTED)),
    )
    with client_of_platform(scratch_database, no_retry_settings(), provider) as client:
        payment = create_payment(
            client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE, expire_time=expire_time
        )
        assert failure_reason(wait_for_final_order(client, payment)) == "EXPIRED"
        dead_letters = client.payment.ListDeadLetters(
            operator_pb2.ListDeadLettersRequest()
        ).dead_letters
        expected_letter = (
            operator_pb2.DEAD_LETTER_CAUSE_REJECTED,
            operator_pb2.DEAD_LETTER_STATE_RETRIED,
            "platform",
        )
        assert [
            (dead_letter.cause, dead_letter.state, dead_letter.operator)
            for dead_letter in dead_letters
        ] == [expected_letter]
    assert verify(scratch_database).passed


def test_an_expired_charge_that_cannot_be_cancelled_stays_a_dead_letter(
    scratch_database: DatabaseUrls,
) -> None:
    """A charge that expires while its provider answers about another charge is cancelled once; if
    that fails too, its dead letter waits for an operator.
    """
    expire_time = timestamp_in(2)
    looked_up_ids: list[str] = []

    def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
        looked_up_ids.append(request.charge_id)
        return Unknown("what?", RetryReason.MISMATCHED_OPERATION)

    provider = ScriptedPaymentProvider(
        outcome_of,
        lambda request: outcome_after(
            expire_time, Unknown("what?", RetryReason.MISMATCHED_OPERATION)
        ),
    )
    with client_of_platform(scratch_database, no_retry_settings(), provider) as client:
        payment = create_payment(
            client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE, expire_time=expire_time
        )
        charge = payment.payment_orders[0].charge_id
        assert eventually(
            lambda: (
                looked_up_ids
                and (scheduled_operation(scratch_database, charge) or (0, "", False, False, True))[
                    4
                ]
                is False
            )
        )
        with psycopg.connect(scratch_database.admin) as connection:
            row = connection.execute(
                "select expire_time from payment.operation where operation_id = %s", (charge,)
            ).fetchone()
            assert row == (None,)
        dead_letter = wait_for_dead_letter(client, payment)
        assert dead_letter.detail.startswith("EXPIRED, not cancelled yet")
        assert len(looked_up_ids) == 1


def test_an_order_that_was_not_sent_in_time_expires(
    client: Client, two_try_platform: ServedPlatform
) -> None:
    """After expire_time an unsent charge is FAILED(EXPIRED) and never sent; a charge that was sent
    before continues.
    """
    past = Timestamp(seconds=1_000_000_000)
    payment = create_payment(client, "5.00", expire_time=past)
    assert failure_reason(wait_for_final_order(client, payment)) == "EXPIRED"
    assert charge_log(two_try_platform.databases, payment.checkout_id) == []
    assert payment.expire_time == past
    with pytest.raises(AlreadyExistsError) as reused:
        create_payment(
            client,
            "5.00",
            checkout_id=payment.checkout_id,
            expire_time=Timestamp(seconds=1_000_000_001),
        )
    assert "expire_time" in str(reused.value)
    soon = Timestamp()
    soon.FromNanoseconds(
        client.get_payment(payment.checkout_id).create_time.ToNanoseconds() + 3_600_000_000_000
    )
    assert create_payment(client, "5.00", expire_time=soon).is_payment_done
