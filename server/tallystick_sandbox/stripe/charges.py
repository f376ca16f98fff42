"""Charges: attempts to take the money of a PaymentIntent."""

from __future__ import annotations

from typing import Any

from tallystick_sandbox.stripe.context import Context
from tallystick_sandbox.stripe.parameters import Parameters
from tallystick_sandbox.stripe.store import StoredObject
from tallystick_sandbox.stripe.tokens import CardDecline

BYPASS_PENDING = "pm_card_bypassPending"
"""Stripe's test payment method whose money is available at once."""
_COPIED = (
    "currency",
    "customer",
    "description",
    "metadata",
    "on_behalf_of",
    "payment_method",
    "receipt_email",
    "statement_descriptor",
    "statement_descriptor_suffix",
    "transfer_group",
)


def succeed(context: Context, intent: StoredObject, amount: int) -> StoredObject:
    """Takes the money. The charge shows its balance transaction from the next request on if the
    intent captures asynchronously, as Stripe's does.
    """
    charge = _create(context, intent, amount, "succeeded")
    fee = context.charge_fee(amount)
    bypasses = intent.body["payment_method"] == BYPASS_PENDING
    delay = 0.0 if bypasses else context.rules.funds_delay_seconds
    transaction = context.book(
        "charge",
        amount,
        charge.body["currency"],
        charge.id,
        account=charge.account,
        fee=fee,
        delay_seconds=delay,
    )
    charge.body |= {"captured": True, "amount_captured": amount, "paid": True}
    if intent.body["capture_method"] == "automatic_async":
        charge.plan["balance_transaction"] = transaction.id
        context.schedule(charge, 0.0)
    else:
        charge.body["balance_transaction"] = transaction.id
    context.emit("charge.succeeded", charge)
    return charge


def fail(context: Context, intent: StoredObject, decline: CardDecline) -> StoredObject:
    """A charge that takes nothing."""
    charge = _create(context, intent, intent.body["amount"], "failed")
    charge.body |= {
        "failure_code": decline.code,
        "failure_message": decline.message,
        "outcome": {
            "network_decline_code": None,
            "network_status": "declined_by_network",
            "reason": decline.decline_code,
            "risk_level": "normal",
            "seller_message": "The bank did not return any further details with this decline.",
            "type": "issuer_declined",
        },
    }
    context.emit("charge.failed", charge)
    return charge


def _create(context: Context, intent: StoredObject, amount: int, status: str) -> StoredObject:
    body: dict[str, Any] = {
        "amount": amount,
        "amount_captured": 0,
        "amount_refunded": 0,
        "application_fee_amount": None,
        "balance_transaction": None,
        "billing_details": {"address": None, "email": None, "name": None, "phone": None},
        "calculated_statement_descriptor": None,
        "captured": False,
        "disputed": False,
        "failure_balance_transaction": None,
        "failure_code": None,
        "failure_message": None,
        "fraud_details": {},
        "outcome": {
            "network_status": "approved_by_network",
            "reason": None,
            "risk_level": "normal",
            "seller_message": "Payment complete.",
            "type": "authorized",
        },
        "paid": False,
        "payment_intent": intent.id,
        "payment_method_details": {"type": "card"},
        "refunded": False,
        "source_transfer": None,
        "status": status,
        "transfer_data": None,
    }
    body |= {name: intent.body[name] for name in _COPIED}
    return context.create("ch", "charge", body, account=intent.account)


def advance(context: Context, charge: StoredObject) -> None:
    """Shows the balance transaction of a charge that was captured asynchronously."""
    context.schedule(charge, None)
    charge.body["balance_transaction"] = charge.plan.pop("balance_transaction", None)
    context.save(charge)
    context.emit("charge.updated", charge, {"balance_transaction": None})


def retrieve(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    parameters.reject_unknown()
    return context.load("charge", id_).body


def list_filter(parameters: Parameters) -> dict[str, Any]:
    intent = parameters.text("payment_intent")
    group = parameters.text("transfer_group")
    return {
        name: value
        for name, value in (("payment_intent", intent), ("transfer_group", group))
        if value
    }
