"""The provider's fee: reported with a success, stored with the attempt."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tallystick import Client
from tallystick.history.v1 import history_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.provider.outcome import ProviderFee, RetryReason, Succeeded, has_valid_amounts
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.operations.operation import NO_LEASE
from tallystick_server.verify.run import verify
from tests.fakes.payment_provider import ScriptedPaymentProvider
from tests.support.charges import (
    FAST_RETRY_POLICY,
    WAIT_FOR_ACCEPTANCE,
    client_of_platform,
    is_paid,
    leased_charge,
    record_outcomes,
)
from tests.support.payments import create_payment
from tests.support.platform import ServedPlatform

FAST_SETTINGS = Settings().replace(
    retry={("", reason): FAST_RETRY_POLICY for reason in RetryReason}, worker__scan_interval=0.1
)


def get_attempt(client: Client, payment: payment_pb2.Payment) -> history_pb2.Attempt:
    request = payment_service_pb2.GetPaymentOrderRequest(
        payment_order_id=payment.payment_orders[0].payment_order_id
    )
    (attempt,) = client.payment.GetPaymentOrder(request).attempts
    return attempt


@pytest.mark.parametrize("token", ["tok_visa", "tok_pending:paid"])
def test_an_attempt_shows_the_providers_fee(scratch_database: DatabaseUrls, token: str) -> None:
    """The fee of a success is stored with its attempt, whether a send or a lookup reports it; a
    decline has none.
    """
    settings = FAST_SETTINGS.replace(providers__sandbox__fee_rate=25_000)
    with client_of_platform(scratch_database, settings) as client:
        payment = create_payment(client, "10.00", token=token)
        assert is_paid(client, payment)
        attempt = get_attempt(client, payment)
        assert (attempt.provider_fee, attempt.provider_fee_currency) == ("0.25", "EUR")
        declined = get_attempt(client, create_payment(client, "10.00", token="tok_decline"))
        assert (declined.provider_fee, declined.provider_fee_currency) == ("", "")
    report = verify(scratch_database)
    assert report.passed, report.as_text()


@pytest.mark.parametrize(
    ("fee", "expected"),
    [
        (None, ("", "")),
        (ProviderFee(0, "EUR"), ("0.00", "EUR")),
        (ProviderFee(30, "USD"), ("0.30", "USD")),
    ],
)
def test_a_fee_may_be_unknown_free_or_in_another_currency(
    scratch_database: DatabaseUrls, fee: ProviderFee | None, expected: tuple[str, str]
) -> None:
    """An unknown fee is not a fee of zero. The currency may differ from the charge's."""

    def succeed_with_fee(request: ChargeRequest) -> Succeeded:
        return Succeeded("ch_1", request.amount, request.currency, fee=fee)

    provider = ScriptedPaymentProvider(succeed_with_fee)
    with client_of_platform(scratch_database, FAST_SETTINGS, provider) as client:
        payment = create_payment(client, "10.00")
        assert is_paid(client, payment)
        attempt = get_attempt(client, payment)
        assert (attempt.provider_fee, attempt.provider_fee_currency) == expected


def test_a_fee_reported_in_the_batch_of_its_success_is_stored(
    slow_retry_client: Client, slow_retry_platform: ServedPlatform
) -> None:
    """Two reports of one success are recorded together, and only the second has the fee."""
    payment = create_payment(
        slow_retry_client, "5.00", token="tok_lost_before:99", wait_for=WAIT_FOR_ACCEPTANCE
    )
    charge = leased_charge(slow_retry_platform, payment.payment_orders[0].charge_id, NO_LEASE)
    success = Succeeded(f"s-{charge.charge_id}", 500, "EUR")
    with_fee = replace(success, fee=ProviderFee(42, "EUR"))
    record_outcomes(slow_retry_platform, (charge, success), (charge, with_fee))
    assert is_paid(slow_retry_client, payment)
    attempt = get_attempt(slow_retry_client, payment)
    assert (attempt.provider_fee, attempt.provider_fee_currency) == ("0.42", "EUR")


@pytest.mark.parametrize(
    "fee", [ProviderFee(-1, "EUR"), ProviderFee(1, "eur"), ProviderFee(10**18, "EUR")]
)
def test_an_invalid_fee_makes_an_outcome_invalid(fee: ProviderFee) -> None:
    """An outcome with an invalid fee is not trusted, like one with an invalid amount."""
    assert has_valid_amounts(Succeeded("ch_1", 1000, "EUR"))
    assert not has_valid_amounts(Succeeded("ch_1", 1000, "EUR", fee=fee))
