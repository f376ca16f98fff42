"""The look-alike on loopback, with Stripe's own client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx
import psycopg
import stripe
from stripe import StripeClient

from tallystick_sandbox.stripe.context import StripeRules
from tallystick_sandbox.stripe.sandbox import StripeSandbox
from tallystick_sandbox.stripe.server import create_app
from tallystick_sandbox.stripe.webhooks import WebhookEndpoint
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_storage.database import Database
from tests.support.http import serve_app

API_KEY = "sk_test_lookalike"


@dataclass
class LookAlike:
    """A server, its database and a client."""

    url: str
    sandbox: StripeSandbox
    database: Database
    client: Any
    """Stripe's client. Its types do not know what is expanded."""

    async def post(
        self, path: str, body: str | bytes = "", headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """A request as it is, without Stripe's client."""
        shared = {"Authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(base_url=self.url) as client:
            return await client.post(path, content=body, headers={**shared, **(headers or {})})

    async def control(self, name: str, **values: Any) -> dict[str, Any]:
        """A call of the control surface."""
        response = await self.post(f"/sandbox/{name}", urlencode(values))
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    async def balance(self, account: str = "") -> dict[str, int]:
        """The available balance of an account, by default of the platform, by currency."""
        options = {"stripe_account": account} if account else {}
        balance = await self.client.v1.balance.retrieve_async({}, options)
        return {item.currency: item.amount for item in balance.available}

    async def transfer(self, account: str, amount: int, **parameters: Any) -> Any:
        values = {"amount": amount, "currency": "eur", "destination": account, **parameters}
        return await self.client.v1.transfers.create_async(values)

    async def pay_out(self, account: str, amount: int, **options: Any) -> Any:
        return await self.client.v1.payouts.create_async(
            {"amount": amount, "currency": "eur"}, {"stripe_account": account, **options}
        )

    async def event_types(self, account: str = "", **parameters: Any) -> list[str]:
        """The types of the newest 100 events, the oldest first."""
        options = {"stripe_account": account} if account else {}
        page = await self.client.v1.events.list_async({"limit": 100, **parameters}, options)
        return [event.type for event in reversed(page.data)]

    async def pay(self, method: str = "pm_card_visa", amount: int = 1000, **options: Any) -> Any:
        """Creates and confirms a PaymentIntent. `options`: of the request, such as its key."""
        parameters: Any = {
            "amount": amount,
            "currency": "eur",
            "payment_method": method,
            "confirm": True,
            "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
            **options.pop("parameters", {}),
        }
        return await self.client.v1.payment_intents.create_async(parameters, options)

    async def check_out(self, amount: int = 1000, **parameters: Any) -> Any:
        """Creates a Checkout Session of one line item."""
        options = parameters.pop("options", {})
        values: Any = {
            "mode": "payment",
            "success_url": "https://shop.example/paid?session={CHECKOUT_SESSION_ID}",
            "line_items": [line_item("Blue vase", amount)],
            **parameters,
        }
        return await self.client.v1.checkout.sessions.create_async(values, options)

    async def session(self, id_: str) -> Any:
        """A Checkout Session with its PaymentIntent, its charge and its balance transaction."""
        expand = ["payment_intent.latest_charge.balance_transaction"]
        return await self.client.v1.checkout.sessions.retrieve_async(id_, {"expand": expand})


def line_item(name: str, amount: int, quantity: int = 1, currency: str = "eur") -> Any:
    price = {"currency": currency, "unit_amount": amount, "product_data": {"name": name}}
    return {"quantity": quantity, "price_data": price}


@asynccontextmanager
async def look_alike(
    databases: DatabaseUrls,
    rules: StripeRules | None = None,
    *,
    endpoints: Sequence[WebhookEndpoint] = (),
    delivers: bool = True,
) -> AsyncIterator[LookAlike]:
    """Serves the look-alike until the block ends. Without `delivers` events wait for a deliverer of
    the test's own.
    """
    database = Database(databases.service("sandbox"), connections=4)
    sandbox = StripeSandbox(database, rules, endpoints=endpoints)
    transport: Any = stripe.HTTPXClient(timeout=httpx.Timeout(20, connect=3))
    try:
        app = create_app(sandbox, delivers=delivers)
        async with serve_app(app) as url:
            addresses: Any = dict.fromkeys(("api", "connect", "files", "meter_events"), url)
            client = StripeClient(
                API_KEY, http_client=transport, max_network_retries=0, base_addresses=addresses
            )
            yield LookAlike(url, sandbox, database, client)
    finally:
        await transport.close_async()
        await asyncio.to_thread(database.close)


def set_clock(databases: DatabaseUrls, offset: str) -> None:
    """Moves the sandbox's clock forward by an interval. Only for a database of the test's own."""
    with psycopg.connect(databases.admin, autocommit=True) as connection:
        connection.execute(
            "create or replace function sandbox.clock() returns timestamptz language sql volatile "
            f"as 'select clock_timestamp() + interval ''{offset}'''"
        )
