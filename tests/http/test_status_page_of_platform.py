"""The buyer's status page of payments of a running platform."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import httpx
import pytest

from tallystick import Client
from tallystick.payment.v1 import payment_pb2
from tallystick.payment.v1.payment_service_pb2 import (
    CreateStatusLinkRequest,
    RevokeStatusLinkRequest,
)
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tests.support.payments import create_payment
from tests.support.platform import ServedPlatform, eventually, serve_platform

NAMES = (*service_names(), HTTP_SERVER)
RARE_POLLS = {("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 600, 600, None)}


@pytest.fixture(scope="module")
def platform(database: DatabaseUrls) -> Iterator[ServedPlatform]:
    """A platform that learns the outcome of a pending charge only by a lookup for its buyer."""
    with serve_platform(database, Settings().replace(retry=RARE_POLLS), NAMES) as served:
        yield served


@pytest.fixture(scope="module")
def client(platform: ServedPlatform) -> Iterator[Client]:
    with platform.client() as sdk_client:
        yield sdk_client


def status_url(client: Client, payment: payment_pb2.Payment) -> str:
    request = CreateStatusLinkRequest(checkout_id=payment.checkout_id)
    return client.payment.CreateStatusLink(request).status_url


def read(url: str) -> tuple[int, str]:
    response = httpx.get(url, headers={"Accept-Language": "en"}, timeout=30)
    return response.status_code, response.text


@pytest.mark.parametrize(
    ("token", "title"),
    [
        ("tok_pending:action-paid", "Thank you for your payment"),
        ("tok_pending:action-declined", "Your payment was declined"),
    ],
)
def test_a_buyer_who_returns_sees_the_outcome_before_the_platform_polls_it(
    client: Client, token: str, title: str
) -> None:
    """The page waits for the buyer; with `returned` the provider is asked. The page shows no id of
    the payment.
    """
    payment = create_payment(client, "12.50", token=token)
    url = status_url(client, payment)
    for _ in range(2):  # a read does not ask the provider
        status, waiting = read(url)
        assert status == 200
        assert "Your payment is not finished yet" in waiting
        assert payment.payment_orders[0].next_action_url in waiting
        assert "€12.50" in waiting
    _, returned = read(f"{url}?returned")
    assert "Your payment is not finished yet" not in returned
    assert eventually(lambda: title in read(url)[1])  # once it is booked
    order = payment.payment_orders[0]
    for secret in (payment.checkout_id, order.buyer_account, order.seller_account):
        assert secret not in waiting + returned


def test_a_paid_and_a_failed_payment_have_their_words(client: Client) -> None:
    paid = create_payment(client, "1.00", "2.00")
    _, text = read(status_url(client, paid))
    assert "Thank you for your payment" in text
    assert "€3.00" in text
    failed = create_payment(client, "5.00", token="tok_decline:insufficient_funds")
    _, text = read(status_url(client, failed))
    assert "not enough money" in text
    assert "You have not been charged." in text


def test_a_reviewed_payment_waits_although_its_buyer_returns(client: Client) -> None:
    payment = create_payment(client, "5.00", token="tok_pending:review")
    _, text = read(f"{status_url(client, payment)}?returned")
    assert "Your payment is being reviewed" in text
    assert "data-refreshes" in text


def test_a_revoked_link_is_not_found(client: Client) -> None:
    payment = create_payment(client, "5.00")
    url = status_url(client, payment)
    assert read(url)[0] == 200
    client.payment.RevokeStatusLink(RevokeStatusLinkRequest(checkout_id=payment.checkout_id))
    status, text = read(url)
    assert (status, "This link does not work" in text) == (404, True)


def test_logs_of_the_platform_have_no_token(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """At the level DEBUG, of all parts of the platform, also for a link that does not exist."""
    url = status_url(client, create_payment(client, "5.00", token="tok_pending:action-paid"))
    token = url.rpartition("/")[2]
    unknown = token[::-1]
    loggers = [name for name in logging.root.manager.loggerDict if name.startswith("httpcore")]
    with caplog.at_level(logging.DEBUG):
        for name in ("httpx", *loggers):  # those of the test
            caplog.set_level(logging.WARNING, name)
        assert read(url)[0] == read(f"{url}?returned")[0] == 200
        assert read(url.replace(token, unknown))[0] == 404
    assert token not in caplog.text
    assert unknown not in caplog.text
