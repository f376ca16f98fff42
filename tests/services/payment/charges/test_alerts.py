"""Alerts about payments."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from tallystick.operator.v1 import operator_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tallystick_storage import leader_lease
from tallystick_storage.database import Database
from tests.support.charges import (
    WAIT_FOR_ACCEPTANCE,
    acknowledge_request,
    booked_unapplied_charges,
    client_of_platform,
    close_dead_letter,
    event_versions,
    failure_reason,
    list_alerts,
    wait_for_dead_letter,
    wait_for_final_order,
)
from tests.support.payments import create_payment
from tests.support.platform import eventually


def test_a_stuck_order_raises_one_alert_that_ends(
    scratch_database: DatabaseUrls, caplog: pytest.LogCaptureFixture
) -> None:
    """P5: an order that exceeds its state's threshold raises an alert: a row, an event and a log
    line. Found again it is the same alert, which ends with the cause.
    """
    retry = {("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 0.4, 0.4, 4)}
    settings = Settings().replace(
        retry=retry,
        worker__scan_interval=0.1,
        worker__monitor_interval=0.2,
        payment__alert_after={"EXECUTING": 0.2},
    )
    with client_of_platform(scratch_database, settings) as client:
        payment = create_payment(
            client, "5.00", token="tok_unreachable:99", wait_for=WAIT_FOR_ACCEPTANCE
        )
        subject = f"paymentOrders/{payment.payment_orders[0].payment_order_id}"
        assert eventually(lambda: list_alerts(client, subject))
        assert failure_reason(wait_for_final_order(client, payment)) == "PROVIDER_UNREACHABLE"
        assert eventually(lambda: not list_alerts(client, subject))
        (alert,) = list_alerts(client, subject, include_ended=True)
        assert (alert.kind, alert.HasField("end_time")) == (
            operator_pb2.ALERT_KIND_ORDER_STUCK,
            True,
        )
        assert alert.detail.startswith("EXECUTING since 2")
        assert eventually(lambda: event_versions(client, f"alerts/{alert.alert_id}") == [1, 2])
    assert (
        sum(f"alert ORDER_STUCK: {subject}" in record.getMessage() for record in caplog.records)
        == 1
    )


def test_one_process_at_a_time_checks_alert_conditions(scratch_database: DatabaseUrls) -> None:
    """One process checks all alert conditions; another takes over when the first stops renewing its
    lease.
    """
    database = Database(scratch_database.service("payment"), connections=2)
    first, second = uuid4(), uuid4()

    def try_acquire(holder_id: UUID, seconds: float) -> bool:
        return asyncio.run(
            database.transact(
                lambda connection: leader_lease.try_acquire_lease(
                    connection, "monitor", holder_id, seconds
                )
            )
        )

    assert try_acquire(first, 60)
    assert not try_acquire(second, 60)
    assert try_acquire(first, 0)
    assert try_acquire(second, 60)
    assert not try_acquire(first, 60)
    database.close()


def test_dead_letters_and_unapplied_charges_raise_alerts(scratch_database: DatabaseUrls) -> None:
    """An item that waits for an operator has an alert until it has been closed or acknowledged."""
    with client_of_platform(
        scratch_database,
        Settings().replace(worker__scan_interval=0.1, worker__monitor_interval=0.2),
    ) as client:
        dead_letter = wait_for_dead_letter(
            client,
            create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE),
        )
        assert eventually(lambda: list_alerts(client, f"deadLetters/{dead_letter.dead_letter_id}"))
        payment = create_payment(client, "5.00", token="tok_other_amount")
        assert eventually(lambda: booked_unapplied_charges(client, payment))
        (charge,) = booked_unapplied_charges(client, payment)
        assert eventually(
            lambda: list_alerts(client, f"unappliedCharges/{charge.unapplied_charge_id}")
        )
        client.payment.AcknowledgeUnappliedCharge(acknowledge_request(charge))
        assert eventually(
            lambda: not list_alerts(client, f"unappliedCharges/{charge.unapplied_charge_id}")
        )
        close_dead_letter(client, dead_letter)
        assert eventually(
            lambda: not list_alerts(client, f"deadLetters/{dead_letter.dead_letter_id}")
        )
    assert verify(scratch_database).passed
