"""Lookups and polls: what the provider did with a charge that was sent, also after it failed."""

from __future__ import annotations

import psycopg
import pytest

from tallystick import AlreadyExistsError, Client, NotFoundError
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.provider.outcome import ChargeLookupOutcome, NotFound, RetryReason, Succeeded
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tests.fakes.payment_provider import ScriptedPaymentProvider, succeed_first, unknown_outcome
from tests.support.charges import (
    FAST_RETRY_POLICY,
    WAIT_FOR_ACCEPTANCE,
    booked_unapplied_charges,
    cancel_payment,
    client_of_platform,
    failure_reason,
    fast_final_settings,
    get_order,
    is_paid,
    list_alerts,
    may_have_been_sent,
    scheduled_operation,
    wait_for_dead_letter,
    wait_for_final_order,
)
from tests.support.payments import charge_log, create_payment
from tests.support.platform import (
    ServedPlatform,
    eventually,
    is_replayed,
    payments_of,
    serve_platform,
)
from tests.support.rows import update_rows


def test_a_charge_is_looked_up_when_sends_are_exhausted(
    client: Client, two_try_platform: ServedPlatform
) -> None:
    """When sends are exhausted, the operation is looked up, and the provider's answer decides."""
    payment = create_payment(client, "5.00", token="tok_error_stored")
    assert failure_reason(wait_for_final_order(client, payment)) == "PROVIDER_DECLINED"
    assert [
        state for _, state, _ in charge_log(two_try_platform.databases, payment.checkout_id)
    ] == ["ERROR"]


def test_a_charge_whose_answer_was_lost_is_found_by_lookup(
    client: Client, two_try_platform: ServedPlatform
) -> None:
    """The answer is lost more often than the policy allows sends: the lookup finds the one charge
    that was made.
    """
    payment = create_payment(client, "5.00", token="tok_lost_after:2")
    assert is_paid(client, payment)
    assert [
        state for _, state, _ in charge_log(two_try_platform.databases, payment.checkout_id)
    ] == ["SUCCEEDED"]


@pytest.mark.parametrize(
    ("token", "state"), [("tok_pending:paid", "PAID"), ("tok_pending:declined", "FAILED")]
)
def test_a_pending_order_is_polled(client: Client, token: str, state: str) -> None:
    """Without webhooks the provider is polled until it reports the outcome."""
    payment = create_payment(client, "5.00", token=token)
    wait_for_final_order(client, payment)
    assert client.get_payment(payment.checkout_id).payment_state == payment_pb2.PaymentState.Value(
        f"PAYMENT_STATE_{state}"
    )


def test_a_pending_charge_is_polled_without_limit(
    client: Client, two_try_platform: ServedPlatform
) -> None:
    """A pending charge never fails because of its duration."""
    payment = create_payment(client, "5.00", token="tok_pending")
    charge = payment.payment_orders[0].charge_id
    assert eventually(
        lambda: (
            (operation_row := scheduled_operation(two_try_platform.databases, charge)) is not None
            and int(str(operation_row[0])) > 4
        )
    )
    assert (
        get_order(client, payment).payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_PENDING
    )


def test_past_the_keys_window_a_charge_is_looked_up_and_never_sent_again(
    scratch_database: DatabaseUrls,
) -> None:
    """K3: a provider that has forgotten the key would charge again, so the charge is only looked
    up.
    """
    settings = Settings().replace(
        retry={("", reason): FAST_RETRY_POLICY for reason in RetryReason},
        worker__scan_interval=0.1,
        worker__lease_duration=2.5,
        providers__timeout=0.1,
        providers__key_window=4.5,
    )
    with client_of_platform(scratch_database, settings) as client:
        payment = create_payment(
            client, "5.00", token="tok_lost_after:1000", wait_for=WAIT_FOR_ACCEPTANCE
        )
        assert is_paid(client, payment)
        assert len(charge_log(scratch_database, payment.checkout_id)) == 1


def test_not_found_is_no_proof_without_the_providers_rule(
    scratch_database: DatabaseUrls,
) -> None:
    """An adapter whose "not found" is never conclusive: a cancelled charge is looked up until its
    key may be forgotten, then it is a dead letter.
    """
    provider = ScriptedPaymentProvider(lambda request: NotFound(), unknown_outcome)
    provider.key_window, provider.final_not_found = 7.0, None
    settings = fast_final_settings(worker__lease_duration=4, providers__timeout=0.4)
    with client_of_platform(scratch_database, settings, provider) as client:
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        cancel_payment(client, payment, timeout=2)
        assert (
            wait_for_dead_letter(client, payment).cause
            == operator_pb2.DEAD_LETTER_CAUSE_OUTCOME_UNKNOWN
        )
        assert (
            client.get_payment(payment.checkout_id).payment_orders[0].payment_order_status
            == payment_pb2.PAYMENT_ORDER_STATUS_EXECUTING
        )


def test_a_late_charge_of_a_failed_order_is_unapplied(
    scratch_database: DatabaseUrls,
) -> None:
    """P2: a cancelled charge fails because its provider does not know it. The provider is polled
    again, and a later charge is unapplied.
    """
    late_outcomes: list[ChargeLookupOutcome] = [NotFound()]

    def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
        return late_outcomes[0]

    provider = ScriptedPaymentProvider(outcome_of, unknown_outcome)
    settings = fast_final_settings().replace(
        retry={
            **fast_final_settings().retry,
            ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.FIXED, 0.2, 0.2, 100),
        },
    )
    with client_of_platform(scratch_database, settings, provider) as client:
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        charge = payment.payment_orders[0].charge_id
        assert eventually(lambda: may_have_been_sent(scratch_database, charge))
        cancel_payment(client, payment)
        assert failure_reason(wait_for_final_order(client, payment)) == "CALLER_CANCELLED"
        late_outcomes[0] = Succeeded("late", 500, "EUR", charge)
        assert eventually(lambda: booked_unapplied_charges(client, payment))
        (unapplied_charge,) = booked_unapplied_charges(client, payment)
        assert (unapplied_charge.amount, unapplied_charge.cause, unapplied_charge.charge_id) == (
            "5.00",
            payment_pb2.UNAPPLIED_CAUSE_LATE,
            charge,
        )
        assert (
            failure_reason(client.get_payment(payment.checkout_id).payment_orders[0])
            == "CALLER_CANCELLED"
        )
        with psycopg.connect(scratch_database.admin) as connection:
            assert eventually(
                lambda: (
                    connection.execute("select count(*) from payment.failed_charge_poll").fetchone()
                    == (0,)
                )
            )
    assert verify(scratch_database).passed


def test_one_process_at_a_time_polls_failed_charges(scratch_database: DatabaseUrls) -> None:
    """Of two processes one polls the provider about failed charges that may have been sent; the
    other takes over once the first has not renewed its lease for some seconds.
    """
    looked_up_by_platform: dict[str, list[str]] = {"often": [], "seldom": []}

    def scripted(who: str) -> Dependencies:
        def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
            looked_up_by_platform[who].append(request.charge_id)
            return NotFound()

        provider = ScriptedPaymentProvider(outcome_of, unknown_outcome)
        return Dependencies(providers={"sandbox": provider})

    often = fast_final_settings().replace(
        retry={
            **fast_final_settings().retry,
            ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(
                RetryStrategy.FIXED, 0.0, 0.0, 1_000_000
            ),
        },
    )
    with serve_platform(
        scratch_database,
        often.replace(worker__scan_interval=3600),
        dependencies=scripted("seldom"),
    ) as other_platform:
        with (
            serve_platform(scratch_database, often, dependencies=scripted("often")) as platform,
            platform.client() as client,
        ):
            payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
            assert eventually(
                lambda: may_have_been_sent(scratch_database, payment.payment_orders[0].charge_id)
            )
            cancel_payment(client, payment)
            assert failure_reason(wait_for_final_order(client, payment)) == "CALLER_CANCELLED"
            lookup_count = len(looked_up_by_platform["often"])
            assert eventually(lambda: len(looked_up_by_platform["often"]) > lookup_count)
            other_platform.run_in_loop(payments_of(other_platform).polling.run_once)
            assert looked_up_by_platform["seldom"] == []
        with psycopg.connect(scratch_database.admin) as connection:
            update_rows(
                connection,
                "update payment.leader_lease set lease_until = now() where name like 'poll %'",
            )
        other_platform.run_in_loop(payments_of(other_platform).polling.run_once)
        assert looked_up_by_platform["seldom"] == [payment.payment_orders[0].charge_id]


def test_a_failed_charge_with_anothers_reference_raises_an_alert(
    scratch_database: DatabaseUrls,
) -> None:
    """A failed charge whose provider reports another charge's money: the report is stored once, and
    an alert is open until an operator acknowledges it. No money moves.
    """
    late_outcomes: list[ChargeLookupOutcome] = [NotFound()]

    def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
        return (
            Succeeded("first", request.amount, request.currency)
            if request.payment_token == "tok_first"
            else late_outcomes[0]
        )

    provider = ScriptedPaymentProvider(
        outcome_of,
        lambda request: (
            unknown_outcome(request)
            if request.payment_token != "tok_first"
            else succeed_first(request)
        ),
    )
    poll_policy = {
        ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 100_000)
    }
    settings = fast_final_settings().replace(
        retry={**fast_final_settings().retry, **poll_policy},
        worker__monitor_interval=0.2,
    )
    with client_of_platform(scratch_database, settings, provider) as client:
        first = create_payment(client, "5.00", token="tok_first").payment_orders[0].charge_id
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        charge, order_id = (
            payment.payment_orders[0].charge_id,
            payment.payment_orders[0].payment_order_id,
        )
        assert eventually(lambda: may_have_been_sent(scratch_database, charge))
        cancel_payment(client, payment)
        assert failure_reason(wait_for_final_order(client, payment)) == "CALLER_CANCELLED"
        late_outcomes[0] = Succeeded("first", 500, "EUR")
        (alert,) = eventually(lambda: list_alerts(client, f"charges/{charge}"))
        assert (alert.kind, first in alert.detail) == (
            operator_pb2.ALERT_KIND_CHARGE_STATUS_CONFLICT,
            True,
        )
        get = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order_id)
        (report,) = client.payment.GetPaymentOrder(get).conflicting_reports
        assert (report.number, report.acknowledged_by) == (1, "")
        request = payment_service_pb2.AcknowledgeChargeRequest(
            charge_id=charge, report_number=1, reason="asked"
        )
        assert (
            client.payment.AcknowledgeCharge(request).conflicting_report.acknowledge_reason
            == "asked"
        )
        assert is_replayed(client.payment.AcknowledgeCharge, request)
        with pytest.raises(AlreadyExistsError):
            client.payment.AcknowledgeCharge(
                payment_service_pb2.AcknowledgeChargeRequest(
                    charge_id=charge, report_number=1, reason="other"
                )
            )
        with pytest.raises(NotFoundError):
            client.payment.AcknowledgeCharge(
                payment_service_pb2.AcknowledgeChargeRequest(
                    charge_id=charge, report_number=2, reason="asked"
                )
            )
        assert eventually(lambda: not list_alerts(client, f"charges/{charge}"))
        assert len(client.payment.GetPaymentOrder(get).conflicting_reports) == 1
        assert not client.payment.ListUnappliedCharges(
            payment_service_pb2.ListUnappliedChargesRequest()
        ).unapplied_charges
    assert verify(scratch_database).passed
