"""Top-ups: money from the platform's bank for its balance."""

from __future__ import annotations

from typing import Any

from tallystick_sandbox.stripe.context import Context
from tallystick_sandbox.stripe.money import check_amount, check_currency
from tallystick_sandbox.stripe.parameters import Parameters


def create(context: Context, parameters: Parameters) -> dict[str, Any]:
    """Adds money to the balance at once."""
    amount = parameters.required_integer("amount")
    currency = check_currency(parameters.text("currency", required=True))
    check_amount(amount, currency)
    description = parameters.text("description")
    group = parameters.text("transfer_group")
    metadata = parameters.metadata()
    parameters.reject_unknown()
    topup = context.create(
        "tu",
        "topup",
        {
            "amount": amount,
            "balance_transaction": None,
            "currency": currency,
            "description": description or None,
            "expected_availability_date": context.timestamp,
            "failure_code": None,
            "failure_message": None,
            "metadata": metadata,
            "source": None,
            "statement_descriptor": None,
            "status": "succeeded",
            "transfer_group": group or None,
        },
    )
    transaction = context.book("topup", amount, currency, topup.id)
    topup.body["balance_transaction"] = transaction.id
    context.emit("topup.succeeded", topup)
    return topup.body


def retrieve(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    parameters.reject_unknown()
    return context.load("topup", id_).body
