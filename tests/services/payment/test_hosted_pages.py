"""Hosted pages: the buyer pays on a page of the provider, which is registered once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from tallystick import Client, InvalidArgumentError, NotFoundError, TallystickError, new_order
from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_sandbox.stripe.checkout_sessions import BuyerCard
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.providers.stripe.errors import NoAnswer
from tests.support.charges import event_versions, failure_reason, wait_for_final_order
from tests.support.hosted_pages import (
    API_KEY,
    FAST_POLLS,
    NO_POLLS,
    SHOP,
    HostedPlatform,
    hosted_platform,
    page,
    verified_platform,
)
from tests.support.platform import (
    eventually,
    payments_of,
    serve_platform,
    unique_id,
)

OPEN = payment_pb2.PAYMENT_STATE_OPEN
PAID = payment_pb2.PAYMENT_STATE_PAID
BUYER_ACTION = payment_pb2.PENDING_REASON_BUYER_ACTION


@pytest.fixture(scope="module")
def platform(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedPlatform]:
    """A platform that polls its provider quickly."""
    folder = tmp_path_factory.mktemp("pages")
    yield from verified_platform(admin_url, folder, retry=FAST_POLLS)


@pytest.fixture(scope="module")
def unpolled(admin_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostedPlatform]:
    """A platform that never polls."""
    folder = tmp_path_factory.mktemp("unpolled")
    yield from verified_platform(admin_url, folder, retry=NO_POLLS)


def rejected_field(client: Client, **values: object) -> tuple[str, str]:
    """The field and the message of the error of a payment with these values."""
    order = new_order(unique_id("o"), "buyer-1", unique_id("s"), "12.50", "EUR")
    with pytest.raises(InvalidArgumentError) as error:
        client.create_payment(unique_id("c"), [order], **values)  # type: ignore[arg-type]
    (violation,) = error.value.field_violations
    return violation.field, violation.description


def sessions(platform: HostedPlatform) -> dict[str, str]:
    """The status of each session of the look-alike, by its charge."""
    with psycopg.connect(platform.served.databases.reader("sandbox")) as connection:
        return dict(
            connection.execute(
                "select body->>'client_reference_id', body->>'status' from stripe_object "
                "where type = 'checkout.session'"
            ).fetchall()
        )


def test_a_payment_by_a_hosted_page_waits_for_the_buyer_and_is_paid_once(
    platform: HostedPlatform,
) -> None:
    """CreatePayment answers with the page's URL; once the buyer has paid there the orders are paid,
    by one charge.
    """
    payment = platform.create("10.00", "2.50")
    assert payment.payment_state == OPEN
    assert payment.hosted_page.url.startswith("http://127.0.0.1:1/c/pay/cs_test_")
    assert payment.hosted_page.success_url == f"{SHOP}/thanks?order=7"
    assert {order.charge_id for order in payment.payment_orders} == {f"c-{payment.checkout_id}"}
    assert all(order.pending_reason == BUYER_ACTION for order in payment.payment_orders)
    lifetime = payment.hosted_page.expire_time.ToDatetime() - payment.create_time.ToDatetime()
    assert lifetime == timedelta(hours=23)
    assert payment.expire_time == payment.hosted_page.expire_time
    assert payment.payment_orders[0].resolve_by_time == payment.expire_time
    platform.pay(payment)
    final = platform.client.wait_for_payment(payment.checkout_id)
    assert final.payment_state == PAID
    assert not final.hosted_page.url
    assert final.status_url == payment.status_url
    orders = final.payment_orders
    assert len({order.provider_reference for order in orders}) == 1
    assert orders[0].provider_reference.startswith("pi_")


def test_asking_again_gives_the_same_page(platform: HostedPlatform) -> None:
    """The same request returns the same URLs, also from a hundred calls at the same time; another
    value is rejected with its field.
    """
    checkout_id = unique_id("c")
    with ThreadPoolExecutor(20) as pool:
        payments = list(pool.map(lambda _: platform.create(checkout_id=checkout_id), range(100)))
    assert len({payment.hosted_page.url for payment in payments}) == 1
    assert len({payment.status_url for payment in payments}) == 1
    for field, other in {
        "success_url": f"{SHOP}/other",
        "cancel_url": f"{SHOP}/other",
        "locale": "de",
        "expire_time": datetime.now(UTC) + timedelta(hours=2),
    }.items():
        with pytest.raises(TallystickError) as error:
            platform.create(checkout_id=checkout_id, hosted_page=page(**{field: other}))
        assert error.value.reason == "IDEMPOTENCY_KEY_REUSED"
        assert f"hosted_page.{field}" in error.value.message
    with pytest.raises(TallystickError) as error:
        platform.create(checkout_id=checkout_id, hosted_page=None, credit_card_info="pm_card_visa")
    assert "payment_method" in error.value.message


@pytest.mark.parametrize(
    ("values", "field", "text"),
    [
        ({"expire_time": timedelta(minutes=9)}, "expire_time", "10 minutes to 23 hours from now"),
        ({"expire_time": timedelta(hours=24)}, "expire_time", "10 minutes to 23 hours from now"),
        ({"locale": "e"}, "locale", 'a language such as "en"'),
        ({"locale": "en;q=1"}, "locale", 'a language such as "en"'),
        ({"success_url": ""}, "success_url", "is required"),
        ({"cancel_url": ""}, "cancel_url", "is required"),
        ({"cancel_url": "https://evil.example/"}, "cancel_url", f"allowed for the caller: {SHOP}"),
    ],
)
def test_a_page_with_an_invalid_value_is_rejected_by_its_field(
    platform: HostedPlatform, values: dict[str, object], field: str, text: str
) -> None:
    now = datetime.now(UTC)
    values = {
        name: now + value if isinstance(value, timedelta) else value
        for name, value in values.items()
    }
    rejected, message = rejected_field(platform.client, hosted_page=page(**values))
    assert rejected == f"hosted_page.{field}"
    assert text in message


def test_a_page_is_one_charge_and_has_one_expiry(platform: HostedPlatform) -> None:
    """PER_ORDER, a second expire_time, and orders in two currencies are rejected."""
    per_order = payment_pb2.CHARGE_MODE_PER_ORDER
    assert rejected_field(platform.client, hosted_page=page(), charge_mode=per_order) == (
        "charge_mode",
        "charge_mode must be COMBINED or unset with hosted_page: the buyer pays once.",
    )
    expiry = datetime.now(UTC) + timedelta(hours=2)
    assert rejected_field(platform.client, hosted_page=page(), expire_time=expiry) == (
        "expire_time",
        "expire_time must be unset with hosted_page: set hosted_page.expire_time.",
    )
    orders = [
        new_order(unique_id("o"), "buyer-1", "seller-two", "1.00", currency)
        for currency in ("EUR", "USD")
    ]
    with pytest.raises(InvalidArgumentError, match="one currency"):
        platform.client.create_payment(unique_id("c"), orders, hosted_page=page())


def test_a_provider_without_pages_rejects_a_page(scratch_database: DatabaseUrls) -> None:
    """The error names the provider, and nothing is stored."""
    settings = Settings().replace(payment__return_origins={"dev": frozenset({SHOP})})
    with serve_platform(scratch_database, settings) as served, served.client() as client:
        assert rejected_field(client, hosted_page=page()) == (
            "hosted_page",
            "hosted_page cannot be used: the provider of this payment, sandbox, hosts no pages.",
        )
        assert not client.payment.ListPayments(pb.ListPaymentsRequest()).payments


@pytest.mark.parametrize("card", [BuyerCard.DECLINED, BuyerCard.INSUFFICIENT_FUNDS])
def test_a_decline_on_the_page_is_no_end(platform: HostedPlatform, card: BuyerCard) -> None:
    """The payment stays open after a decline, and the buyer pays with another card."""
    payment = platform.create()
    platform.pay(payment, card)
    lookups = payments_of(platform.served).buyer_lookups
    platform.served.run_in_loop(lookups.look_up, payment)
    current = platform.client.get_payment(payment.checkout_id)
    assert current.payment_state == OPEN
    assert current.hosted_page.url == payment.hosted_page.url
    platform.pay(payment)
    assert platform.client.wait_for_payment(payment.checkout_id).payment_state == PAID


@pytest.mark.parametrize(
    ("card", "status"),
    [(BuyerCard.DELAYED_SUCCESS, "paid"), (BuyerCard.DELAYED_FAILURE, "declined")],
)
def test_a_delayed_method_is_pending_at_the_provider_until_its_result(
    platform: HostedPlatform, card: BuyerCard, status: str
) -> None:
    """A bank debit is in review, without a page or a time limit; then paid or declined."""
    payment = platform.create()
    platform.pay(payment, card)

    def in_review() -> bool:
        order = platform.client.get_payment(payment.checkout_id).payment_orders[0]
        return order.pending_reason == payment_pb2.PENDING_REASON_PROVIDER_REVIEW

    assert eventually(in_review)
    current = platform.client.get_payment(payment.checkout_id)
    assert not current.hosted_page.url
    assert not current.payment_orders[0].HasField("resolve_by_time")
    _resolve_debit(platform, payment, status)
    final = platform.client.wait_for_payment(payment.checkout_id)
    assert final.payment_state == (PAID if status == "paid" else payment_pb2.PAYMENT_STATE_FAILED)


def _resolve_debit(platform: HostedPlatform, payment: payment_pb2.Payment, status: str) -> None:
    headers = {"Authorization": f"Bearer {API_KEY}"}
    body = f"id={platform.session_id(payment)}&status={status}".encode()
    answer = platform.served.run_in_loop(
        platform.stripe.handle, "POST", "/sandbox/advance", headers, body
    )
    assert answer.status == 200, answer


def test_a_page_that_expires_is_closed_at_the_provider_first(
    scratch_database: DatabaseUrls,
) -> None:
    """After its expire_time the session is expired, and the order is FAILED(PAGE_EXPIRED)."""
    with hosted_platform(scratch_database) as platform:
        payment = platform.create()
        advance_clock(scratch_database, "23 hours 1 second")
        order = wait_for_final_order(platform.client, payment)
        assert failure_reason(order) == "PAGE_EXPIRED"
        assert sessions(platform) == {f"c-{payment.checkout_id}": "expired"}
        platform.pay(payment)
        assert sessions(platform) == {f"c-{payment.checkout_id}": "expired"}


def advance_clock(databases: DatabaseUrls, interval: str) -> None:
    """Sets the clock of PaymentService to `interval` after the real time."""
    with psycopg.connect(databases.admin, autocommit=True) as connection:
        connection.execute(
            "create or replace function payment.clock() returns timestamptz language sql "
            f"volatile as $$select clock_timestamp() + interval '{interval}'$$"
        )


def test_a_page_that_was_paid_as_it_expired_is_paid(scratch_database: DatabaseUrls) -> None:
    """The buyer pays, and no report has arrived when the page expires: the provider's
    answer decides.
    """
    with hosted_platform(scratch_database, retry=NO_POLLS) as platform:
        payment = platform.create()
        platform.pay(payment)
        advance_clock(scratch_database, "23 hours 1 second")
        assert platform.client.wait_for_payment(payment.checkout_id).payment_state == PAID


def test_a_cancelled_payment_closes_its_page(platform: HostedPlatform) -> None:
    """CancelPayment expires the session; the order is FAILED(CALLER_CANCELLED)."""
    payment = platform.create()
    cancelled = platform.client.payment.CancelPayment(
        pb.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="the basket has changed")
    ).payment
    assert failure_reason(cancelled.payment_orders[0]) == "CALLER_CANCELLED"
    assert sessions(platform)[f"c-{payment.checkout_id}"] == "expired"


@pytest.mark.parametrize("fault", ["lost_before", "lost_after", "error_before", "error_after"])
def test_a_registration_with_a_lost_answer_is_repeated_under_its_key(
    platform: HostedPlatform, fault: str
) -> None:
    """The page is registered once, and its URL is given out once it is stored."""
    checkout_id = unique_id("c")
    calls: list[str] = []
    send = platform.transport.send

    async def lose_first(method, url, headers, body):  # type: ignore[no-untyped-def]
        if method.upper() == "POST" and checkout_id in str(body):
            calls.append(headers["Idempotency-Key"])
            if len(calls) == 1:
                if fault.endswith("after"):
                    await send(method, url, headers, body)
                if fault.startswith("lost"):
                    raise NoAnswer("cut")
                return 500, {}, b'{"error": {"type": "api_error"}}'
        return await send(method, url, headers, body)

    platform.transport.send = lose_first  # type: ignore[method-assign]
    try:
        platform.create(checkout_id=checkout_id, wait_for=pb.WAIT_FOR_ACCEPTANCE)
        payment = eventually(
            lambda: (found := platform.client.get_payment(checkout_id)).hosted_page.url and found
        )
    finally:
        platform.transport.send = send  # type: ignore[method-assign]
    assert payment
    assert len(calls) == 2
    assert len(set(calls)) == 1
    assert len([charge for charge in sessions(platform) if charge == f"c-{checkout_id}"]) == 1
    platform.pay(payment)
    assert platform.client.wait_for_payment(checkout_id).payment_state == PAID


def test_a_buyer_who_returns_sees_the_truth_before_any_webhook(unpolled: HostedPlatform) -> None:
    """RefreshBuyerStatus looks up the page when it is asked to, and waits until the payment is
    booked; else it shows what is stored.
    """
    payment = unpolled.create("10.00", "2.50")
    token = payment.status_url.rpartition("/")[2]
    assert payment.status_url == f"http://{unpolled.served.settings.http.listen}/p/{token}"

    def status(*, look_up: bool) -> payment_pb2.BuyerStatus:
        request = pb.RefreshBuyerStatusRequest(status_token=token, look_up=look_up)
        return unpolled.client.payment.RefreshBuyerStatus(request).buyer_status

    waiting = status(look_up=True)
    assert waiting.payment_state == OPEN
    assert waiting.pending_reason == BUYER_ACTION
    assert waiting.next_action_url == payment.hosted_page.url
    assert waiting.resolve_by_time == payment.expire_time
    requested = [(item.amount, item.currency) for item in waiting.requested_amounts]
    assert requested == [("12.50", "EUR")]
    assert not waiting.paid_amounts
    unpolled.pay(payment)
    assert status(look_up=False).payment_state == OPEN
    paid = status(look_up=True)
    assert paid.payment_state == PAID
    assert [(item.amount, item.currency) for item in paid.paid_amounts] == [("12.50", "EUR")]
    assert paid.success_url == f"{SHOP}/thanks?order=7"


def test_a_status_link_is_found_by_its_token_alone(unpolled: HostedPlatform) -> None:
    """An unknown, a near, an expired and a revoked token are all not found; a new link has another
    token.
    """
    client = unpolled.client
    payment = unpolled.create()
    token = payment.status_url.rpartition("/")[2]
    near = token[:-1] + ("0" if token[-1] != "0" else "1")
    for wrong in ("", near, "0" * 32, "x" * 10_000, payment.checkout_id):
        with pytest.raises(NotFoundError, match="There is no status page of this link"):
            client.payment.RefreshBuyerStatus(pb.RefreshBuyerStatusRequest(status_token=wrong))
    again = client.payment.CreateStatusLink(
        pb.CreateStatusLinkRequest(checkout_id=payment.checkout_id)
    )
    assert again.status_url == payment.status_url
    request = pb.RevokeStatusLinkRequest(checkout_id=payment.checkout_id)
    for _ in range(2):
        client.payment.RevokeStatusLink(request)
    with pytest.raises(NotFoundError):
        client.payment.RefreshBuyerStatus(pb.RefreshBuyerStatusRequest(status_token=token))
    assert not client.get_payment(payment.checkout_id).status_url
    new = client.payment.CreateStatusLink(
        pb.CreateStatusLinkRequest(checkout_id=payment.checkout_id)
    )
    assert new.status_url != payment.status_url
    assert client.get_payment(payment.checkout_id).status_url == new.status_url
    lifetime = new.expire_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < lifetime <= timedelta(days=30)


def test_a_token_payment_gets_a_status_link_on_request(unpolled: HostedPlatform) -> None:
    """A payment without a hosted page has no link until one is created."""
    order = new_order(unique_id("o"), "buyer-1", unique_id("s"), "3.00", "EUR")
    payment = unpolled.client.create_payment(
        unique_id("c"), [order], credit_card_info="pm_card_visa"
    )
    assert not payment.status_url
    assert not payment.HasField("hosted_page")
    link = unpolled.client.payment.CreateStatusLink(
        pb.CreateStatusLinkRequest(checkout_id=payment.checkout_id)
    )
    token = link.status_url.rpartition("/")[2]
    status = unpolled.client.payment.RefreshBuyerStatus(
        pb.RefreshBuyerStatusRequest(status_token=token)
    )
    assert status.buyer_status.payment_state == PAID
    assert not status.buyer_status.success_url


def test_no_event_has_the_link_to_a_status_page(platform: HostedPlatform) -> None:
    """The events of a payment have its page as requested, and no link: many can read them."""
    payment = platform.create()
    platform.pay(payment)
    platform.client.wait_for_payment(payment.checkout_id)
    aggregate = f"payments/{payment.checkout_id}"
    assert eventually(lambda: event_versions(platform.client, aggregate) == [1, 2])
    for event in platform.client.events(aggregate_id=aggregate):
        assert event.payment.hosted_page.cancel_url == f"{SHOP}/basket"
        assert not event.payment.status_url
        assert payment.status_url.rpartition("/")[2] not in str(event)
