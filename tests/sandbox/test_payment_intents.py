"""PaymentIntents of the Stripe look-alike, through Stripe's own client."""

from __future__ import annotations

import asyncio

import pytest
import stripe

from tallystick_server.app.database.connections import DatabaseUrls
from tests.sandbox.harness import look_alike
from tests.support.platform import unique_id


def test_a_key_charges_once(database: DatabaseUrls) -> None:
    """A repeat of a key is answered with the first result, and takes nothing."""

    async def run() -> None:
        async with look_alike(database) as server:
            key = unique_id("k")
            first = await server.pay(idempotency_key=key)
            assert first.status == "succeeded"
            assert first.amount_received == 1000
            second = await server.pay(idempotency_key=key)
            assert second.id == first.id
            assert second.last_response.headers["Idempotent-Replayed"] == "true"
            assert "Idempotent-Replayed" not in first.last_response.headers
            with pytest.raises(stripe.IdempotencyError):
                await server.pay(idempotency_key=key, amount=1001)

    asyncio.run(run())


def test_a_retrieved_intent_has_its_fee(database: DatabaseUrls) -> None:
    """The balance transaction of a charge is not in the answer to the creation, and is in that to a
    later lookup, with amount, fee and net.
    """

    async def run() -> None:
        async with look_alike(database) as server:
            expand = ["latest_charge.balance_transaction"]
            created = await server.pay(parameters={"expand": expand})
            assert created.latest_charge.balance_transaction is None
            found = await server.client.v1.payment_intents.retrieve_async(
                created.id, {"expand": expand}
            )
            transaction = found.latest_charge.balance_transaction
            assert (transaction.amount, transaction.fee, transaction.net) == (1000, 40, 960)

    asyncio.run(run())
