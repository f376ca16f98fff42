"""Events of the Stripe look-alike, and their signed deliveries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
import stripe
from aiohttp import web
from stripe import WebhookSignature

from tallystick_sandbox.stripe.webhooks import WebhookDeliverer, WebhookEndpoint
from tallystick_server.app.database.connections import DatabaseUrls
from tests.sandbox.harness import LookAlike, look_alike, set_clock
from tests.support.http import serve_app

ACCOUNT = WebhookEndpoint("account", "http://receiver/account", ("whsec_a", "whsec_old"))
CONNECT = WebhookEndpoint("connect", "http://receiver/connect", ("whsec_c",), is_connect=True)


@dataclass
class Receiver:
    """Receives deliveries in the process. `answer` decides the status of each."""

    answer: Callable[[dict[str, Any]], int] = lambda _event: 200
    deliveries: list[tuple[str, str, bytes]] = field(default_factory=list)

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        self.deliveries.append((url, headers["Stripe-Signature"], body))
        return self.answer(orjson.loads(body))

    @property
    def types(self) -> list[str]:
        return [orjson.loads(body)["type"] for _, _, body in self.deliveries]


def _deliverer(server: LookAlike, receiver: Receiver) -> WebhookDeliverer:
    return server.sandbox.deliverer(receiver.send)


def test_events_are_those_of_stripe(scratch_database: DatabaseUrls) -> None:
    """Each change of a payment has an event with the object as it was then. The newest event is
    the first of the list; starting_after and created select a part.
    """

    async def run() -> None:
        async with look_alike(scratch_database) as server:
            intent = await server.pay(idempotency_key="k")
            events = server.client.v1.events
            page = await events.list_async({"limit": 100})
            assert [event.type for event in page.data[::-1]][:3] == [
                "payment_intent.created",
                "charge.succeeded",
                "payment_intent.succeeded",
            ]
            first = page.data[-1]
            assert first.data.object.id == intent.id
            assert first.data.object.status == "requires_confirmation"
            assert first.request.idempotency_key == "k"
            later = await events.list_async(
                {"limit": 100, "starting_after": page.data[0].id, "created": {"gte": first.created}}
            )
            assert [event.id for event in later.data] == [event.id for event in page.data[1:]]
            none = await events.list_async({"created": {"gt": first.created + 60}})
            assert none.data == []
            selected = await events.list_async({"types": ["charge.succeeded"]})
            assert [event.type for event in selected.data] == ["charge.succeeded"]
            found = await events.retrieve_async(first.id)
            assert found.data.object.id == intent.id

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "types"),
    [
        ("pm_card_chargeDeclined", ["charge.failed", "payment_intent.payment_failed"]),
        ("pm_pending:action", ["payment_intent.requires_action"]),
        (
            "pm_pending:review",
            ["payment_intent.processing", "charge.failed", "payment_intent.payment_failed"],
        ),
    ],
)
def test_each_outcome_has_its_events(
    scratch_database: DatabaseUrls, method: str, types: list[str]
) -> None:
    async def run() -> None:
        async with look_alike(scratch_database) as server:
            try:
                intent_id = (await server.pay(method)).id
            except stripe.CardError as declined:
                assert declined.error is not None
                assert declined.error.payment_intent is not None
                intent_id = declined.error.payment_intent.id
            if method == "pm_pending:review":  # what is processing cannot be cancelled
                await server.control("advance", id=intent_id, status="declined")
            await server.client.v1.payment_intents.cancel_async(intent_id)
            assert await server.event_types() == [
                "payment_intent.created",
                *types,
                "payment_intent.canceled",
            ]

    asyncio.run(run())


def test_deliveries_are_signed_for_their_endpoint(scratch_database: DatabaseUrls) -> None:
    """The events of the platform go to its endpoint, those of connected accounts to the other one,
    with the account in them. Each is signed with every secret of its endpoint.
    """

    async def run() -> None:
        endpoints = (ACCOUNT, CONNECT)
        async with look_alike(scratch_database, endpoints=endpoints, delivers=False) as server:
            receiver = Receiver()
            await server.pay(amount=5000)
            await server.transfer("acct_ok", 1000)
            await server.pay_out("acct_ok", 1000)
            await _deliverer(server, receiver).deliver_due()
            assert receiver.types
            for url, signature, body in receiver.deliveries:
                event = orjson.loads(body)
                endpoint = CONNECT if "account" in event else ACCOUNT
                assert url == endpoint.url
                assert event.get("account", "acct_ok") == "acct_ok"
                for secret in endpoint.secrets:
                    WebhookSignature.verify_header(body.decode(), signature, secret, tolerance=300)
                with pytest.raises(stripe.SignatureVerificationError):
                    WebhookSignature.verify_header(body.decode(), signature, "whsec_x")
            connect = [
                orjson.loads(body)["type"]
                for url, _, body in receiver.deliveries
                if url == CONNECT.url
            ]
            assert connect == ["payout.created"]

    asyncio.run(run())


def test_a_delivery_is_repeated_until_it_is_accepted(scratch_database: DatabaseUrls) -> None:
    """An event whose endpoint fails is sent again, each time later, and not after a 2xx."""

    async def run() -> None:
        async with look_alike(scratch_database, endpoints=(ACCOUNT,), delivers=False) as server:
            receiver = Receiver(answer=lambda _event: 500)
            deliverer = _deliverer(server, receiver)
            await server.client.v1.payment_intents.create_async({"amount": 50, "currency": "eur"})
            assert await deliverer.deliver_due() == 1
            assert await deliverer.deliver_due() == 0
            set_clock(scratch_database, "2 seconds")
            assert await deliverer.deliver_due() == 1
            set_clock(scratch_database, "3 seconds")
            assert await deliverer.deliver_due() == 0
            receiver.answer = lambda _event: 200
            set_clock(scratch_database, "1 hour")
            assert await deliverer.deliver_due() == 1
            set_clock(scratch_database, "100 hours")
            assert await deliverer.deliver_due() == 0
            assert len(set(receiver.deliveries[0][2:] + receiver.deliveries[2][2:])) == 1

    asyncio.run(run())


def test_a_dead_endpoint_is_given_up(scratch_database: DatabaseUrls) -> None:
    """After 16 tries an event is not sent any more, and can be sent again on request."""

    async def run() -> None:
        async with look_alike(scratch_database, endpoints=(ACCOUNT,), delivers=False) as server:
            receiver = Receiver(answer=lambda _event: 0)
            deliverer = _deliverer(server, receiver)
            await server.client.v1.payment_intents.create_async({"amount": 50, "currency": "eur"})
            for hours in range(0, 600, 20):
                set_clock(scratch_database, f"{hours} hours")
                await deliverer.deliver_due()
            assert len(receiver.deliveries) == 16
            event_id = orjson.loads(receiver.deliveries[0][2])["id"]
            await server.control(f"events/{event_id}/resend")
            assert await deliverer.deliver_due() == 1

    asyncio.run(run())


def test_deliveries_have_faults_on_request(scratch_database: DatabaseUrls) -> None:
    """Deliveries can be duplicated, forged, delayed, dropped and reversed; a forged one does not
    verify, and without faults every event is sent once.
    """

    async def run() -> None:
        async with look_alike(scratch_database, endpoints=(ACCOUNT,), delivers=False) as server:

            async def deliver(**faults: Any) -> Receiver:
                await server.control("webhook_faults", **faults)
                receiver = Receiver()
                await server.pay("pm_pending:review")
                await _deliverer(server, receiver).deliver_due()
                return receiver

            in_order = ["payment_intent.created", "payment_intent.processing"]
            assert (await deliver()).types == in_order
            assert (await deliver(reversed="true")).types == in_order[::-1]
            assert (await deliver(silent_percent=100)).types == []
            duplicated = await deliver(duplicate_percent=100)
            assert sorted(duplicated.types) == sorted(in_order * 2)
            assert len(set(duplicated.deliveries)) == 2
            forged = await deliver(forged_percent=100)
            verified = 0
            for _, signature, body in forged.deliveries:
                try:
                    WebhookSignature.verify_header(body.decode(), signature, "whsec_a")
                    verified += 1
                except stripe.SignatureVerificationError:
                    pass
            assert (len(forged.deliveries), verified) == (4, 2)
            assert (await deliver(delayed_percent=100, delay_seconds=60)).types == []
            set_clock(scratch_database, "61 seconds")
            assert sorted((await deliver()).types) == sorted(in_order * 2)

    asyncio.run(run())


def test_the_server_delivers_by_itself(scratch_database: DatabaseUrls) -> None:
    """The HTTP server posts events to its endpoints while it runs."""

    async def run() -> None:
        received: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

        async def receive(request: web.Request) -> web.Response:
            body = await request.text()
            await received.put((body, request.headers["Stripe-Signature"]))
            return web.Response()

        app = web.Application()
        app.router.add_post("/hook", receive)
        async with serve_app(app) as url:
            endpoint = WebhookEndpoint("account", f"{url}/hook", ("whsec_a",))
            async with look_alike(scratch_database, endpoints=(endpoint,)) as server:
                await server.client.v1.payment_intents.create_async(
                    {"amount": 50, "currency": "eur"}
                )
                body, signature = await asyncio.wait_for(received.get(), 20)
                event = stripe.Webhook.construct_event(body, signature, "whsec_a", tolerance=300)
                assert event["type"] == "payment_intent.created"

    asyncio.run(run())
