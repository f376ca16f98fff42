"""Payments and payouts while WalletService is unavailable."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event
from typing import Any

import psycopg
import pytest

from tallystick import Client, ClientSettings, TallystickError, new_order
from tallystick.payment.v1 import payment_service_pb2
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.wallet.handlers import WalletHandlers
from tests.support.callers import token_of
from tests.support.errors import error_reason, expect_error_reason
from tests.support.marketplace import (
    SETTINGS,
    create_paid_order,
    preview_payout,
)
from tests.support.payouts import create_destination
from tests.support.platform import eventually, serve_platform, unique_id


def test_payments_of_cached_sellers_are_accepted_in_a_wallet_outage(
    scratch_database: DatabaseUrls,
) -> None:
    """During an outage of WalletService a payment for a cached seller is accepted; one for an
    unknown seller is rejected, and nothing is stored.
    """
    seller = unique_id("s")
    with (
        serve_platform(scratch_database, SETTINGS) as platform,
        platform.client(token_of("checkout")) as checkout,
    ):
        create_paid_order(checkout, seller)
    nowhere = dict.fromkeys(("wallet", "ledger", "event"), "127.0.0.1:1")
    with ExitStack() as stack:
        platform = stack.enter_context(
            serve_platform(
                scratch_database, SETTINGS.replace(service_addresses=nowhere), names=("payment",)
            )
        )
        single_try_settings = {
            name: ClientSettings(token=token_of(name), tries=1) for name in ("checkout", "rival")
        }
        checkout, rival = (
            stack.enter_context(Client(platform.address, settings=settings))
            for settings in single_try_settings.values()
        )
        id_ = unique_id("c")
        accepted = checkout.create_payment(
            id_,
            [new_order(f"{id_}-1", "buyer-1", seller, "1.00", "EUR")],
            credit_card_info="tok_visa",
            wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE,
        )
        assert accepted.checkout_id == id_
        assert (
            expect_error_reason(lambda: create_paid_order(rival, seller))
            == "DEPENDENCY_UNAVAILABLE"
        )
        assert (
            expect_error_reason(lambda: create_paid_order(checkout, unique_id("s")))
            == "DEPENDENCY_UNAVAILABLE"
        )


def test_cached_sellers_do_not_wait_for_unknown_ones_while_the_wallet_hangs(
    scratch_database: DatabaseUrls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While WalletService hangs, concurrent payments of known sellers are accepted and one of an
    unknown seller waits. It is rejected after a bounded time, and nothing of it is stored.
    """
    original, hangs, claim_waits = WalletHandlers.BatchClaimSellers, Event(), Event()

    async def claim(self: WalletHandlers, request: Any, call: Any) -> Any:
        while hangs.is_set():
            claim_waits.set()
            await asyncio.sleep(0.01)
        return await original(self, request, call)

    monkeypatch.setattr(WalletHandlers, "BatchClaimSellers", claim)
    sellers = [unique_id("s") for _ in range(4)]
    settings = ClientSettings(token=token_of("checkout"), tries=1)
    with (
        serve_platform(scratch_database, SETTINGS) as platform,
        Client(platform.address, settings=settings) as checkout,
        ThreadPoolExecutor(6) as pool,
    ):

        def accepted(seller: str) -> str:
            id_ = unique_id("c")
            order, wait_for = (
                new_order(f"{id_}-1", "buyer-1", seller, "1.00", "EUR"),
                payment_service_pb2.WAIT_FOR_ACCEPTANCE,
            )
            return checkout.create_payment(
                id_, [order], credit_card_info="tok_visa", wait_for=wait_for
            ).checkout_id

        for seller in sellers:
            accepted(seller)
        hangs.set()
        try:
            unknown = pool.submit(lambda: expect_error_reason(lambda: accepted(unique_id("s"))))
            assert claim_waits.wait(30)
            for claim_future in [pool.submit(accepted, seller) for seller in sellers]:
                assert claim_future.result(30)
            assert not unknown.done()
            assert unknown.result(30) == "DEPENDENCY_UNAVAILABLE"
        finally:
            hangs.clear()


def is_owner_stored(databases: DatabaseUrls, seller: str) -> bool:
    """Whether PaymentService has stored the owner of a seller, which it does soon after a
    payment.
    """
    with psycopg.connect(databases.reader("payment")) as connection:
        query = "select from seller_owner where seller_account = %s"
        return connection.execute(query, [seller]).fetchone() is not None


def test_a_wallet_that_rejects_the_service_counts_as_unavailable(
    scratch_database: DatabaseUrls,
) -> None:
    """If WalletService rejects PaymentService and PayoutService themselves, orders of known sellers
    are accepted; other calls get a retryable error, not INTERNAL.
    """
    seller = unique_id("s")
    rejected = SETTINGS.replace(service_token="a-token-that-nobody-knows")
    with ExitStack() as stack:
        full_platform = stack.enter_context(serve_platform(scratch_database, SETTINGS))
        checkout = stack.enter_context(full_platform.client(token_of("checkout")))
        create_paid_order(checkout, seller)
        assert eventually(lambda: is_owner_stored(scratch_database, seller))
        elsewhere = rejected.replace(
            service_addresses=dict.fromkeys(("wallet", "ledger", "event"), full_platform.address)
        )
        platform = stack.enter_context(
            serve_platform(scratch_database, elsewhere, names=("payment", "payout"))
        )
        single_try_settings = {
            name: ClientSettings(token=token_of(name), tries=1) for name in ("checkout", "payouts")
        }
        checkout, payouts_client = (
            stack.enter_context(Client(platform.address, settings=settings))
            for settings in single_try_settings.values()
        )
        id_ = unique_id("c")
        order = new_order(f"{id_}-1", "buyer-1", seller, "1.00", "EUR")
        checkout.create_payment(
            id_,
            [order],
            credit_card_info="tok_visa",
            wait_for=payment_service_pb2.WAIT_FOR_ACCEPTANCE,
        )
        for call in (
            lambda: create_paid_order(checkout, unique_id("s")),
            lambda: create_destination(payouts_client, seller),
            lambda: preview_payout(payouts_client, seller),
            lambda: payouts_client.create_payout(unique_id("p"), seller, "EUR", "1.00"),
        ):
            with pytest.raises(TallystickError) as error:
                call()
            assert (error_reason(error), error.value.retry_after) == ("DEPENDENCY_UNAVAILABLE", 1.0)
