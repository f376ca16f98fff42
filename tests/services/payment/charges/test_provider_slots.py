"""Limits: charges that wait for a provider slot, and payments above the process's limit."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tallystick import Client, NotFoundError, UnavailableError, new_order
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.verify.run import verify
from tests.support.charges import (
    WAIT_FOR_ACCEPTANCE,
    cancel_payment,
    client_of_platform,
    close_dead_letter,
    failure_reason,
    holding_provider,
    retry_reason,
    scheduled_operation,
    timestamp_in,
    wait_for_dead_letter,
    wait_for_final_order,
)
from tests.support.explanations import explain_payment, story
from tests.support.payments import charge_log, create_payment
from tests.support.platform import eventually, serve_platform, unique_id


def test_nothing_is_closed_without_a_provider_slot(
    scratch_database: DatabaseUrls,
) -> None:
    """Closing a dead letter that gets no provider slot in time changes nothing and returns a
    retryable error.
    """
    with holding_provider(scratch_database) as (platform, client, provider, keep):
        keep(False)
        dead_letter = wait_for_dead_letter(
            client,
            create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE),
        )
        keep(True)
        other_charge_id = (
            create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE).payment_orders[0].charge_id
        )
        assert eventually(lambda: other_charge_id in provider.sent_charge_ids)
        with (
            platform.client(tries=1) as single_try_client,
            pytest.raises(UnavailableError) as error,
        ):
            close_dead_letter(single_try_client, dead_letter)
        assert error.value.reason == "PROVIDER_UNAVAILABLE"
        request = operator_pb2.GetDeadLetterRequest(dead_letter_id=dead_letter.dead_letter_id)
        assert (
            client.payment.GetDeadLetter(request).dead_letter.state
            == operator_pb2.DEAD_LETTER_STATE_OPEN
        )
        keep(False)
        assert eventually(lambda: scheduled_operation(scratch_database, other_charge_id) is None)


def test_a_charge_without_a_provider_slot_was_never_sent(scratch_database: DatabaseUrls) -> None:
    """A charge that waits for a provider slot longer than its lease allows is released as never
    sent: when cancelled, it fails immediately.
    """
    with holding_provider(scratch_database) as (_, client, provider, keep):
        first = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(lambda: provider.sent_charge_ids == [first.payment_orders[0].charge_id])
        last = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: (
                retry_reason(scratch_database, last.payment_orders[0].charge_id) == "CIRCUIT_OPEN"
            )
        )
        request = payment_service_pb2.CancelPaymentRequest(checkout_id=last.checkout_id, reason="r")
        cancelled = client.payment.CancelPayment(request, timeout=60).payment
        assert failure_reason(cancelled.payment_orders[0]) == "CALLER_CANCELLED"
        keep(False)
        assert client.wait_for_payment(first.checkout_id, 30).is_payment_done
        assert provider.sent_charge_ids == [first.payment_orders[0].charge_id]
    assert verify(scratch_database).passed


def test_a_charge_cancelled_while_it_waits_for_a_slot_is_not_sent(
    scratch_database: DatabaseUrls,
) -> None:
    """A charge that waits for a provider slot, and is cancelled meanwhile, is not sent when it gets
    the slot.
    """
    settings = Settings().replace(providers__max_calls_per_provider=1, worker__scan_interval=0.1)
    with client_of_platform(scratch_database, settings) as client:
        slow = create_payment(client, "5.00", token="tok_delay:6000", wait_for=WAIT_FOR_ACCEPTANCE)
        waiting_payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert client.get_payment(slow.checkout_id).payment_state == payment_pb2.PAYMENT_STATE_OPEN
        cancel_payment(client, waiting_payment, timeout=60)
        assert failure_reason(wait_for_final_order(client, waiting_payment)) == "CALLER_CANCELLED"
        assert charge_log(scratch_database, waiting_payment.checkout_id) == []
        assert client.wait_for_payment(slow.checkout_id, 60).is_payment_done
    assert verify(scratch_database).passed


def test_a_charge_that_expires_while_it_waits_for_a_slot_is_not_sent(
    scratch_database: DatabaseUrls,
) -> None:
    """A charge that waits for a provider slot, and expires meanwhile, is not sent when it gets the
    slot: it is FAILED(EXPIRED). The explanation does not blame the provider.
    """
    with holding_provider(scratch_database, lease_seconds=120) as (_, client, provider, keep):
        slow = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(lambda: provider.sent_charge_ids == [slow.payment_orders[0].charge_id])
        expiry = timestamp_in(2)
        waiting_payment = create_payment(
            client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE, expire_time=expiry
        )
        assert eventually(lambda: time.time_ns() > expiry.ToNanoseconds() + 100_000_000)
        keep(False)
        assert failure_reason(wait_for_final_order(client, waiting_payment)) == "EXPIRED"
        assert client.wait_for_payment(slow.checkout_id, 30).is_payment_done
        assert provider.sent_charge_ids == [slow.payment_orders[0].charge_id]
        assert charge_log(scratch_database, waiting_payment.checkout_id) == []
        explanation = explain_payment(client, waiting_payment.checkout_id)
        assert "failed: it expired or changed meanwhile, so it was not sent." in story(explanation)
        assert "calls are sent to the provider" not in story(explanation)
    assert verify(scratch_database).passed


def test_hanging_reads_do_not_delay_charges(scratch_database: DatabaseUrls) -> None:
    """A charge that has waited for a provider slot is sent, even if hanging reads use every
    connection for callers' reads.
    """
    settings = Settings().replace(providers__max_calls_per_provider=1, worker__scan_interval=0.1)
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        slow = create_payment(client, "5.00", token="tok_delay:6000", wait_for=WAIT_FOR_ACCEPTANCE)
        waiting_payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        with ThreadPoolExecutor(24) as callers, psycopg.connect(scratch_database.admin) as admin:
            admin.execute("lock table payment.dead_letter in access exclusive mode")
            hanging = [callers.submit(_list_dead_letters, platform.address) for _ in range(24)]
            assert eventually(lambda: charge_log(scratch_database, waiting_payment.checkout_id), 20)
            assert charge_log(scratch_database, slow.checkout_id)
            assert not any(read.done() for read in hanging)
            admin.rollback()
            assert [read.result(60) for read in hanging]
        assert client.wait_for_payment(waiting_payment.checkout_id, 30).is_payment_done
    assert verify(scratch_database).passed


def _list_dead_letters(address: str) -> bool:
    """Lists dead letters, without a time limit."""
    with Client(address) as client:
        client.payment.ListDeadLetters(operator_pb2.ListDeadLettersRequest(), timeout=60)
    return True


def test_payments_above_the_limit_in_flight_are_rejected(scratch_database: DatabaseUrls) -> None:
    """Above `in_flight` new payments are rejected with OVERLOADED and a retry delay, and nothing is
    stored.
    """
    settings = Settings().replace(worker__max_in_flight=10, providers__sandbox__latency=60.0)
    with (
        serve_platform(scratch_database, settings) as platform,
        platform.client(tries=1) as client,
    ):
        for _ in range(10):
            create_payment(client, "1.00", wait_for=WAIT_FOR_ACCEPTANCE)
        checkout = unique_id("c")
        with pytest.raises(UnavailableError) as error:
            client.create_payment(
                checkout,
                [new_order(f"{checkout}-1", "b", "s", "1.00", "EUR")],
                credit_card_info="tok_visa",
                wait_for=WAIT_FOR_ACCEPTANCE,
            )
        assert error.value.reason == "OVERLOADED"
        with pytest.raises(NotFoundError):
            client.get_payment(checkout)
