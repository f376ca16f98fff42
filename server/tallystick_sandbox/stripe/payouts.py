"""Payouts from the balance of an account to its bank. A paid one may still fail."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tallystick_sandbox.rules import Behavior, Fault
from tallystick_sandbox.stripe.accounts import find_account
from tallystick_sandbox.stripe.context import Context
from tallystick_sandbox.stripe.errors import invalid, server_error, unexecutable
from tallystick_sandbox.stripe.money import check_currency, check_payout_amount
from tallystick_sandbox.stripe.parameters import Parameters
from tallystick_sandbox.stripe.store import StoredObject
from tallystick_sandbox.stripe.tokens import account_behavior
from tallystick_sandbox.stripe.transfers import check_available

_FINAL = ("failed", "canceled")
_ARRIVAL_DAYS = 1
_MAX_SECONDS = 366 * 86_400.0
Step = tuple[str, float | None]
"""The next status, and the seconds after the creation at which it is reached; None: at the next
lookup.
"""


def plan_steps(behavior: Behavior, payout_seconds: float) -> list[Step]:
    """What happens to a payout that is pending now."""
    seconds = min(float(behavior.code), _MAX_SECONDS) if behavior.code.isdecimal() else None
    half = None if seconds is None else seconds / 2
    match behavior.fault:
        case Fault.SLOW:
            return [("in_transit", half), ("paid", seconds)]
        case Fault.RETURNED | Fault.RETURNED_PART | Fault.RETURNED_CLOSED:
            return [("paid", half), ("failed", seconds)]
        case Fault.FAILED:
            return [("failed", None)]
        case _ if payout_seconds:
            return [("in_transit", payout_seconds / 2), ("paid", payout_seconds)]
        case _:
            return [("paid", 0.0)]


def create(context: Context, parameters: Parameters) -> dict[str, Any]:
    amount = parameters.required_integer("amount")
    currency = check_currency(parameters.text("currency", required=True))
    check_payout_amount(amount, currency)
    texts = {name: parameters.text(name) for name in ("description", "statement_descriptor")}
    method = parameters.choice("method", ("standard", "instant"), "standard")
    metadata = parameters.metadata()
    parameters.reject_unknown()
    behavior = account_behavior(context.account) or Behavior(Fault.NONE)
    _check_account(context, behavior)
    check_available(context, context.account, amount, currency)
    body: dict[str, Any] = {name: text or None for name, text in texts.items()}
    body |= {"metadata": metadata, "method": method}
    payout = start(context, amount, currency, behavior, body)
    if behavior.fault is Fault.ERROR_STORED:
        change_status(context, payout, "failed")
        raise server_error(is_kept=True)
    if context.rules.pays_out_at_once and payout.plan["steps"][0][0] == "paid":
        advance(context, payout)
    return payout.body


def _check_account(context: Context, behavior: Behavior) -> None:
    account = find_account(context, context.account)
    if account is None or not account.body["payouts_enabled"]:
        raise unexecutable("payouts_not_allowed", "Payouts are not enabled for this account.")
    if behavior.fault in (Fault.DECLINE, Fault.PAID_LATE):
        code = behavior.code if behavior.fault is Fault.DECLINE else ""
        raise unexecutable(code or "payouts_not_allowed", "The payout cannot be made.")


def start(
    context: Context,
    amount: int,
    currency: str,
    behavior: Behavior,
    values: dict[str, Any],
    *,
    is_automatic: bool = False,
) -> StoredObject:
    """Takes the money from the balance, and sends it to the bank."""
    if behavior.fault is Fault.OTHER_AMOUNT:
        amount += 1
    arrival = context.now + timedelta(days=_ARRIVAL_DAYS)
    payout = context.create(
        "po",
        "payout",
        {
            "amount": amount,
            "application_fee": None,
            "application_fee_amount": None,
            "arrival_date": int(arrival.timestamp()),
            "automatic": is_automatic,
            "balance_transaction": None,
            "currency": currency,
            "description": None,
            "destination": f"ba_{context.account.partition('_')[2]}",
            "failure_balance_transaction": None,
            "failure_code": None,
            "failure_message": None,
            "metadata": {},
            "method": "standard",
            "original_payout": None,
            "payout_method": None,
            "reconciliation_status": "in_progress" if is_automatic else "not_applicable",
            "reversed_by": None,
            "source_type": "card",
            "statement_descriptor": None,
            "status": "pending",
            "trace_id": None,
            "type": "bank_account",
            **values,
        },
    )
    transaction = context.book("payout", -amount, currency, payout.id)
    payout.body["balance_transaction"] = transaction.id
    if behavior.fault is Fault.RETURNED_CLOSED:
        payout.plan["failure_code"] = "account_closed"
    payout.plan["steps"] = plan_steps(behavior, context.rules.payout_seconds)
    _schedule(context, payout)
    context.emit("payout.created", payout)
    return payout


def _schedule(context: Context, payout: StoredObject) -> None:
    """Plans the next step, if it has a time."""
    steps = payout.plan["steps"]
    seconds = steps[0][1] if steps else None
    if seconds is None:
        context.schedule(payout, None)
    else:
        context.schedule(payout, payout.body["created"] + seconds - context.now.timestamp())


def advance(context: Context, payout: StoredObject) -> None:
    """The next step of the plan."""
    status, _ = payout.plan["steps"][0]
    payout.plan["steps"] = payout.plan["steps"][1:]
    change_status(context, payout, status, payout.plan.get("failure_code", ""))


def change_status(
    context: Context, payout: StoredObject, status: str, failure_code: str = ""
) -> None:
    """The payout is in transit, is paid, fails or is cancelled, with the event for it. Nothing
    changes if its status is final.
    """
    previous = payout.body["status"]
    _schedule(context, payout)
    context.save(payout)
    if previous in _FINAL or previous == status:
        return
    payout.body["status"] = status
    match status:
        case "failed":
            _return_money(context, payout, "payout_failure")
            code = failure_code or "could_not_process"
            payout.body |= {
                "failure_code": code,
                "failure_message": f"The bank could not process this payout ({code}).",
            }
        case "canceled":
            _return_money(context, payout, "payout_cancel")
    event = {"in_transit": "updated"}.get(status, status)
    context.emit(f"payout.{event}", payout, {"status": previous})
    if status == "paid" and payout.body["automatic"]:
        payout.body["reconciliation_status"] = "completed"
        context.emit("payout.reconciliation_completed", payout)


def _return_money(context: Context, payout: StoredObject, type_: str) -> None:
    payout.plan["steps"] = []
    context.schedule(payout, None)
    transaction = context.book(
        type_,
        payout.body["amount"],
        payout.body["currency"],
        payout.id,
        account=payout.account,
        reporting_category="payout_reversal",
    )
    payout.body["failure_balance_transaction"] = transaction.id


def retrieve(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    """Returns the payout, after the step that its plan has for the next lookup."""
    parameters.reject_unknown()
    payout = context.load("payout", id_)
    look_up(context, payout)
    return payout.body


def look_up(context: Context, payout: StoredObject) -> None:
    """The payout advances by the step that its plan has for the next lookup, if any."""
    steps = payout.plan["steps"]
    if steps and steps[0][1] is None:
        advance(context, payout)


def cancel(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    parameters.reject_unknown()
    payout = context.load("payout", id_)
    if payout.body["status"] != "pending" or payout.body["automatic"]:
        raise unexecutable("", "Payouts can be canceled only while they are pending.")
    change_status(context, payout, "canceled")
    return payout.body


def list_filter(parameters: Parameters) -> dict[str, Any]:
    status = parameters.choice(
        "status", ("pending", "in_transit", "paid", "failed", "canceled"), ""
    )
    destination = parameters.text("destination")
    if destination and not destination.startswith("ba_"):
        raise invalid("Invalid destination: it begins with ba_.", "destination")
    values = {"status": status, "destination": destination}
    return {name: value for name, value in values.items() if value}
