"""Failures and delays in pay-in: retries, lookups, waits and final failures; through the SDK,
compared with the provider's own log.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from threading import Event, Thread
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy import Connection, Engine, event

from tallystick import (
    AlreadyExistsError,
    Client,
    ClientSettings,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    new_order,
)
from tallystick.error.v1 import reason_pb2
from tallystick.ledger.v1 import ledger_service_pb2
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.operations.next_action import NextAction
from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    Declined,
    FailureReason,
    FinalNotFound,
    NotFound,
    NotSent,
    Pending,
    PendingReason,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_sandbox.sandbox import Sandbox
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.operation import OperationResult
from tallystick_server.operations.reschedule import Rescheduler
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.payment.charge import Charge, charges_from_rows
from tallystick_server.payment.unapplied_charges import record_unapplied
from tallystick_server.payment.worker import PaymentWorker
from tallystick_server.providers.sandbox.provider import InProcessSandbox
from tallystick_server.verify.run import verify
from tallystick_storage import leader_lease
from tallystick_storage.database import ConstraintViolation, Database
from tallystick_storage.operations import (
    AttemptResult,
    claim_dead_lettered,
    find_held,
    record_attempt_results,
)
from tallystick_storage.payment import charges as charge_store
from tallystick_storage.payment import orders as payment_store
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.payments import charge_log, create_payment
from tests.support.payouts import (
    create_destination,
    create_payout,
    create_sale,
    wait_for_state,
    wallet_amounts,
)
from tests.support.platform import (
    FAST_RETRY,
    ServedPlatform,
    eventually,
    fresh_database,
    is_replayed,
    payment_worker_of,
    run_command,
    serve_platform,
    unique_id,
)
from tests.support.retry_policies import scaled_defaults

WAIT_FOR_ACCEPTANCE = payment_service_pb2.WAIT_FOR_ACCEPTANCE
TWO_ATTEMPTS = RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 2)
FAST_RETRY_POLICY = RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 100)


@pytest.fixture(scope="module")
def two_attempt_platform(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedPlatform]:
    """A platform that makes at most two attempts of everything."""
    with fresh_database(admin_url, tmp_path_factory.mktemp("impatient")) as databases:
        retry = {("", reason): TWO_ATTEMPTS for reason in RetryReason}
        retry |= {
            ("", RetryReason.PENDING): FAST_RETRY_POLICY,
            ("", RetryReason.REJECTED): RetryPolicy(RetryStrategy.CANCEL),
        }
        with serve_platform(
            databases,
            Settings().replace(
                retry=retry,
                worker__sweep_interval=0.1,
                risk__blocked_accounts=frozenset({"mallory"}),
            ),
        ) as served_platform:
            yield served_platform


@pytest.fixture(scope="module")
def client(two_attempt_platform: ServedPlatform) -> Iterator[Client]:
    with two_attempt_platform.client() as sdk_client:
        yield sdk_client


def get_order(client: Client, payment: payment_pb2.Payment) -> payment_pb2.PaymentOrder:
    request = payment_service_pb2.GetPaymentOrderRequest(
        payment_order_id=payment.payment_orders[0].payment_order_id
    )
    return client.payment.GetPaymentOrder(request).payment_order


def wait_for_final_order(client: Client, payment: payment_pb2.Payment) -> payment_pb2.PaymentOrder:
    """The payment's order once it is final and booked."""

    def final_order() -> payment_pb2.PaymentOrder | None:
        current_payment = client.get_payment(payment.checkout_id)
        return (
            current_payment.payment_orders[0]
            if current_payment.payment_state != payment_pb2.PAYMENT_STATE_OPEN
            else None
        )

    order = eventually(final_order)
    assert order is not None, "the order did not come to its end"
    return order


def scheduled_operation(databases: DatabaseUrls, operation_id: str) -> tuple[object, ...] | None:
    """(retries, retry_reason, lookup_only, maybe_sent, whether it is due) of a charge that is not
    done.
    """
    with psycopg.connect(databases.reader("payment").replace("+psycopg", "")) as connection:
        attempts = "(select coalesce(sum(value::int), 0)::int from jsonb_each_text(retry_counts))"
        statement = (
            f"select {attempts}, retry_reason, lookup_only, maybe_sent, next_attempt_time is not "
            "null from operation where operation_id = %s"
        )
        return connection.execute(statement, (operation_id,)).fetchone()


def failure_reason(order: payment_pb2.PaymentOrder) -> str:
    return payment_pb2.FailureReason.Name(order.failure_reason).removeprefix("FAILURE_REASON_")


@pytest.mark.parametrize(
    "token", ["tok_unreachable", "tok_busy", "tok_lost_before", "tok_error_after"]
)
def test_passing_trouble_passes(
    client: Client, two_attempt_platform: ServedPlatform, token: str
) -> None:
    """A charge that fails once is retried under the same key, and charged once."""
    payment = create_payment(client, "5.00", token=token)
    assert payment.is_payment_done
    assert len(charge_log(two_attempt_platform.databases, payment.checkout_id)) == 1


def test_a_provider_that_is_never_reached_fails_the_order(
    client: Client, two_attempt_platform: ServedPlatform
) -> None:
    """If only NotSent was answered until retries are exhausted: FAILED(PROVIDER_UNREACHABLE), and
    the provider knows of no charge.
    """
    payment = create_payment(client, "5.00", token="tok_unreachable:9")
    order = wait_for_final_order(client, payment)
    assert failure_reason(order) == "PROVIDER_UNREACHABLE"
    assert charge_log(two_attempt_platform.databases, payment.checkout_id) == []
    assert scheduled_operation(two_attempt_platform.databases, order.charge_id) is None


def test_a_definite_refusal_is_a_failure_at_once(client: Client) -> None:
    """A charge that the provider rejects permanently is FAILED(PROVIDER_REJECTED), and is not
    retried.
    """
    payment = create_payment(client, "0.01", token="tok_amount_too_small")
    assert failure_reason(payment.payment_orders[0]) == "PROVIDER_REJECTED"
    assert payment.payment_orders[0].decline_code == "amount_too_small"


def test_an_error_that_is_replayed_for_ever_is_looked_up(
    client: Client, two_attempt_platform: ServedPlatform
) -> None:
    """When sends are exhausted, the operation is looked up at the provider, whose answer
    decides.
    """
    payment = create_payment(client, "5.00", token="tok_error_stored")
    assert failure_reason(wait_for_final_order(client, payment)) == "PROVIDER_DECLINED"
    assert [
        state for _, state, _ in charge_log(two_attempt_platform.databases, payment.checkout_id)
    ] == ["ERROR"]


def test_a_lost_charge_is_found_by_look_up(
    client: Client, two_attempt_platform: ServedPlatform
) -> None:
    """The answer is lost more often than the policy allows sends: the lookup finds the one charge
    that was made.
    """
    payment = create_payment(client, "5.00", token="tok_lost_after:2")
    assert (
        wait_for_final_order(client, payment).payment_order_status
        == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    )
    assert [
        state for _, state, _ in charge_log(two_attempt_platform.databases, payment.checkout_id)
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


def test_a_provider_that_stays_pending_is_asked_for_ever(
    client: Client, two_attempt_platform: ServedPlatform
) -> None:
    """A pending charge never fails because of its duration."""
    payment = create_payment(client, "5.00", token="tok_pending")
    charge = payment.payment_orders[0].charge_id
    assert eventually(
        lambda: (
            (operation_row := scheduled_operation(two_attempt_platform.databases, charge))
            is not None
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
        retry={("", trouble): FAST_RETRY_POLICY for trouble in RetryReason},
        worker__sweep_interval=0.1,
        worker__lease_duration=2.5,
        providers__timeout=0.1,
        providers__key_window=4.5,
    )
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        payment = create_payment(
            client, "5.00", token="tok_lost_after:1000", wait_for=WAIT_FOR_ACCEPTANCE
        )
        assert (
            wait_for_final_order(client, payment).payment_order_status
            == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        )
        assert len(charge_log(scratch_database, payment.checkout_id)) == 1


def test_a_charge_that_was_never_sent_is_sent_however_long_its_provider_was_away(
    scratch_database: DatabaseUrls,
) -> None:
    """K3: a provider that was unreachable until after the key window is looked up once, and
    receives the charge because it does not know it. No operator is needed, and it is charged once.
    """
    away, actions = [True], list[NextAction]()

    def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
        actions.append(NextAction.LOOK_UP)
        return NotFound()

    async def send(request: ChargeRequest) -> ChargeOutcome:
        if away[0]:
            return NotSent("nobody listens")
        actions.append(NextAction.SEND)
        return Succeeded(f"ch_{request.charge_id}", request.amount, request.currency)

    provider = ScriptedProvider(outcome_of)
    provider.send = send  # type: ignore[method-assign]
    provider.key_window = 4.5
    settings = Settings().replace(
        retry={
            ("", trouble): RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 1000)
            for trouble in RetryReason
        },
        worker__sweep_interval=0.1,
        worker__lease_duration=2.5,
        providers__timeout=0.1,
    )
    with (
        serve_platform(
            scratch_database, settings, dependencies=Dependencies(providers={"sandbox": provider})
        ) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(lambda: actions), "it was not looked up"
        away[0] = False
        assert (
            wait_for_final_order(client, payment).payment_order_status
            == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        )
        assert actions == [NextAction.LOOK_UP, NextAction.SEND]
    assert verify(scratch_database).passed


def test_an_answer_that_is_on_disk_is_judged_not_asked_for_again(
    scratch_database: DatabaseUrls,
) -> None:
    """A process recorded a success and crashed before the order changed: the next process applies
    it, even if the provider is gone.
    """
    with (
        serve_platform(
            scratch_database, Settings().replace(retry=FAST_RETRY, worker__sweep_interval=0.1)
        ) as platform,
        platform.client() as client,
    ):
        payment = create_payment(
            client, "5.00", token="tok_lost_before:1000", wait_for=WAIT_FOR_ACCEPTANCE
        )
        order = payment.payment_orders[0]
        # as the lease holder would
        with psycopg.connect(
            scratch_database.service("payment").replace("+psycopg", "")
        ) as connection:
            connection.execute(
                "update attempt set outcome = 'SUCCEEDED', provider_reference = 'from-afar', "
                "moved_amount = 500, moved_currency = 'EUR',"
                " end_time = clock() where operation_id = %s",
                (order.charge_id,),
            )
        assert wait_for_final_order(client, payment).provider_reference == "from-afar"
    assert verify(scratch_database).passed


def wait_for_dead_letter(client: Client, payment: payment_pb2.Payment) -> operator_pb2.DeadLetter:
    """The open dead letter of the payment's charge."""
    subject = f"charges/{payment.payment_orders[0].charge_id}"

    def find_dead_letter() -> operator_pb2.DeadLetter | None:
        request = payment_service_pb2.ListDeadLettersRequest(
            state=operator_pb2.DEAD_LETTER_STATE_OPEN, page_size=200
        )
        return next(
            (
                dead_letter
                for dead_letter in client.payment.ListDeadLetters(request).dead_letters
                if dead_letter.resource_name == subject
            ),
            None,
        )

    dead_letter = eventually(find_dead_letter)
    assert dead_letter is not None, "no dead letter"
    return dead_letter


def dead_letter_state(client: Client, dead_letter: operator_pb2.DeadLetter) -> str:
    current = client.payment.GetDeadLetter(
        payment_service_pb2.GetDeadLetterRequest(dead_letter_id=dead_letter.dead_letter_id)
    ).dead_letter
    return operator_pb2.DeadLetterState.Name(current.state).removeprefix("DEAD_LETTER_STATE_")


def event_versions(client: Client, aggregate: str) -> list[int]:
    return [event.aggregate_version for event in client.events(aggregate_id=aggregate)]


def close_dead_letter(
    client: Client, dead_letter: operator_pb2.DeadLetter, **values: str
) -> operator_pb2.DeadLetter:
    fields = {"reason": "asked them", "evidence": "ticket 7: no charge", **values}
    return client.payment.CloseDeadLetter(
        payment_service_pb2.CloseDeadLetterRequest(
            dead_letter_id=dead_letter.dead_letter_id, **fields
        )
    ).dead_letter


def retry_dead_letter(
    client: Client, dead_letter: operator_pb2.DeadLetter, reason: str = "mended"
) -> operator_pb2.DeadLetter:
    request = payment_service_pb2.RetryDeadLetterRequest(
        dead_letter_id=dead_letter.dead_letter_id, reason=reason
    )
    return client.payment.RetryDeadLetter(request).dead_letter


def test_what_cannot_be_retried_is_set_aside_and_closed(
    client: Client, two_attempt_platform: ServedPlatform
) -> None:
    """A call that the provider rejects is a dead letter with its cause; closing it fails the order,
    and each has an event.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    dead_letter = wait_for_dead_letter(client, payment)
    assert (dead_letter.cause, dead_letter.tries, dead_letter.detail) == (
        operator_pb2.DEAD_LETTER_CAUSE_REJECTED,
        1,
        "status 400 request_malformed",
    )
    assert scheduled_operation(
        two_attempt_platform.databases, payment.payment_orders[0].charge_id
    ) == (1, "REJECTED", False, True, False)
    assert (
        client.get_payment(payment.checkout_id).payment_orders[0].payment_order_status
        == payment_pb2.PAYMENT_ORDER_STATUS_EXECUTING
    )
    closed_letter = close_dead_letter(client, dead_letter)
    assert (closed_letter.operator, closed_letter.reason, closed_letter.evidence) == (
        "dev",
        "asked them",
        "ticket 7: no charge",
    )
    assert close_dead_letter(client, dead_letter) == closed_letter  # a repeat changes nothing
    order = wait_for_final_order(client, payment)
    assert failure_reason(order) == "CLOSED_BY_OPERATOR"
    assert eventually(
        lambda: event_versions(client, f"deadLetters/{dead_letter.dead_letter_id}") == [1, 2]
    )
    with pytest.raises(FailedPreconditionError) as error:
        close_dead_letter(client, dead_letter, reason="again")
    assert error.value.reason == "INVALID_STATE"
    with pytest.raises(FailedPreconditionError):
        retry_dead_letter(client, dead_letter)


def test_a_dead_letter_is_tried_again(client: Client, two_attempt_platform: ServedPlatform) -> None:
    """A requeued charge is sent again under the same key; if it is rejected again it is a new dead
    letter, and the old one stays as history.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    first = wait_for_dead_letter(client, payment)
    assert retry_dead_letter(client, first) == retry_dead_letter(client, first)
    assert dead_letter_state(client, first) == "RETRIED"
    second = wait_for_dead_letter(client, payment)
    assert second.dead_letter_id != first.dead_letter_id
    assert charge_log(two_attempt_platform.databases, payment.checkout_id) == []


def test_of_operators_at_once_one_retries(client: Client) -> None:
    """Concurrent closings with different reasons: one succeeds and its reason is stored; the others
    are rejected.
    """
    dead_letter = wait_for_dead_letter(
        client, create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    )

    def attempt(number: int) -> operator_pb2.DeadLetter | str:
        try:
            return retry_dead_letter(client, dead_letter, f"reason {number}")
        except FailedPreconditionError as error:
            return error.reason

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(attempt, range(8)))
    (won,) = [result for result in outcomes if isinstance(result, operator_pb2.DeadLetter)]
    assert outcomes.count("INVALID_STATE") == 7
    request = payment_service_pb2.GetDeadLetterRequest(dead_letter_id=dead_letter.dead_letter_id)
    assert client.payment.GetDeadLetter(request).dead_letter.reason == won.reason


def test_repeats_of_what_people_decide_are_marked(client: Client) -> None:
    """K1: the first call of a cancellation, a retry or a closing is not marked as a replay; its
    repeat is.
    """
    pending = create_payment(client, "5.00", token="tok_pending", wait_for=WAIT_FOR_ACCEPTANCE)
    dead_letters = [
        wait_for_dead_letter(
            client,
            create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE),
        ).dead_letter_id
        for _ in range(2)
    ]
    service, pb = client.payment, payment_service_pb2
    for method, request in (
        (
            service.CancelPayment,
            pb.CancelPaymentRequest(checkout_id=pending.checkout_id, reason="x"),
        ),
        (
            service.RetryDeadLetter,
            pb.RetryDeadLetterRequest(dead_letter_id=dead_letters[0], reason="x"),
        ),
        (
            service.CloseDeadLetter,
            pb.CloseDeadLetterRequest(dead_letter_id=dead_letters[1], reason="x", evidence="y"),
        ),
    ):
        assert [is_replayed(method, request) for _ in range(2)] == [False, True], method


def test_a_charge_that_nobody_finds_ends_with_a_person(scratch_database: DatabaseUrls) -> None:
    """A charge with an unknown outcome never fails automatically. Once its key may be forgotten,
    and not before, it is dead-lettered, with its order still EXECUTING.
    """
    retry = {("", trouble): TWO_ATTEMPTS for trouble in RetryReason}
    settings = Settings().replace(
        retry=retry,
        worker__sweep_interval=0.1,
        worker__lease_duration=4,
        providers__timeout=0.1,
        providers__key_window=6.0,
    )
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        payment = create_payment(
            client, "5.00", token="tok_lost_before:1000000", wait_for=WAIT_FOR_ACCEPTANCE
        )
        dead_letter = wait_for_dead_letter(client, payment)
        assert dead_letter.cause == operator_pb2.DEAD_LETTER_CAUSE_OUTCOME_UNKNOWN
        age = dead_letter.create_time.ToNanoseconds() - payment.create_time.ToNanoseconds()
        assert age > 1.5e9  # as long as the key outlasts a lease
        assert (
            client.get_payment(payment.checkout_id).payment_orders[0].payment_order_status
            == payment_pb2.PAYMENT_ORDER_STATUS_EXECUTING
        )
        close_dead_letter(client, dead_letter)
        assert failure_reason(wait_for_final_order(client, payment)) == "CLOSED_BY_OPERATOR"


@pytest.mark.parametrize("token", ["tok_error_before:9", "tok_lost_before:9", "tok_busy:9"])
def test_what_the_provider_does_not_know_is_sent_again(
    client: Client, two_attempt_platform: ServedPlatform, token: str
) -> None:
    """A charge that fails more often than its policy allows is alternately looked up and sent while
    its key is honored. It is paid once, and is not dead-lettered.
    """
    payment = create_payment(client, "5.00", token=token)
    assert (
        wait_for_final_order(client, payment).payment_order_status
        == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    )
    assert [
        state for _, state, _ in charge_log(two_attempt_platform.databases, payment.checkout_id)
    ] == ["SUCCEEDED"]


def fast_final_settings(**values: Any) -> Settings:
    """Settings by which "not found" is proof a moment after the last send."""
    retry = {("", reason): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 3) for reason in RetryReason}
    return Settings().replace(
        retry=retry,
        worker__sweep_interval=0.1,
        providers__not_found_after=0.6,
        providers__not_found_min_count=2,
        **values,
    )


def timestamp_in(seconds: float) -> Timestamp:
    """The given time from now."""
    timestamp = Timestamp()
    timestamp.FromNanoseconds(time.time_ns() + int(seconds * 1e9))
    return timestamp


def test_an_expired_charge_is_not_sent_again(scratch_database: DatabaseUrls) -> None:
    """A charge whose sends were lost is not sent after it has expired. The provider is asked to
    cancel it, does not know it, and it is FAILED(EXPIRED); nobody is charged.
    """
    with (
        serve_platform(scratch_database, fast_final_settings()) as platform,
        platform.client() as client,
    ):
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
    with (
        serve_platform(scratch_database, fast_final_settings()) as platform,
        platform.client() as client,
    ):
        payment = create_payment(
            client,
            "5.00",
            token="tok_lost_after:1000000",
            wait_for=WAIT_FOR_ACCEPTANCE,
            expire_time=timestamp_in(4),
        )
        assert (
            wait_for_final_order(client, payment).payment_order_status
            == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        )


def payment_of_dead_process(
    running: ServedPlatform, client: Client, **values: Any
) -> payment_pb2.Payment:
    """A payment that was accepted and never sent: the process that leases its charge crashes
    before, and its lease expires later.
    """
    leased_charges: list[Charge] = []

    async def drop_charge(operation: Charge) -> None:
        leased_charges.append(operation)

    payment_worker = payment_worker_of(running)
    payment_worker.advance = drop_charge  # type: ignore[method-assign]
    payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE, **values)
    assert eventually(lambda: leased_charges)
    del payment_worker.advance
    return payment


@pytest.mark.parametrize("reason", ["EXPIRED", "CALLER_CANCELLED"])
def test_a_charge_that_a_dead_process_left_is_not_sent_once_it_is_not_wanted(
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
            client.payment.CancelPayment(
                payment_service_pb2.CancelPaymentRequest(
                    checkout_id=payment.checkout_id, reason="r"
                )
            )
        assert failure_reason(wait_for_final_order(client, payment)) == reason
        assert charge_log(scratch_database, payment.checkout_id) == []
    assert verify(scratch_database).passed


def test_an_order_that_risk_has_not_passed_is_never_sent(scratch_database: DatabaseUrls) -> None:
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
            connection.execute("update payment.payment_order set status = 'NOT_STARTED'")
        dead_letter = wait_for_dead_letter(client, payment)
        assert (dead_letter.cause, dead_letter.detail) == (
            operator_pb2.DEAD_LETTER_CAUSE_REJECTED,
            "risk has not passed it",
        )
        assert charge_log(scratch_database, payment.checkout_id) == []


def test_a_few_server_errors_leave_no_charge_behind(scratch_database: DatabaseUrls) -> None:
    """With the default policies, at another speed: a provider that answers 5xx seven times in a row
    charges once it works again, without an operator.
    """
    retry = {("", trouble): policy for trouble, policy in scaled_defaults(0.1).items()}
    with (
        serve_platform(
            scratch_database, Settings().replace(retry=retry, worker__sweep_interval=0.1)
        ) as platform,
        platform.client() as client,
    ):
        payment = create_payment(
            client, "5.00", token="tok_error_before:7", wait_for=WAIT_FOR_ACCEPTANCE
        )
        assert (
            wait_for_final_order(client, payment).payment_order_status
            == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        )
        assert len(charge_log(scratch_database, payment.checkout_id)) == 1


@pytest.mark.parametrize(
    "token", ["tok_lost_before:1000000", "tok_busy:1000000", "tok_error_before:1000000"]
)
def test_a_cancelled_charge_that_the_provider_does_not_know_fails(
    scratch_database: DatabaseUrls, token: str
) -> None:
    """A charge that may have been sent and was cancelled is FAILED(CALLER_CANCELLED) once "not
    found" is proof, and not before.
    """
    with (
        serve_platform(scratch_database, fast_final_settings()) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", token=token, wait_for=WAIT_FOR_ACCEPTANCE)
        charge = payment.payment_orders[0].charge_id
        assert eventually(
            lambda: (scheduled_operation(scratch_database, charge) or (0, "", False, False))[3]
        )
        client.payment.CancelPayment(
            payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r")
        )
        order = wait_for_final_order(client, payment)
        assert failure_reason(order) == "CALLER_CANCELLED"
        assert order.update_time.ToNanoseconds() - order.create_time.ToNanoseconds() > 0.6e9
        assert charge_log(scratch_database, payment.checkout_id) == []
    assert verify(scratch_database).passed


class SlowLookupProvider(InProcessSandbox):
    """A sandbox with slow lookups."""

    def __init__(self, database: Database, delay_seconds: float) -> None:
        super().__init__(Sandbox(database), 86_400.0)
        self.delay_seconds = delay_seconds
        self.lookup_count = 0

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        self.lookup_count += 1
        await asyncio.sleep(self.delay_seconds)
        return await super().look_up(request)


def test_a_cancellation_during_a_look_up_is_acted_on_at_once(
    scratch_database: DatabaseUrls,
) -> None:
    """A CancelPayment during a lookup of a pending charge takes effect at once, and does not wait
    for the next poll an hour later.
    """
    log = Database(scratch_database.service("sandbox"), connections=2)
    provider = SlowLookupProvider(log, 3.0)
    settings = Settings().replace(
        retry={("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 3600, 3600, None)},
        worker__sweep_interval=0.1,
    )
    with (
        serve_platform(
            scratch_database, settings, dependencies=Dependencies(providers={"sandbox": provider})
        ) as platform,
        platform.client() as client,
    ):

        async def start() -> None:
            provider._sandbox.start()

        platform.run_in_loop(start)
        payment = create_payment(client, "5.00", token="tok_pending:review")
        assert eventually(
            lambda: (
                (
                    scheduled_operation(scratch_database, payment.payment_orders[0].charge_id)
                    or ("", "")
                )[1]
                == "PENDING"
            )
        )
        with psycopg.connect(scratch_database.admin) as connection:
            connection.execute("update payment.operation set next_attempt_time = now()")
        assert eventually(lambda: provider.lookup_count)
        client.payment.CancelPayment(
            payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r"),
            timeout=1.5,
        )
        assert failure_reason(wait_for_final_order(client, payment)) == "CALLER_CANCELLED"
    log.close()


@pytest.mark.parametrize("expires", [False, True])
def test_a_cancellation_or_expiry_ends_a_charge_that_is_a_dead_letter(
    scratch_database: DatabaseUrls, expires: bool
) -> None:
    """A dead letter whose payment is cancelled or expires is claimed again without an operator. It
    is not sent, and fails once its provider proves not to know it; the dead letter records the
    reason and the caller.
    """
    with (
        serve_platform(scratch_database, fast_final_settings()) as platform,
        platform.client() as client,
    ):
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
            payment_service_pb2.GetDeadLetterRequest(dead_letter_id=dead_letter.dead_letter_id)
        ).dead_letter
        assert response.state == operator_pb2.DEAD_LETTER_STATE_RETRIED
        assert response.operator == ("platform" if expires else "dev")
        assert ("time" if expires else "sold out") in response.reason
        assert charge_log(scratch_database, payment.checkout_id) == []
    assert verify(scratch_database).passed


def no_retry_settings() -> Settings:
    """As `fast_final_settings`, but a rejected charge, or one with another charge's answer, is not
    retried.
    """
    return fast_final_settings().replace(
        retry={
            **fast_final_settings().retry,
            **{
                ("", reason): RetryPolicy(RetryStrategy.CANCEL)
                for reason in (RetryReason.REJECTED, RetryReason.MISMATCHED_OPERATION)
            },
        },
    )


async def _outcome_after(not_before: Timestamp, outcome: ChargeOutcome) -> ChargeOutcome:
    """A provider outcome that is delayed until a given time has passed."""
    await asyncio.sleep(max(not_before.ToNanoseconds() - time.time_ns(), 0) / 1e9 + 0.2)
    return outcome


def test_a_charge_that_expires_while_its_answer_makes_a_dead_letter_of_it_is_ended(
    scratch_database: DatabaseUrls,
) -> None:
    """A payment that expires while its provider rejects the charge needs no operator: the platform
    requeues the dead letter, and the charge is FAILED(EXPIRED) once its provider proves not to know
    it.
    """
    expire_time = timestamp_in(2)
    provider = ScriptedProvider(lambda demand: NotFound())

    provider.send = lambda request: _outcome_after(  # type: ignore[method-assign]
        expire_time, Unknown("no such call", RetryReason.REJECTED)
    )
    with (
        serve_platform(
            scratch_database,
            no_retry_settings(),
            dependencies=Dependencies(providers={"sandbox": provider}),
        ) as platform,
        platform.client() as client,
    ):
        payment = create_payment(
            client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE, expire_time=expire_time
        )
        assert failure_reason(wait_for_final_order(client, payment)) == "EXPIRED"
        dead_letters = client.payment.ListDeadLetters(
            payment_service_pb2.ListDeadLettersRequest()
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


def test_an_expired_charge_that_cannot_be_ended_stays_a_dead_letter(
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

    provider = ScriptedProvider(outcome_of)
    provider.send = lambda request: _outcome_after(  # type: ignore[method-assign]
        expire_time, Unknown("what?", RetryReason.MISMATCHED_OPERATION)
    )
    with (
        serve_platform(
            scratch_database,
            no_retry_settings(),
            dependencies=Dependencies(providers={"sandbox": provider}),
        ) as platform,
        platform.client() as client,
    ):
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
        assert dead_letter.detail.startswith("EXPIRED, and not ended")
        assert len(looked_up_ids) == 1


def test_what_is_misdirected_is_closed_on_evidence_of_its_own(
    scratch_database: DatabaseUrls,
) -> None:
    """A charge whose provider answers about another one is skipped by bulk closing, and closed when
    it is closed alone.
    """
    provider = ScriptedProvider(lambda demand: Unknown("what?", RetryReason.MISMATCHED_OPERATION))
    with (
        serve_platform(
            scratch_database,
            fast_final_settings(),
            dependencies=Dependencies(providers={"sandbox": provider}),
        ) as platform,
        platform.client() as client,
    ):
        dead_letter = wait_for_dead_letter(
            client, create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        )
        many = payment_service_pb2.CloseDeadLettersRequest(
            all=True, reason="month's end", evidence="none in particular"
        )
        assert [
            (close_request.dead_letter_id, close_request.error_reason)
            for close_request in client.payment.CloseDeadLetters(many).skipped
        ] == [(dead_letter.dead_letter_id, reason_pb2.REASON_INVALID_STATE)]
        assert dead_letter_state(client, dead_letter) == "OPEN"
        close_request = payment_service_pb2.CloseDeadLetterRequest(
            dead_letter_id=dead_letter.dead_letter_id, reason="never made", evidence="ticket 7"
        )
        client.payment.CloseDeadLetter(close_request)
        assert dead_letter_state(client, dead_letter) == "CLOSED"
    assert verify(scratch_database).passed


def test_a_cancelled_dead_letter_that_cannot_be_ended_says_so(
    scratch_database: DatabaseUrls,
) -> None:
    """A charge that its provider fails to cancel is a dead letter again, which says that its
    payment is cancelled; a repeated cancellation does not requeue it.
    """
    provider = ScriptedProvider(lambda demand: Unknown("what?", RetryReason.MISMATCHED_OPERATION))
    with (
        serve_platform(
            scratch_database,
            fast_final_settings(),
            dependencies=Dependencies(providers={"sandbox": provider}),
        ) as platform,
        platform.client() as client,
    ):
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


def test_a_cancellation_while_a_charge_becomes_a_dead_letter_is_not_lost(
    scratch_database: DatabaseUrls,
) -> None:
    """CancelPayment arrives while a process has the answer for which a charge would be
    dead-lettered: the charge is cancelled at its provider instead.
    """
    lookup_started, go = Event(), Event()
    provider = ScriptedProvider(lambda demand: Declined(FailureReason.CALLER_CANCELLED))

    async def send(request: ChargeRequest) -> ChargeOutcome:
        lookup_started.set()
        assert await asyncio.to_thread(go.wait, 30)
        return Unknown("what?", RetryReason.REJECTED)

    provider.send = send  # type: ignore[method-assign]
    settings = fast_final_settings().replace(
        retry={("", RetryReason.REJECTED): RetryPolicy(RetryStrategy.CANCEL)}
    )
    with (
        serve_platform(
            scratch_database, settings, dependencies=Dependencies(providers={"sandbox": provider})
        ) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert lookup_started.wait(30)
        client.payment.CancelPayment(
            payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r"),
            timeout=1,
        )
        go.set()
        assert failure_reason(wait_for_final_order(client, payment)) == "CALLER_CANCELLED"
        assert not client.payment.ListDeadLetters(
            payment_service_pb2.ListDeadLettersRequest()
        ).dead_letters
    assert verify(scratch_database).passed


def insert_provider_charge(
    databases: DatabaseUrls, payment: payment_pb2.Payment, reference: str, amount: int = 500
) -> None:
    """Makes the provider report that it made the charge after all."""
    charge_id = payment.payment_orders[0].charge_id
    with psycopg.connect(databases.admin) as connection:
        connection.execute(
            "insert into sandbox.charge values (%s, 1, '', %s, %s, 'SUCCEEDED', %s, 'EUR', '', "
            "'', clock_timestamp())",
            (f"dev-{charge_id}-1", charge_id, reference, amount),
        )


def test_closing_asks_the_provider_first(
    client: Client, two_attempt_platform: ServedPlatform
) -> None:
    """If the provider knows of a charge when the dead letter is closed, the outcome is applied,
    whatever the operator requests: the dead letter is RESOLVED, the order paid.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    dead_letter = wait_for_dead_letter(client, payment)
    insert_provider_charge(two_attempt_platform.databases, payment, f"late-{payment.checkout_id}")
    assert close_dead_letter(client, dead_letter).state == operator_pb2.DEAD_LETTER_STATE_RESOLVED
    assert (
        wait_for_final_order(client, payment).payment_order_status
        == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    )


@pytest.mark.parametrize(
    ("reason", "evidence", "field"),
    [("", "x", "reason"), ("x", "  ", "evidence"), ("x", "y" * 256, "evidence")],
)
def test_closing_needs_a_reason_and_evidence(
    client: Client, reason: str, evidence: str, field: str
) -> None:
    """Reason and operator are both stored in the history; without them nothing is closed."""
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    dead_letter = wait_for_dead_letter(client, payment)
    with pytest.raises(InvalidArgumentError) as error:
        close_dead_letter(client, dead_letter, reason=reason, evidence=evidence)
    assert [violation.field for violation in error.value.field_violations] == [field]
    assert dead_letter_state(client, dead_letter) == "OPEN"


def booked_unapplied_charges(
    client: Client, payment: payment_pb2.Payment
) -> list[payment_pb2.UnappliedCharge]:
    """The payment's unapplied charges that are booked."""
    unapplied_charges = client.payment.ListUnappliedCharges(
        payment_service_pb2.ListUnappliedChargesRequest(page_size=200)
    ).unapplied_charges
    return [
        charge
        for charge in unapplied_charges
        if charge.checkout_id == payment.checkout_id and charge.ledger_updated
    ]


async def load_leased_charge(payment_worker: PaymentWorker, charge_id: str, token: int) -> Charge:
    """The charge as loaded by the process that leases it under a lease token."""
    rows = await payment_worker._database.read(
        lambda connection: charge_store.load_charges(connection, [charge_id])
    )
    return charges_from_rows(rows, {charge_id: token}, 0.0, 60.0)[0]


async def record_outcomes(
    payment_worker: PaymentWorker, *charge_outcomes: tuple[Charge, ChargeOutcome]
) -> None:
    """Records outcomes in one batch."""
    await asyncio.gather(
        *(
            payment_worker._record_batcher.submit(OperationResult(charge, outcome))
            for charge, outcome in charge_outcomes
        )
    )


def test_another_amount_is_an_unapplied_charge(client: Client) -> None:
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


def acknowledge_request(
    charge: payment_pb2.UnappliedCharge, reason: str = "refunded"
) -> payment_service_pb2.AcknowledgeUnappliedChargeRequest:
    return payment_service_pb2.AcknowledgeUnappliedChargeRequest(
        unapplied_charge_id=charge.unapplied_charge_id, reason=reason
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


def test_what_cannot_be_acknowledged_says_why(client: Client) -> None:
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


def test_money_that_comes_after_the_failure_is_unapplied(
    client: Client, two_attempt_platform: ServedPlatform
) -> None:
    """P2: a process that was frozen reports a success after the order has been closed: the order
    stays FAILED, and the money is booked as unapplied.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    dead_letter = wait_for_dead_letter(client, payment)
    charge_id, flow = payment.payment_orders[0].charge_id, payment_worker_of(two_attempt_platform)
    leased_charge = two_attempt_platform.run_in_loop(load_leased_charge, flow, charge_id, 1)
    close_dead_letter(client, dead_letter)
    assert failure_reason(wait_for_final_order(client, payment)) == "CLOSED_BY_OPERATOR"
    for _ in range(2):
        two_attempt_platform.run_in_loop(
            record_outcomes, flow, (leased_charge, Succeeded(f"ref-{charge_id}", 500, "EUR"))
        )
    assert eventually(lambda: booked_unapplied_charges(client, payment))
    (late_charge,) = booked_unapplied_charges(client, payment)
    assert (late_charge.amount, late_charge.cause) == ("5.00", payment_pb2.UNAPPLIED_CAUSE_LATE)
    assert (
        failure_reason(client.get_payment(payment.checkout_id).payment_orders[0])
        == "CLOSED_BY_OPERATOR"
    )


def test_what_was_charged_twice_is_unapplied_beside_a_refused_sibling(
    client: Client, two_attempt_platform: ServedPlatform
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
    charge = two_attempt_platform.run_in_loop(
        load_leased_charge,
        payment_worker_of(two_attempt_platform),
        payment.payment_orders[0].charge_id,
        0,
    )
    two_attempt_platform.run_in_loop(
        record_outcomes,
        payment_worker_of(two_attempt_platform),
        (charge, Succeeded(f"first-{checkout}", 500, "EUR")),
    )
    assert (
        wait_for_final_order(client, payment).payment_order_status
        == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    )
    two_attempt_platform.run_in_loop(
        record_outcomes,
        payment_worker_of(two_attempt_platform),
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
def test_a_second_charge_is_kept_while_the_first_answer_is_not_judged(
    client: Client, two_attempt_platform: ServedPlatform, first: Succeeded | Declined
) -> None:
    """P2: two processes that lost their leases report one charge before its order has changed: the
    second report becomes unapplied, and is not dropped.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    wait_for_dead_letter(client, payment)
    charge_id, flow = payment.payment_orders[0].charge_id, payment_worker_of(two_attempt_platform)
    stale_charge: Any = two_attempt_platform.run_in_loop(load_leased_charge, flow, charge_id, 0)
    for outcome in (
        replace(first, reference=f"first-{charge_id}"),
        Succeeded(f"second-{charge_id}", 500, "EUR"),
    ):
        with psycopg.connect(
            two_attempt_platform.databases.service("payment").replace("+psycopg", "")
        ) as connection:  # no process applies the outcome between the two
            connection.execute(
                "update payment.operation set next_attempt_time = 'infinity' where operation_id = "
                "%s",
                (charge_id,),
            )
        two_attempt_platform.run_in_loop(record_outcomes, flow, (stale_charge, outcome))
    (second,) = eventually(lambda: booked_unapplied_charges(client, payment))
    cause = (
        payment_pb2.UNAPPLIED_CAUSE_DUPLICATE_CHARGE
        if isinstance(first, Succeeded)
        else payment_pb2.UNAPPLIED_CAUSE_LATE
    )
    assert (second.provider_reference, second.cause) == (f"second-{charge_id}", cause)
    with psycopg.connect(
        two_attempt_platform.databases.service("payment").replace("+psycopg", "")
    ) as connection:
        connection.execute(
            "update payment.operation set next_attempt_time = now() where operation_id = %s",
            (charge_id,),
        )
    wait_for_final_order(client, payment)


class ScriptedProvider:
    """A scripted payment provider."""

    name = "sandbox"
    key_window = 86_400.0
    final_not_found: FinalNotFound | None = FinalNotFound(0.2, 1)

    def __init__(self, outcome_of: Callable[[ChargeRequest], ChargeLookupOutcome]) -> None:
        self.outcome_of = outcome_of

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        outcome = self.outcome_of(request)
        assert not isinstance(outcome, NotFound)
        return outcome

    async def look_up(self, request: ChargeRequest) -> ChargeLookupOutcome:
        return self.outcome_of(request)

    cancel = look_up


def test_a_dead_letter_whose_provider_is_configured_no_more_is_closed(
    scratch_database: DatabaseUrls,
) -> None:
    """If the provider no longer exists, an operator's evidence decides: the order is FAILED, and a
    payout's money is released to its seller.
    """
    bank = ScriptedPayoutProvider()
    old = Dependencies(
        providers={
            "old": ScriptedProvider(lambda _: Unknown("malformed", RetryReason.REJECTED)),
            "sandbox": ScriptedProvider(_succeed),
        },
        payout_providers={"old": bank},
    )
    new = Dependencies(
        providers={"sandbox": ScriptedProvider(_succeed)},
        payout_providers={"sandbox": ScriptedPayoutProvider()},
    )
    first = Settings().replace(
        worker__sweep_interval=0.1, providers__payout="old", payout__destination_cooldown=0
    )
    with (
        serve_platform(scratch_database, first, dependencies=old) as platform,
        platform.client() as client,
    ):
        seller = create_sale(client, "10.00")
        bank.script[create_destination(client, seller)].append(
            Unknown("malformed", RetryReason.REJECTED)
        )
        payout = create_payout(client, seller, "4.00")
        assert eventually(
            lambda: (
                client.payout.ListDeadLetters(
                    payout_service_pb2.ListDeadLettersRequest()
                ).dead_letters
            )
        )
    with (
        serve_platform(
            scratch_database,
            Settings().replace(worker__sweep_interval=0.1, providers__payment="old"),
            dependencies=old,
        ) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        wait_for_dead_letter(client, payment)
    with (
        serve_platform(
            scratch_database, Settings().replace(worker__sweep_interval=0.1), dependencies=new
        ) as platform,
        platform.client() as client,
    ):
        assert (
            close_dead_letter(client, wait_for_dead_letter(client, payment)).state
            == operator_pb2.DEAD_LETTER_STATE_CLOSED
        )
        assert failure_reason(wait_for_final_order(client, payment)) == "CLOSED_BY_OPERATOR"
        (dead_letter,) = client.payout.ListDeadLetters(
            payout_service_pb2.ListDeadLettersRequest()
        ).dead_letters
        assert dead_letter.resource_name == f"payouts/{payout.payout_id}"
        request = payout_service_pb2.CloseDeadLetterRequest(
            dead_letter_id=dead_letter.dead_letter_id,
            reason="the bank is gone",
            evidence="its receiver's letter",
        )
        assert (
            client.payout.CloseDeadLetter(request).dead_letter.state
            == operator_pb2.DEAD_LETTER_STATE_CLOSED
        )
        assert eventually(lambda: wallet_amounts(client, seller) == ("10.00", "0.00", "0.00"))
        wait_for_state(client, payout.payout_id, "FAILED")
    assert verify(scratch_database).passed


def _succeed(request: ChargeRequest) -> ChargeLookupOutcome:
    return Succeeded(f"ch_{request.charge_id}", request.amount, request.currency)


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

    with (
        serve_platform(
            scratch_database,
            fast_final_settings(),
            dependencies=Dependencies(providers={"sandbox": ScriptedProvider(outcome_of)}),
        ) as platform,
        platform.client() as client,
    ):
        assert create_payment(client, "5.00").is_payment_done
        for _ in range(2):
            other_payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
            dead_letter = wait_for_dead_letter(client, other_payment)
            assert dead_letter.cause == operator_pb2.DEAD_LETTER_CAUSE_MISMATCHED_OPERATION
            assert ("another demand" if echoes else "ch_1") in dead_letter.detail
            assert (
                not client.get_payment(other_payment.checkout_id)
                .payment_orders[0]
                .provider_reference
            )
        assert not client.payment.ListUnappliedCharges(
            payment_service_pb2.ListUnappliedChargesRequest()
        ).unapplied_charges
    assert verify(scratch_database).passed


def test_a_charge_that_its_provider_answers_with_anothers_money_is_closed_on_evidence(
    scratch_database: DatabaseUrls,
) -> None:
    """A provider that keeps answering with another charge's reference does not keep an order open.
    An operator closes its dead letter individually, the order fails, and no money moves by the
    answer. A charge that was made anyway is found later and booked as unapplied.
    """
    own_references: list[str] = []

    def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
        return Succeeded(
            "ch_own" if request.charge_id in own_references else "ch_1",
            request.amount,
            request.currency,
        )

    poll_policy = {
        ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.FIXED, 0.2, 0.2, 100_000)
    }
    settings = fast_final_settings().replace(retry={**fast_final_settings().retry, **poll_policy})
    with (
        serve_platform(
            scratch_database,
            settings,
            dependencies=Dependencies(providers={"sandbox": ScriptedProvider(outcome_of)}),
        ) as platform,
        platform.client() as client,
    ):
        assert create_payment(client, "5.00").is_payment_done
        other_payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        dead_letter = wait_for_dead_letter(client, other_payment)
        many = payment_service_pb2.CloseDeadLettersRequest(
            all=True, reason="month's end", evidence="none in particular"
        )
        assert [
            skipped_letter.error_reason
            for skipped_letter in client.payment.CloseDeadLetters(many).skipped
        ] == [reason_pb2.REASON_INVALID_STATE]
        assert dead_letter_state(client, dead_letter) == "OPEN"
        close = payment_service_pb2.CloseDeadLetterRequest(
            dead_letter_id=dead_letter.dead_letter_id,
            reason="the buyer gave up",
            evidence="ticket 7",
        )
        closed_letter = client.payment.CloseDeadLetter(close).dead_letter
        assert (closed_letter.state, closed_letter.evidence) == (
            operator_pb2.DEAD_LETTER_STATE_CLOSED,
            "ticket 7",
        )
        assert failure_reason(wait_for_final_order(client, other_payment)) == "CLOSED_BY_OPERATOR"
        assert not booked_unapplied_charges(client, other_payment)
        own_references.append(other_payment.payment_orders[0].charge_id)
        (late_charge,) = eventually(lambda: booked_unapplied_charges(client, other_payment))
        assert (late_charge.provider_reference, late_charge.cause) == (
            "ch_own",
            payment_pb2.UNAPPLIED_CAUSE_LATE,
        )
    assert verify(scratch_database).passed


@pytest.mark.parametrize("unapplied_first", [True, False])
def test_one_reference_of_a_provider_is_the_money_of_one_charge_at_the_same_moment(
    client: Client, two_attempt_platform: ServedPlatform, unapplied_first: bool
) -> None:
    """P1: two concurrent transactions store one reference, as an unapplied charge and as another
    charge's success: the second waits and is rejected.
    """
    flow, payments = (
        payment_worker_of(two_attempt_platform),
        [
            create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
            for _ in range(2)
        ],
    )
    for payment in payments:
        wait_for_dead_letter(client, payment)
    ids, reference = [payment.payment_orders[0].charge_id for payment in payments], unique_id("ref")
    leased_charges: list[Any] = [
        two_attempt_platform.run_in_loop(load_leased_charge, flow, id_, 0) for id_ in ids
    ]
    writes: list[tuple[Charge, Succeeded]] = [
        (leased_charges[0], Succeeded(reference, 501, "EUR")),
        (leased_charges[1], Succeeded(reference, 500, "EUR")),
    ]
    written, commit = Event(), Event()

    def first(connection: Connection) -> None:
        charge, outcome = writes[0 if unapplied_first else 1]
        if unapplied_first:
            record_unapplied(connection, [(charge, outcome)])
        else:
            record_attempt_results(
                connection,
                [
                    AttemptResult(
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
            record_unapplied(connection, [(charge, outcome)])

    with (
        ThreadPoolExecutor(2) as pool,
        psycopg.connect(two_attempt_platform.databases.admin, autocommit=True) as admin,
    ):
        holds = pool.submit(two_attempt_platform.run_in_loop, flow._database.transact, first)
        assert written.wait(30)
        waiting_future = pool.submit(
            two_attempt_platform.run_in_loop, flow._database.transact, second
        )
        locked = (
            "select count(*) from pg_stat_activity where datname = current_database() and "
            "wait_event_type = 'Lock' and state = 'active'"
        )
        assert eventually(lambda: waiting_future.done() or admin.execute(locked).fetchone() != (0,))
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


def test_not_found_is_no_proof_where_the_provider_does_not_say_so(
    scratch_database: DatabaseUrls,
) -> None:
    """An adapter whose "not found" is never conclusive: a cancelled charge is looked up until its
    key may be forgotten, then it is a dead letter.
    """
    provider = ScriptedProvider(lambda demand: NotFound())
    provider.send = lambda request: _unknown_outcome()  # type: ignore[method-assign]
    provider.key_window, provider.final_not_found = 7.0, None
    settings = fast_final_settings(worker__lease_duration=4, providers__timeout=0.4)
    with (
        serve_platform(
            scratch_database, settings, dependencies=Dependencies(providers={"sandbox": provider})
        ) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        client.payment.CancelPayment(
            payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r"),
            timeout=2,
        )
        assert (
            wait_for_dead_letter(client, payment).cause
            == operator_pb2.DEAD_LETTER_CAUSE_OUTCOME_UNKNOWN
        )
        assert (
            client.get_payment(payment.checkout_id).payment_orders[0].payment_order_status
            == payment_pb2.PAYMENT_ORDER_STATUS_EXECUTING
        )


def test_money_of_a_failed_charge_that_may_have_been_sent_is_found(
    scratch_database: DatabaseUrls,
) -> None:
    """P2: a cancelled charge fails because its provider does not know it. The provider is polled
    again, and a later charge is unapplied.
    """
    late_outcomes: list[ChargeLookupOutcome] = [NotFound()]

    def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
        return late_outcomes[0]

    provider = ScriptedProvider(outcome_of)
    provider.send = lambda request: _unknown_outcome()  # type: ignore[method-assign]
    settings = fast_final_settings().replace(
        retry={
            **fast_final_settings().retry,
            ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.FIXED, 0.2, 0.2, 100),
        },
    )
    with (
        serve_platform(
            scratch_database, settings, dependencies=Dependencies(providers={"sandbox": provider})
        ) as platform,
        platform.client() as client,
    ):
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        charge = payment.payment_orders[0].charge_id
        assert eventually(
            lambda: (scheduled_operation(scratch_database, charge) or (0, "", False, False))[3]
        )
        client.payment.CancelPayment(
            payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r")
        )
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


def test_one_process_asks_what_became_of_failed_charges(scratch_database: DatabaseUrls) -> None:
    """Of two processes one polls the provider about failed charges that may have been sent; the
    other takes over once the first has not renewed its lease for some seconds.
    """
    looked_up_by_platform: dict[str, list[str]] = {"often": [], "seldom": []}

    def scripted(who: str) -> Dependencies:
        def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
            looked_up_by_platform[who].append(request.charge_id)
            return NotFound()

        provider = ScriptedProvider(outcome_of)
        provider.send = lambda request: _unknown_outcome()  # type: ignore[method-assign]
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
        often.replace(worker__sweep_interval=3600),
        dependencies=scripted("seldom"),
    ) as other_platform:
        with (
            serve_platform(scratch_database, often, dependencies=scripted("often")) as platform,
            platform.client() as client,
        ):
            payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
            assert eventually(
                lambda: (
                    scheduled_operation(scratch_database, payment.payment_orders[0].charge_id)
                    or (0, "", False, False)
                )[3]
            )
            client.payment.CancelPayment(
                payment_service_pb2.CancelPaymentRequest(
                    checkout_id=payment.checkout_id, reason="r"
                )
            )
            assert failure_reason(wait_for_final_order(client, payment)) == "CALLER_CANCELLED"
            looks = len(looked_up_by_platform["often"])
            assert eventually(lambda: len(looked_up_by_platform["often"]) > looks)
            other_platform.run_in_loop(payment_worker_of(other_platform).polling._work)
            assert looked_up_by_platform["seldom"] == []
        with psycopg.connect(scratch_database.admin) as connection:
            connection.execute(
                "update payment.leader_lease set lease_until = now() where name like 'watch%'"
            )
        other_platform.run_in_loop(payment_worker_of(other_platform).polling._work)
        assert looked_up_by_platform["seldom"] == [payment.payment_orders[0].charge_id]


def test_a_watched_charge_that_is_said_to_be_anothers_money_raises_an_alert(
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

    provider = ScriptedProvider(outcome_of)
    provider.send = lambda request: (  # type: ignore[method-assign]
        _unknown_outcome() if request.payment_token != "tok_first" else _succeed_first(request)
    )
    poll_policy = {
        ("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 100_000)
    }
    settings = fast_final_settings().replace(
        retry={**fast_final_settings().retry, **poll_policy},
        worker__monitor_interval=0.2,
    )
    with (
        serve_platform(
            scratch_database, settings, dependencies=Dependencies(providers={"sandbox": provider})
        ) as platform,
        platform.client() as client,
    ):
        first = create_payment(client, "5.00", token="tok_first").payment_orders[0].charge_id
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        charge, order_id = (
            payment.payment_orders[0].charge_id,
            payment.payment_orders[0].payment_order_id,
        )
        assert eventually(
            lambda: (scheduled_operation(scratch_database, charge) or (0, "", False, False))[3]
        )
        client.payment.CancelPayment(
            payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="r")
        )
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


def test_another_amount_of_what_was_charged_raises_an_alert(
    client: Client, two_attempt_platform: ServedPlatform
) -> None:
    """A succeeded charge is reported again with another amount: it does not change, the amount is
    not booked, and an alert is raised.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    wait_for_dead_letter(client, payment)
    charge_id, reference = payment.payment_orders[0].charge_id, unique_id("ref")
    charge = two_attempt_platform.run_in_loop(
        load_leased_charge, payment_worker_of(two_attempt_platform), charge_id, 0
    )
    two_attempt_platform.run_in_loop(
        record_outcomes,
        payment_worker_of(two_attempt_platform),
        (charge, Succeeded(reference, 500, "EUR")),
    )
    assert (
        wait_for_final_order(client, payment).payment_order_status
        == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    )
    two_attempt_platform.run_in_loop(
        record_outcomes,
        payment_worker_of(two_attempt_platform),
        (charge, Succeeded(reference, 501, "EUR")),
    )
    get = payment_service_pb2.GetPaymentOrderRequest(
        payment_order_id=payment.payment_orders[0].payment_order_id
    )
    (report,) = client.payment.GetPaymentOrder(get).conflicting_reports
    assert report.report == f"Succeeded {reference} 501 EUR, reported before as 500 EUR"
    assert not booked_unapplied_charges(client, payment)


async def _succeed_first(request: ChargeRequest) -> ChargeOutcome:
    return Succeeded("first", request.amount, request.currency)


async def _unknown_outcome() -> ChargeOutcome:
    return Unknown("lost")


def test_orders_that_do_not_move_keep_their_work(
    client: Client, two_attempt_platform: ServedPlatform
) -> None:
    """P5: a process with an older version of its orders changes none of them, and removes none of
    their operations from the queue.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    wait_for_dead_letter(client, payment)
    order, flow = (
        client.get_payment(payment.checkout_id).payment_orders[0],
        payment_worker_of(two_attempt_platform),
    )

    async def move() -> tuple[int, bool]:
        def work(connection: Connection) -> tuple[int, bool]:
            # Rolled back, so that the dead letter is unchanged.
            with connection.begin_nested() as savepoint:
                token = claim_dead_lettered(connection, order.charge_id, 1.0)
                assert token is not None
                stale = payment_store.OrderTransitionRow(
                    order.payment_order_id,
                    order.charge_id,
                    token,
                    order.version - 1,
                    "FAILED",
                    "GIVEN_UP",
                    failure_reason="PROVIDER_UNREACHABLE",
                )
                transitioned = payment_store.transition_orders(connection, [stale])
                summary = (
                    len(transitioned),
                    find_held(connection, [order.charge_id]) == {order.charge_id: token},
                )
                savepoint.rollback()
            return summary

        return await flow._database.transact(work)

    assert two_attempt_platform.run_in_loop(move) == (0, True)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("paid", [True, False])
def test_the_answer_on_disk_is_what_moves_orders(
    client: Client, two_attempt_platform: ServedPlatform, paid: bool, at_once: bool
) -> None:
    """A process that lost the lease records a success, then the lease holder gets another outcome:
    the orders follow the first record; a second charge is unapplied.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    wait_for_dead_letter(client, payment)
    order, flow = payment.payment_orders[0], payment_worker_of(two_attempt_platform)

    async def claim() -> int:
        token = await flow._database.transact(
            lambda connection: claim_dead_lettered(connection, order.charge_id, 1.0)
        )
        assert token is not None
        return token

    first = Succeeded(f"first-{order.charge_id}", 500, "EUR")
    second = (
        Succeeded(f"second-{order.charge_id}", 500, "EUR")
        if paid
        else Declined(FailureReason.PROVIDER_DECLINED, "no", "ref")
    )
    stale_charge: Any = two_attempt_platform.run_in_loop(
        load_leased_charge, flow, order.charge_id, 0
    )
    leased_charge: Any = two_attempt_platform.run_in_loop(
        load_leased_charge, flow, order.charge_id, two_attempt_platform.run_in_loop(claim)
    )
    for charge_outcomes in (
        [((stale_charge, first), (leased_charge, second))]
        if at_once
        else [((stale_charge, first),), ((leased_charge, second),)]
    ):
        two_attempt_platform.run_in_loop(record_outcomes, flow, *charge_outcomes)
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
def test_of_two_answers_at_once_the_final_one_is_written_down(
    client: Client, two_attempt_platform: ServedPlatform, late: ChargeOutcome, first: bool
) -> None:
    """Outcomes of one operation from two processes in one batch: the conclusive one counts, in
    either order.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    wait_for_dead_letter(client, payment)
    charge_id, flow = payment.payment_orders[0].charge_id, payment_worker_of(two_attempt_platform)
    charge: Any = two_attempt_platform.run_in_loop(load_leased_charge, flow, charge_id, 1)
    charge_outcomes: list[tuple[Charge, ChargeOutcome]] = [
        (charge, late),
        (charge, Succeeded(f"ref-{charge_id}", 500, "EUR")),
    ]
    two_attempt_platform.run_in_loop(
        record_outcomes, flow, *(charge_outcomes if first else reversed(charge_outcomes))
    )
    order = wait_for_final_order(client, payment)
    request = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order.payment_order_id)
    (attempt,) = client.payment.GetPaymentOrder(request).attempts
    assert attempt.outcome == payment_pb2.OUTCOME_SUCCEEDED
    assert order.payment_order_status == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS


def test_the_command_line_does_what_an_operator_does(
    client: Client, two_attempt_platform: ServedPlatform
) -> None:
    """`tallystick dead-letters` lists, shows, retries and closes; `unapplied-charges` lists and
    acknowledges; errors are one sentence and exit 1.
    """
    payment = create_payment(client, "5.00", token="tok_rejected", wait_for=WAIT_FOR_ACCEPTANCE)
    dead_letter = wait_for_dead_letter(client, payment)

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, "--address", two_attempt_platform.address)

    listed_ids = [
        json.loads(line) for line in command("dead-letters", "list", "--json").stdout.splitlines()
    ]
    assert dead_letter.dead_letter_id in [
        letter_json["dead_letter_id"] for letter_json in listed_ids
    ]
    assert (
        json.loads(command("dead-letters", "show", dead_letter.dead_letter_id, "--json").stdout)[
            "payment_orders"
        ][0]["checkout_id"]
        == payment.checkout_id
    )
    close_command = command(
        "dead-letters",
        "close",
        dead_letter.dead_letter_id,
        "--reason",
        "r",
        "--evidence",
        "e",
        "--json",
    )
    assert json.loads(close_command.stdout)["dead_letter"]["state"] == "DEAD_LETTER_STATE_CLOSED"
    rejected_command = command("dead-letters", "retry", dead_letter.dead_letter_id, "--reason", "r")
    assert (rejected_command.returncode, rejected_command.stderr.count("\n")) == (1, 1)
    assert (
        "INVALID_STATE: The dead letter is CLOSED and cannot be retried." in rejected_command.stderr
    )
    other_payment = create_payment(client, "5.00", token="tok_other_amount")
    (charge,) = eventually(lambda: booked_unapplied_charges(client, other_payment))
    completed = command(
        "unapplied-charges",
        "acknowledge",
        charge.unapplied_charge_id,
        "--reason",
        "refunded",
        "--json",
    )
    assert json.loads(completed.stdout)["acknowledge_reason"] == "refunded", completed.stderr
    assert charge.unapplied_charge_id not in command("unapplied-charges", "list").stdout
    assert charge.unapplied_charge_id in command("unapplied-charges", "list", "--all").stdout


def test_who_lost_a_lease_does_not_give_it_back(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """A process whose lease another has claimed does not change when the charge is scheduled."""
    payment = create_payment(
        slow_retry_client, "5.00", token="tok_lost_before", wait_for=WAIT_FOR_ACCEPTANCE
    )
    charge_id = payment.payment_orders[0].charge_id
    assert eventually(
        lambda: (
            (scheduled_operation(slow_retry_platform.databases, charge_id) or ("", ""))[1]
            == "NO_ANSWER"
        )
    )
    flow = payment_worker_of(slow_retry_platform)

    async def give_back() -> None:
        rows = await flow._database.read(
            lambda connection: charge_store.load_charges(connection, [charge_id])
        )
        (charge,) = charges_from_rows(rows, {charge_id: 0}, 0.0, 60.0)
        await flow._reschedule_batcher.submit(
            FailedStep(charge, RetryReason.SERVER_ERROR, "late", NextAction.SEND)
        )

    before = scheduled_operation(slow_retry_platform.databases, charge_id)
    slow_retry_platform.run_in_loop(give_back)
    assert scheduled_operation(slow_retry_platform.databases, charge_id) == before


@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize(
    "answer",
    [Succeeded("heard", 500, "EUR"), Declined(FailureReason.PROVIDER_DECLINED, "no", "heard")],
)
def test_an_answer_without_the_lease_makes_its_charge_due(
    slow_retry_client: Client,
    slow_retry_platform: ServedPlatform,
    answer: ChargeOutcome,
    is_held: bool,
) -> None:
    """A charge whose outcome is recorded by a process that lost the lease is paid or fails at once,
    not at its next attempt in ten minutes. If another process holds the lease, this happens as soon
    as that process releases it.
    """
    payment = create_payment(
        slow_retry_client, "5.00", token="tok_lost_before:1000000", wait_for=WAIT_FOR_ACCEPTANCE
    )
    charge_id = payment.payment_orders[0].charge_id
    assert eventually(
        lambda: (
            (scheduled_operation(slow_retry_platform.databases, charge_id) or ("", ""))[1]
            == "NO_ANSWER"
        )
    )
    flow = payment_worker_of(slow_retry_platform)
    holder: Any = None
    if is_held:
        with psycopg.connect(
            slow_retry_platform.databases.service("payment").replace("+psycopg", "")
        ) as connection:
            row = connection.execute(
                "update operation set lease_until = clock() + interval '100 seconds', lease_token "
                "= lease_token + 1, is_leased = true where operation_id = %s returning lease_token",
                (charge_id,),
            ).fetchone()
        assert row is not None
        holder = slow_retry_platform.run_in_loop(load_leased_charge, flow, charge_id, row[0])
    stale_charge: Any = slow_retry_platform.run_in_loop(load_leased_charge, flow, charge_id, 0)
    slow_retry_platform.run_in_loop(
        record_outcomes,
        flow,
        (stale_charge, replace(answer, reference=f"heard-{charge_id}")),  # type: ignore[arg-type]
    )

    async def give_back() -> None:
        await flow._reschedule_batcher.submit(
            FailedStep(holder, RetryReason.NO_ANSWER, "lost", NextAction.LOOK_UP)
        )

    if is_held:
        slow_retry_platform.run_in_loop(give_back)
    order = wait_for_final_order(slow_retry_client, payment)
    assert order.provider_reference == f"heard-{charge_id}"
    is_paid = isinstance(answer, Succeeded)
    assert order.payment_order_status == (
        payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        if is_paid
        else payment_pb2.PAYMENT_ORDER_STATUS_FAILED
    )


def test_an_answer_that_cannot_be_applied_becomes_a_dead_letter(
    scratch_database: DatabaseUrls,
) -> None:
    """A recorded success that the database rejects is retried by its policy, then a dead letter
    that cannot be closed. Requeued after the cause is removed it is applied, and its provider is
    never called again.
    """
    looked_up_ids: list[str] = []

    def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
        looked_up_ids.append(request.charge_id)
        return Unknown("lost")

    retry_as = {
        ("", RetryReason.NO_ANSWER): RetryPolicy(RetryStrategy.FIXED, 600, 600, 5),
        ("", RetryReason.APPLYING_FAILED): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 3),
    }
    settings, ports = (
        Settings().replace(retry=retry_as, worker__sweep_interval=0.1),
        Dependencies(providers={"sandbox": ScriptedProvider(outcome_of)}),
    )
    with (
        serve_platform(scratch_database, settings, dependencies=ports) as platform,
        platform.client() as client,
        psycopg.connect(scratch_database.admin) as admin,
    ):
        admin.autocommit = True
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        charge_id = payment.payment_orders[0].charge_id
        assert eventually(
            lambda: (scheduled_operation(scratch_database, charge_id) or ("", ""))[1] == "NO_ANSWER"
        )
        admin.execute(
            "alter table payment.payment_order add constraint no_poison check (provider_reference "
            "<> 'poison')"
        )
        stale_charge: Any = platform.run_in_loop(
            load_leased_charge, payment_worker_of(platform), charge_id, 0
        )
        platform.run_in_loop(
            record_outcomes,
            payment_worker_of(platform),
            (stale_charge, Succeeded("poison", 500, "EUR")),
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
        assert (
            wait_for_final_order(client, payment).payment_order_status
            == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        )
        assert looked_up_ids == [charge_id]
    assert verify(scratch_database).passed


_WAITING_QUERY = (
    "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type "
    "= 'Lock' and state = 'active'"
)


def test_a_retry_and_a_cancellation_of_one_dead_letter_do_not_deadlock(
    scratch_database: DatabaseUrls,
) -> None:
    """RetryDeadLetter and CancelPayment that concur on one dead letter lock it in the same order,
    after its operation: neither fails as a deadlock victim.
    """
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    with (
        serve_platform(scratch_database, no_retry_settings()) as platform,
        platform.client() as client,
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
        assert eventually(lambda: admin.execute(_WAITING_QUERY).fetchone() == (1,))
        cancelled = pool.submit(cancel_payment, client, payment)
        assert eventually(lambda: admin.execute(_WAITING_QUERY).fetchone() == (2,))
        holder.commit()
        assert retry_future.result(30).state == operator_pb2.DEAD_LETTER_STATE_RETRIED
        cancelled.result(30)
        assert admin.execute(deadlocks).fetchone() == (0,)


def test_a_batch_that_is_postponed_locks_due_work_in_one_pass(
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
                (scheduled_operation(slow_retry_platform.databases, charge_id) or ("", ""))[1]
                == "NOT_SENT"
            )
        )
    flow = payment_worker_of(slow_retry_platform)
    with (
        psycopg.connect(slow_retry_platform.databases.admin) as holder,
        psycopg.connect(slow_retry_platform.databases.admin, autocommit=True) as admin,
    ):
        tokens: dict[str, int] = dict(
            admin.execute("select operation_id, lease_token from payment.operation").fetchall()
        )
        waiting_charge: Any = slow_retry_platform.run_in_loop(
            load_leased_charge, flow, first, tokens[first]
        )
        fails: Any = slow_retry_platform.run_in_loop(load_leased_charge, flow, last, tokens[last])
        batch = [
            FailedStep(waiting_charge, RetryReason.NOT_SENT, "away", NextAction.SEND),
            FailedStep(
                fails,
                RetryReason.NOT_SENT,
                "away",
                NextAction.GIVE_UP,
                failure_reason=FailureReason.EXPIRED,
            ),
        ]
        holder.execute("select from payment.operation where operation_id = %s for update", (first,))
        postpone = Rescheduler(
            flow._database, flow._retry_policies, flow.lock_unresolved, flow.fail
        )
        with ThreadPoolExecutor(1) as pool:
            postponed = pool.submit(slow_retry_platform.run_in_loop, postpone.run, batch)
            assert eventually(lambda: admin.execute(_WAITING_QUERY).fetchone() == (1,))
            admin.execute(
                "select from payment.operation where operation_id = %s for update nowait", (last,)
            )
            holder.commit()
            postponed.result(30)
    assert scheduled_operation(slow_retry_platform.databases, last) is None


def test_nothing_is_set_aside_beside_an_answer(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """A process dead-letters a charge while another's success has just been recorded: the charge
    stays scheduled, the success is applied, and it is paid.
    """
    payment = create_payment(
        slow_retry_client, "5.00", token="tok_lost_before", wait_for=WAIT_FOR_ACCEPTANCE
    )
    charge_id = payment.payment_orders[0].charge_id
    assert eventually(
        lambda: (
            (scheduled_operation(slow_retry_platform.databases, charge_id) or ("", ""))[1]
            == "NO_ANSWER"
        )
    )
    flow = payment_worker_of(slow_retry_platform)
    # as another process would
    with psycopg.connect(
        slow_retry_platform.databases.service("payment").replace("+psycopg", "")
    ) as connection:
        row = connection.execute(
            "update operation set next_attempt_time = clock(), lease_until = clock() + interval '1 "
            "second', lease_token = lease_token + 1, is_leased = true"
            " where operation_id = %s returning lease_token",
            (charge_id,),
        ).fetchone()
        connection.execute(
            "update attempt set outcome = 'SUCCEEDED', provider_reference = %s, moved_amount = "
            "500, moved_currency = 'EUR', end_time = clock() where operation_id = %s",
            (f"ref-{charge_id}", charge_id),
        )
    assert row is not None

    async def set_it_aside() -> None:
        rows = await flow._database.read(
            lambda connection: charge_store.load_charges(connection, [charge_id])
        )
        (charge,) = charges_from_rows(rows, {charge_id: row[0]}, 0.0, 60.0)
        await flow._reschedule_batcher.submit(
            FailedStep(charge, RetryReason.REJECTED, "no use", NextAction.SEND)
        )

    slow_retry_platform.run_in_loop(set_it_aside)
    assert (
        wait_for_final_order(slow_retry_client, payment).payment_order_status
        == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    )
    request = payment_service_pb2.ListDeadLettersRequest(page_size=200)
    assert f"charges/{charge_id}" not in {
        dead_letter.resource_name
        for dead_letter in slow_retry_client.payment.ListDeadLetters(request).dead_letters
    }


def cancel_payment(
    client: Client, payment: payment_pb2.Payment, reason: str = "sold out"
) -> payment_pb2.Payment:
    return client.payment.CancelPayment(
        payment_service_pb2.CancelPaymentRequest(checkout_id=payment.checkout_id, reason=reason)
    ).payment


def test_a_payment_that_was_never_sent_is_cancelled_for_good(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """An order that waits for an unreachable provider fails immediately, and nothing is ever
    sent.
    """
    payment = create_payment(
        slow_retry_client, "5.00", token="tok_unreachable:3", wait_for=WAIT_FOR_ACCEPTANCE
    )
    charge = payment.payment_orders[0].charge_id
    assert eventually(
        lambda: (
            (scheduled_operation(slow_retry_platform.databases, charge) or ("", ""))[1]
            == "NOT_SENT"
        )
    )
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
    client: Client, two_attempt_platform: ServedPlatform
) -> None:
    """A charge that was sent is first cancelled at the provider: only the provider's answer makes
    the order FAILED.
    """
    payment = create_payment(client, "5.00", token="tok_pending:action")
    cancelled = cancel_payment(client, payment)
    assert failure_reason(cancelled.payment_orders[0]) == "CALLER_CANCELLED"
    assert [
        state for _, state, _ in charge_log(two_attempt_platform.databases, payment.checkout_id)
    ] == ["DECLINED"]


def test_what_was_charged_stays_charged(
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
            (
                scheduled_operation(
                    slow_retry_platform.databases, payment.payment_orders[0].charge_id
                )
                or ("", "")
            )[1]
            == "NO_ANSWER"
        )
    )
    assert cancel_payment(slow_retry_client, payment).is_payment_done
    with pytest.raises(FailedPreconditionError) as error:
        cancel_payment(slow_retry_client, create_payment(slow_retry_client, "5.00"))
    assert error.value.reason == "INVALID_STATE"


def test_another_callers_payment_cannot_be_cancelled(client: Client) -> None:
    """A payment that does not exist is NOT_FOUND, and cancelling requires a reason."""
    with pytest.raises(NotFoundError):
        client.payment.CancelPayment(
            payment_service_pb2.CancelPaymentRequest(checkout_id="nobody", reason="x")
        )
    with pytest.raises(InvalidArgumentError):
        client.payment.CancelPayment(payment_service_pb2.CancelPaymentRequest(checkout_id="nobody"))


def test_an_order_that_was_not_sent_in_time_expires(
    client: Client, two_attempt_platform: ServedPlatform
) -> None:
    """After expire_time an unsent charge is FAILED(EXPIRED) and never sent; a charge that was sent
    before continues.
    """
    past = Timestamp(seconds=1_000_000_000)
    payment = create_payment(client, "5.00", expire_time=past)
    assert failure_reason(wait_for_final_order(client, payment)) == "EXPIRED"
    assert charge_log(two_attempt_platform.databases, payment.checkout_id) == []
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


def test_a_buyer_who_does_not_act_in_time_is_not_waited_for(scratch_database: DatabaseUrls) -> None:
    """After resolve_by_time the charge is cancelled at the provider, then the order is
    FAILED(EXPIRED); a review continues.
    """
    quick = {("", trouble): FAST_RETRY_POLICY for trouble in RetryReason}
    settings = Settings().replace(
        retry=quick,
        worker__sweep_interval=0.1,
        payment__buyer_action_timeout=0.3,
        payment__review_timeout=0.3,
    )
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        acting = create_payment(client, "5.00", token="tok_pending:action")
        order = acting.payment_orders[0]
        assert (
            order.resolve_by_time.ToNanoseconds() - order.update_time.ToNanoseconds()
            == pytest.approx(0.3e9, rel=0.2)
        )
        reviewed = create_payment(client, "5.00", token="tok_pending:review")
        assert failure_reason(wait_for_final_order(client, acting)) == "EXPIRED"
        assert (
            get_order(client, reviewed).payment_order_status
            == payment_pb2.PAYMENT_ORDER_STATUS_PENDING
        )
        assert [state for _, state, _ in charge_log(scratch_database, acting.checkout_id)] == [
            "DECLINED"
        ]


def test_a_buyers_time_is_up_when_it_is_up(scratch_database: DatabaseUrls) -> None:
    """However long a policy waits between polls, a pending order is polled when resolve_by_time is
    reached, and ends.
    """
    settings = Settings().replace(
        retry={("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 600, 600, None)},
        worker__sweep_interval=0.1,
        payment__buyer_action_timeout=0.3,
    )
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        assert (
            failure_reason(
                wait_for_final_order(
                    client, create_payment(client, "5.00", token="tok_pending:action")
                )
            )
            == "EXPIRED"
        )


@pytest.mark.parametrize(
    ("token", "first", "then", "url"),
    [
        ("tok_pending:review-action", "PROVIDER_REVIEW", "BUYER_ACTION", True),
        ("tok_pending:action-review", "BUYER_ACTION", "PROVIDER_REVIEW", False),
    ],
)
def test_a_pending_order_says_what_it_waits_for_now(
    scratch_database: DatabaseUrls, token: str, first: str, then: str, url: bool
) -> None:
    """A change of the pending reason is one version with its history row and its event, and is sent
    to watchers. The URL and the buyer's deadline follow the reason, and the same answer again
    changes nothing.
    """
    settings = Settings().replace(
        retry={("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 0.3, 0.3, None)},
        worker__sweep_interval=0.1,
        payment__buyer_action_timeout=3600,
    )
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        payment = create_payment(client, "5.00", token=token)
        charge = payment.payment_orders[0].charge_id
        orders_seen: list[payment_pb2.PaymentOrder] = []

        def watch() -> None:
            orders_seen.extend(
                stood.payment_orders[0]
                for stood in islice(client.watch_payment(payment.checkout_id), 2)
            )

        Thread(target=watch, daemon=True).start()
        assert eventually(lambda: len(orders_seen) == 2)
        assert [
            payment_pb2.PendingReason.Name(order.pending_reason).removeprefix("PENDING_REASON_")
            for order in orders_seen
        ] == [first, then]
        assert [order.version for order in orders_seen] == [3, 4]
        assert [bool(order.next_action_url) for order in orders_seen] == [not url, url]
        assert [order.HasField("resolve_by_time") for order in orders_seen] == [not url, url]
        tries = scheduled_operation(scratch_database, charge)
        assert eventually(lambda: scheduled_operation(scratch_database, charge) != tries)
        assert eventually(
            lambda: int(str((scheduled_operation(scratch_database, charge) or (0,))[0])) > 3
        )
        order = get_order(client, payment)
        assert (order.version, order.payment_order_status) == (
            4,
            payment_pb2.PAYMENT_ORDER_STATUS_PENDING,
        )
        history = client.payment.GetPaymentOrder(
            payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order.payment_order_id)
        ).history
        assert [(row.from_status, row.to_status) for row in history][-1] == (
            order.payment_order_status,
            order.payment_order_status,
        )
        assert eventually(
            lambda: (
                event_versions(client, f"paymentOrders/{order.payment_order_id}") == [1, 2, 3, 4]
            )
        )
    assert verify(scratch_database).passed


def test_a_buyer_who_has_acted_is_not_cancelled(scratch_database: DatabaseUrls) -> None:
    """A buyer acts in time, and the bank takes longer than the buyer's deadline: the order stays
    pending, and is paid.
    """
    settings = Settings().replace(
        retry={("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 0.2, 0.2, None)},
        worker__sweep_interval=0.1,
        payment__buyer_action_timeout=3.0,
        payment__review_timeout=0.1,
    )
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        payment = create_payment(
            client, "5.00", token=f"tok_pending:action-{'-'.join(['review'] * 25)}-paid"
        )
        assert (
            wait_for_final_order(client, payment).payment_order_status
            == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
        )


@pytest.fixture(scope="module")
def slow_retry_platform(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedPlatform]:
    """A platform with long retry waits."""
    with fresh_database(admin_url, tmp_path_factory.mktemp("waiting")) as databases:
        retry = {
            ("", reason): RetryPolicy(RetryStrategy.FIXED, 600, 600, 5)
            for reason in (RetryReason.NOT_SENT, RetryReason.NO_ANSWER)
        }
        with serve_platform(
            databases, Settings().replace(retry=retry, worker__sweep_interval=0.1)
        ) as served_platform:
            yield served_platform


@pytest.fixture(scope="module")
def slow_retry_client(slow_retry_platform: ServedPlatform) -> Iterator[Client]:
    with slow_retry_platform.client() as sdk_client:
        yield sdk_client


def list_alerts(
    client: Client, subject: str, *, include_ended: bool = False
) -> list[operator_pb2.Alert]:
    alerts = client.payment.ListAlerts(
        payment_service_pb2.ListAlertsRequest(ended=include_ended, page_size=200)
    ).alerts
    return [alert for alert in alerts if alert.resource_name == subject]


def test_what_does_not_come_on_raises_one_alert_that_ends(
    scratch_database: DatabaseUrls, caplog: pytest.LogCaptureFixture
) -> None:
    """P5: an order that exceeds its state's threshold raises an alert: a row, an event and a log
    line. Found again it is the same alert, which ends with the cause.
    """
    retry = {("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 0.4, 0.4, 4)}
    settings = Settings().replace(
        retry=retry,
        worker__sweep_interval=0.1,
        worker__monitor_interval=0.2,
        payment__alert_after={"EXECUTING": 0.2},
    )
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
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


def test_two_monitors_take_turns(scratch_database: DatabaseUrls) -> None:
    """One process checks all alert conditions; another takes over when the first stops renewing its
    lease.
    """
    database = Database(scratch_database.service("payment"), connections=2)
    first, second = uuid4(), uuid4()

    def try_acquire(owner_id: UUID, seconds: float) -> bool:
        return asyncio.run(
            database.transact(
                lambda connection: leader_lease.try_acquire_lease(
                    connection, "monitor", owner_id, seconds
                )
            )
        )

    assert try_acquire(first, 60)
    assert not try_acquire(second, 60)
    assert try_acquire(first, 0)
    assert try_acquire(second, 60)
    assert not try_acquire(first, 60)
    database.close()


def test_dead_letters_and_unapplied_charges_are_alerts(scratch_database: DatabaseUrls) -> None:
    """An item that waits for an operator has an alert until it has been closed or acknowledged."""
    with (
        serve_platform(
            scratch_database,
            Settings().replace(worker__sweep_interval=0.1, worker__monitor_interval=0.2),
        ) as platform,
        platform.client() as client,
    ):
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


class HoldingProvider(InProcessSandbox):
    """A sandbox that holds its calls until it is released."""

    def __init__(self, database: Database) -> None:
        super().__init__(Sandbox(database), 86_400.0)
        self.sent_charge_ids: list[str] = []
        self.release_event = asyncio.Event()

    async def send(self, request: ChargeRequest) -> ChargeOutcome:
        self.sent_charge_ids.append(request.charge_id)
        await self.release_event.wait()
        return await super().send(request)


@contextmanager
def holding_provider(
    databases: DatabaseUrls, lease_seconds: float = 62.5
) -> Iterator[tuple[ServedPlatform, Client, HoldingProvider, Callable[[bool], object]]]:
    """A platform with one concurrent call to its provider; the last value yielded switches whether
    the provider holds new calls. A charge may wait for a slot until 62 s of its lease are left: by
    default half a second.
    """
    sandbox_database = Database(databases.service("sandbox"), connections=2)
    provider = HoldingProvider(sandbox_database)
    settings = Settings().replace(
        worker__lease_duration=lease_seconds,
        providers__timeout=60,
        providers__max_calls_per_provider=1,
        worker__sweep_interval=0.1,
    )
    with (
        serve_platform(
            databases, settings, dependencies=Dependencies(providers={"sandbox": provider})
        ) as served_platform,
        served_platform.client() as client,
    ):

        async def start() -> None:
            provider._sandbox.start()

        async def set_holding(is_holding: bool) -> None:
            (provider.release_event.clear if is_holding else provider.release_event.set)()

        served_platform.run_in_loop(start)
        yield (
            served_platform,
            client,
            provider,
            lambda is_holding: served_platform.run_in_loop(set_holding, is_holding),
        )
        served_platform.run_in_loop(provider._sandbox.stop)
    sandbox_database.close()


def test_nothing_is_closed_while_the_provider_cannot_be_asked(
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
            Client(platform.address, settings=ClientSettings(attempts=1)) as hasty,
            pytest.raises(UnavailableError) as error,
        ):
            close_dead_letter(hasty, dead_letter)
        assert error.value.reason == "PROVIDER_UNAVAILABLE"
        request = payment_service_pb2.GetDeadLetterRequest(
            dead_letter_id=dead_letter.dead_letter_id
        )
        assert (
            client.payment.GetDeadLetter(request).dead_letter.state
            == operator_pb2.DEAD_LETTER_STATE_OPEN
        )
        keep(False)
        assert eventually(lambda: scheduled_operation(scratch_database, other_charge_id) is None)


def test_what_finds_no_room_was_never_sent(scratch_database: DatabaseUrls) -> None:
    """A charge that waits for a provider slot longer than its lease allows is released as never
    sent: when cancelled, it fails immediately.
    """
    with holding_provider(scratch_database) as (_, client, provider, keep):
        first = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(lambda: provider.sent_charge_ids == [first.payment_orders[0].charge_id])
        last = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: (
                (
                    scheduled_operation(scratch_database, last.payment_orders[0].charge_id)
                    or ("", "")
                )[1]
                == "CIRCUIT_OPEN"
            )
        )
        request = payment_service_pb2.CancelPaymentRequest(checkout_id=last.checkout_id, reason="r")
        cancelled = client.payment.CancelPayment(request, timeout=60).payment
        assert failure_reason(cancelled.payment_orders[0]) == "CALLER_CANCELLED"
        keep(False)
        assert client.wait_for_payment(first.checkout_id, 30).is_payment_done
        assert provider.sent_charge_ids == [first.payment_orders[0].charge_id]
    assert verify(scratch_database).passed


def test_what_is_cancelled_while_it_waits_for_room_is_not_sent(
    scratch_database: DatabaseUrls,
) -> None:
    """A charge that waits for a provider slot, and is cancelled meanwhile, is not sent when it gets
    the slot.
    """
    settings = Settings().replace(providers__max_calls_per_provider=1, worker__sweep_interval=0.1)
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        slow = create_payment(client, "5.00", token="tok_delay:6000", wait_for=WAIT_FOR_ACCEPTANCE)
        waiting_payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert client.get_payment(slow.checkout_id).payment_state == payment_pb2.PAYMENT_STATE_OPEN
        client.payment.CancelPayment(
            payment_service_pb2.CancelPaymentRequest(
                checkout_id=waiting_payment.checkout_id, reason="r"
            ),
            timeout=60,
        )
        assert failure_reason(wait_for_final_order(client, waiting_payment)) == "CALLER_CANCELLED"
        assert charge_log(scratch_database, waiting_payment.checkout_id) == []
        assert client.wait_for_payment(slow.checkout_id, 60).is_payment_done
    assert verify(scratch_database).passed


def test_what_expires_while_it_waits_for_room_is_not_sent(scratch_database: DatabaseUrls) -> None:
    """A charge that waits for a provider slot, and expires meanwhile, is not sent when it gets the
    slot: it is FAILED(EXPIRED).
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
    assert verify(scratch_database).passed


def test_what_callers_look_at_holds_no_charge_up(scratch_database: DatabaseUrls) -> None:
    """A charge that has waited for a provider slot is sent, even if hanging reads use every
    connection for callers' reads.
    """
    settings = Settings().replace(providers__max_calls_per_provider=1, worker__sweep_interval=0.1)
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        slow = create_payment(client, "5.00", token="tok_delay:6000", wait_for=WAIT_FOR_ACCEPTANCE)
        waiting_payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        with ThreadPoolExecutor(24) as callers, psycopg.connect(scratch_database.admin) as admin:
            admin.execute("lock table payment.dead_letter in access exclusive mode")
            hanging = [callers.submit(_list_dead_letters, platform.address) for _ in range(24)]
            assert eventually(lambda: charge_log(scratch_database, waiting_payment.checkout_id), 20)
            assert charge_log(scratch_database, slow.checkout_id)
            assert not any(look.done() for look in hanging)
            admin.rollback()
            assert [look.result() for look in hanging]
        assert client.wait_for_payment(waiting_payment.checkout_id, 30).is_payment_done
    assert verify(scratch_database).passed


def _list_dead_letters(address: str) -> bool:
    """Lists dead letters, without a time limit."""
    with Client(address) as client:
        client.payment.ListDeadLetters(payment_service_pb2.ListDeadLettersRequest(), timeout=60)
    return True


def test_a_provider_that_does_not_accept_us_is_left_alone_and_told_of(
    scratch_database: DatabaseUrls,
) -> None:
    """A single 401 or 403 opens the circuit: other charges are not sent, and an alert names the
    provider. Once the provider accepts the credentials again all are paid and the alert ends.
    """
    retry = {("", RetryReason.UNAUTHORIZED): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 50)}
    settings = Settings().replace(
        retry=retry,
        worker__sweep_interval=0.1,
        breaker__failure_threshold=99,
        breaker__reset_timeout=0.4,
        breaker__max_reset_timeout=0.4,
        worker__monitor_interval=0.2,
    )
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        first = create_payment(
            client, "5.00", token="tok_forbidden:4", wait_for=WAIT_FOR_ACCEPTANCE
        )
        assert eventually(
            lambda: (
                (
                    scheduled_operation(scratch_database, first.payment_orders[0].charge_id)
                    or ("", "")
                )[1]
                == "UNAUTHORIZED"
            )
        )
        other_payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: (
                operator_pb2.ALERT_KIND_PROVIDER_UNAUTHORIZED
                in {alert.kind for alert in list_alerts(client, "providers/sandbox")}
            )
        )
        assert all(
            client.wait_for_payment(payment.checkout_id, 30).is_payment_done
            for payment in (first, other_payment)
        )
        assert eventually(lambda: not list_alerts(client, "providers/sandbox"))
    assert verify(scratch_database).passed


def test_an_outage_leaves_orders_waiting_and_drains_by_itself(
    scratch_database: DatabaseUrls,
) -> None:
    """The circuit of a failing provider opens. Payments are accepted and wait up to a limit, then
    are rejected with nothing stored. They use up no tries meanwhile, and when the provider works
    again all are paid, each charged once.
    """
    retry = {("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 5)}
    settings = Settings().replace(
        retry=retry,
        worker__sweep_interval=0.1,
        breaker__failure_threshold=3,
        breaker__reset_timeout=0.3,
        payment__max_queued_charges=20,
        worker__monitor_interval=0.2,
    )
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        sandbox = payment_worker_of(platform)._providers["sandbox"]._sandbox
        sandbox.down = True
        payments = [create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE) for _ in range(4)]
        assert eventually(
            lambda: any(
                (scheduled_operation(scratch_database, p.payment_orders[0].charge_id) or ("", ""))[
                    1
                ]
                == "CIRCUIT_OPEN"
                for p in payments
            )
        )
        payments += [
            create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE) for _ in range(16)
        ]
        assert eventually(
            lambda: [alert.kind for alert in list_alerts(client, "providers/sandbox")]
        ) == [operator_pb2.ALERT_KIND_PROVIDER_UNAVAILABLE]
        with (
            Client(platform.address, settings=ClientSettings(attempts=1)) as hasty,
            pytest.raises(UnavailableError) as error,
        ):
            create_payment(hasty, "5.00", checkout_id="one-too-many", wait_for=WAIT_FOR_ACCEPTANCE)
        assert (error.value.reason, error.value.retry_after) == ("PROVIDER_UNAVAILABLE", 30.0)
        with pytest.raises(NotFoundError):
            client.get_payment("one-too-many")
        new = new_order("one-too-many-1", "buyer-1", "nobodys", "5.00", "EUR")
        with (
            Client(platform.address, settings=ClientSettings(attempts=1)) as hasty,
            pytest.raises(UnavailableError),
        ):
            hasty.create_payment("one-too-many", [new], credit_card_info="tok_visa")
        assert not client.wallet.GetSeller(
            wallet_service_pb2.GetSellerRequest(seller_account="nobodys")
        ).HasField("seller")
        assert (
            create_payment(
                client, "5.00", checkout_id=payments[0].checkout_id, wait_for=WAIT_FOR_ACCEPTANCE
            ).checkout_id
            == payments[0].checkout_id
        )
        sandbox.down = False
        for payment in payments:
            assert (
                wait_for_final_order(client, payment).payment_order_status
                == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
            )
            assert len(charge_log(scratch_database, payment.checkout_id)) == 1
        assert eventually(lambda: not list_alerts(client, "providers/sandbox"))
    assert verify(scratch_database).passed


def test_what_a_provider_did_is_found_out_while_sends_to_it_are_held_back(
    scratch_database: DatabaseUrls,
) -> None:
    """A charge whose answer was lost, at a provider with an open circuit for an hour, is looked up
    meanwhile and succeeds: it is sent once. A charge that the provider does not know still waits to
    be sent, and says so.
    """
    retry = {("", RetryReason.NO_ANSWER): FAST_RETRY_POLICY}
    settings = Settings().replace(
        retry=retry,
        worker__sweep_interval=0.1,
        breaker__failure_threshold=2,
        breaker__reset_timeout=3600,
        breaker__max_reset_timeout=3600,
    )
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        unknown = (
            create_payment(client, "5.00", token="tok_lost_before:99", wait_for=WAIT_FOR_ACCEPTANCE)
            .payment_orders[0]
            .charge_id
        )
        assert eventually(
            lambda: (scheduled_operation(scratch_database, unknown) or ("", ""))[1] == "NO_ANSWER"
        )
        payment = create_payment(client, "5.00", token="tok_lost_after")
        assert client.wait_for_payment(payment.checkout_id, 30).is_payment_done
        assert len(charge_log(scratch_database, payment.checkout_id)) == 1
        assert payment_worker_of(platform).gateway.is_circuit_open("sandbox")
        assert eventually(
            lambda: (
                (scheduled_operation(scratch_database, unknown) or ("", ""))[1:3]
                == ("CIRCUIT_OPEN", False)
            )
        )
    assert verify(scratch_database).passed


@pytest.mark.parametrize("depth", [0, 1])
def test_a_new_payment_finds_out_that_a_provider_answers_again(
    scratch_database: DatabaseUrls, depth: int
) -> None:
    """While a circuit is open, the maximum number of charges wait, and none of them is sent for an
    hour. After the reset timeout one new payment is accepted, whatever its number of charges; once
    it is paid all others are.
    """
    retry = {("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 3600.0, 3600.0, 5)}
    settings = Settings().replace(
        retry=retry,
        worker__sweep_interval=0.1,
        breaker__failure_threshold=1,
        breaker__reset_timeout=0.1,
        breaker__max_reset_timeout=0.1,
        payment__max_queued_charges=depth,
    )
    with (
        serve_platform(scratch_database, settings) as platform,
        platform.client() as client,
        Client(platform.address, settings=ClientSettings(attempts=1)) as hasty,
    ):
        sandbox = payment_worker_of(platform)._providers["sandbox"]._sandbox
        sandbox.down = True
        first = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: (
                (
                    scheduled_operation(scratch_database, first.payment_orders[0].charge_id)
                    or ("", "")
                )[1]
                == "NOT_SENT"
            )
        )
        sandbox.down = False

        def try_pay() -> payment_pb2.Payment | None:
            try:
                return create_payment(hasty, "5.00", "6.00", checkout_id="two-charges")
            except UnavailableError:
                return None

        probe = eventually(try_pay, 10)
        assert probe is not None
        assert client.wait_for_payment(probe.checkout_id, 30).is_payment_done
        assert create_payment(hasty, "5.00").is_payment_done
        assert client.get_payment(first.checkout_id).payment_state == payment_pb2.PAYMENT_STATE_OPEN


class NamedProvider(InProcessSandbox):
    """A sandbox under another name, as another provider."""

    def __init__(self, name: str, database: Database) -> None:
        self.sandbox = Sandbox(database)
        super().__init__(self.sandbox, 86_400.0)
        self.name = name


def test_other_providers_do_not_notice_an_outage(scratch_database: DatabaseUrls) -> None:
    """While one provider is down with the maximum number of waiting charges, payments through
    another are paid immediately, and are not rejected.
    """
    log = Database(scratch_database.service("sandbox"), connections=2)
    # Each process reaches both.
    our_providers, their_providers = (
        {name: NamedProvider(name, log) for name in ("first", "second")} for _ in range(2)
    )
    retry = {("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 50)}
    settings = Settings().replace(
        retry=retry,
        worker__sweep_interval=0.1,
        breaker__failure_threshold=2,
        breaker__reset_timeout=0.2,
        payment__max_queued_charges=5,
    )
    with (
        serve_platform(
            scratch_database,
            settings.replace(providers__payment="first"),
            dependencies=Dependencies(providers=our_providers),
        ) as first_platform,
        serve_platform(
            scratch_database,
            settings.replace(providers__payment="second"),
            dependencies=Dependencies(providers=their_providers),
        ) as other_platform,
        first_platform.client() as client,
        other_platform.client() as unaware,
        Client(first_platform.address, settings=ClientSettings(attempts=1)) as hasty,
    ):

        async def start(providers: dict[str, NamedProvider]) -> None:
            for provider in providers.values():
                provider.sandbox.start()

        first_platform.run_in_loop(start, our_providers)
        other_platform.run_in_loop(start, their_providers)
        our_providers["first"].sandbox.down = their_providers["first"].sandbox.down = True
        pending_payments = [
            create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE) for _ in range(5)
        ]
        assert eventually(
            lambda: any(
                (scheduled_operation(scratch_database, p.payment_orders[0].charge_id) or ("", ""))[
                    1
                ]
                == "CIRCUIT_OPEN"
                for p in pending_payments
            )
        )
        with pytest.raises(UnavailableError):
            create_payment(hasty, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        paid_payments = [create_payment(unaware, "5.00") for _ in range(10)]
        assert all(
            payment.is_payment_done and payment.payment_orders[0].provider == "second"
            for payment in paid_payments
        )
        our_providers["first"].sandbox.down = their_providers["first"].sandbox.down = False
        for payment in pending_payments:
            assert (
                wait_for_final_order(client, payment).payment_order_status
                == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
            )
    log.close()
    assert verify(scratch_database).passed


def test_in_an_outage_one_count_serves_all_new_payments(scratch_database: DatabaseUrls) -> None:
    """While the maximum number of charges waits for a failing provider, payments of new sellers are
    rejected without counting the waiting charges for each of them.
    """
    retry = {("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 50)}
    settings = Settings().replace(
        retry=retry,
        worker__sweep_interval=3600,
        worker__monitor_interval=3600,
        breaker__failure_threshold=2,
        breaker__reset_timeout=3600,
        breaker__max_reset_timeout=3600,
        payment__max_queued_charges=2,
    )
    counts: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "from (select from operation where phase" in statement:
            counts.append(statement)

    with (
        serve_platform(scratch_database, settings) as platform,
        Client(platform.address, settings=ClientSettings(attempts=1)) as client,
    ):
        pending_payments = [
            create_payment(client, "1.00", token="tok_unreachable", wait_for=WAIT_FOR_ACCEPTANCE)
            for _ in range(2)
        ]
        assert eventually(
            lambda: all(
                (scheduled_operation(scratch_database, p.payment_orders[0].charge_id) or ("", ""))[
                    1
                ]
                for p in pending_payments
            )
        )

        def is_rejected(_: int) -> bool:
            try:
                create_payment(client, "1.00", wait_for=WAIT_FOR_ACCEPTANCE)
            except UnavailableError:
                return True
            return False

        assert eventually(lambda: is_rejected(0))
        event.listen(Engine, "before_cursor_execute", note)
        try:
            with ThreadPoolExecutor(20) as pool:
                assert all(pool.map(is_rejected, range(100)))
        finally:
            event.remove(Engine, "before_cursor_execute", note)
    assert len(counts) < 50


def test_charges_that_fail_for_ever_do_not_stand_for_their_provider(
    scratch_database: DatabaseUrls,
) -> None:
    """Keys that replay a 5xx open the circuit when there are no other calls; they are looked up
    soon, and neither they nor others are blocked by them.
    """
    retry = {("", RetryReason.SERVER_ERROR): RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 2)}
    settings = Settings().replace(
        retry=retry,
        worker__sweep_interval=0.05,
        breaker__failure_threshold=2,
        breaker__reset_timeout=0.02,
    )
    with serve_platform(scratch_database, settings) as platform, platform.client() as client:
        poisoned = [
            create_payment(client, "5.00", token="tok_error_stored", wait_for=WAIT_FOR_ACCEPTANCE)
            for _ in range(6)
        ]
        assert create_payment(client, "5.00").is_payment_done
        for payment in poisoned:
            assert failure_reason(wait_for_final_order(client, payment)) == "PROVIDER_DECLINED"


def test_everything_is_quiet_in_the_end(
    two_attempt_platform: ServedPlatform, slow_retry_platform: ServedPlatform
) -> None:
    """After all tests above every check of verify passes."""
    for platform in (two_attempt_platform, slow_retry_platform):
        report = verify(platform.databases)
        assert report.passed, report.as_text()


def _waiting_charges(client: Client, count: int) -> list[str]:
    """Payments whose charges were not sent at first, and are due again immediately."""
    return [
        create_payment(
            client, "1.00", token="tok_unreachable", wait_for=WAIT_FOR_ACCEPTANCE
        ).checkout_id
        for _ in range(count)
    ]


def test_a_full_sweep_is_followed_by_another_at_once(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Due operations are claimed without a pause as long as there are more than one scan claims."""
    monkeypatch.setattr("tallystick_server.operations.claim._MAX_CLAIMED", 3)
    at_once = {("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 0.0, 0.0, 1000)}
    with (
        serve_platform(
            scratch_database,
            Settings().replace(
                retry=at_once, worker__sweep_interval=3600, breaker__failure_threshold=1000
            ),
        ) as platform,
        platform.client() as client,
    ):
        checkouts = _waiting_charges(client, 12)
        eventually(lambda: payment_worker_of(platform).in_flight_count == 0)

        async def wake() -> None:
            payment_worker_of(platform).wake()

        platform.run_in_loop(wake)
        assert eventually(
            lambda: all(client.get_payment(checkout).is_payment_done for checkout in checkouts)
        )


def test_a_caller_that_goes_away_strands_nothing(scratch_database: DatabaseUrls) -> None:
    """CancelPayment calls that are cancelled at any point leave no orphaned lease on a charge."""
    at_once = {("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 0.0, 0.0, 1000)}
    with (
        serve_platform(
            scratch_database,
            Settings().replace(
                retry=at_once, worker__sweep_interval=3600, breaker__failure_threshold=1000
            ),
        ) as platform,
        platform.client() as client,
    ):
        own_checkout_id = create_payment(client, "1.00", token="tok_pending").checkout_id
        checkouts = _waiting_charges(client, 12)
        eventually(lambda: payment_worker_of(platform).in_flight_count == 0)

        async def cancel_and_go(milliseconds: int) -> None:
            task = asyncio.ensure_future(
                payment_worker_of(platform).cancel(own_checkout_id, "dev", "gone")
            )
            await asyncio.sleep(milliseconds / 1000)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        for milliseconds in range(0, 30, 2):
            platform.run_in_loop(cancel_and_go, milliseconds)
        assert eventually(
            lambda: all(client.get_payment(checkout).is_payment_done for checkout in checkouts)
        )


def test_a_process_takes_no_more_than_its_bound(scratch_database: DatabaseUrls) -> None:
    """Above `in_flight` new payments are rejected with OVERLOADED and a retry delay, and nothing is
    stored.
    """
    settings = Settings().replace(worker__max_in_flight=10, providers__sandbox__latency=60.0)
    with (
        serve_platform(scratch_database, settings) as platform,
        Client(platform.address, settings=ClientSettings(attempts=1)) as client,
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
