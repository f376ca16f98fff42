"""Helpers for tests of payments."""

from __future__ import annotations

from typing import Any

import psycopg

from tallystick import Client, new_order
from tallystick.payment.v1 import payment_pb2
from tallystick_server.app.database.connections import DatabaseUrls
from tests.support.platform import unique_id


def create_payment(
    client: Client, *amounts: str, token: str = "tok_visa", checkout_id: str = "", **values: Any
) -> payment_pb2.Payment:
    """A payment with one order for each amount, each for its own seller."""
    checkout_id = checkout_id or unique_id("c")
    orders = [
        new_order(
            f"{checkout_id}-{index}", "buyer-1", f"seller-{checkout_id}-{index}", amount, "EUR"
        )
        for index, amount in enumerate(amounts)
    ]
    return client.create_payment(checkout_id, orders, credit_card_info=token, **values)


def charge_log(databases: DatabaseUrls, checkout_id: str) -> list[tuple[str, str, int]]:
    """The charges in the provider's own log for a checkout: key, state, amount."""
    with psycopg.connect(databases.reader("sandbox")) as connection:
        return connection.execute(
            "select key, state, amount from charge where key like %s order by key",
            (f"%{checkout_id}%",),
        ).fetchall()
