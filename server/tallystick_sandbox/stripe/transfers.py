"""Transfers from the platform's balance to a connected account, and their reversals."""

from __future__ import annotations

from typing import Any

from tallystick_sandbox.stripe import store
from tallystick_sandbox.stripe.accounts import load_account
from tallystick_sandbox.stripe.context import Context
from tallystick_sandbox.stripe.errors import invalid, unexecutable
from tallystick_sandbox.stripe.money import check_amount, check_currency
from tallystick_sandbox.stripe.parameters import Parameters
from tallystick_sandbox.stripe.store import ListFilter, StoredObject

_MAX_TRANSFERS_OF_A_CHARGE = 1000


def create(context: Context, parameters: Parameters) -> dict[str, Any]:
    amount = parameters.required_integer("amount")
    currency = check_currency(parameters.text("currency", required=True))
    check_amount(amount, currency)
    destination = parameters.text("destination", required=True)
    source = parameters.text("source_transaction")
    group = parameters.text("transfer_group")
    description = parameters.text("description")
    metadata = parameters.metadata()
    parameters.reject_unknown()
    account = load_account(context, destination, param="destination")
    if account.body["capabilities"]["transfers"] != "active":
        raise unexecutable(
            "insufficient_capabilities_for_transfer",
            "Your destination account needs to have at least one of the following capabilities "
            "enabled: transfers",
        )
    delay = _check_funds(context, amount, currency, source)
    transfer = context.create(
        "tr",
        "transfer",
        {
            "amount": amount,
            "amount_reversed": 0,
            "balance_transaction": None,
            "currency": currency,
            "description": description or None,
            "destination": destination,
            "destination_payment": None,
            "metadata": metadata,
            "reversals": _no_reversals(""),
            "reversed": False,
            "source_transaction": source or None,
            "source_type": "card",
            "transfer_group": group or None,
        },
    )
    _move(context, transfer, delay)
    context.emit("transfer.created", transfer)
    return transfer.body


def _no_reversals(transfer_id: str) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [],
        "has_more": False,
        "total_count": 0,
        "url": f"/v1/transfers/{transfer_id}/reversals",
    }


def _check_funds(context: Context, amount: int, currency: str, source: str) -> float:
    """The seconds until the money is available at the destination. Raises StripeFailure."""
    if not source:
        check_available(context, context.account, amount, currency)
        return 0.0
    charge = context.load("charge", source, param="source_transaction")
    if charge.body["status"] != "succeeded":
        raise unexecutable("", "The charge has not succeeded.")
    if charge.body["currency"] != currency:
        raise invalid(
            f"The currency of source_transaction's balance transaction ({charge.body['currency']}) "
            f"must be the transfer currency ({currency}).",
            "currency",
        )
    if amount > charge.body["amount"] - _transferred(context, charge):
        raise unexecutable(
            "transfer_source_balance_parameters_mismatch",
            "The transfers of source_transaction cannot exceed its amount.",
            param="amount",
        )
    id_ = charge.body["balance_transaction"] or charge.plan["balance_transaction"]
    transaction = context.load("balance_transaction", id_)
    return max(float(transaction.body["available_on"] - context.timestamp), 0.0)


def _transferred(context: Context, charge: StoredObject) -> int:
    """What was transferred from a charge and not reversed. The charge is locked."""
    list_filter = ListFilter(
        context.account,
        "transfer",
        {"source_transaction": charge.id},
        _MAX_TRANSFERS_OF_A_CHARGE,
    )
    transfers = store.list_objects(context.connection, list_filter)
    return sum(item.body["amount"] - item.body["amount_reversed"] for item in transfers)


def check_available(context: Context, account: str, amount: int, currency: str) -> None:
    """Raises StripeFailure if the available balance is less."""
    if context.available(account, currency) < amount:
        raise unexecutable(
            "balance_insufficient",
            "You have insufficient available funds in your Stripe account.",
        )


def _move(context: Context, transfer: StoredObject, delay_seconds: float) -> None:
    """Takes the money from the platform's balance, and adds it to the account's."""
    amount, currency = transfer.body["amount"], transfer.body["currency"]
    destination = transfer.body["destination"]
    transfer.body["reversals"] = _no_reversals(transfer.id)
    outgoing = context.book("transfer", -amount, currency, transfer.id)
    payment = context.create(
        "py",
        "charge",
        {
            "amount": amount,
            "amount_captured": amount,
            "amount_refunded": 0,
            "balance_transaction": None,
            "captured": True,
            "currency": currency,
            "metadata": {},
            "paid": True,
            "payment_intent": None,
            "refunded": False,
            "source_transfer": transfer.id,
            "status": "succeeded",
        },
        account=destination,
    )
    incoming = context.book(
        "payment",
        amount,
        currency,
        payment.id,
        account=destination,
        delay_seconds=delay_seconds,
        reporting_category="transfer",
    )
    payment.body["balance_transaction"] = incoming.id
    transfer.body |= {"balance_transaction": outgoing.id, "destination_payment": payment.id}


def retrieve(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    parameters.reject_unknown()
    return context.load("transfer", id_).body


def list_filter(parameters: Parameters) -> dict[str, Any]:
    values = {name: parameters.text(name) for name in ("destination", "transfer_group")}
    return {name: value for name, value in values.items() if value}


def create_reversal(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    amount = parameters.integer("amount")
    description = parameters.text("description")
    metadata = parameters.metadata()
    parameters.reject_unknown()
    transfer = context.load("transfer", id_)
    left = transfer.body["amount"] - transfer.body["amount_reversed"]
    amount = left if amount is None else amount
    if not left:
        raise unexecutable("", f"Transfer {id_} is already reversed.")
    if not 1 <= amount <= left:
        raise invalid(f"The amount must be from 1 to {left}.", "amount")
    check_available(context, transfer.body["destination"], amount, transfer.body["currency"])
    reversal = context.create(
        "trr",
        "transfer_reversal",
        {
            "amount": amount,
            "balance_transaction": None,
            "currency": transfer.body["currency"],
            "description": description or None,
            "destination_payment_refund": None,
            "metadata": metadata,
            "source_refund": None,
            "transfer": transfer.id,
        },
    )
    del reversal.body["livemode"]
    _move_back(context, transfer, reversal)
    return reversal.body


def _move_back(context: Context, transfer: StoredObject, reversal: StoredObject) -> None:
    amount, currency = reversal.body["amount"], reversal.body["currency"]
    incoming = context.book(
        "transfer_refund", amount, currency, reversal.id, reporting_category="transfer_reversal"
    )
    context.book(
        "payment_refund",
        -amount,
        currency,
        transfer.body["destination_payment"],
        account=transfer.body["destination"],
        reporting_category="transfer_reversal",
    )
    reversal.body["balance_transaction"] = incoming.id
    previous = {"amount_reversed": transfer.body["amount_reversed"]}
    reversed_amount = transfer.body["amount_reversed"] + amount
    reversals = transfer.body["reversals"]
    reversals["data"] = [dict(reversal.body), *reversals["data"]][:10]
    reversals["total_count"] += 1
    reversals["has_more"] = reversals["total_count"] > len(reversals["data"])
    transfer.body |= {
        "amount_reversed": reversed_amount,
        "reversed": reversed_amount == transfer.body["amount"],
    }
    context.save(transfer)
    context.emit("transfer.reversed", transfer)
    context.emit("transfer.updated", transfer, previous)


def list_reversals(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    """The newest reversals of a transfer, as many as `limit` asks for."""
    limit, after, before = parameters.page()
    parameters.reject_unknown()
    context.load("transfer", id_)
    list_filter = ListFilter(
        context.account,
        "transfer_reversal",
        {"transfer": id_},
        limit + 1,
        (0, 2**62),
        after,
        before,
    )
    found = store.list_objects(context.connection, list_filter)
    return {
        "object": "list",
        "url": f"/v1/transfers/{id_}/reversals",
        "has_more": len(found) > limit,
        "data": [item.body for item in found[:limit]],
    }


def retrieve_reversal(
    context: Context, parameters: Parameters, id_: str, reversal_id: str
) -> dict[str, Any]:
    parameters.reject_unknown()
    context.load("transfer", id_)
    return context.load("transfer_reversal", reversal_id).body
