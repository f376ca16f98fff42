"""Payments: their list, each with its orders and its story, and orders."""

from __future__ import annotations

import asyncio

from tallystick_server.http.console.acts import REASON, Act, ActPage
from tallystick_server.http.console.links import path_of, resource_path
from tallystick_server.http.console.visit import Answer, Page, Redirect, Visit

_MAX_ORDERS = 12
"""Orders that a payment's page shows in full; the others have a row each."""


async def list_payments(visit: Visit) -> Answer:
    """GET /console/payments: newest first, by state, buyer or seller."""
    query = visit.query
    response = await visit.calls.call(
        "payment.ListPayments",
        payment_state=_state(query.get("state", "")),
        buyer_account=query.get("buyer", ""),
        seller_account=query.get("seller", ""),
        **visit.list_fields(),
    )
    return Page("payments.html", "Payments", {"response": response})


def _state(name: str) -> str:
    return f"PAYMENT_STATE_{name}" if name else ""


async def show_payment(visit: Visit) -> Answer:
    """GET /console/payments/{checkout_id}: all of it, its story and what is next. The story has the
    attempts and the history of its orders.
    """
    checkout_id = visit.variables["checkout_id"]
    response, story = await asyncio.gather(
        visit.calls.call("payment.GetPayment", checkout_id=checkout_id),
        visit.calls.attempt("payment.ExplainPayment", id=checkout_id),
    )
    payment = response["payment"]
    values = {"payment": payment, "story": story, "max_orders": _MAX_ORDERS}
    return Page("payment.html", f"Payment {checkout_id}", values)


async def show_order(visit: Visit) -> Answer:
    """GET /console/orders/{payment_order_id}."""
    order_id = visit.variables["payment_order_id"]
    response = await visit.calls.call("payment.GetPaymentOrder", payment_order_id=order_id)
    values = {"response": response, "acts": visit.allowed(REPORT_ACTS.acts)}
    return Page("order.html", f"Order {order_id}", values)


REPORT_ACTS = ActPage(
    "orders/{payment_order_id}/charges/{charge_id}/reports/{report_number}",
    show_order,
    (
        Act(
            "acknowledge",
            "Acknowledge",
            "payment.AcknowledgeCharge",
            (REASON,),
            "The conflicting report is acknowledged.",
            hint="Once you have dealt with it at the provider. No money moves.",
        ),
    ),
    page_path="orders/{payment_order_id}",
)
"""The act on a report of the provider that conflicts with an order's charge."""


async def find_charge(visit: Visit) -> Answer:
    """GET /console/charges/{charge_id}: leads to its payment."""
    response = await visit.calls.call(
        "payment.ExplainPayment", id=visit.variables["charge_id"], name_only=True
    )
    return Redirect(resource_path(response["explanation"]["resource_name"]) or path_of("payments"))
