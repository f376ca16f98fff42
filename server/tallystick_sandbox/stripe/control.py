"""The control surface, for tests and demonstrations only. Stripe has nothing like it."""

from __future__ import annotations

from typing import Any

from tallystick_sandbox.rules import Behavior, Fault
from tallystick_sandbox.stripe import (
    accounts,
    checkout_sessions,
    payment_intents,
    payouts,
    refunds,
    reports,
    store,
)
from tallystick_sandbox.stripe.context import Context
from tallystick_sandbox.stripe.delivery_store import resend
from tallystick_sandbox.stripe.errors import invalid, missing
from tallystick_sandbox.stripe.faults import AFTER, BEFORE, RequestFault, WebhookFaults
from tallystick_sandbox.stripe.money import check_currency
from tallystick_sandbox.stripe.parameters import Parameters
from tallystick_sandbox.stripe.store import StoredObject


def advance(context: Context, parameters: Parameters) -> dict[str, Any]:
    """POST /sandbox/advance: an object `id` gets a status, as if time had passed. `reason`: why a
    payout fails.
    """
    id_ = parameters.text("id", required=True)
    status = parameters.text("status", required=True)
    reason = parameters.text("reason")
    parameters.reject_unknown()
    item = context.find(id_)
    if item is None or item.type not in STATUSES:
        raise missing("object", id_, param="id", status=400)
    statuses = STATUSES[item.type]
    if status not in statuses:
        raise invalid(
            f"The status of a {item.type} must be one of {', '.join(statuses)}.", "status"
        )
    _change(context, item, status, reason)
    return item.body


STATUSES = {
    "payment_intent": ("succeeded", "declined", "processing", "requires_action"),
    "payout": ("in_transit", "paid", "failed"),
    "refund": ("succeeded", "failed"),
    "account": ("enabled", "disabled"),
    checkout_sessions.TYPE: ("paid", "declined", "expired"),
    reports.TYPE: ("failed",),
}
"""The statuses that each type of object can get."""
_INTENT_CODES = {"succeeded": "paid", "processing": "review", "requires_action": "action"}


def _change(context: Context, item: StoredObject, status: str, reason: str) -> None:
    match item.type:
        case "payment_intent":
            if item.body["status"] not in ("processing", "requires_action"):
                raise invalid("The PaymentIntent is not pending.", "id")
            if "checkout_session" in item.plan:
                raise invalid("Advance the Checkout Session of the PaymentIntent instead.", "id")
            payment_intents.resolve(context, item, _INTENT_CODES.get(status, status))
        case checkout_sessions.TYPE:
            checkout_sessions.change_status(context, item, status)
        case "payout":
            payouts.change_status(context, item, status, reason)
        case "refund":
            refunds.resolve(context, item, status)
        case "account" if status == "enabled":
            accounts.enable(context, item)
        case "account":
            accounts.disable(context, item, reason or "rejected.other")
        case _:
            reports.fail(context, item, reason or "The report failed.")


def set_request_fault(context: Context, parameters: Parameters) -> dict[str, Any]:
    """POST /sandbox/request_fault: the next `count` requests whose path begins with `path` have a
    `fault`: one of those of the tokens that replace an answer. By default one request.
    """
    names = sorted(BEFORE | AFTER)
    fault = parameters.choice("fault", names, "none")
    path = parameters.text("path", "/v1/")
    count = parameters.integer("count")
    parameters.reject_unknown()
    if not path.startswith("/v1/"):
        raise invalid("path must begin with /v1/.", "path")
    fault_count = 1 if count is None else count
    context.switches.request_fault = RequestFault(Fault(fault), path, fault_count)
    return {"fault": fault, "path": path, "count": fault_count}


def set_webhook_faults(context: Context, parameters: Parameters) -> dict[str, Any]:
    """POST /sandbox/webhook_faults: replaces the faults of deliveries, by the names of
    WebhookFaults. `reversed`: the newest events first. Without parameters there are none.
    """
    percents = {}
    for name in ("duplicate", "forged", "silent", "delayed"):
        percent = parameters.integer(f"{name}_percent") or 0
        if not 0 <= percent <= 100:
            raise invalid(f"{name}_percent must be from 0 to 100.", f"{name}_percent")
        percents[f"{name}_percent"] = percent
    delay = parameters.integer("delay_seconds") or 0
    is_reversed = parameters.flag("reversed")
    parameters.reject_unknown()
    context.switches.webhook_faults = WebhookFaults(
        **percents, delay_seconds=float(delay), is_reversed=is_reversed
    )
    return {**percents, "delay_seconds": delay, "reversed": is_reversed}


def pay_out_automatically(context: Context, parameters: Parameters) -> dict[str, Any]:
    """POST /sandbox/automatic_payout: pays the available money of the account in a currency that no
    automatic payout has paid yet to its bank, as Stripe does by schedule.
    """
    currency = check_currency(parameters.text("currency", required=True))
    parameters.reject_unknown()
    store.lock_balance(context.connection, context.account, currency)
    unpaid = store.list_unpaid(context.connection, context.account, currency, context.timestamp)
    amount = sum(item.body["net"] for item in unpaid)
    if amount <= 0:
        raise invalid("There is no money that an automatic payout can pay.", "currency")
    payout = payouts.start(context, amount, currency, Behavior(Fault.NONE), {}, is_automatic=True)
    for item in (*unpaid, context.load("balance_transaction", payout.body["balance_transaction"])):
        item.plan["payout"] = payout.id
        context.save(item)
    return payout.body


def deliver_again(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    """POST /sandbox/events/{id}/resend: delivers an event to its endpoints again."""
    parameters.reject_unknown()
    event = context.load("event", id_)
    return {"id": event.id, "deliveries": resend(context.connection, event.id)}
