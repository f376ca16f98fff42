"""What a buyer sees of a payment by a page, and how often its provider is asked for it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlencode

import orjson
import pytest

from tallystick import InvalidArgumentError, new_order
from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1 import payment_service_pb2 as pb
from tallystick_core.payment.routing import RoutingRule
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.providers.stripe.client import RequestBody
from tests.fakes.payment_provider import PageProvider, SandboxProvider
from tests.support.charges import failure_reason, sandbox_database, serve_sandboxes
from tests.support.hosted_pages import (
    API_KEY,
    NO_POLLS,
    SHOP,
    HostedPlatform,
    hosted_platform,
    page,
)
from tests.support.platform import eventually, unique_id
from tests.support.webhooks import new_event, receive, wait_for_event

BUYER_ACTION = payment_pb2.PENDING_REASON_BUYER_ACTION
PAID = payment_pb2.PAYMENT_STATE_PAID
ORIGINS = {"dev": frozenset({SHOP})}


def status_of(
    platform: HostedPlatform, payment: payment_pb2.Payment, *, look_up: bool = False
) -> payment_pb2.BuyerStatus:
    token = payment.status_url.rpartition("/")[2]
    request = pb.RefreshBuyerStatusRequest(status_token=token, look_up=look_up)
    return platform.client.payment.RefreshBuyerStatus(request).buyer_status


@contextmanager
def counted_calls(
    platform: HostedPlatform, answer_500: str = "never"
) -> Iterator[list[tuple[str, str]]]:
    """The method and path of each call to the provider. Those whose path ends with `answer_500`
    are answered by a server error.
    """
    calls: list[tuple[str, str]] = []
    send = platform.transport.send

    async def count(
        method: str, url: str, headers: Mapping[str, str], body: RequestBody
    ) -> tuple[int, Mapping[str, str], bytes]:
        path = url.removeprefix("http://stripe.invalid").partition("?")[0]
        calls.append((method.upper(), path))
        if path.endswith(answer_500):
            return 500, {}, b'{"error": {"type": "api_error"}}'
        return await send(method, url, headers, body)

    platform.transport.send = count  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        platform.transport.send = send  # type: ignore[method-assign]


def test_many_returns_to_one_payment_ask_the_provider_a_few_times(
    scratch_database: DatabaseUrls,
) -> None:
    """Sixty simultaneous requests share a lookup each second; the others show what is stored."""
    with hosted_platform(scratch_database, retry=NO_POLLS) as platform:
        payment = platform.create()
        with counted_calls(platform) as calls, ThreadPoolExecutor(60) as pool:
            statuses = list(
                pool.map(lambda _: status_of(platform, payment, look_up=True), range(60))
            )
        assert all(status.pending_reason == BUYER_ACTION for status in statuses)
        assert 1 <= len(calls) <= 4
        with counted_calls(platform) as calls:
            start = time.monotonic()
            for _ in range(2):
                status_of(platform, payment, look_up=True)
            assert len(calls) == 2
            assert time.monotonic() - start >= 1.0


def test_a_page_that_is_being_closed_is_no_longer_offered(scratch_database: DatabaseUrls) -> None:
    """The payment is cancelled, and the provider cannot close the page: neither GetPayment nor the
    status page leads to it. What is paid there all the same counts.
    """
    with hosted_platform(scratch_database) as platform:
        payment = platform.create()
        request = pb.CancelPaymentRequest(checkout_id=payment.checkout_id, reason="changed")
        with counted_calls(platform, answer_500="/expire") as calls:
            cancelled = platform.client.payment.CancelPayment(request, timeout=2).payment
            assert eventually(lambda: calls)
            assert cancelled.payment_state == payment_pb2.PAYMENT_STATE_OPEN
            assert not platform.client.get_payment(payment.checkout_id).hosted_page.url
            status = status_of(platform, payment)
            assert not status.pending_reason
            assert not status.next_action_url
            platform.pay(payment)
        assert platform.client.wait_for_payment(payment.checkout_id).payment_state == PAID


def test_a_page_is_sent_only_to_a_provider_that_hosts_it(scratch_database: DatabaseUrls) -> None:
    """The provider is chosen for the orders that pass the risk rules, and that choice counts."""
    rule = RoutingRule(
        name="large", provider="pages", min_amount=5_000, currencies=frozenset({"EUR"})
    )
    settings = Settings().replace(
        routing=(rule,), risk__amount_limits={"EUR": 5_000}, payment__return_origins=ORIGINS
    )
    with (
        sandbox_database(scratch_database) as database,
        serve_sandboxes(
            scratch_database,
            settings,
            SandboxProvider(database),
            PageProvider(database, "pages"),
        ) as served,
        served.client() as client,
    ):
        orders = [
            new_order(unique_id("o"), "buyer-1", "seller-1", amount, "EUR")
            for amount in ("10.00", "80.00")
        ]
        with pytest.raises(InvalidArgumentError, match="sandbox, hosts no pages"):
            client.create_payment(unique_id("c"), orders, hosted_page=page())
        assert not client.payment.ListPayments(pb.ListPaymentsRequest()).payments


def test_an_order_that_a_risk_rule_rejects_is_not_asked_for(scratch_database: DatabaseUrls) -> None:
    """The buyer pays for the others, and the status page asks for their sum."""
    limits = {"EUR": 5_000}
    with hosted_platform(scratch_database, risk__amount_limits=limits) as platform:
        payment = platform.create("10.00", "80.00")
        assert {failure_reason(order) for order in payment.payment_orders} == {
            "UNSPECIFIED",
            "RISK_AMOUNT_LIMIT",
        }
        requested = status_of(platform, payment).requested_amounts
        assert [(item.amount, item.currency) for item in requested] == [("10.00", "EUR")]


def test_an_event_about_another_session_of_the_charge_ends_nothing(
    scratch_database: DatabaseUrls,
) -> None:
    """A registration whose answer was lost may leave a second session, which nobody can pay. Its
    expiry says nothing about the stored page.
    """
    with hosted_platform(scratch_database, retry=NO_POLLS) as platform:
        payment = platform.create()
        other = post(
            platform,
            "/v1/checkout/sessions",
            **{
                "mode": "payment",
                "success_url": SHOP,
                "line_items[0][quantity]": "1",
                "line_items[0][price_data][currency]": "eur",
                "line_items[0][price_data][unit_amount]": "1250",
                "line_items[0][price_data][product_data][name]": "Order",
                "metadata[charge_id]": f"c-{payment.checkout_id}",
                "metadata[key]": f"dev-c-{payment.checkout_id}-1",
            },
        )["id"]
        assert other != platform.session_id(payment)
        post(platform, f"/v1/checkout/sessions/{other}/expire")
        event = new_event(
            provider="stripe", reference=other, client_reference=f"c-{payment.checkout_id}"
        )
        receive(platform.client.payment, event)
        wait_for_event(platform.client.payment, event, "APPLIED")
        current = platform.client.get_payment(payment.checkout_id)
        assert current.hosted_page.url == payment.hosted_page.url
        platform.pay(payment)
        assert status_of(platform, payment, look_up=True).payment_state == PAID


def post(platform: HostedPlatform, path: str, **form: str) -> dict[str, str]:
    """The look-alike's answer to a request."""
    headers = {"Authorization": f"Bearer {API_KEY}"}
    answer = platform.served.run_in_loop(
        platform.stripe.handle, "POST", path, headers, urlencode(form).encode()
    )
    assert answer.status == 200, answer
    body: dict[str, str] = orjson.loads(answer.body)
    return body
