"""Idempotency keys of the Stripe look-alike."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import stripe

from tallystick_server.app.database.connections import DatabaseUrls
from tests.sandbox.harness import look_alike, set_clock
from tests.support.platform import unique_id


def test_a_key_charges_once(database: DatabaseUrls) -> None:
    """A repeat of a key is answered with the first result, is marked as a replay, and takes
    nothing.
    """

    async def run() -> None:
        async with look_alike(database) as server:
            key = unique_id("k")
            first = await server.pay(idempotency_key=key)
            before = await server.balance()
            second = await server.pay(idempotency_key=key)
            assert second.id == first.id
            assert second.last_response.headers["Idempotent-Replayed"] == "true"
            assert (
                second.last_response.headers["Original-Request"] == first.last_response.request_id
            )
            assert "Idempotent-Replayed" not in first.last_response.headers
            assert await server.balance() == before

    asyncio.run(run())


def test_other_parameters_under_a_key_are_rejected(database: DatabaseUrls) -> None:
    """A key that is used with other parameters, or for another path, takes nothing."""

    async def run() -> None:
        async with look_alike(database) as server:
            key = unique_id("k")
            await server.pay(idempotency_key=key)
            before = await server.balance()
            with pytest.raises(stripe.IdempotencyError) as mismatch:
                await server.pay(amount=1001, idempotency_key=key)
            assert mismatch.value.http_status == 400
            with pytest.raises(stripe.IdempotencyError):
                await server.client.v1.refunds.create_async(
                    {"payment_intent": "pi_x"}, {"idempotency_key": key}
                )
            assert await server.balance() == before

    asyncio.run(run())


def test_a_decline_is_kept(database: DatabaseUrls) -> None:
    """A declined request is not executed again: its key replays the decline."""

    async def run() -> None:
        async with look_alike(database) as server:
            key = unique_id("k")
            errors: list[Any] = []
            for _ in range(2):
                with pytest.raises(stripe.CardError) as declined:
                    await server.pay("pm_card_chargeDeclined", idempotency_key=key)
                errors.append(declined.value)
            first, second = errors
            assert first.http_status == 402
            assert first.error.payment_intent.id == second.error.payment_intent.id
            assert second.headers["Idempotent-Replayed"] == "true"

    asyncio.run(run())


def test_a_stored_server_error_is_replayed(database: DatabaseUrls) -> None:
    """A 500 that was stored is the answer to every repeat, and nothing is taken. The error alone
    does not show what became of the request: the intent exists.
    """

    async def run() -> None:
        async with look_alike(database) as server:
            key, charge_id = unique_id("k"), unique_id("c")
            for _ in range(3):
                with pytest.raises(stripe.APIError) as failed:
                    await server.pay(
                        "pm_error_stored",
                        idempotency_key=key,
                        parameters={"metadata": {"charge_id": charge_id}},
                    )
                assert failed.value.http_status == 500
            page = await server.client.v1.payment_intents.list_async({"limit": 100})
            found = [
                item for item in page.data if item.metadata.to_dict().get("charge_id") == charge_id
            ]
            assert [item.status for item in found] == ["requires_payment_method"]

    asyncio.run(run())


def test_an_invalid_request_does_not_use_its_key(database: DatabaseUrls) -> None:
    """A request that fails validation keeps nothing: the key works with other parameters."""

    async def run() -> None:
        async with look_alike(database) as server:
            key = unique_id("k")
            with pytest.raises(stripe.InvalidRequestError):
                await server.pay(amount=0, idempotency_key=key)
            with pytest.raises(stripe.InvalidRequestError):
                await server.pay("pm_missing_from_stripe", amount=-1, idempotency_key=key)
            assert (await server.pay(idempotency_key=key)).status == "succeeded"

    asyncio.run(run())


def test_a_key_in_use_is_a_conflict(database: DatabaseUrls) -> None:
    """While a request runs, another one with its key is answered with 409 and may be retried."""

    async def run() -> None:
        async with look_alike(database) as server:
            key = unique_id("k")
            answers = await asyncio.gather(
                *(server.pay("pm_delay:500", idempotency_key=key) for _ in range(2)),
                return_exceptions=True,
            )
            (conflict,) = [item for item in answers if isinstance(item, stripe.StripeError)]
            assert conflict.http_status == 409
            assert conflict.error is not None
            assert conflict.error.code == "idempotency_key_in_use"
            assert conflict.headers is not None
            assert conflict.headers["Stripe-Should-Retry"] == "true"
            repeated = await server.pay("pm_delay:500", idempotency_key=key)
            (first,) = [item for item in answers if not isinstance(item, BaseException)]
            assert repeated.id == first.id

    asyncio.run(run())


def test_keys_of_two_processes_charge_once(database: DatabaseUrls) -> None:
    """Two servers on one database that get a key at the same time take the money once."""

    async def run() -> None:
        async with look_alike(database) as first, look_alike(database) as second:
            key = unique_id("k")
            intents = await asyncio.gather(
                *(server.pay(idempotency_key=key) for server in (first, second) * 5),
                return_exceptions=True,
            )
            ids = {item.id for item in intents if not isinstance(item, BaseException)}
            assert len(ids) == 1

    asyncio.run(run())


def test_each_account_has_its_own_keys(database: DatabaseUrls) -> None:
    """The same key for two accounts is two requests."""

    async def run() -> None:
        async with look_alike(database) as server:
            key = unique_id("k")
            accounts = [unique_id("acct_ok::") for _ in range(2)]
            await server.pay("pm_card_bypassPending", 5000)
            for account in accounts:
                await server.transfer(account, 1000)
            payouts = [
                await server.pay_out(account, 700, idempotency_key=key) for account in accounts
            ]
            assert len({payout.id for payout in payouts}) == 2
            for account, payout in zip(accounts, payouts, strict=True):
                repeated = await server.pay_out(account, 700, idempotency_key=key)
                assert repeated.id == payout.id

    asyncio.run(run())


def test_a_key_is_forgotten_after_a_day(scratch_database: DatabaseUrls) -> None:
    """After 24 hours a key is new: the money is taken again, under other parameters too."""

    async def run() -> None:
        async with look_alike(scratch_database) as server:
            first = await server.pay(idempotency_key="k")
            set_clock(scratch_database, "23 hours 59 minutes")
            assert (await server.pay(idempotency_key="k")).id == first.id
            set_clock(scratch_database, "24 hours 1 minute")
            second = await server.pay(amount=2000, idempotency_key="k")
            assert second.id != first.id
            assert (await server.pay(amount=2000, idempotency_key="k")).id == second.id

    asyncio.run(run())


def test_expired_keys_are_deleted(scratch_database: DatabaseUrls) -> None:
    """Keys older than their window are removed, so that the table stays small."""

    async def run() -> None:
        async with look_alike(scratch_database) as server:
            await server.pay(idempotency_key="old")
            set_clock(scratch_database, "25 hours")
            await server.pay(idempotency_key="new")
            await server.sandbox.prune_keys()
            keys = await server.database.read(
                lambda connection: connection.execute("select key from stripe_key").scalars()
            )
            assert keys == ["new"]

    asyncio.run(run())


def test_everything_is_known_after_a_restart(database: DatabaseUrls) -> None:
    """Another process replays the answers and shows the objects of the first one."""

    async def run() -> None:
        key = unique_id("k")
        async with look_alike(database) as server:
            first = await server.pay(idempotency_key=key)
        async with look_alike(database) as server:
            assert (await server.pay(idempotency_key=key)).id == first.id
            found = await server.client.v1.payment_intents.retrieve_async(first.id)
            assert found.latest_charge == first.latest_charge

    asyncio.run(run())
