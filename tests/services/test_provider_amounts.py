"""Amounts that a provider never moves are rejected by name, before anything is stored."""

from __future__ import annotations

from typing import Any

import pytest

from tallystick import InvalidArgumentError, NotFoundError
from tallystick.payment.v1 import payment_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.providers.stripe.money import (
    UnsupportedAmount,
    to_stripe_charge,
    to_stripe_payout,
)
from tests.fakes.payment_provider import ScriptedPaymentProvider, succeed
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.charges import client_of_platform
from tests.support.payments import create_payment
from tests.support.payouts import create_destination, create_payout, create_sale
from tests.support.platform import serve_platform, unique_id


class ChoosyPaymentProvider(ScriptedPaymentProvider):
    """Charges what Stripe charges, and at most 10.00."""

    def reject_amount(self, amount: int, currency: str, method: str) -> str | None:
        try:
            to_stripe_charge(amount, currency, method)
        except UnsupportedAmount as error:
            return str(error)
        return "must be at most 10.00 EUR" if amount > 1000 else None


class ChoosyPayoutProvider(ScriptedPayoutProvider):
    """Pays what Stripe pays, and at least 1.00."""

    def reject_amount(self, amount: int, currency: str) -> str | None:
        to_stripe_payout(amount, currency)
        return "must be at least 1.00 EUR" if amount < 100 else None


def test_a_payment_that_cannot_be_charged_is_not_stored(database: DatabaseUrls) -> None:
    """The error names the order's amount and the rule; a corrected payment takes the same ids, and
    is found again even when its amounts are rejected since.
    """
    provider = ChoosyPaymentProvider(succeed)
    with client_of_platform(database, Settings(), provider) as client:
        checkout_id = unique_id("c")
        with pytest.raises(InvalidArgumentError) as error:
            create_payment(client, "1.00", "0.49", checkout_id=checkout_id)
        (violation,) = error.value.field_violations
        assert violation.field == "payment_orders[1].amount"
        assert "must be at least 0.50 EUR" in violation.description
        with pytest.raises(NotFoundError):
            client.get_payment(checkout_id)
        payment = create_payment(client, "1.00", "0.50", checkout_id=checkout_id)
        assert payment.payment_state == payment_pb2.PAYMENT_STATE_PAID
        provider.reject_amount = lambda *_: "must be nothing"  # type: ignore[method-assign]
        assert create_payment(client, "1.00", "0.50", checkout_id=checkout_id) == payment


def test_a_combined_charge_is_one_amount(database: DatabaseUrls) -> None:
    """The rule holds for the sum of the orders, not for each."""
    with client_of_platform(database, Settings(), ChoosyPaymentProvider(succeed)) as client:
        combined: dict[str, Any] = {"charge_mode": payment_pb2.CHARGE_MODE_COMBINED}
        payment = create_payment(client, "0.30", "0.30", **combined)
        assert payment.payment_state == payment_pb2.PAYMENT_STATE_PAID
        with pytest.raises(InvalidArgumentError) as error:
            create_payment(client, "6.00", "6.00", **combined)
        (violation,) = error.value.field_violations
        assert violation.field == "payment_orders"
        assert "must be at most 10.00 EUR" in violation.description


def test_a_payout_that_cannot_be_paid_is_not_stored(database: DatabaseUrls) -> None:
    """The error names the amount and the rule."""
    dependencies = Dependencies(payout_providers={"sandbox": ChoosyPayoutProvider()})
    with (
        serve_platform(database, Settings(), dependencies=dependencies) as platform,
        platform.client() as client,
    ):
        seller, payout_id = create_sale(client, "5.00"), unique_id("p")
        create_destination(client, seller)
        with pytest.raises(InvalidArgumentError) as error:
            create_payout(client, seller, "0.99", payout_id=payout_id)
        (violation,) = error.value.field_violations
        assert violation.field == "amount"
        assert "must be at least 1.00 EUR" in violation.description
        request = payout_service_pb2.GetPayoutRequest(payout_id=payout_id)
        with pytest.raises(NotFoundError):
            client.payout.GetPayout(request)
        assert create_payout(client, seller, "1.00", payout_id=payout_id).payout_id == payout_id
