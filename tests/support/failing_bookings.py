"""Payments and payouts whose booking fails, and the settings that retry them quickly."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg

from tallystick import Client, FailedPreconditionError, new_order
from tallystick.payment.v1 import payment_service_pb2
from tallystick.payout.v1 import payout_service_pb2
from tallystick_core.provider.outcome import RetryReason
from tallystick_server.app.configuration import Settings
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_server.operations.retry_policy import RetryPolicy, RetryStrategy
from tests.support.payouts import create_destination
from tests.support.platform import eventually

WAIT_FOR_ACCEPTANCE = payment_service_pb2.WAIT_FOR_ACCEPTANCE
_FAST_RETRY_POLICY = RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, None)


def query_rows(
    databases: DatabaseUrls, service: str, query: str, *values: object
) -> list[tuple[Any, ...]]:
    with psycopg.connect(databases.reader(service)) as connection:
        return connection.execute(query, values).fetchall()


def retry_settings(**overrides: Any) -> Settings:
    retry = {
        ("", RetryReason.BOOKING_UNAVAILABLE): _FAST_RETRY_POLICY,
        ("", RetryReason.CALLER_REJECTED): _FAST_RETRY_POLICY,
        ("", RetryReason.BOOKING_FAILED): RetryPolicy(RetryStrategy.FIXED, 0.1, 0.1, 3),
    }
    return Settings().replace(
        retry=retry,
        worker__scan_interval=0.2,
        worker__monitor_interval=0.2,
        release_delay=3600,
        **overrides,
    )


def pay_all(client: Client, prefix: str, sellers: list[str]) -> None:
    """Concurrent paid orders, one for each seller."""

    def pay(number: int) -> None:
        order = new_order(f"o-{prefix}-{number}", "ann", sellers[number], "1.00", "EUR")
        client.create_payment(
            f"c-{prefix}-{number}",
            [order],
            credit_card_info="tok_delay:300",
            wait_for=WAIT_FOR_ACCEPTANCE,
        )

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(pay, range(len(sellers))))


def pay_out_all(client: Client, payout_ids: Sequence[str], token: str = "") -> None:
    """Concurrent payouts with the given ids, each to a seller `s{n}` with earlier sales; `token`:
    of their destinations' bank accounts.
    """
    pay_all(client, "sale", [f"s{number}" for number in range(len(payout_ids))])
    for number in range(len(payout_ids)):
        create_destination(client, f"s{number}", f"{token}:{number}" if token else "")

    def create_payout(number: int) -> None:
        request = payout_service_pb2.CreatePayoutRequest(
            payout_id=payout_ids[number], seller_account=f"s{number}", amount="1.00", currency="EUR"
        )
        assert eventually(lambda: try_create(request), 30)

    def try_create(request: payout_service_pb2.CreatePayoutRequest) -> bool:
        try:
            client.payout.CreatePayout(request)
        except FailedPreconditionError as error:  # the sale is not in the wallet yet
            assert error.reason == "INSUFFICIENT_FUNDS"
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(create_payout, range(len(payout_ids))))
