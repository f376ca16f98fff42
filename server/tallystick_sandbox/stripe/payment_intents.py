"""PaymentIntents: create, confirm, retrieve, cancel and search."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

from tallystick_sandbox.rules import Behavior, Fault, resolve_pending
from tallystick_sandbox.stripe import charges
from tallystick_sandbox.stripe.context import Context
from tallystick_sandbox.stripe.errors import (
    StripeFailure,
    invalid,
    missing,
    server_error,
    unexecutable,
)
from tallystick_sandbox.stripe.money import check_charge_amount, check_currency
from tallystick_sandbox.stripe.parameters import Parameters, without_empty
from tallystick_sandbox.stripe.store import StoredObject
from tallystick_sandbox.stripe.tokens import card_decline, payment_method_behavior

_CANCELABLE = (
    "requires_payment_method",
    "requires_confirmation",
    "requires_action",
    "requires_capture",
)
_CANCELLATION_REASONS = ("abandoned", "duplicate", "fraudulent", "requested_by_customer")
_TEXT_PARAMETERS = (
    "customer",
    "description",
    "on_behalf_of",
    "receipt_email",
    "statement_descriptor",
    "statement_descriptor_suffix",
    "transfer_group",
)


def create(context: Context, parameters: Parameters) -> dict[str, Any]:
    """Creates a PaymentIntent, and confirms it if asked to. A decline raises StripeFailure after
    it is recorded.
    """
    amount = parameters.required_integer("amount")
    currency = check_currency(parameters.text("currency", required=True))
    check_charge_amount(amount, currency)
    automatic = _automatic_methods(parameters)
    body = {
        "amount": amount,
        "automatic_payment_methods": automatic,
        "capture_method": parameters.choice(
            "capture_method", ("automatic", "automatic_async"), "automatic_async"
        ),
        "currency": currency,
        "metadata": parameters.metadata(),
        "payment_method_types": parameters.texts("payment_method_types") or ["card"],
        **without_empty({name: parameters.text(name) for name in _TEXT_PARAMETERS}),
    }
    must_confirm = parameters.flag("confirm")
    method, may_act = _confirmation(parameters)
    parameters.reject_unknown()
    if must_confirm and not method:
        raise invalid(
            "You cannot confirm this PaymentIntent because it's missing a payment method.",
            "payment_method",
            "payment_intent_unexpected_state",
        )
    if method:
        body |= {"payment_method": method, "status": "requires_confirmation"}
    intent = start(context, body)
    if must_confirm:
        attempt(context, intent, may_act=may_act)
    return intent.body


def start(
    context: Context, body: dict[str, Any], *, account: str = "", session_id: str = ""
) -> StoredObject:
    """A new PaymentIntent. `body`: its amount, its currency and what else is set; `session_id`: of
    the Checkout Session that it belongs to, which alone changes it then.
    """
    unset: dict[str, Any] = {
        "amount_capturable": 0,
        "amount_received": 0,
        "automatic_payment_methods": None,
        "canceled_at": None,
        "cancellation_reason": None,
        "capture_method": "automatic_async",
        "confirmation_method": "automatic",
        "last_payment_error": None,
        "latest_charge": None,
        "metadata": {},
        "next_action": None,
        "payment_method": None,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "processing": None,
        "setup_future_usage": None,
        "shipping": None,
        "status": "requires_payment_method",
        "transfer_data": None,
        **dict.fromkeys(_TEXT_PARAMETERS),
    }
    plan = {"checkout_session": session_id} if session_id else {}
    intent = context.create("pi", "payment_intent", unset | body, account=account, plan=plan)
    intent.body["client_secret"] = f"{intent.id}_secret_{context.new_id('s').removeprefix('s_')}"
    context.emit("payment_intent.created", intent)
    return intent


def _automatic_methods(parameters: Parameters) -> dict[str, Any] | None:
    values = parameters.object("automatic_payment_methods")
    if values is None:
        return None
    is_enabled = values.flag("enabled")
    redirects = values.choice("allow_redirects", ("always", "never"), "always")
    values.reject_unknown()
    return {"enabled": is_enabled, "allow_redirects": redirects}


def _confirmation(parameters: Parameters) -> tuple[str, bool]:
    """The payment method, and whether the buyer can act now."""
    method = parameters.text("payment_method")
    if method and payment_method_behavior(method) is None:
        raise missing("PaymentMethod", method, param="payment_method", status=400)
    parameters.text("return_url")
    is_off_session = parameters.flag("off_session")
    return method, not (parameters.flag("error_on_requires_action") or is_off_session)


def confirm(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    method, may_act = _confirmation(parameters)
    parameters.reject_unknown()
    intent = _load_changeable(context, id_)
    if intent.body["status"] not in ("requires_payment_method", "requires_confirmation"):
        raise _unexpected_state(intent, "confirm")
    if method:
        intent.body["payment_method"] = method
    if not intent.body["payment_method"]:
        raise _unexpected_state(intent, "confirm")
    attempt(context, intent, may_act=may_act)
    return intent.body


def attempt(context: Context, intent: StoredObject, *, may_act: bool) -> None:
    """Charges the payment method. Raises StripeFailure if it declines."""
    behavior = payment_method_behavior(intent.body["payment_method"]) or Behavior(Fault.NONE)
    context.save(intent)
    match behavior.fault:
        case Fault.DECLINE:
            raise _decline(context, intent, behavior.code)
        case Fault.ERROR_STORED:
            _decline(context, intent, "processing_error")
            raise server_error(is_kept=True)
        case Fault.PENDING if _pending_reason(behavior.code) == "action" and not may_act:
            raise _decline(context, intent, "authentication_required")
        case Fault.PENDING:
            _wait(context, intent, behavior.code)
        case Fault.OTHER_AMOUNT:
            _succeed(context, intent, intent.body["amount"] + 1)
        case _:
            _succeed(context, intent, intent.body["amount"])


def _pending_reason(code: str) -> str:
    return code.partition("-")[0]


def _succeed(context: Context, intent: StoredObject, amount: int) -> None:
    charge = charges.succeed(context, intent, amount)
    intent.plan.pop("pending", None)
    intent.body |= {
        "status": "succeeded",
        "amount_received": amount,
        "latest_charge": charge.id,
        "last_payment_error": None,
        "next_action": None,
        "processing": None,
    }
    context.save(intent)
    context.emit("payment_intent.succeeded", intent)


def _decline(context: Context, intent: StoredObject, code: str) -> StripeFailure:
    """Records a decline. The intent waits for another payment method. Returns the error."""
    decline = card_decline(code)
    charge = charges.fail(context, intent, decline)
    error = {
        "type": "card_error",
        "code": decline.code,
        "decline_code": decline.decline_code,
        "message": decline.message,
        "charge": charge.id,
        "payment_method": {
            "id": intent.body["payment_method"],
            "object": "payment_method",
            "type": "card",
        },
    }
    intent.plan.pop("pending", None)
    intent.body |= {
        "status": "requires_payment_method",
        "latest_charge": charge.id,
        "last_payment_error": error,
        "payment_method": None,
        "next_action": None,
        "processing": None,
    }
    context.save(intent)
    context.emit("payment_intent.payment_failed", intent)
    details = {**error, "payment_intent": deepcopy(intent.body)}
    return StripeFailure(
        402, "card_error", decline.code, decline.message, is_kept=True, details=details
    )


def fail_authentication(context: Context, intent: StoredObject) -> None:
    """The buyer failed the authentication: nothing was charged, and the intent waits for another
    payment method.
    """
    intent.plan.pop("pending", None)
    intent.body |= {
        "status": "requires_payment_method",
        "last_payment_error": {
            "type": "invalid_request_error",
            "code": "payment_intent_authentication_failure",
            "message": "The provided PaymentMethod has failed authentication. Provide another "
            "payment method to attempt this payment again.",
            "payment_method": {
                "id": intent.body["payment_method"],
                "object": "payment_method",
                "type": "card",
            },
        },
        "payment_method": None,
        "next_action": None,
    }
    context.save(intent)
    context.emit("payment_intent.payment_failed", intent)


def _wait(context: Context, intent: StoredObject, code: str) -> None:
    """The intent waits for its buyer or for a review. `code`: see `rules.behavior_for`."""
    intent.plan["pending"] = code
    if _pending_reason(code) == "action":
        intent.body |= {
            "status": "requires_action",
            "next_action": {
                "type": "use_stripe_sdk",
                "use_stripe_sdk": {"type": "three_d_secure_redirect"},
            },
        }
        event = "payment_intent.requires_action"
    else:
        intent.body |= {"status": "processing", "next_action": None}
        event = "payment_intent.processing"
    context.save(intent)
    context.emit(event, intent)


def resolve(context: Context, intent: StoredObject, code: str) -> None:
    """A pending intent advances to the state of a code: paid, declined, or a reason to wait."""
    if code == "paid":
        _succeed(context, intent, intent.body["amount"])
    elif code == "declined":
        _decline(context, intent, "generic_decline")
    else:
        _wait(context, intent, code)


def retrieve(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    """Returns the intent. A pending one advances as its token says."""
    parameters.text("client_secret")
    parameters.reject_unknown()
    intent = context.load("payment_intent", id_)
    look_up(context, intent)
    return intent.body


def look_up(context: Context, intent: StoredObject) -> None:
    """A pending intent advances by one step of its token."""
    code = intent.plan.get("pending")
    if code is None:
        return
    state, next_code = resolve_pending("PENDING", code)
    if (state, next_code) != ("PENDING", code):
        resolve(context, intent, next_code)


def cancel(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    reason = parameters.choice("cancellation_reason", _CANCELLATION_REASONS, "")
    parameters.reject_unknown()
    intent = _load_changeable(context, id_)
    if intent.body["status"] not in _CANCELABLE:
        raise _unexpected_state(intent, "cancel")
    end(context, intent, reason or None)
    return intent.body


def end(context: Context, intent: StoredObject, reason: str | None) -> None:
    """The intent is canceled: it can never be charged again."""
    intent.plan.pop("pending", None)
    intent.body |= {
        "status": "canceled",
        "canceled_at": context.timestamp,
        "cancellation_reason": reason,
        "next_action": None,
        "processing": None,
    }
    context.save(intent)
    context.emit("payment_intent.canceled", intent)


def _load_changeable(context: Context, id_: str) -> StoredObject:
    """An intent that a request may change. Raises StripeFailure."""
    intent = context.load("payment_intent", id_)
    if "checkout_session" in intent.plan:
        raise unexecutable(
            "payment_intent_unexpected_state",
            "You cannot perform this action on PaymentIntents created by Checkout.",
            details={"payment_intent": deepcopy(intent.body)},
        )
    return intent


def _unexpected_state(intent: StoredObject, verb: str) -> StripeFailure:
    message = (
        f"You cannot {verb} this PaymentIntent because it has a status of {intent.body['status']}."
    )
    details = {"payment_intent": deepcopy(intent.body)}
    return unexecutable("payment_intent_unexpected_state", message, details=details)


_QUERY = re.compile(r"""metadata\[(['"])([^'"]{1,40})\1\]\s*:\s*(['"])([^'"]{0,500})\3""")


def search_filter(parameters: Parameters) -> dict[str, Any]:
    """The filter of a query like metadata['name']:'value'. Terms may be joined by AND."""
    terms = re.split(r"\s+AND\s+", parameters.text("query", required=True))
    metadata = {}
    for term in terms:
        match = _QUERY.fullmatch(term.strip())
        if match is None:
            raise invalid(
                "The look-alike searches for metadata['name']:'value', joined by AND.", "query"
            )
        metadata[match[2]] = match[4]
    return {"metadata": metadata}


def list_filter(parameters: Parameters) -> dict[str, Any]:
    customer = parameters.text("customer")
    return {"customer": customer} if customer else {}
