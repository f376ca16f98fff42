"""Calls of the services by JSON over HTTP."""

from __future__ import annotations

from typing import Any

import httpx

from tests.support.platform import ServedPlatform, unique_id


def new_payment(token: str = "tok_visa", **fields: object) -> dict[str, Any]:
    name = unique_id()
    order = {
        "payment_order_id": f"o-{name}",
        "buyer_account": "buyer",
        "seller_account": f"seller-{name}",
        "amount": "5.00",
        "currency": "EUR",
    }
    return {
        "checkout_id": f"c-{name}",
        "credit_card_info": token,
        "payment_orders": [order],
        **fields,
    }


def create(http: ServedPlatform, payment: object, **headers: str) -> httpx.Response:
    return httpx.post(f"{http.url}/v1/payments", json=payment, headers=headers, timeout=40)


def reason_of(response: httpx.Response) -> str:
    return str(response.json()["details"][0]["reason"])


def field_of(response: httpx.Response) -> str:
    return str(response.json()["details"][1]["field_violations"][0]["field"])
