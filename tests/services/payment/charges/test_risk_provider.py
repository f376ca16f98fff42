"""The risk check by a third party: nothing is sent to the payment provider before it has passed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick import Client
from tallystick.history.v1 import history_pb2
from tallystick.payment.v1 import payment_pb2, payment_service_pb2
from tallystick_core.provider.outcome import (
    Approved,
    NotSent,
    RetryReason,
    RiskOutcome,
    Unknown,
)
from tallystick_core.provider.risk_provider import RiskRequest
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_server.verify.run import verify
from tests.fakes.payment_provider import outcome_after
from tests.support.charges import (
    FAST_RETRY_POLICY,
    WAIT_FOR_ACCEPTANCE,
    cancel_payment,
    event_versions,
    failure_reason,
    get_order,
    is_paid,
    payment_of_dead_process,
    timestamp_in,
    wait_for_final_order,
)
from tests.support.payments import charge_log, create_payment
from tests.support.platform import ServedPlatform, eventually, serve_platform

FAST_SETTINGS = Settings().replace(
    retry={("", reason): FAST_RETRY_POLICY for reason in RetryReason},
    worker__scan_interval=0.1,
    risk__blocked_accounts=frozenset({"mallory"}),
)
NOT_STARTED = payment_pb2.PAYMENT_ORDER_STATUS_NOT_STARTED


class ScriptedRiskProvider:
    """Answers every check with `outcome`; None: it approves at `approve_time`, or never answers."""

    name = "scripted"

    def __init__(self, outcome: RiskOutcome | None) -> None:
        self.outcome = outcome
        self.approve_time: Timestamp | None = None
        self.requests: list[RiskRequest] = []

    async def check(self, request: RiskRequest) -> RiskOutcome:
        self.requests.append(request)
        if self.outcome is not None:
            return self.outcome
        if self.approve_time is None:
            await asyncio.Event().wait()
        else:
            await outcome_after(self.approve_time, Unknown("not used"))
        return Approved()


@contextmanager
def platform_with_risk(
    databases: DatabaseUrls,
    risk_provider: ScriptedRiskProvider | None = None,
    settings: Settings = FAST_SETTINGS,
) -> Iterator[ServedPlatform]:
    """A platform with a risk provider, by default the sandbox's; at the end verify passes."""
    dependencies = Dependencies(risk_provider=risk_provider)
    settings = settings.replace(providers__risk="sandbox")
    with serve_platform(databases, settings, dependencies=dependencies) as platform:
        yield platform
    report = verify(databases)
    assert report.passed, report.as_text()


@contextmanager
def client_with_risk(
    databases: DatabaseUrls,
    risk_provider: ScriptedRiskProvider | None = None,
    settings: Settings = FAST_SETTINGS,
) -> Iterator[Client]:
    with (
        platform_with_risk(databases, risk_provider, settings) as platform,
        platform.client() as client,
    ):
        yield client


def transition_reasons(client: Client, order: payment_pb2.PaymentOrder) -> list[str]:
    request = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order.payment_order_id)
    history = client.payment.GetPaymentOrder(request).history
    names = [
        history_pb2.TransitionReason.Name(transition.transition_reason) for transition in history
    ]
    return [name.removeprefix("TRANSITION_REASON_") for name in names]


def has_versions(client: Client, aggregate: str, versions: list[int]) -> bool:
    return event_versions(client, aggregate) == versions


def test_an_approved_charge_is_sent_once(scratch_database: DatabaseUrls) -> None:
    """P4: an approved order has the same versions, history and events as without a risk provider;
    a combined charge is approved as a whole.
    """
    with client_with_risk(scratch_database) as client:
        payments = [
            create_payment(client, "5.00"),
            create_payment(client, "3.00", "4.00", charge_mode=payment_pb2.CHARGE_MODE_COMBINED),
        ]
        for payment in payments:
            assert payment.is_payment_done
            assert len(charge_log(scratch_database, payment.checkout_id)) == 1
            for order in payment.payment_orders:
                assert order.attempt_count == 1
                assert transition_reasons(client, order) == [
                    "CREATED",
                    "RISK_PASSED",
                    "PROVIDER_OUTCOME",
                    "BOOKED",
                ]
                aggregate = f"paymentOrders/{order.payment_order_id}"
                assert eventually(partial(has_versions, client, aggregate, [1, 2, 3, 4]))


def test_a_declined_charge_is_never_sent(scratch_database: DatabaseUrls) -> None:
    """A decline of the risk provider fails the order with its code, and the payment provider is
    never asked.
    """
    with client_with_risk(scratch_database) as client:
        payment = create_payment(client, "5.00", token="tok_risk_decline:stolen")
        (order,) = payment.payment_orders
        assert (failure_reason(order), order.decline_code) == ("RISK_PROVIDER", "stolen")
        assert payment.payment_state == payment_pb2.PAYMENT_STATE_FAILED
        assert transition_reasons(client, order) == ["CREATED", "RISK_REJECTED"]
        assert charge_log(scratch_database, payment.checkout_id) == []


def test_a_rule_rejects_before_the_risk_provider_is_asked(scratch_database: DatabaseUrls) -> None:
    """What the built-in rules reject is not shown to the risk provider."""
    risk_provider = ScriptedRiskProvider(Approved())
    with client_with_risk(scratch_database, risk_provider) as client:
        payment = client.create_payment(
            "c-1",
            [
                payment_pb2.NewPaymentOrder(
                    payment_order_id=f"o-{buyer}",
                    buyer_account=buyer,
                    seller_account="seller",
                    amount="5.00",
                    currency="EUR",
                )
                for buyer in ("mallory", "buyer-1")
            ],
            credit_card_info="tok_visa",
            buyer_country="FR",
        )
        reasons = {order.buyer_account: failure_reason(order) for order in payment.payment_orders}
        assert reasons == {"mallory": "RISK_BLOCKED_ACCOUNT", "buyer-1": "UNSPECIFIED"}
        (request,) = risk_provider.requests
        assert request == RiskRequest(
            "o-o-buyer-1", "c-1", ("buyer-1",), "FR", 500, "EUR", "tok_visa", "CARD"
        )


@pytest.mark.parametrize(
    "outcome", [Unknown("lost", RetryReason.SERVER_ERROR), NotSent("unreachable"), None], ids=str
)
def test_without_a_decision_nothing_is_sent(
    scratch_database: DatabaseUrls, outcome: RiskOutcome | None
) -> None:
    """An error, a refused connection or a timeout of the risk provider is never an approval: the
    order stays NOT_STARTED and is checked again, until there is a decision.
    """
    risk_provider = ScriptedRiskProvider(outcome)
    settings = FAST_SETTINGS.replace(providers__timeout=0.2, worker__lease_duration=2.5)
    with client_with_risk(scratch_database, risk_provider, settings) as client:
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(lambda: len(risk_provider.requests) > 2)
        assert get_order(client, payment).payment_order_status == NOT_STARTED
        assert charge_log(scratch_database, payment.checkout_id) == []
        risk_provider.outcome = Approved()
        assert is_paid(client, payment)
        assert len(charge_log(scratch_database, payment.checkout_id)) == 1


def test_a_risk_check_that_exhausts_its_policy_fails(scratch_database: DatabaseUrls) -> None:
    """If the policy NOT_SENT has no tries left, the order fails: nothing was sent."""
    settings = FAST_SETTINGS.replace(
        retry={("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 0.05, 0.05, 2)}
    )
    with client_with_risk(scratch_database, settings=settings) as client:
        payment = create_payment(client, "5.00", token="tok_risk_unavailable:100")
        assert failure_reason(wait_for_final_order(client, payment)) == "RISK_PROVIDER"
        recovered = create_payment(client, "5.00", token="tok_risk_unavailable")
        assert is_paid(client, recovered)
        assert charge_log(scratch_database, payment.checkout_id) == []


@pytest.mark.parametrize("ending", ["CALLER_CANCELLED", "EXPIRED"])
@pytest.mark.parametrize("answer", ["busy", "silent", "approves late"])
def test_a_payment_that_ends_during_the_risk_check_is_never_sent(
    scratch_database: DatabaseUrls, ending: str, answer: str
) -> None:
    """A cancelled or expired payment fails at once, however long its policy waits, and without the
    payment provider, even if the risk provider approves it afterwards.
    """
    risk_provider = ScriptedRiskProvider(Unknown("busy") if answer == "busy" else None)
    settings = FAST_SETTINGS.replace(
        retry={("", RetryReason.NOT_SENT): RetryPolicy(RetryStrategy.FIXED, 600, 600, 5)},
        providers__timeout=3.0 if answer == "approves late" else 0.5,
        worker__lease_duration=20,
    )
    with client_with_risk(scratch_database, risk_provider, settings) as client:
        values: dict[str, Any] = {}
        if ending == "EXPIRED":
            values["expire_time"] = timestamp_in(1.5)
        if answer == "approves late":
            risk_provider.approve_time = timestamp_in(1.8)
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE, **values)
        assert eventually(lambda: risk_provider.requests)
        if ending == "CALLER_CANCELLED":
            cancel_payment(client, payment)
        assert failure_reason(wait_for_final_order(client, payment)) == ending
        assert len(risk_provider.requests) == 1
        assert charge_log(scratch_database, payment.checkout_id) == []


def test_another_process_finishes_the_risk_check(scratch_database: DatabaseUrls) -> None:
    """A process that ends during the check leaves an order that is not started: another one asks
    again, and charges once.
    """
    with client_with_risk(scratch_database, silent := ScriptedRiskProvider(None)) as client:
        payment = create_payment(client, "5.00", wait_for=WAIT_FOR_ACCEPTANCE)
        assert eventually(lambda: silent.requests)
    risk_provider = ScriptedRiskProvider(Approved())
    with client_with_risk(scratch_database, risk_provider) as client:
        assert is_paid(client, payment)
        assert len(risk_provider.requests) == 1
        assert len(charge_log(scratch_database, payment.checkout_id)) == 1


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_crash_before_the_risk_check_is_no_send(
    scratch_database: DatabaseUrls, cancelled: bool
) -> None:
    """A process dies while it leases a charge that is not started. The next holder checks it and
    sends it, or gives it up without asking anybody.
    """
    risk_provider = ScriptedRiskProvider(Approved())
    settings = FAST_SETTINGS.replace(providers__timeout=0.2, worker__lease_duration=2.5)
    with (
        platform_with_risk(scratch_database, risk_provider, settings) as platform,
        platform.client() as client,
    ):
        payment = payment_of_dead_process(platform, client)
        if cancelled:
            cancel_payment(client, payment)
            order = wait_for_final_order(client, payment)
            assert failure_reason(order) == "CALLER_CANCELLED"
        else:
            assert is_paid(client, payment)
        expected_count = 0 if cancelled else 1
        assert len(risk_provider.requests) == expected_count
        assert len(charge_log(scratch_database, payment.checkout_id)) == expected_count
