"""A platform and the Stripe look-alike as two HTTP servers, as a buyer's browser sees them."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import psycopg
from aiohttp import web

from tallystick import Client, new_order
from tallystick.payment.v1 import payment_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_sandbox.stripe.context import StripeRules
from tallystick_sandbox.stripe.sandbox import StripeSandbox
from tallystick_sandbox.stripe.server import create_app
from tallystick_sandbox.stripe.webhooks import ACCOUNT_SECRET, WebhookDeliverer, sandbox_endpoints
from tallystick_server.app.configuration import Settings, load
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.app.services import HTTP_SERVER, service_names
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tallystick_storage.database import Database
from tests.support.platform import ServedPlatform, serve_platform, unique_id

API_KEY = "sk_test_checkout_pages"
_NO_POLLS = {("", RetryReason.PENDING): RetryPolicy(RetryStrategy.FIXED, 3600, 3600, None)}


@dataclass
class CheckoutPlatform:
    """A served platform and its look-alike, whose webhooks are delivered only by `deliver`."""

    served: ServedPlatform
    client: Client
    stripe: StripeSandbox
    stripe_url: str
    shop_url: str
    _deliverer: WebhookDeliverer

    def create(self) -> payment_pb2.Payment:
        """A payment by a hosted page."""
        checkout_id = unique_id("c")
        order = new_order(f"{checkout_id}-1", "buyer-1", f"seller-{checkout_id}", "12.50", "EUR")
        page = payment_pb2.NewHostedPage(
            success_url=f"{self.shop_url}/thanks", cancel_url=f"{self.shop_url}/basket", locale="en"
        )
        return self.client.create_payment(checkout_id, [order], hosted_page=page)

    def deliver(self) -> None:
        """Delivers the webhooks that are due, and waits for their answers."""
        self.served.run_in_loop(self._deliverer.deliver_due)

    def count_charges(self, payment: payment_pb2.Payment) -> int:
        """How often the provider took the buyer's money."""
        with psycopg.connect(self.served.databases.reader("sandbox")) as connection:
            row = connection.execute(
                "select count(*) from stripe_object where type = 'charge' "
                "and (body->>'paid')::boolean and body->'metadata'->>'charge_id' = %s",
                (f"c-{payment.checkout_id}",),
            ).fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def checkout_platform(databases: DatabaseUrls) -> Iterator[CheckoutPlatform]:
    """Serves both, and a shop. A pending payment is looked up only because of a webhook, or when
    its buyer returns.
    """
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    stripe_url, shop_url = (f"http://127.0.0.1:{item.getsockname()[1]}" for item in listeners)
    database = Database(databases.service("sandbox"), connections=4)
    try:
        with serve_platform(
            databases, _settings(stripe_url, shop_url), names=(*service_names(), HTTP_SERVER)
        ) as served:
            stripe = StripeSandbox(
                database,
                StripeRules(search_lag_seconds=0.0, checkout_url=stripe_url),
                endpoints=sandbox_endpoints(f"{served.url}/webhooks/stripe", ""),
            )

            async def start() -> list[web.AppRunner]:
                apps = [create_app(stripe, delivers=False), _shop()]
                runners = [web.AppRunner(app, access_log=None) for app in apps]
                for runner, listener in zip(runners, listeners, strict=True):
                    await runner.setup()
                    await web.SockSite(runner, listener).start()
                return runners

            runners = served.run_in_loop(start)
            with served.client() as client:
                yield CheckoutPlatform(
                    served, client, stripe, stripe_url, shop_url, stripe.deliverer(_send)
                )
            for runner in runners:
                served.run_in_loop(runner.cleanup)
    finally:
        for listener in listeners:
            listener.close()
        database.close()


def _shop() -> web.Application:
    """A shop with two pages, which show their names."""

    async def show(request: web.Request) -> web.Response:
        name = request.path.strip("/")
        text = f"<!doctype html><html lang=en><title>{name}</title><main><h1>{name}</h1></main>"
        return web.Response(text=text, content_type="text/html")

    app = web.Application()
    app.router.add_get("/thanks", show)
    app.router.add_get("/basket", show)
    app.router.add_get("/favicon.ico", show)
    return app


async def _send(url: str, headers: Mapping[str, str], body: bytes) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, headers=headers, data=body) as response,
    ):
        return response.status


def _settings(stripe_url: str, shop_url: str) -> Settings:
    settings = load(
        {
            "TALLYSTICK_PROVIDERS__STRIPE__API_KEY": API_KEY,
            "TALLYSTICK_PROVIDERS__STRIPE__URL": stripe_url,
            "TALLYSTICK_PROVIDERS__STRIPE__WEBHOOK_SECRETS": ACCOUNT_SECRET,
            "TALLYSTICK_PROVIDERS__PAYMENT": "stripe",
            "TALLYSTICK_PROVIDERS__PAYOUT": "stripe",
            "TALLYSTICK_PAYMENT__RETURN_ORIGINS": f"dev={shop_url}",
        }
    )
    return settings.replace(retry=_NO_POLLS, worker__scan_interval=0.2)
