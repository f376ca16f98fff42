"""Helpers for tests of charges: their orders, operations, dead letters and unapplied charges."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick import Client
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.provider.outcome import ChargeOutcome, RetryReason
from tallystick_core.provider.payment_provider import PaymentProvider
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.failed_step import FailedStep
from tallystick_server.operations.operation import LeasedOperation
from tallystick_server.operations.reschedule import Rescheduler
from tallystick_server.operations.retry_policy import RetryPolicies, RetryPolicy, RetryStrategy
from tallystick_server.payment.charge import Charge, charges_from_rows
from tallystick_storage.database import Database
from tallystick_storage.payment import charges as charge_store
from tests.fakes.payment_provider import HoldingProvider, SandboxProvider
from tests.support.payments import create_payment
from tests.support.platform import (
    ServedPlatform,
    database_of,
    eventually,
    payment_worker_of,
    serve_platform,
)

WAIT_FOR_ACCEPTANCE = payment_service_pb2.WAIT_FOR_ACCEPTANCE
TWO_TRIES = RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 2)
FAST_RETRY_POLICY = RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 100)
SLOW_RETRY = {
    ("", reason): RetryPolicy(RetryStrategy.FIXED, 600, 600, 5)
    for reason in (RetryReason.NOT_SENT, RetryReason.NO_ANSWER)
}


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
    assert order is not None, "the order is not final"
    return order


def is_paid(client: Client, payment: payment_pb2.Payment) -> bool:
    """Whether the payment's order is SUCCESS, once it is final and booked."""
    return (
        wait_for_final_order(client, payment).payment_order_status
        == payment_pb2.PAYMENT_ORDER_STATUS_SUCCESS
    )


def scheduled_operation(databases: DatabaseUrls, operation_id: str) -> tuple[object, ...] | None:
    """(retries, retry_reason, lookup_only, maybe_sent, whether it is due) of a charge that is not
    done.
    """
    with psycopg.connect(databases.reader("payment")) as connection:
        attempts = "(select coalesce(sum(value::int), 0)::int from jsonb_each_text(retry_counts))"
        statement = (
            f"select {attempts}, retry_reason, lookup_only, maybe_sent, next_try_time is not "
            "null from operation where operation_id = %s"
        )
        return connection.execute(statement, (operation_id,)).fetchone()


def retry_reason(databases: DatabaseUrls, charge_id: str) -> str:
    """Why the charge's operation is tried again; "" if it was not tried, or is done."""
    operation = scheduled_operation(databases, charge_id)
    return str(operation[1] or "") if operation else ""


def may_have_been_sent(databases: DatabaseUrls, charge_id: str) -> bool:
    """Whether the operation of a charge that is not done may have been sent."""
    operation = scheduled_operation(databases, charge_id)
    return operation is not None and bool(operation[3])


def failure_reason(order: payment_pb2.PaymentOrder) -> str:
    return payment_pb2.FailureReason.Name(order.failure_reason).removeprefix("FAILURE_REASON_")


def wait_for_dead_letter(client: Client, payment: payment_pb2.Payment) -> operator_pb2.DeadLetter:
    """The open dead letter of the payment's charge."""
    subject = f"charges/{payment.payment_orders[0].charge_id}"

    def find_dead_letter() -> operator_pb2.DeadLetter | None:
        request = operator_pb2.ListDeadLettersRequest(
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
        operator_pb2.GetDeadLetterRequest(dead_letter_id=dead_letter.dead_letter_id)
    ).dead_letter
    return operator_pb2.DeadLetterState.Name(current.state).removeprefix("DEAD_LETTER_STATE_")


def event_versions(client: Client, aggregate: str) -> list[int]:
    return [event.aggregate_version for event in client.events(aggregate_id=aggregate)]


def close_dead_letter(
    client: Client, dead_letter: operator_pb2.DeadLetter, **values: str
) -> operator_pb2.DeadLetter:
    fields = {"reason": "asked them", "evidence": "ticket 7: no charge", **values}
    return client.payment.CloseDeadLetter(
        operator_pb2.CloseDeadLetterRequest(dead_letter_id=dead_letter.dead_letter_id, **fields)
    ).dead_letter


def retry_dead_letter(
    client: Client, dead_letter: operator_pb2.DeadLetter, reason: str = "fixed"
) -> operator_pb2.DeadLetter:
    request = operator_pb2.RetryDeadLetterRequest(
        dead_letter_id=dead_letter.dead_letter_id, reason=reason
    )
    return client.payment.RetryDeadLetter(request).dead_letter


def fast_final_settings(**values: Any) -> Settings:
    """Settings by which "not found" is proof a moment after the last send."""
    retry = {("", reason): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 3) for reason in RetryReason}
    return Settings().replace(
        retry=retry,
        worker__scan_interval=0.2,
        providers__not_found_after=0.6,
        providers__not_found_min_count=2,
        **values,
    )


def timestamp_in(seconds: float) -> Timestamp:
    """The given time from now."""
    timestamp = Timestamp()
    timestamp.FromNanoseconds(time.time_ns() + int(seconds * 1e9))
    return timestamp


def payment_of_dead_process(
    running: ServedPlatform, client: Client, **values: Any
) -> payment_pb2.Payment:
    """A payment that was accepted and never sent: the process that leases its charge crashes
    before, and its lease expires later.
    """
    leased_charges: list[LeasedOperation] = []

    async def drop_charge(operation: LeasedOperation) -> None:
        leased_charges.append(operation)

    payment_worker = payment_worker_of(running)
    payment_worker.advance = drop_charge  # type: ignore[method-assign]
    payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE, **values)
    assert eventually(lambda: leased_charges)
    del payment_worker.advance
    return payment


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


def leased_charge(platform: ServedPlatform, charge_id: str, token: int) -> Charge:
    """The charge as a process has it that holds, or held, its lease under a lease token."""
    rows = platform.run_in_loop(
        database_of(platform, "payment").read,
        lambda connection: charge_store.load_charges(connection, [charge_id]),
    )
    return charges_from_rows(rows, {charge_id: token}, 0.0, 60.0)[0]


def record_outcomes(
    platform: ServedPlatform, *charge_outcomes: tuple[Charge, ChargeOutcome]
) -> list[Charge]:
    """Records outcomes in one batch. Returns the charges after it."""
    payment_worker = payment_worker_of(platform)

    async def record() -> list[Any]:
        return await asyncio.gather(
            *(payment_worker.record(charge, outcome) for charge, outcome in charge_outcomes)
        )

    recorded: list[Charge] = platform.run_in_loop(record)
    return recorded


def reschedule(platform: ServedPlatform, *failed_steps: FailedStep[Charge]) -> None:
    """Reschedules in one batch the operations whose step failed."""
    rescheduler = Rescheduler(
        database_of(platform, "payment"),
        RetryPolicies(platform.settings.retry),
        payment_worker_of(platform).kinds,
    )
    results = platform.run_in_loop(rescheduler.run, failed_steps)
    assert not [result for result in results if isinstance(result, Exception)]


def acknowledge_request(
    charge: payment_pb2.UnappliedCharge, reason: str = "refunded"
) -> payment_service_pb2.AcknowledgeUnappliedChargeRequest:
    return payment_service_pb2.AcknowledgeUnappliedChargeRequest(
        unapplied_charge_id=charge.unapplied_charge_id, reason=reason
    )


def cancel_payment(
    client: Client,
    payment: payment_pb2.Payment,
    reason: str = "sold out",
    timeout: float | None = None,
) -> payment_pb2.Payment:
    """Cancels a payment; `timeout`: seconds."""
    request = payment_service_pb2.CancelPaymentRequest(
        checkout_id=payment.checkout_id, reason=reason
    )
    return client.payment.CancelPayment(request, timeout=timeout).payment


def list_alerts(
    client: Client, subject: str, *, include_ended: bool = False
) -> list[operator_pb2.Alert]:
    alerts = client.payment.ListAlerts(
        operator_pb2.ListAlertsRequest(ended=include_ended, page_size=200)
    ).alerts
    return [alert for alert in alerts if alert.resource_name == subject]


@contextmanager
def holding_provider(
    databases: DatabaseUrls, lease_seconds: float = 62.5
) -> Iterator[tuple[ServedPlatform, Client, HoldingProvider, Callable[[bool], object]]]:
    """A platform with one concurrent call to its provider; the last value yielded switches whether
    the provider holds new calls. A charge may wait for a slot until 62 s of its lease are left: by
    default half a second.
    """
    settings = Settings().replace(
        worker__lease_duration=lease_seconds,
        providers__timeout=60,
        providers__max_calls_per_provider=1,
        worker__scan_interval=0.2,
    )
    with (
        sandbox_database(databases) as database,
        serve_sandboxes(databases, settings, provider := HoldingProvider(database)) as platform,
        platform.client() as client,
    ):

        async def set_holding(is_holding: bool) -> None:
            (provider.release_event.clear if is_holding else provider.release_event.set)()

        yield (
            platform,
            client,
            provider,
            lambda is_holding: platform.run_in_loop(set_holding, is_holding),
        )


@contextmanager
def client_of_platform(
    databases: DatabaseUrls, settings: Settings, provider: PaymentProvider | None = None
) -> Iterator[Client]:
    """A client of a platform that is served for one test; `provider`: its payment provider, instead
    of the sandbox.
    """
    dependencies = Dependencies(providers=None if provider is None else {"sandbox": provider})
    with (
        serve_platform(databases, settings, dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        yield client


@contextmanager
def serve_sandboxes(
    databases: DatabaseUrls, settings: Settings, *providers: SandboxProvider
) -> Iterator[ServedPlatform]:
    """A platform with these payment providers."""

    async def start() -> None:
        for provider in providers:
            provider.sandbox.start()

    async def stop() -> None:
        for provider in providers:
            await provider.sandbox.stop()

    dependencies = Dependencies(providers={provider.name: provider for provider in providers})
    with serve_platform(databases, settings, dependencies=dependencies) as platform:
        platform.run_in_loop(start)
        yield platform
        platform.run_in_loop(stop)


@contextmanager
def sandbox_database(databases: DatabaseUrls) -> Iterator[Database]:
    """The database of sandboxes in the test's process."""
    with closing(Database(databases.service("sandbox"), connections=2)) as database:
        yield database


def waiting_charges(client: Client, count: int) -> list[str]:
    """Payments whose charges were not sent at first, and are due again immediately."""
    return [
        create_payment(
            client, "1.00", token="tok_unreachable", wait_for=WAIT_FOR_ACCEPTANCE
        ).checkout_id
        for _ in range(count)
    ]
