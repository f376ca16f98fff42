"""The look-alike on loopback, with Stripe's own client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import stripe
from stripe import StripeClient

from tallystick_sandbox.stripe.context import StripeRules
from tallystick_sandbox.stripe.sandbox import StripeSandbox
from tallystick_sandbox.stripe.server import create_app
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


@asynccontextmanager
async def look_alike(
    databases: DatabaseUrls, rules: StripeRules | None = None, **options: Any
) -> AsyncIterator[LookAlike]:
    """Serves the look-alike until the block ends."""
    database = Database(databases.service("sandbox"), connections=4)
    sandbox = StripeSandbox(database, rules, **options)
    transport: Any = stripe.HTTPXClient(timeout=httpx.Timeout(20, connect=3))
    try:
        async with serve_app(create_app(sandbox)) as url:
            addresses: Any = dict.fromkeys(("api", "connect", "files", "meter_events"), url)
            client = StripeClient(
                API_KEY, http_client=transport, max_network_retries=0, base_addresses=addresses
            )
            yield LookAlike(url, sandbox, database, client)
    finally:
        await transport.close_async()
        await asyncio.to_thread(database.close)
