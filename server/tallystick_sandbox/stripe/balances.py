"""Balances and balance transactions."""

from __future__ import annotations

from typing import Any

from tallystick_sandbox.stripe import store
from tallystick_sandbox.stripe.context import Context
from tallystick_sandbox.stripe.parameters import Parameters
from tallystick_sandbox.stripe.store import StoredObject


def retrieve_balance(context: Context, parameters: Parameters) -> dict[str, Any]:
    parameters.reject_unknown()
    balances = store.list_balances(context.connection, context.account, context.now)
    return {
        "object": "balance",
        "available": [_amount(item.total - item.pending, item.currency) for item in balances],
        "livemode": False,
        "pending": [_amount(item.pending, item.currency) for item in balances],
    }


def _amount(amount: int, currency: str) -> dict[str, Any]:
    return {"amount": amount, "currency": currency, "source_types": {"card": amount}}


def retrieve(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    parameters.reject_unknown()
    return context.load("balance_transaction", id_).body


def advance(context: Context, transaction: StoredObject) -> None:
    """The money of a balance transaction is available."""
    context.schedule(transaction, None)
    transaction.body["status"] = "available"
    context.save(transaction)


def list_filter(parameters: Parameters) -> dict[str, Any]:
    values = {name: parameters.text(name) for name in ("currency", "source", "type")}
    return {name: value for name, value in values.items() if value}


def list_options(parameters: Parameters) -> dict[str, Any]:
    """`payout`: what an automatic payout pays."""
    payout = parameters.text("payout")
    return {"plan": {"payout": payout}} if payout else {}
