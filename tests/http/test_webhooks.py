"""The endpoint of webhooks: signatures, sizes, storing and answers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import orjson
import pytest

from tallystick import Client
from tallystick.operator.v1 import operator_pb2
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.app.wiring import Dependencies
from tests.fakes.webhook_source import SignedWebhookSource, sign
from tests.support.platform import ServedPlatform, serve_platform, unique_id, unreachable_database

NAMES = (*service_names(), HTTP_SERVER)
DEPENDENCIES = Dependencies(webhook_sources={"sandbox": SignedWebhookSource()})


@pytest.fixture(scope="module")
def platform(database: DatabaseUrls) -> Iterator[ServedPlatform]:
    with serve_platform(database, Settings(), NAMES, DEPENDENCIES) as served:
        yield served


@pytest.fixture(scope="module")
def client(platform: ServedPlatform) -> Iterator[Client]:
    with platform.client() as sdk_client:
        yield sdk_client


def event_body(**values: Any) -> bytes:
    fields = {
        "event_id": unique_id("evt"),
        "event_type": "customer.created",
        "subject": "other",
        "time": 1_700_000_000,
    }
    return orjson.dumps(fields | values)


def post(
    platform: ServedPlatform, body: bytes, headers: dict[str, str], path: str = "/webhooks/sandbox"
) -> httpx.Response:
    return httpx.post(f"{platform.url}{path}", content=body, headers=headers, timeout=30)


def stored_events(client: Client, reference: str) -> list[operator_pb2.WebhookEvent]:
    """The events about an object, in both services."""
    request = operator_pb2.ListWebhookEventsRequest(reference=reference)
    return [
        event
        for stub in (client.payment, client.payout)
        for event in stub.ListWebhookEvents(request).webhook_events
    ]


def reason_of(response: httpx.Response) -> str:
    return str(response.json()["details"][0]["reason"])


def test_a_signed_webhook_is_stored_before_it_is_answered(
    platform: ServedPlatform, client: Client
) -> None:
    """The answer 200 says that the event is stored, by the service that its subject belongs to."""
    for subject, stub in (("other", client.payment), ("payout", client.payout)):
        body = event_body(reference=unique_id("ob"), subject=subject)
        response = post(platform, body, sign(body))
        assert (response.status_code, response.json()) == (200, {})
        request = operator_pb2.ListWebhookEventsRequest(reference=orjson.loads(body)["reference"])
        (event,) = stub.ListWebhookEvents(request).webhook_events
        assert (event.provider, event.event_type) == ("sandbox", "customer.created")


def test_each_endpoint_of_a_provider_has_its_path(platform: ServedPlatform, client: Client) -> None:
    """An event of the second endpoint is stored as one; a path without an endpoint does not
    exist.
    """
    body = event_body(reference=unique_id("ob"))
    assert post(platform, body, sign(body), "/webhooks/sandbox/connect").status_code == 200
    (event,) = stored_events(client, orjson.loads(body)["reference"])
    assert event.account == "connect"
    for path in ("/webhooks/other", "/webhooks/sandbox/other", "/webhooks"):
        response = post(platform, body, sign(body), path)
        assert (response.status_code, reason_of(response)) == (404, "NOT_FOUND")


@pytest.mark.parametrize("case", ["no signature", "other secret", "re-encoded body"])
def test_a_forged_webhook_is_rejected(platform: ServedPlatform, client: Client, case: str) -> None:
    """H1: 400, and nothing is stored: without a signature, with another secret's, and for a body
    whose bytes are not those that were signed.
    """
    reference = unique_id("ob")
    body = event_body(reference=reference)
    headers = {
        "no signature": {},
        "other secret": sign(body, b"another"),
        "re-encoded body": sign(orjson.dumps(orjson.loads(body), option=orjson.OPT_INDENT_2)),
    }[case]
    response = post(platform, body, headers)
    assert (response.status_code, reason_of(response)) == (400, "CREDENTIALS_INVALID")
    assert response.json()["message"] == (
        "The webhook must have a current signature of the provider."
    )
    assert stored_events(client, reference) == []


def test_a_huge_webhook_is_rejected(platform: ServedPlatform) -> None:
    """A body of 10 MiB is answered 413, and never held in memory as a whole."""
    body = b" " * (10 * 1024 * 1024)
    response = post(platform, body, sign(body))
    assert (response.status_code, reason_of(response)) == (413, "MESSAGE_TOO_LARGE")


def test_a_signed_webhook_that_cannot_be_read_is_delivered_again(
    platform: ServedPlatform,
) -> None:
    """500, not 400: the provider repeats it until an adapter that knows its form is deployed."""
    for body in (b"not json", b"[]", b"{}", event_body(subject="moon")):
        response = post(platform, body, sign(body))
        assert (response.status_code, reason_of(response)) == (500, "INTERNAL")


def test_a_hundred_deliveries_at_once_are_one_event(
    platform: ServedPlatform, client: Client
) -> None:
    """Each delivery is answered 200, and the event is stored once."""
    reference = unique_id("ob")
    body = event_body(reference=reference)
    with ThreadPoolExecutor(20) as threads:
        responses = list(threads.map(lambda _: post(platform, body, sign(body)), range(100)))
    assert {response.status_code for response in responses} == {200}
    assert len(stored_events(client, reference)) == 1


def test_an_event_that_the_service_rejects_does_not_hold_up_others(
    platform: ServedPlatform, client: Client
) -> None:
    """Of many webhooks that come together, those with an id that looks like a card number are
    answered 503; the others are stored.
    """
    reference = unique_id("ob")
    bodies = [
        event_body(event_id="4242424242424242")
        if number % 10 == 0
        else event_body(reference=reference)
        for number in range(60)
    ]
    with ThreadPoolExecutor(20) as threads:
        responses = list(threads.map(lambda body: post(platform, body, sign(body)), bodies))
    assert [response.status_code for response in responses] == [503, *[200] * 9] * 6
    assert reason_of(responses[0]) == "DEPENDENCY_UNAVAILABLE"
    request = operator_pb2.ListWebhookEventsRequest(reference=reference, page_size=200)
    assert len(client.payment.ListWebhookEvents(request).webhook_events) == 54


def test_a_provider_without_secrets_is_a_warning_at_the_start(
    database: DatabaseUrls, caplog: pytest.LogCaptureFixture
) -> None:
    """Its results come late, by lookups. An operator who forgot the secrets sees why."""
    source = SignedWebhookSource()
    source.endpoints = ()
    dependencies = Dependencies(webhook_sources={"sandbox": source})
    with serve_platform(database, Settings(), NAMES, dependencies) as platform:
        assert post(platform, b"{}", sign(b"{}")).status_code == 404
    (record,) = [r for r in caplog.records if r.name == "tallystick_server.http.webhooks"]
    assert "no webhooks of sandbox are accepted" in record.message


def test_while_the_database_is_down_a_webhook_is_answered_503(
    scratch_database: DatabaseUrls,
) -> None:
    """Nothing is stored, and the provider is asked to deliver it again; then it is stored."""
    settings = Settings().replace(database__startup_timeout=1.0)
    with (
        serve_platform(scratch_database, settings, NAMES, DEPENDENCIES) as platform,
        platform.client() as client,
    ):
        body = event_body(reference=unique_id("ob"))
        with unreachable_database(scratch_database):
            response = post(platform, body, sign(body))
        assert (response.status_code, reason_of(response)) == (503, "DEPENDENCY_UNAVAILABLE")
        assert response.headers["Retry-After"] == "5"
        assert post(platform, body, sign(body)).status_code == 200
        assert len(stored_events(client, orjson.loads(body)["reference"])) == 1
