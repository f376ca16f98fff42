"""Connected accounts. Those that the tokens name are made at their first use."""

from __future__ import annotations

from typing import Any

from tallystick_sandbox.rules import Fault
from tallystick_sandbox.stripe.context import Context
from tallystick_sandbox.stripe.errors import account_invalid, missing
from tallystick_sandbox.stripe.parameters import Parameters
from tallystick_sandbox.stripe.store import PLATFORM, StoredObject
from tallystick_sandbox.stripe.tokens import account_behavior

_MAX_ACCOUNT_LENGTH = 100


def check_access(context: Context) -> None:
    """Checks that the account of the request exists. Raises StripeFailure."""
    if context.account != PLATFORM and find_account(context, context.account) is None:
        raise account_invalid(context.account)


def find_account(context: Context, id_: str) -> StoredObject | None:
    """An account. It is made now if a token names it, and nobody has used it before."""
    if len(id_) > _MAX_ACCOUNT_LENGTH or "\0" in id_:
        return None
    item = context.find(id_)
    if item is not None:
        return item if item.type == "account" else None
    if id_ != PLATFORM and account_behavior(id_) is None:
        return None
    return _create(context, id_)


def load_account(context: Context, id_: str, *, param: str) -> StoredObject:
    """An account that a parameter names. Raises StripeFailure."""
    item = find_account(context, id_)
    if item is None or id_ == PLATFORM:
        raise missing("destination", id_, param=param, status=400)
    return item


def _create(context: Context, id_: str) -> StoredObject:
    behavior = account_behavior(id_)
    fault = behavior.fault if behavior else Fault.NONE
    item = StoredObject(id_, "account", id_, _body(context, id_))
    if fault is Fault.UNVERIFIED:
        _disable(item, "rejected.other")
    elif fault is Fault.REVIEW:
        _disable(item, "under_review")
        item.plan["lookups_until_enabled"] = 1
    context.save(item)
    return item


def _disable(item: StoredObject, reason: str) -> None:
    item.body["payouts_enabled"] = False
    item.body["requirements"]["disabled_reason"] = reason
    item.body["capabilities"]["transfers"] = "inactive"


def _body(context: Context, id_: str) -> dict[str, Any]:
    return {
        "id": id_,
        "object": "account",
        "business_profile": {"name": None, "url": None},
        "capabilities": {"card_payments": "active", "transfers": "active"},
        "charges_enabled": True,
        "controller": {"type": "application", "is_controller": True},
        "country": "DE",
        "created": context.timestamp,
        "default_currency": "eur",
        "details_submitted": True,
        "email": None,
        "future_requirements": _requirements(),
        "metadata": {},
        "payouts_enabled": True,
        "requirements": _requirements(),
        "settings": {
            "payouts": {"debit_negative_balances": False, "schedule": {"interval": "manual"}}
        },
        "type": "custom",
    }


def _requirements() -> dict[str, Any]:
    return {
        "alternatives": [],
        "current_deadline": None,
        "currently_due": [],
        "disabled_reason": None,
        "errors": [],
        "eventually_due": [],
        "past_due": [],
        "pending_verification": [],
    }


def create(context: Context, parameters: Parameters) -> dict[str, Any]:
    country = parameters.text("country", "DE")
    currency = parameters.text("default_currency", "eur")
    email = parameters.text("email")
    type_ = parameters.choice("type", ("custom", "express", "standard"), "custom")
    metadata = parameters.metadata()
    for name in ("capabilities", "controller", "business_profile", "settings"):
        parameters.object(name)  # accepted, without effect
    parameters.reject_unknown()
    id_ = context.new_id("acct")
    body = _body(context, id_) | {
        "country": country,
        "default_currency": currency,
        "email": email or None,
        "type": type_,
        "metadata": metadata,
    }
    item = StoredObject(id_, "account", id_, body)
    context.save(item)
    context.emit("account.updated", item)
    return body


def retrieve(context: Context, parameters: Parameters, id_: str = "") -> dict[str, Any]:
    """Returns an account, by default that of the request. A reviewed one is enabled at its second
    lookup.
    """
    parameters.reject_unknown()
    item = find_account(context, id_ or context.account)
    if item is None:
        raise account_invalid(id_)
    count = item.plan.get("lookups_until_enabled")
    if count is not None:
        item.plan["lookups_until_enabled"] = count - 1
        if count <= 0:
            enable(context, item)
        context.save(item)
    return item.body


def disable(context: Context, item: StoredObject, reason: str) -> None:
    """The account cannot be paid from now on."""
    _disable(item, reason)
    context.save(item)
    context.emit("account.updated", item, {"payouts_enabled": True})


def enable(context: Context, item: StoredObject) -> None:
    """The account can be paid from now on."""
    item.plan.pop("lookups_until_enabled", None)
    item.body["payouts_enabled"] = True
    item.body["requirements"] = _requirements()
    item.body["capabilities"]["transfers"] = "active"
    context.save(item)
    context.emit("account.updated", item, {"payouts_enabled": False})


def balance_settings(context: Context, parameters: Parameters) -> dict[str, Any]:
    """Reads or changes when an account is paid out. The interval is shown, without effect."""
    payments = parameters.object("payments")
    interval = _read_interval(payments) if payments else ""
    parameters.reject_unknown()
    item = find_account(context, context.account)
    if item is None:
        raise account_invalid(context.account)
    schedule = item.body["settings"]["payouts"]["schedule"]
    if interval:
        schedule["interval"] = interval
        context.save(item)
    return {
        "object": "balance_settings",
        "payments": {
            "debit_negative_balances": False,
            "payouts": {
                "minimum_balance_by_currency": None,
                "schedule": {"interval": schedule["interval"]},
                "statement_descriptor": None,
                "status": "enabled" if item.body["payouts_enabled"] else "disabled",
            },
            "settlement_timing": {"delay_days": 2},
        },
    }


def _read_interval(payments: Parameters) -> str:
    payments.flag("debit_negative_balances")
    payouts = payments.object("payouts")
    payments.reject_unknown()
    schedule = payouts.object("schedule") if payouts else None
    interval = (
        schedule.choice("interval", ("manual", "daily", "weekly", "monthly"), "")
        if schedule
        else ""
    )
    for part in (schedule, payouts):
        if part:
            part.reject_unknown()
    return interval
