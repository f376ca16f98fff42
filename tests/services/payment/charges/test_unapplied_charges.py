"""Unapplied charges: money that a provider took and that fits no order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import psycopg
import pytest

from tallystick import AlreadyExistsError, Client, InvalidArgumentError, NotFoundError, new_order
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.operations.kind import KindName
from tallystick_core.payment.charge_update import UnappliedCause
from tallystick_core.provider.outcome import ChargeLookupOutcome, Declined, FailureReason, Succeeded
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.payment.charge import Charge
from tallystick_server.payment.unapplied_charges import UnappliedMoney, record_unapplied
from tallystick_server.verify.run import verify
from tallystick_storage.database import ConstraintViolation
from tallystick_storage.operations import AttemptResult, record_attempt_results
from tallystick_storage.sql import Connection
from tests.fakes.payment_provider import ScriptedPaymentProvider
from tests.support.charges import (
    WAIT_FOR_ACCEPTANCE,
    acknowledge_request,
    booked_unapplied_charges,
    client_of_platform,
    close_dead_letter,
    event_versions,
    failure_reason,
    fast_final_settings,
    is_paid,
    leased_charge,
    record_outcomes,
    wait_for_dead_letter,
    wait_for_final_order,
)
from tests.support.payments import create_payment
from tests.support.platform import (
    WAITING_FOR_LOCK_QUERY,
    ServedPlatform,
    database_of,
    eventually,
    is_replayed,
    unique_id,
)
from tests.support.rows import update_rows


def test_a_charge_of_another_amount_is_unapplied(client: Client) -> None:
    """P2: the order fails, and the money that was charged anyway is booked once under
    unapplied/{provider}, with an event.
    """
    payment = create_payment(client, "5.00", token="tok_other_amount")
    assert failure_reason(payment.payment_orders[0]) == "PROVIDER_MISMATCH"
    assert eventually(lambda: booked_unapplied_charges(client, payment))
    (charge,) = booked_unapplied_charges(client, payment)
    assert (charge.amount, charge.currency, charge.cause) == (
        "5.01",
        "EUR",
        payment_pb2.UNAPPLIED_CAUSE_MISMATCH,
    )
    request = ledger_service_pb2.ListTransactionsRequest(source_id=charge.unapplied_charge_id)
    (transaction,) = client.ledger.ListTransactions(request).transactions
    assert [(entry.account, entry.amount) for entry in transaction.entries] == [
        ("psp/sandbox/clearing", "5.01"),
        ("unapplied/sandbox", "5.01"),
    ]
    assert eventually(
        lambda: event_versions(client, f"unappliedCharges/{charge.unapplied_charge_id}") == [1, 2]
    )


def test_an_unapplied_charge_is_acknowledged_once(client: Client) -> None:
    """An unapplied charge that an operator acknowledges with a reason leaves the list and stays
    booked. A repeat is marked as a replay; with another reason it is IDEMPOTENCY_KEY_REUSED.
    """
    payment = create_payment(client, "5.00", token="tok_other_amount")
    (charge,) = eventually(lambda: booked_unapplied_charges(client, payment))
    acknowledge = client.payment.AcknowledgeUnappliedCharge
    assert [is_replayed(acknowledge, acknowledge_request(charge)) for _ in range(2)] == [
        False,
        True,
    ]
    with pytest.raises(AlreadyExistsError) as reused:
        acknowledge(acknowledge_request(charge, "another"))
    assert reused.value.reason == "IDEMPOTENCY_KEY_REUSED"
    assert not booked_unapplied_charges(client, payment)
    every = client.pages(
        client.payment.ListUnappliedCharges,
        payment_service_pb2.ListUnappliedChargesRequest(acknowledged=True, page_size=200),
        "unapplied_charges",
    )
    (listed_charge,) = [
        unapplied_charge
        for unapplied_charge in every
        if unapplied_charge.unapplied_charge_id == charge.unapplied_charge_id
    ]
    assert (
        listed_charge.acknowledged_by,
        listed_charge.acknowledge_reason,
        listed_charge.version,
    ) == ("dev", "refunded", 3)
    assert listed_charge.acknowledge_time == listed_charge.update_time
    assert (listed_charge.amount, listed_charge.cause, listed_charge.ledger_updated) == (
        charge.amount,
        charge.cause,
        True,
    )
    request = ledger_service_pb2.ListTransactionsRequest(source_id=charge.unapplied_charge_id)
    assert len(client.ledger.ListTransactions(request).transactions) == 1
    assert eventually(
        lambda: (
            event_versions(client, f"unappliedCharges/{charge.unapplied_charge_id}") == [1, 2, 3]
        )
    )


def test_invalid_acknowledgements_of_charges_are_rejected(client: Client) -> None:
    """An unknown id is NOT_FOUND, and a blank reason is FIELD_REQUIRED."""
    unknown = payment_pb2.UnappliedCharge(unapplied_charge_id="u-nothing")
    with pytest.raises(NotFoundError):
        client.payment.AcknowledgeUnappliedCharge(acknowledge_request(unknown))
    with pytest.raises(InvalidArgumentError) as error:
        client.payment.AcknowledgeUnappliedCharge(acknowledge_request(unknown, " "))
    assert (error.value.reason, error.value.field_violations[0].field) == (
        "FIELD_REQUIRED",
        "reason",
    )


def test_a_charge_reported_after_the_failure_is_unapplied(
    client: Client, two_try_platform: ServedPlatform
) -> None:
    """P2: a process that was frozen reports a success after the order has been closed: the order
    stays FAILED, and the money is booked as unapplied.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    dead_letter = wait_for_dead_letter(client, payment)
    charge_id = payment.payment_orders[0].charge_id
    own_charge = leased_charge(two_try_platform, charge_id, 1)
    close_dead_letter(client, dead_letter)
    assert failure_reason(wait_for_final_order(client, payment)) == "CLOSED_BY_OPERATOR"
    for _ in range(2):
        record_outcomes(two_try_platform, (own_charge, Succeeded(f"ref-{charge_id}", 500, "EUR")))
    assert eventually(lambda: booked_unapplied_charges(client, payment))
    (late_charge,) = booked_unapplied_charges(client, payment)
    assert (late_charge.amount, late_charge.cause) == ("5.00", payment_pb2.UNAPPLIED_CAUSE_LATE)
    assert (
        failure_reason(client.get_payment(payment.checkout_id).payment_orders[0])
        == "CLOSED_BY_OPERATOR"
    )


def test_a_duplicate_charge_is_unapplied_despite_a_rejected_sibling(
    client: Client, two_try_platform: ServedPlatform
) -> None:
    """P2: a second charge of orders that are charged together is booked, even if the risk check has
    rejected one of the payment's orders.
    """
    checkout = unique_id("c")
    orders = [
        new_order(f"{checkout}-{seller}", "b", seller, "5.00", "EUR")
        for seller in ("honest", "mallory")
    ]
    together = {"charge_mode": payment_pb2.CHARGE_MODE_COMBINED, "wait_for": WAIT_FOR_ACCEPTANCE}
    payment = client.create_payment(checkout, orders, credit_card_info="tok_rejected", **together)
    wait_for_dead_letter(client, payment)
    charge = leased_charge(
        two_try_platform,
        payment.payment_orders[0].charge_id,
        0,
    )
    record_outcomes(
        two_try_platform,
        (charge, Succeeded(f"first-{checkout}", 500, "EUR")),
    )
    assert is_paid(client, payment)
    record_outcomes(
        two_try_platform,
        (charge, Succeeded(f"second-{checkout}", 500, "EUR")),
    )
    (twice,) = eventually(lambda: booked_unapplied_charges(client, payment))
    assert (twice.provider_reference, twice.amount, twice.cause) == (
        f"second-{checkout}",
        "5.00",
        payment_pb2.UNAPPLIED_CAUSE_DUPLICATE_CHARGE,
    )


@pytest.mark.parametrize(
    "first",
    [Succeeded("", 500, "EUR"), Declined(FailureReason.PROVIDER_DECLINED, "no")],
    ids=["paid", "declined"],
)
def test_a_second_charge_is_unapplied_before_the_first_is_applied(
    client: Client, two_try_platform: ServedPlatform, first: Succeeded | Declined
) -> None:
    """P2: two processes that lost their leases report one charge, which they loaded before its
    order changed: the second report becomes unapplied, and is not dropped.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    wait_for_dead_letter(client, payment)
    charge_id = payment.payment_orders[0].charge_id
    stale_charge = leased_charge(two_try_platform, charge_id, 0)
    payment_url = two_try_platform.databases.service("payment")
    with psycopg.connect(payment_url) as connection:  # no process applies one before both are there
        update_rows(
            connection,
            "update operation set lease_until = clock() + interval '100 seconds', lease_token = "
            "lease_token + 1, is_leased = true where operation_id = %s",
            (charge_id,),
        )
    for outcome in (
        replace(first, reference=f"first-{charge_id}"),
        Succeeded(f"second-{charge_id}", 500, "EUR"),
    ):
        record_outcomes(two_try_platform, (stale_charge, outcome))
    (second,) = eventually(lambda: booked_unapplied_charges(client, payment))
    cause = (
        payment_pb2.UNAPPLIED_CAUSE_DUPLICATE_CHARGE
        if isinstance(first, Succeeded)
        else payment_pb2.UNAPPLIED_CAUSE_LATE
    )
    assert (second.provider_reference, second.cause) == (f"second-{charge_id}", cause)
    with psycopg.connect(payment_url) as connection:  # a charge that failed has none any more
        connection.execute(
            "update operation set next_try_time = clock(), lease_until = clock() where "
            "operation_id = %s",
            (charge_id,),
        )
    wait_for_final_order(client, payment)


@pytest.mark.parametrize("echoes", [True, False])
def test_one_charge_of_a_provider_pays_one_order(
    scratch_database: DatabaseUrls, echoes: bool
) -> None:
    """P1: a provider returns the first charge's answer for every charge: only that one is paid, the
    others are dead letters with the cause.
    """
    first: list[str] = []

    def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
        first.append(request.charge_id)
        return Succeeded("ch_1", request.amount, request.currency, first[0] if echoes else "")

    with client_of_platform(
        scratch_database, fast_final_settings(), ScriptedPaymentProvider(outcome_of)
    ) as client:
        assert create_payment(client, "5.00").is_payment_done
        for _ in range(2):
            other_payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
            dead_letter = wait_for_dead_letter(client, other_payment)
            assert dead_letter.cause == operator_pb2.DEAD_LETTER_CAUSE_MISMATCHED_OPERATION
            assert ("another operation" if echoes else "ch_1") in dead_letter.detail
            assert (
                not client.get_payment(other_payment.checkout_id)
                .payment_orders[0]
                .provider_reference
            )
        assert not client.payment.ListUnappliedCharges(
            payment_service_pb2.ListUnappliedChargesRequest()
        ).unapplied_charges
    assert verify(scratch_database).passed


@pytest.mark.parametrize("unapplied_first", [True, False])
def test_concurrent_uses_of_one_provider_reference_are_rejected(
    client: Client, two_try_platform: ServedPlatform, unapplied_first: bool
) -> None:
    """P1: two concurrent transactions store one reference, as an unapplied charge and as another
    charge's success: the second waits and is rejected.
    """
    transact = database_of(two_try_platform, "payment").transact
    payments = [
        create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
        for _ in range(2)
    ]
    for payment in payments:
        wait_for_dead_letter(client, payment)
    ids, reference = [payment.payment_orders[0].charge_id for payment in payments], unique_id("ref")
    leased_charges = [leased_charge(two_try_platform, id_, 0) for id_ in ids]
    writes: list[tuple[Charge, Succeeded]] = [
        (leased_charges[0], Succeeded(reference, 501, "EUR")),
        (leased_charges[1], Succeeded(reference, 500, "EUR")),
    ]
    written, commit = Event(), Event()

    def first(connection: Connection) -> None:
        charge, outcome = writes[0 if unapplied_first else 1]
        if unapplied_first:
            record_unapplied(connection, [UnappliedMoney(charge, outcome, UnappliedCause.MISMATCH)])
        else:
            record_attempt_results(
                connection,
                [
                    AttemptResult(
                        KindName.CHARGE,
                        charge.charge_id,
                        1,
                        "SUCCEEDED",
                        reference,
                        outcome.amount,
                        outcome.currency,
                        "",
                        "",
                    )
                ],
            )
        written.set()
        assert commit.wait(30)

    def second(connection: Connection) -> None:
        charge, outcome = writes[1 if unapplied_first else 0]
        if unapplied_first:
            record_attempt_results(
                connection,
                [
                    AttemptResult(
                        KindName.CHARGE,
                        charge.charge_id,
                        1,
                        "SUCCEEDED",
                        reference,
                        outcome.amount,
                        outcome.currency,
                        "",
                        "",
                    )
                ],
            )
        else:
            record_unapplied(connection, [UnappliedMoney(charge, outcome, UnappliedCause.MISMATCH)])

    with (
        ThreadPoolExecutor(2) as pool,
        psycopg.connect(two_try_platform.databases.admin, autocommit=True) as admin,
    ):
        holds = pool.submit(two_try_platform.run_in_loop, transact, first)
        assert written.wait(30)
        waiting_future = pool.submit(two_try_platform.run_in_loop, transact, second)
        assert eventually(
            lambda: (
                waiting_future.done() or admin.execute(WAITING_FOR_LOCK_QUERY).fetchone() != (0,)
            )
        )
        commit.set()
        holds.result(30)
        with pytest.raises(ConstraintViolation, match="provider_money_pkey"):
            waiting_future.result(30)
    kept_ids = ids[:1] if unapplied_first else []
    assert eventually(
        lambda: (
            [
                charge.charge_id
                for payment in payments
                for charge in booked_unapplied_charges(client, payment)
            ]
            == kept_ids
        )
    )
