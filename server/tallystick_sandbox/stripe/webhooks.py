"""Delivers events to webhook endpoints, signed as Stripe signs them."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson

from tallystick_sandbox.stripe.delivery_store import (
    Delivery,
    claim_deliveries,
    has_due_deliveries,
    record_tries,
)
from tallystick_sandbox.stripe.faults import NO_FAULTS, Switches, WebhookFaults
from tallystick_storage.database import Database

Send = Callable[[str, Mapping[str, str], bytes], Awaitable[int]]
"""Sends a POST with headers and a body to a URL. Returns the status, 0 if there was no answer."""

MAX_TRIES = 16
_FIRST_WAIT_SECONDS, _MAX_WAIT_SECONDS = 1.0, 36_000.0
"""Between tries, doubled each time: all of them take about a day."""
_LEASE_SECONDS = 60.0
_MAX_BATCH = 50
_FORGED_SECRET = "whsec_forged"


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """Where events are delivered. `secrets`: each signs every delivery; `is_connect`: the events of
    connected accounts instead of those of the platform.
    """

    name: str
    url: str
    secrets: tuple[str, ...]
    is_connect: bool = False


ACCOUNT_SECRET, CONNECT_SECRET = "whsec_sandbox_account", "whsec_sandbox_connect"
"""The signing secrets of the endpoints of `tallystick stripe-sandbox`."""


def sandbox_endpoints(account_url: str, connect_url: str) -> list[WebhookEndpoint]:
    """The endpoints for events of the platform and of connected accounts; "": there is none."""
    endpoints = [
        WebhookEndpoint("account", account_url, (ACCOUNT_SECRET,)),
        WebhookEndpoint("connect", connect_url, (CONNECT_SECRET,), is_connect=True),
    ]
    return [endpoint for endpoint in endpoints if endpoint.url]


def sign(body: bytes, secrets: Sequence[str], timestamp: int) -> str:
    """The header Stripe-Signature: a signature of the time and the body for each secret."""
    message = str(timestamp).encode() + b"." + body
    signatures = [hmac.new(secret.encode(), message, sha256).hexdigest() for secret in secrets]
    return ",".join([f"t={timestamp}", *(f"v1={signature}" for signature in signatures)])


class WebhookDeliverer:
    """Delivers what is due, until an endpoint answers with 2xx."""

    def __init__(
        self,
        database: Database,
        endpoints: Sequence[WebhookEndpoint],
        switches: Switches,
        send: Send,
    ) -> None:
        self._database = database
        self._endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self._switches = switches
        self._send = send

    async def deliver_due(self) -> int:
        """Sends up to 50 deliveries that are due. Returns their number."""
        if not await self._database.load(has_due_deliveries):
            return 0
        deliveries = await self._database.transact(
            lambda connection: claim_deliveries(connection, _MAX_BATCH, _LEASE_SECONDS)
        )
        is_reversed = self._switches.webhook_faults.is_reversed
        deliveries.sort(key=lambda item: item.position, reverse=is_reversed)
        rows = await asyncio.gather(*(self._try(delivery) for delivery in deliveries))
        if rows:
            await self._database.transact(
                lambda connection: record_tries(connection, rows, MAX_TRIES)
            )
        return len(rows)

    async def _try(self, delivery: Delivery) -> dict[str, Any]:
        """Sends one delivery, unless a fault delays or drops it. Returns the row to record."""
        row = {"event_id": delivery.event_id, "endpoint": delivery.endpoint}
        endpoint = self._endpoints.get(delivery.endpoint)
        faults = self._switches.webhook_faults if delivery.try_count == 0 else NO_FAULTS
        if endpoint is None or faults.has("silent", delivery.event_id):
            return row | {"status": 0, "wait": None}
        if faults.has("delayed", delivery.event_id):
            return row | {"status": 0, "wait": f"{faults.delay_seconds} seconds"}
        status = await self._send_with_faults(delivery, endpoint, faults)
        wait = min(_FIRST_WAIT_SECONDS * 2**delivery.try_count, _MAX_WAIT_SECONDS)
        return row | {"status": status, "wait": f"{wait} seconds"}

    async def _send_with_faults(
        self, delivery: Delivery, endpoint: WebhookEndpoint, faults: WebhookFaults
    ) -> int:
        """Sends the event, after a forged one and twice if the faults say so."""
        body = orjson.dumps(delivery.body, option=orjson.OPT_INDENT_2)
        timestamp = int(delivery.now.timestamp())
        signature = sign(body, endpoint.secrets, timestamp)
        if faults.has("forged", delivery.event_id):
            await self._post(endpoint, body, sign(body, [_FORGED_SECRET], timestamp))
        if faults.has("duplicate", delivery.event_id):
            await self._post(endpoint, body, signature)
        return await self._post(endpoint, body, signature)

    async def _post(self, endpoint: WebhookEndpoint, body: bytes, signature: str) -> int:
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature,
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }
        return await self._send(endpoint.url, headers, body)
