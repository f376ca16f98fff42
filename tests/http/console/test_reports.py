"""Acts on what providers report: conflicts, transfers, dead payouts; and on destinations."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest

from tallystick import Client
from tallystick.payment.v1 import payment_service_pb2
from tallystick.wallet.v1 import wallet_service_pb2
from tallystick_core.provider.outcome import (
    ChargeLookupOutcome,
    ChargeOutcome,
    Declined,
    NotFound,
    PayoutFailure,
    PayoutOutcome,
    RetryReason,
    Succeeded,
    Unknown,
)
from tallystick_core.provider.payment_provider import ChargeRequest
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.app.wiring import Dependencies
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tests.fakes.payment_provider import ScriptedPaymentProvider, succeed_first, unknown_outcome
from tests.fakes.payout_provider import ScriptedPayoutProvider
from tests.support.callers import token_of
from tests.support.charges import cancel_payment, fast_final_settings, wait_for_final_order
from tests.support.console import SETTINGS, WAIT_FOR_ACCEPTANCE, Person
from tests.support.payments import create_payment
from tests.support.payouts import create_destination, create_payout, create_sale, wait_for_state
from tests.support.platform import (
    ServedPlatform,
    eventually,
    fresh_database,
    serve_platform,
    unique_id,
)

SignIn = Callable[[str], Person]
_POLL = {("", RetryReason.POST_COMPLETION_POLL): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 1000)}
_NO_RETRY = {("", RetryReason.REJECTED): RetryPolicy(RetryStrategy.CANCEL)}


@dataclass
class Providers:
    """What the providers answer. `late`: the outcome of the charges with other tokens."""

    late: ChargeLookupOutcome
    payouts: ScriptedPayoutProvider


@pytest.fixture(scope="module")
def providers() -> Providers:
    return Providers(NotFound(), ScriptedPayoutProvider())


@pytest.fixture(scope="module")
def platform(
    admin_url: str, tmp_path_factory: pytest.TempPathFactory, providers: Providers
) -> Iterator[ServedPlatform]:
    """A platform that polls all the time, and whose providers the test scripts."""

    def outcome_of(request: ChargeRequest) -> ChargeLookupOutcome:
        is_first = request.payment_token != "tok_late"
        return Succeeded("first", request.amount, request.currency) if is_first else providers.late

    async def charge(request: ChargeRequest) -> ChargeOutcome:
        if request.payment_token == "tok_late":
            return await unknown_outcome(request)
        if request.payment_token == "tok_first":
            return await succeed_first(request)
        return Succeeded(unique_id("ch"), request.amount, request.currency)

    fast = fast_final_settings()
    settings = SETTINGS.replace(
        retry={**fast.retry, **_POLL, **_NO_RETRY},
        providers__not_found_after=0.6,
        providers__not_found_min_count=2,
        payout__approval_threshold={},
        payout__destination_approval_threshold={"EUR": 1_000_00},
    )
    dependencies = Dependencies(
        providers={"sandbox": ScriptedPaymentProvider(outcome_of, charge)},
        payout_providers={"sandbox": providers.payouts},
    )
    with (
        fresh_database(admin_url, tmp_path_factory.mktemp("reports")) as databases,
        serve_platform(
            databases, settings, (*service_names(), HTTP_SERVER), dependencies
        ) as served_platform,
    ):
        yield served_platform


@pytest.fixture(scope="module")
def shop(platform: ServedPlatform) -> Iterator[Client]:
    with platform.client(token_of("shop")) as client:
        yield client


@pytest.fixture(scope="module")
def payer(platform: ServedPlatform) -> Iterator[Client]:
    with platform.client(token_of("payer")) as client:
        yield client


def assert_acknowledged(person: Person, auditor: Person, path: str, action: str) -> None:
    """An operator acknowledges once, with a reason; an auditor cannot."""
    form = f'action="{action}"'
    assert eventually(lambda: form in person.get(path).text)
    assert auditor.act(action, reason="mine").status_code == 403
    missing = person.act(action, reason=" ")
    assert missing.status_code == 400
    assert "reason is required" in missing.text

    def acknowledge() -> httpx.Response | None:
        """What is reported may still be booked: then an operator tries again."""
        response = person.act(action, reason="refunded by hand")
        return None if "still being booked; retry" in response.text else response

    done = eventually(acknowledge)
    assert done
    page = person.get(done.headers["Location"]).text
    assert "cknowledged." in page
    assert "refunded by hand" in page
    assert form not in page
    again = person.act(action, reason="another reason")
    assert again.status_code == 409
    assert "ALREADY_EXISTS" in again.text or "IDEMPOTENCY_KEY_REUSED" in again.text


def test_a_conflicting_report_of_a_charge_is_acknowledged(
    platform: ServedPlatform, shop: Client, providers: Providers, alice: Person, sign_in: SignIn
) -> None:
    """On the page of its order."""
    create_payment(shop, "5.00", token="tok_first")
    payment = create_payment(shop, "5.00", token="tok_late", wait_for=WAIT_FOR_ACCEPTANCE)
    order = payment.payment_orders[0]
    cancel_payment(shop, payment)
    wait_for_final_order(shop, payment)
    providers.late = Succeeded("first", 500, "EUR")
    path = f"/console/orders/{order.payment_order_id}"
    action = f"{path}/charges/{order.charge_id}/reports/1/acknowledge"
    assert eventually(lambda: action in alice.get(path).text)
    assert_acknowledged(alice, sign_in("auditor"), path, action)
    request = payment_service_pb2.GetPaymentOrderRequest(payment_order_id=order.payment_order_id)
    with platform.client(token_of("alice")) as client:
        (report,) = client.payment.GetPaymentOrder(request).conflicting_reports
    assert (report.acknowledged_by, report.acknowledge_reason) == ("alice", "refunded by hand")


def test_what_a_provider_reports_of_a_payout_is_acknowledged(
    shop: Client, payer: Client, providers: Providers, alice: Person, sign_in: SignIn
) -> None:
    """A conflicting report by its number, and a transfer that does not match by its reference."""
    reference = f"{unique_id('tr')}/1"
    late = Declined(PayoutFailure.PROVIDER_DECLINED, "late")
    reported: dict[str, list[PayoutOutcome]] = {
        "reports/1": [Succeeded(unique_id("tr"), 10_00, "EUR"), late],
        f"transfers/{reference.replace('/', '%2F')}": [Succeeded(reference, 9_00, "EUR")],
    }
    for subject, outcomes in reported.items():
        destination = create_destination(payer, seller := create_sale(shop, "30.00"))
        providers.payouts.script[destination].extend(outcomes)
        payout = create_payout(payer, seller, "10.00", payout_destination_id=destination)
        path = f"/console/payouts/{payout.payout_id}"
        assert_acknowledged(alice, sign_in("auditor"), path, f"{path}/{subject}/acknowledge")


def test_a_dead_payout_is_retried_once_for_a_form(
    shop: Client, payer: Client, providers: Providers, alice: Person
) -> None:
    """The form has the id of its request, so that sending it twice retries once."""
    destination = create_destination(payer, seller := create_sale(shop, "30.00"))
    malformed = Unknown("malformed", RetryReason.REJECTED)
    providers.payouts.script[destination].append(malformed)
    payout_id = create_payout(payer, seller, "10.00", payout_destination_id=destination).payout_id
    path = f"/console/payouts/{payout_id}"
    assert eventually(lambda: "Retry the payout" in alice.get(path).text)
    found = re.search(r'name="request_id" value="([0-9a-f]{32})"', alice.get(path).text)
    assert found is not None
    for _ in range(2):
        done = alice.act(f"{path}/retry", reason="fixed", request_id=found[1])
        assert "The payout is retried." in alice.get(done.headers["Location"]).text
    wait_for_state(payer, payout_id, "PAID")
    page = alice.get(path).text
    assert "Retry the payout" not in page
    assert "Cancel the payout" not in page
    late = alice.act(f"{path}/cancel", reason="too late")
    assert late.status_code in (400, 409)
    assert "INVALID_STATE, from payout.CancelPayout" in late.text


def test_a_destination_is_approved_by_a_second_person_or_disabled(
    shop: Client, payer: Client, sign_in: SignIn
) -> None:
    """The platform rejects its creator and an auditor, with its own error."""
    destination = create_destination(payer, create_sale(shop, "2000.00"))
    path = f"/console/destinations/{destination}"
    creator, bob, auditor = sign_in("payer"), sign_in("bob"), sign_in("auditor")
    by_author = creator.act(f"{path}/approve", reason="mine")
    assert by_author.status_code == 403
    assert "SECOND_APPROVER_REQUIRED, from payout.ApprovePayoutDestination" in by_author.text
    assert auditor.act(f"{path}/approve", reason="x").status_code == 403
    done = bob.act(f"{path}/approve", reason="called the seller")
    page = bob.get(done.headers["Location"]).text
    assert "The destination is approved." in page
    assert "Approve the destination" not in page
    done = bob.act(f"{path}/disable", reason="the account is closed")
    page = bob.get(done.headers["Location"]).text
    assert "The destination is disabled." in page
    assert 'class="act"' not in page


def test_a_second_person_decides_who_owns_a_seller(
    platform: ServedPlatform, shop: Client, sign_in: SignIn
) -> None:
    """On the page of the seller: approved or rejected, by another operator than who asked."""
    for act, text in (
        ("approve", "The seller belongs to the new owner."),
        ("reject", "The seller stays with its owner."),
    ):
        seller, assignment = create_sale(shop, "10.00"), unique_id("a")
        request = wallet_service_pb2.RequestSellerAssignmentRequest(
            seller_assignment_id=assignment, seller_account=seller, owner="rival", reason="sold"
        )
        with platform.client(token_of("alice")) as client:
            client.wallet.RequestSellerAssignment(request)
        path = f"/console/sellers/{seller}"
        action = f"{path}/assignments/{assignment}/{act}"
        bob = sign_in("bob")
        assert f'action="{action}"' in bob.get(path).text
        assert sign_in("shop").act(action, reason="mine").status_code == 403
        if act == "approve":
            by_author = sign_in("alice").act(action, reason="mine")
            assert by_author.status_code == 403
            assert "SECOND_APPROVER_REQUIRED" in by_author.text
        done = bob.act(action, reason="saw the contract")
        page = bob.get(done.headers["Location"]).text
        assert text in page
        assert "saw the contract" in page
        assert f'action="{action}"' not in page
