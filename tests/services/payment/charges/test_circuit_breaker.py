"""The circuit breaker of a payment provider, and payments while it is open."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tallystick import NotFoundError, UnavailableError, new_order
from tallystick.operator.v1 import operator_pb2
from tallystick.payment.v1 import payment_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tallystick_storage.database import Database
from tallystick_storage.sql import Connection, Cursor
from tests.fakes.payment_provider import SandboxProvider
from tests.support.charges import (
    FAST_RETRY_POLICY,
    WAIT_FOR_ACCEPTANCE,
    client_of_platform,
    failure_reason,
    is_paid,
    list_alerts,
    retry_reason,
    sandbox_database,
    scheduled_operation,
    serve_sandboxes,
    wait_for_final_order,
)
from tests.support.payments import charge_log, create_payment
from tests.support.platform import eventually, payment_worker_of, serve_platform


def test_rejected_credentials_open_the_circuit_and_raise_an_alert(
    scratch_database: DatabaseUrls,
) -> None:
    """A single 401 or 403 opens the circuit: other charges are not sent, and an alert names the
    provider. Once the provider accepts the credentials again all are paid and the alert ends.
    """
    retry = {("", RetryReason.UNAUTHORIZED): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 50)}
    settings = Settings().replace(
        retry=retry,
        worker__scan_interval=0.1,
        breaker__failure_threshold=99,
        breaker__reset_timeout=0.4,
        breaker__max_reset_timeout=0.4,
        worker__monitor_interval=0.2,
    )
    with client_of_platform(scratch_database, settings) as client:
        first = create_payment(
            client, "5.00", token="tok_forbidden:4", wait_for=WAIT_FOR_ACCEPTANCE
        )
        assert eventually(
            lambda: (
                retry_reason(scratch_database, first.payment_orders[0].charge_id) == "UNAUTHORIZED"
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


def test_orders_wait_during_an_outage_and_are_paid_after_it(
    scratch_database: DatabaseUrls,
) -> None:
    """The circuit of a failing provider opens. Payments are accepted and wait up to a limit, then
    are rejected with nothing stored. They use up no tries meanwhile, and when the provider works
    again all are paid, each charged once.
    """
    retry = {("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 5)}
    settings = Settings().replace(
        retry=retry,
        worker__scan_interval=0.1,
        breaker__failure_threshold=3,
        breaker__reset_timeout=0.3,
        payment__max_queued_charges=20,
        worker__monitor_interval=0.2,
    )
    with (
        sandbox_database(scratch_database) as database,
        serve_sandboxes(
            scratch_database, settings, provider := SandboxProvider(database)
        ) as platform,
        platform.client() as client,
    ):
        provider.sandbox.down = True
        payments = [create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE) for _ in range(4)]
        assert eventually(
            lambda: any(
                retry_reason(scratch_database, p.payment_orders[0].charge_id) == "CIRCUIT_OPEN"
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
            platform.client(tries=1) as single_try_client,
            pytest.raises(UnavailableError) as error,
        ):
            create_payment(
                single_try_client,
                "5.00",
                checkout_id="one-too-many",
                wait_for=WAIT_FOR_ACCEPTANCE,
            )
        assert (error.value.reason, error.value.retry_after) == ("PROVIDER_UNAVAILABLE", 30.0)
        with pytest.raises(NotFoundError):
            client.get_payment("one-too-many")
        new = new_order("one-too-many-1", "buyer-1", "unknown-seller", "5.00", "EUR")
        with (
            platform.client(tries=1) as single_try_client,
            pytest.raises(UnavailableError),
        ):
            single_try_client.create_payment("one-too-many", [new], credit_card_info="tok_visa")
        assert not client.wallet.GetSeller(
            wallet_service_pb2.GetSellerRequest(seller_account="unknown-seller")
        ).HasField("seller")
        assert (
            create_payment(
                client, "5.00", checkout_id=payments[0].checkout_id, wait_for=WAIT_FOR_ACCEPTANCE
            ).checkout_id
            == payments[0].checkout_id
        )
        provider.sandbox.down = False
        for payment in payments:
            assert is_paid(client, payment)
            assert len(charge_log(scratch_database, payment.checkout_id)) == 1
        assert eventually(lambda: not list_alerts(client, "providers/sandbox"))
    assert verify(scratch_database).passed


def test_lookups_continue_while_the_circuit_for_sends_is_open(
    scratch_database: DatabaseUrls,
) -> None:
    """A charge whose answer was lost, at a provider with an open circuit for an hour, is looked up
    meanwhile and succeeds: it is sent once. A charge that the provider does not know still waits to
    be sent, and says so.
    """
    retry = {("", RetryReason.NO_ANSWER): FAST_RETRY_POLICY}
    settings = Settings().replace(
        retry=retry,
        worker__scan_interval=0.1,
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
        assert eventually(lambda: retry_reason(scratch_database, unknown) == "NO_ANSWER")
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
def test_a_new_payment_is_the_probe_of_an_open_circuit(
    scratch_database: DatabaseUrls, depth: int
) -> None:
    """While a circuit is open, the maximum number of charges wait, and none of them is sent for an
    hour. After the reset timeout one new payment is accepted, whatever its number of charges; once
    it is paid all others are.
    """
    retry = {("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 3600.0, 3600.0, 5)}
    settings = Settings().replace(
        retry=retry,
        worker__scan_interval=0.1,
        breaker__failure_threshold=1,
        breaker__reset_timeout=0.1,
        breaker__max_reset_timeout=0.1,
        payment__max_queued_charges=depth,
    )
    with (
        sandbox_database(scratch_database) as database,
        serve_sandboxes(
            scratch_database, settings, provider := SandboxProvider(database)
        ) as platform,
        platform.client() as client,
        platform.client(tries=1) as single_try_client,
    ):
        provider.sandbox.down = True
        first = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(
            lambda: retry_reason(scratch_database, first.payment_orders[0].charge_id) == "NOT_SENT"
        )
        provider.sandbox.down = False

        def try_pay() -> payment_pb2.Payment | None:
            try:
                return create_payment(single_try_client, "5.00", "6.00", checkout_id="two-charges")
            except UnavailableError:
                return None

        probe = eventually(try_pay, 10)
        assert probe is not None
        assert client.wait_for_payment(probe.checkout_id, 30).is_payment_done
        assert create_payment(single_try_client, "5.00").is_payment_done
        assert client.get_payment(first.checkout_id).payment_state == payment_pb2.PAYMENT_STATE_OPEN


def test_an_outage_of_one_provider_does_not_affect_others(scratch_database: DatabaseUrls) -> None:
    """While one provider is down with the maximum number of waiting charges, payments through
    another are paid immediately, and are not rejected.
    """
    down_providers: list[SandboxProvider] = []

    def providers(database: Database) -> list[SandboxProvider]:
        """The providers of one process: each process reaches both."""
        first, second = (SandboxProvider(database, name) for name in ("first", "second"))
        down_providers.append(first)
        return [first, second]

    def set_down(is_down: bool) -> None:
        for provider in down_providers:
            provider.sandbox.down = is_down

    retry = {("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 50)}
    settings = Settings().replace(
        retry=retry,
        worker__scan_interval=0.1,
        breaker__failure_threshold=2,
        breaker__reset_timeout=0.2,
        payment__max_queued_charges=5,
    )
    with (
        sandbox_database(scratch_database) as database,
        serve_sandboxes(
            scratch_database, settings.replace(providers__payment="first"), *providers(database)
        ) as first_platform,
        serve_sandboxes(
            scratch_database, settings.replace(providers__payment="second"), *providers(database)
        ) as other_platform,
        first_platform.client() as client,
        other_platform.client() as other_client,
        first_platform.client(tries=1) as single_try_client,
    ):
        set_down(True)
        pending_payments = [
            create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE) for _ in range(5)
        ]
        assert eventually(
            lambda: any(
                retry_reason(scratch_database, p.payment_orders[0].charge_id) == "CIRCUIT_OPEN"
                for p in pending_payments
            )
        )
        with pytest.raises(UnavailableError):
            create_payment(single_try_client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        paid_payments = [create_payment(other_client, "5.00") for _ in range(10)]
        assert all(
            payment.is_payment_done and payment.payment_orders[0].provider == "second"
            for payment in paid_payments
        )
        set_down(False)
        for payment in pending_payments:
            assert is_paid(client, payment)
    assert verify(scratch_database).passed


def test_new_payments_in_an_outage_share_one_count_of_waiting_charges(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the maximum number of charges waits for a failing provider, payments of new sellers are
    rejected without counting the waiting charges for each of them.
    """
    retry = {("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 50)}
    settings = Settings().replace(
        retry=retry,
        worker__scan_interval=3600,
        worker__monitor_interval=3600,
        breaker__failure_threshold=2,
        breaker__reset_timeout=3600,
        breaker__max_reset_timeout=3600,
        payment__max_queued_charges=2,
    )
    counts: list[str] = []

    execute = Connection.execute

    def note(connection: Connection, statement: str, *parameters: Any) -> Cursor:
        if "from (select from operation where phase" in statement:
            counts.append(statement)
        return execute(connection, statement, *parameters)

    with (
        serve_platform(scratch_database, settings) as platform,
        platform.client(tries=1) as client,
    ):
        pending_payments = [
            create_payment(client, "1.00", token="tok_unreachable", wait_for=WAIT_FOR_ACCEPTANCE)
            for _ in range(2)
        ]
        assert eventually(
            lambda: all(
                retry_reason(scratch_database, p.payment_orders[0].charge_id)
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
        monkeypatch.setattr(Connection, "execute", note)
        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(is_rejected, range(100)))
    assert len(counts) < 50


def test_charges_that_always_fail_do_not_block_their_provider(
    scratch_database: DatabaseUrls,
) -> None:
    """Keys that replay a 5xx open the circuit when there are no other calls; they are looked up
    soon, and neither they nor others are blocked by them.
    """
    retry = {("", RetryReason.SERVER_ERROR): RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 2)}
    settings = Settings().replace(
        retry=retry,
        worker__scan_interval=0.05,
        breaker__failure_threshold=2,
        breaker__reset_timeout=0.02,
    )
    with client_of_platform(scratch_database, settings) as client:
        failing_payments = [
            create_payment(client, "5.00", token="tok_error_stored", wait_for=WAIT_FOR_ACCEPTANCE)
            for _ in range(6)
        ]
        assert create_payment(client, "5.00").is_payment_done
        for payment in failing_payments:
            assert failure_reason(wait_for_final_order(client, payment)) == "PROVIDER_DECLINED"
