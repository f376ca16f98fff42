"""The look-alike of Stripe under the control of the contract, in this process and over HTTP."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import psycopg
from aiohttp import web

from tallystick_core.provider.payment_provider import ChargeRequest, PaymentProvider
from tallystick_core.provider.payout_provider import PayoutProvider, PayoutRequest
from tallystick_core.provider.webhook import WebhookSource
from tallystick_sandbox.stripe.server import create_app
from tallystick_sandbox.stripe.webhooks import ACCOUNT_SECRET, CONNECT_SECRET, sign
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.providers.stripe.charges import StripeCharges
from tallystick_server.providers.stripe.client import StripeApi
from tallystick_server.providers.stripe.payouts import StripePayouts
from tallystick_server.providers.stripe.settings import StripeSettings
from tallystick_server.providers.stripe.webhooks import StripeWebhooks
from tallystick_storage.database import Database
from tests.providers.contract import Answer
from tests.providers.contract_webhooks import Delivery
from tests.providers.faulty_server import FaultyServer
from tests.providers.sandbox_harness import TERMS
from tests.providers.stripe_sandbox import API_KEY, ENDPOINTS, ChangedSandbox
from tests.support.platform import free_address, unique_id
from tests.support.stripe_transport import InProcessTransport

_METHODS = {
    Answer.SUCCEEDS: "ok",
    Answer.DECLINES: "decline",
    Answer.REJECTS: "amount_too_small",
    Answer.PENDING: "pending:action",  # Stripe cancels no payment that is processing
    Answer.PENDING_THEN_SUCCEEDS: "pending:paid",
    Answer.PENDING_THEN_DECLINES: "pending:declined",
    Answer.LOST_BEFORE: "lost_before",
    Answer.LOST_AFTER: "lost_after",
    Answer.ERROR_BEFORE: "error_before",
    Answer.ERROR_AFTER: "error_after",
    Answer.ERROR_REPLAYED: "error_stored",
    Answer.THROTTLED: "busy",
    Answer.UNAUTHORIZED: "forbidden",
    Answer.MALFORMED: "rejected",
    Answer.OTHER_AMOUNT: "other_amount",
    Answer.OTHER_CURRENCY: "ok",
    Answer.OTHER_OPERATION: "ok",
    Answer.SILENT: "delay:60000",
}
"""The payment method of the look-alike for each answer."""
_ACCOUNTS = {
    Answer.DECLINES: "decline:balance_insufficient",
    Answer.REJECTS: "amount_too_small",
    Answer.ERROR_REPLAYED: "error_stored",
    Answer.OTHER_AMOUNT: "other_amount",
    Answer.SILENT: "delay:60000",
    Answer.ACCOUNT_REJECTED: "decline:account_closed",
    Answer.IN_PROGRESS: "slow",
    Answer.RETURNED: "returned",
}
"""The connected account of the look-alike for each answer to a payout; every other one is paid."""


@dataclass
class StripeHarness:
    """A look-alike in this process."""

    databases: DatabaseUrls
    sandbox: ChangedSandbox
    transport: InProcessTransport | None
    charges: PaymentProvider
    payouts: PayoutProvider
    webhooks: WebhookSource
    keys: dict[str, str] = field(default_factory=dict)
    """The idempotency key of each operation."""

    def new_charge(self, answer: Answer) -> ChargeRequest:
        charge_id = unique_id("o")
        self.sandbox.changes[charge_id] = answer
        key = self.keys[charge_id] = f"test-{charge_id}-1"
        return ChargeRequest(key, charge_id, 1000, "EUR", f"pm_{_METHODS[answer]}", "CARD")

    def new_payout(self, answer: Answer) -> PayoutRequest:
        payout_id = unique_id("pay")
        self.sandbox.changes[payout_id] = answer
        key = self.keys[payout_id] = f"test-p-{payout_id}-1"
        behavior = _ACCOUNTS.get(answer, "ok")
        separator = ":" if ":" in behavior else "::"
        account = f"acct_{behavior}{separator}{payout_id}"
        return PayoutRequest(key, payout_id, 1000, "EUR", account)

    def account(self, answer: Answer) -> str:
        names = {
            Answer.SUCCEEDS: "ok",
            Answer.ACCOUNT_REJECTED: "unverified",
            Answer.PENDING_THEN_SUCCEEDS: "review",
        }
        return unique_id(f"acct_{names[answer]}::")

    async def taken(self, charge: ChargeRequest) -> list[int]:
        return await self._amounts(
            "select body->'amount_received' from stripe_object where type = 'payment_intent'"
            " and body->'metadata'->>'charge_id' = %s and body->>'status' = 'succeeded'",
            charge.charge_id,
        )

    async def paid(self, payout: PayoutRequest) -> list[int]:
        return await self._amounts(
            "select body->'amount' from stripe_object where type = 'payout'"
            " and body->'metadata'->>'payout_id' = %s"
            " and body->>'status' in ('pending', 'in_transit', 'paid')",
            payout.payout_id,
        )

    async def _amounts(self, query: str, operation_id: str) -> list[int]:
        """The amounts that the look-alike has moved, from its objects."""

        def read() -> list[int]:
            with psycopg.connect(self.databases.reader("sandbox")) as connection:
                return [amount for (amount,) in connection.execute(query, (operation_id,))]

        return await asyncio.to_thread(read)

    @asynccontextmanager
    async def unreachable_charges(self) -> AsyncIterator[PaymentProvider]:
        with self._down():
            yield self.charges

    @asynccontextmanager
    async def unreachable_payouts(self) -> AsyncIterator[PayoutProvider]:
        with self._down():
            yield self.payouts

    @asynccontextmanager
    async def unreachable_webhooks(self) -> AsyncIterator[WebhookSource]:
        with self._down():
            yield self.webhooks

    async def deliveries(self, operation_id: str) -> list[Delivery]:
        received: list[Delivery] = []

        async def receive(url: str, headers: Mapping[str, str], body: bytes) -> int:
            if operation_id.encode() in body:
                received.append(Delivery(url, headers, body))
            return 200

        deliverer = self.sandbox.deliverer(receive)
        while await deliverer.deliver_due():
            pass
        return received

    def signed(self, endpoint: str, body: bytes) -> Delivery:
        (secrets,) = (row.secrets for row in ENDPOINTS if row.url == endpoint)
        return Delivery(endpoint, {"Stripe-Signature": sign(body, secrets, int(time.time()))}, body)

    @contextmanager
    def _down(self) -> Iterator[None]:
        assert self.transport is not None
        self.transport.is_down = True
        yield
        self.transport.is_down = False


@dataclass
class HttpStripeHarness(StripeHarness):
    """A look-alike over HTTP, on a server under the control of the contract."""

    server: FaultyServer = field(kw_only=True)
    searched_key: str = ""
    """The key of the charge that was last searched."""

    def declining_with(self, code: str) -> AbstractContextManager[None]:
        async def answer(request: web.Request) -> web.StreamResponse:
            key = request.headers.get("Idempotency-Key", "")
            status, body = self._decline(request.method, request.path_qs, key, code)
            return web.Response(status=status, body=orjson.dumps(body))

        return self.server.replacing_answers(answer)

    def _decline(self, method: str, path: str, key: str, code: str) -> tuple[int, dict[str, Any]]:
        """The answer to a request that declines its operation."""
        parts = urlsplit(path)
        query = parse_qs(parts.query)
        if parts.path.startswith("/v1/accounts/"):
            requirements = {"disabled_reason": f"rejected.{code}"}
            return 200, {
                "object": "account",
                "payouts_enabled": False,
                "requirements": requirements,
            }
        if parts.path.endswith("/search"):
            (charge_id,) = re.findall(r":'(.+)'", query["query"][0])
            self.searched_key = self.keys[charge_id]
            intent = _intent("canceled", self.searched_key, code)
            return 200, {"object": "search_result", "data": [intent], "has_more": False}
        if parts.path == "/v1/transfers" and method == "GET":
            transfer = _reversed_transfer(self.keys[query["transfer_group"][0]], code)
            return 200, {"object": "list", "data": [transfer], "has_more": False}
        if method == "GET":
            return 200, _intent("canceled", self.searched_key, code)
        error = {"type": "card_error", "code": code}
        if parts.path == "/v1/payment_intents":
            error["payment_intent"] = _intent("canceled", key, code)  # type: ignore[assignment]
        return 402, {"error": error}

    @asynccontextmanager
    async def unreachable_charges(self) -> AsyncIterator[PaymentProvider]:
        async with _connected(f"http://{free_address()}") as api:
            yield StripeCharges(TERMS, api)

    @asynccontextmanager
    async def unreachable_payouts(self) -> AsyncIterator[PayoutProvider]:
        async with _connected(f"http://{free_address()}") as api:
            yield StripePayouts(TERMS, api)

    @asynccontextmanager
    async def unreachable_webhooks(self) -> AsyncIterator[WebhookSource]:
        async with _connected(f"http://{free_address()}") as api:
            yield _webhooks(api)


def _webhooks(api: StripeApi) -> StripeWebhooks:
    return StripeWebhooks(TERMS.name, settings_of(""), api)


def _intent(status: str, key: str, code: str) -> dict[str, Any]:
    return {
        "id": "pi_1",
        "object": "payment_intent",
        "status": status,
        "amount_received": 1000 if status == "succeeded" else 0,
        "currency": "eur",
        "metadata": {"key": key},
        "last_payment_error": {"code": code} if code else None,
    }


def _reversed_transfer(key: str, code: str) -> dict[str, Any]:
    reversal = {"metadata": {"outcome": "PROVIDER_DECLINED", "code": code}}
    return {
        "id": "tr_1",
        "object": "transfer",
        "amount": 1000,
        "currency": "eur",
        "created": 0,
        "reversed": True,
        "metadata": {"key": key},
        "reversals": {"object": "list", "data": [reversal]},
    }


def settings_of(url: str) -> StripeSettings:
    """The settings of an adapter that calls a look-alike."""
    return StripeSettings(
        api_key=API_KEY,
        url=url,
        webhook_secrets=(ACCOUNT_SECRET,),
        connect_webhook_secrets=(CONNECT_SECRET,),
    )


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[StripeApi]:
    api = StripeApi(settings_of(url))
    try:
        yield api
    finally:
        await api.close()


@asynccontextmanager
async def stripe_in_process(databases: DatabaseUrls) -> AsyncIterator[StripeHarness]:
    """A look-alike in this process, through the adapters that the platform uses."""
    async with _sandbox(databases) as sandbox:
        transport = InProcessTransport(sandbox)
        api = StripeApi(settings_of("http://stripe.invalid"), transport)
        charges, payouts = StripeCharges(TERMS, api), StripePayouts(TERMS, api)
        yield StripeHarness(databases, sandbox, transport, charges, payouts, _webhooks(api))


@asynccontextmanager
async def stripe_over_http(databases: DatabaseUrls) -> AsyncIterator[HttpStripeHarness]:
    """A look-alike on a server of its own, and its adapters."""
    async with _sandbox(databases) as sandbox:
        server = FaultyServer(orjson.dumps(_intent("succeeded", "", "")))
        async with (
            server.serve(create_app(sandbox, delivers=False)) as url,
            _connected(url) as api,
        ):
            charges, payouts = StripeCharges(TERMS, api), StripePayouts(TERMS, api)
            yield HttpStripeHarness(
                databases, sandbox, None, charges, payouts, _webhooks(api), server=server
            )


@asynccontextmanager
async def _sandbox(databases: DatabaseUrls) -> AsyncIterator[ChangedSandbox]:
    database = Database(databases.service("sandbox"), connections=4)
    try:
        sandbox = ChangedSandbox(database)
        await sandbox.fund()
        yield sandbox
    finally:
        await asyncio.to_thread(database.close)
