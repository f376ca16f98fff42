"""Refunds of charges. They never reverse a transfer."""

from __future__ import annotations

from typing import Any

from tallystick_sandbox.stripe.context import Context
from tallystick_sandbox.stripe.errors import invalid, unexecutable
from tallystick_sandbox.stripe.parameters import Parameters
from tallystick_sandbox.stripe.store import StoredObject

_REASONS = ("duplicate", "fraudulent", "requested_by_customer")
PENDING_METHOD, FAILING_METHOD = "pm_card_pendingRefund", "pm_card_refundFail"
"""Stripe's test payment methods whose refunds wait, and fail after they succeeded."""


def create(context: Context, parameters: Parameters) -> dict[str, Any]:
    charge_id = parameters.text("charge")
    intent_id = parameters.text("payment_intent")
    amount = parameters.integer("amount")
    reason = parameters.choice("reason", _REASONS, "")
    metadata = parameters.metadata()
    parameters.reject_unknown()
    if bool(charge_id) == bool(intent_id):
        raise invalid("You must send either charge or payment_intent.", "payment_intent")
    charge = _charge(context, charge_id, intent_id)
    amount = _check_amount(charge, amount)
    method = charge.body["payment_method"]
    is_pending = method == PENDING_METHOD
    refund = context.create(
        "re",
        "refund",
        {
            "amount": amount,
            "balance_transaction": None,
            "charge": charge.id,
            "currency": charge.body["currency"],
            "description": None,
            "destination_details": {"type": "card", "card": {"type": "refund"}},
            "failure_balance_transaction": None,
            "failure_reason": None,
            "metadata": metadata,
            "payment_intent": charge.body["payment_intent"],
            "reason": reason or None,
            "receipt_number": None,
            "source_transfer_reversal": None,
            "status": "pending" if is_pending else "succeeded",
            "transfer_reversal": None,
        },
    )
    del refund.body["livemode"]
    transaction = context.book(
        "refund", -amount, charge.body["currency"], refund.id, reporting_category="refund"
    )
    refund.body["balance_transaction"] = transaction.id
    refund.plan["next_status"] = _next_status(method)
    refunded = charge.body["amount_refunded"] + amount
    charge.body |= {
        "amount_refunded": refunded,
        "refunded": refunded == charge.body["amount"],
    }
    context.save(charge)
    context.emit("charge.refunded", charge)
    context.emit("refund.created", refund)
    return refund.body


def _next_status(method: str) -> str | None:
    """The status of the refund after its first lookup; None: it does not change."""
    return {PENDING_METHOD: "succeeded", FAILING_METHOD: "failed"}.get(method)


def _charge(context: Context, charge_id: str, intent_id: str) -> StoredObject:
    if charge_id:
        return context.load("charge", charge_id, param="charge")
    intent = context.load("payment_intent", intent_id, param="payment_intent")
    if intent.body["status"] != "succeeded":
        raise unexecutable(
            "",
            f"This PaymentIntent ({intent_id}) does not have a successful charge to refund.",
            param="payment_intent",
        )
    return context.load("charge", intent.body["latest_charge"])


def _check_amount(charge: StoredObject, amount: int | None) -> int:
    """The amount, by default all that is left. Raises StripeFailure."""
    left = charge.body["amount_captured"] - charge.body["amount_refunded"]
    if not left and charge.body["amount_refunded"]:
        message = f"Charge {charge.id} has already been refunded."
        raise unexecutable("charge_already_refunded", message)
    if amount is None:
        amount = left
    if amount < 1:
        raise invalid(
            "This value must be greater than or equal to 1.", "amount", "parameter_invalid_integer"
        )
    if amount > left:
        message = f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})"
        raise unexecutable("amount_too_large", message, param="amount")
    return amount


def retrieve(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    """Returns the refund. One that waits, or is to fail, does so now."""
    parameters.reject_unknown()
    refund = context.load("refund", id_)
    status = refund.plan.get("next_status")
    if status is not None:
        resolve(context, refund, status)
    return refund.body


def resolve(context: Context, refund: StoredObject, status: str) -> None:
    """The refund succeeds, or fails and its money is in the balance again."""
    previous = refund.body["status"]
    refund.plan.pop("next_status", None)
    context.save(refund)
    if previous in (status, "failed"):
        return
    refund.body["status"] = status
    if status == "failed":
        transaction = context.book(
            "refund_failure", refund.body["amount"], refund.body["currency"], refund.id
        )
        refund.body |= {
            "failure_balance_transaction": transaction.id,
            "failure_reason": "expired_or_canceled_card",
        }
        context.emit("refund.failed", refund)
    context.emit("refund.updated", refund, {"status": previous})


def list_filter(parameters: Parameters) -> dict[str, Any]:
    values = {name: parameters.text(name) for name in ("charge", "payment_intent")}
    return {name: value for name, value in values.items() if value}
