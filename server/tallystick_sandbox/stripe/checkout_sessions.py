"""Checkout Sessions: a page of Stripe's on which a buyer pays once. The functions `submit` and
`authenticate` are what the buyer does there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from tallystick_sandbox.stripe import payment_intents
from tallystick_sandbox.stripe.context import Context
from tallystick_sandbox.stripe.errors import StripeFailure, invalid, missing, unexecutable
from tallystick_sandbox.stripe.money import check_charge_amount, check_currency
from tallystick_sandbox.stripe.parameters import Parameters, without_empty
from tallystick_sandbox.stripe.store import StoredObject

TYPE = "checkout.session"
_MIN_LIFETIME_SECONDS, _MAX_LIFETIME_SECONDS = 1_800, 86_400
_MAX_REFERENCE_LENGTH = 200
_MAX_QUANTITY, _MAX_UNIT_AMOUNT = 999_999, 10**12 - 1
_STATUSES = ("open", "complete", "expired")
_LOCALES = """
    auto bg cs da de el en en-GB es es-419 et fi fil fr fr-CA hi-IN hr hu id it ja ko lt lv ms mt nb
    nl pl pt pt-BR ro ru sk sl sv th tr vi zh zh-HK zh-TW
"""
_URL = re.compile(
    r"(https?://(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?)"
    r"(?:[/?#][!-~]*)?",
    re.IGNORECASE,
)
_ID_PLACE = "{CHECKOUT_SESSION_ID}"


class BuyerCard(StrEnum):
    """The test cards that a buyer can choose on the page of a session. Some are bank debits."""

    SUCCESS = "success"
    DECLINED = "declined"
    INSUFFICIENT_FUNDS = "insufficient_funds"
    THREE_D_SECURE = "3d_secure"
    DELAYED_SUCCESS = "delayed_success"
    DELAYED_FAILURE = "delayed_failure"


_PAYMENT_METHODS = {
    BuyerCard.SUCCESS: "pm_card_visa",
    BuyerCard.DECLINED: "pm_card_chargeDeclined",
    BuyerCard.INSUFFICIENT_FUNDS: "pm_card_chargeDeclinedInsufficientFunds",
    BuyerCard.THREE_D_SECURE: "pm_card_threeDSecure2Required",
    BuyerCard.DELAYED_SUCCESS: "pm_pending:review",
    BuyerCard.DELAYED_FAILURE: "pm_pending:review",
}
_DEBIT_RESULTS = {BuyerCard.DELAYED_SUCCESS: "paid", BuyerCard.DELAYED_FAILURE: "declined"}


@dataclass(frozen=True, slots=True)
class CheckoutState:
    """A session as its page shows it. `line_items`: each with name, quantity and amount;
    `intent`: the body of its PaymentIntent, None until the buyer submits for the first time.
    """

    session: dict[str, Any]
    line_items: list[dict[str, Any]]
    intent: dict[str, Any] | None

    @property
    def success_url(self) -> str:
        """Where the buyer goes after the payment."""
        url: str = self.session["success_url"]
        return url.replace(_ID_PLACE, self.session["id"])


def create(context: Context, parameters: Parameters) -> dict[str, Any]:
    if parameters.text("mode", required=True) != "payment":
        raise invalid("The look-alike has sessions of the mode payment only.", "mode")
    line_items, currency = _line_items(parameters)
    amount = sum(item["amount"] for item in line_items)
    check_charge_amount(amount, currency)
    reference = parameters.text("client_reference_id", max_length=_MAX_REFERENCE_LENGTH)
    metadata = parameters.metadata()
    intent_data = _intent_data(parameters)
    expires_at = _expires_at(context, parameters)
    success_url = _url(parameters, "success_url", required=True)
    cancel_url = _url(parameters, "cancel_url")
    locale = parameters.choice("locale", _LOCALES.split(), "")
    _reject_adaptive_pricing(parameters)
    parameters.reject_unknown()
    body = {
        "amount_subtotal": amount,
        "amount_total": amount,
        "automatic_tax": {"enabled": False, "liability": None, "status": None},
        "cancel_url": cancel_url or None,
        "client_reference_id": reference or None,
        "currency": currency,
        "customer": None,
        "customer_details": None,
        "customer_email": None,
        "expires_at": expires_at,
        "locale": locale or None,
        "metadata": metadata,
        "mode": "payment",
        "payment_intent": None,
        "payment_link": None,
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "payment_status": "unpaid",
        "recovered_from": None,
        "setup_intent": None,
        "status": "open",
        "submit_type": None,
        "subscription": None,
        "success_url": success_url,
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": "hosted_page",
    }
    plan = {"line_items": line_items, "intent_data": intent_data}
    session = context.create("cs_test", TYPE, body, plan=plan)
    session.body["url"] = f"{context.rules.checkout_url}/c/pay/{session.id}"
    session.due_time = datetime.fromtimestamp(expires_at, UTC)
    return session.body


def _line_items(parameters: Parameters) -> tuple[list[dict[str, Any]], str]:
    """The line items with their amounts, and the currency that they share."""
    line_items, currencies = [], set()
    for item in parameters.objects("line_items"):
        quantity = item.bounded_integer("quantity", 1, _MAX_QUANTITY)
        price = item.required_object("price_data")
        item.reject_unknown()
        currencies.add(check_currency(price.text("currency", required=True)))
        unit_amount = price.bounded_integer("unit_amount", 0, _MAX_UNIT_AMOUNT)
        product = price.required_object("product_data")
        price.reject_unknown()
        name = product.text("name", required=True)
        product.reject_unknown()
        line_items.append({"name": name, "quantity": quantity, "amount": quantity * unit_amount})
    if len(currencies) != 1:
        raise invalid("All line items must have the same currency.", "line_items")
    return line_items, currencies.pop()


def _intent_data(parameters: Parameters) -> dict[str, Any]:
    """What the session's PaymentIntent will have. The metadata of the session is not copied."""
    values = parameters.object("payment_intent_data")
    if values is None:
        return {}
    texts = {name: values.text(name) for name in ("transfer_group", "statement_descriptor_suffix")}
    data = {"metadata": values.metadata(), **without_empty(texts)}
    values.reject_unknown()
    return data


def _reject_adaptive_pricing(parameters: Parameters) -> None:
    values = parameters.object("adaptive_pricing")
    if values is None:
        return
    if values.flag("enabled"):
        raise invalid("The look-alike has no adaptive pricing.", "adaptive_pricing[enabled]")
    values.reject_unknown()


def _expires_at(context: Context, parameters: Parameters) -> int:
    """In Unix seconds."""
    expires_at = parameters.integer("expires_at")
    if expires_at is None:
        return context.timestamp + _MAX_LIFETIME_SECONDS
    lifetime = expires_at - context.timestamp
    if lifetime < _MIN_LIFETIME_SECONDS:
        raise invalid(
            "The `expires_at` timestamp must be at least 30 minutes from Checkout Session "
            "creation.",
            "expires_at",
        )
    if lifetime > _MAX_LIFETIME_SECONDS:
        raise invalid(
            "The `expires_at` timestamp must be less than 24 hours from Checkout Session creation.",
            "expires_at",
        )
    return expires_at


def _url(parameters: Parameters, name: str, *, required: bool = False) -> str:
    url = parameters.text(name, required=required)
    if url and _URL.fullmatch(url) is None:
        raise invalid("Not a valid URL", name, "url_invalid")
    return url


def origin_of(url: str) -> str:
    """The origin of a URL of a session, such as "https://shop.example:8443"."""
    match = _URL.fullmatch(url)
    return match[1] if match else ""


def retrieve(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    parameters.reject_unknown()
    return context.load(TYPE, id_).body


def list_filter(parameters: Parameters) -> dict[str, Any]:
    values = {
        "payment_intent": parameters.text("payment_intent"),
        "status": parameters.choice("status", _STATUSES, ""),
    }
    return {name: value for name, value in values.items() if value}


def expire(context: Context, parameters: Parameters, id_: str) -> dict[str, Any]:
    parameters.reject_unknown()
    session = context.load(TYPE, id_)
    if session.body["status"] != "open":
        raise unexecutable(
            "",
            'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout '
            f"Session has a status of {session.body['status']}.",
        )
    _expire(context, session)
    return session.body


def advance(context: Context, session: StoredObject) -> None:
    """An open session expires; the bank debit of a complete one succeeds or fails."""
    if session.body["status"] == "open":
        _expire(context, session)
    else:
        resolve(context, session, session.plan["debit_result"])


def change_status(context: Context, session: StoredObject, status: str) -> None:
    """The session gets a status of the control surface. Raises StripeFailure."""
    is_debit = "debit_result" in session.plan
    if status == "expired" and session.body["status"] == "open":
        _expire(context, session)
    elif status in ("paid", "declined") and is_debit:
        resolve(context, session, status)
    else:
        raise invalid(f"The Checkout Session cannot become {status} now.", "status")


def _expire(context: Context, session: StoredObject) -> None:
    _close(context, session, "expired")
    intent = _intent(context, session)
    if intent is not None:
        payment_intents.end(context, intent, "automatic")
    context.emit("checkout.session.expired", session)


def resolve(context: Context, session: StoredObject, result: str) -> None:
    """A bank debit is paid or declined."""
    del session.plan["debit_result"]
    context.schedule(session, None)
    context.save(session)
    intent = context.load("payment_intent", session.body["payment_intent"], account=session.account)
    payment_intents.resolve(context, intent, result)
    if result == "paid":
        session.body["payment_status"] = "paid"
        context.emit("checkout.session.async_payment_succeeded", session)
    else:
        context.emit("checkout.session.async_payment_failed", session)


def show(context: Context, id_: str) -> CheckoutState:
    """The present state of a session of any account. Raises StripeFailure."""
    return _state(context, _find(context, id_))


def submit(context: Context, id_: str, card: BuyerCard) -> CheckoutState:
    """The buyer pays with a test card. It does nothing unless the session is open, so that two
    submissions never take two payments. Raises StripeFailure if there is no such session.
    """
    session = _find(context, id_)
    if session.body["status"] == "open":
        _submit(context, session, card)
    return _state(context, session)


def _submit(context: Context, session: StoredObject, card: BuyerCard) -> None:
    intent = _intent(context, session) or _start_intent(context, session)
    intent.body["payment_method"] = _PAYMENT_METHODS[card]
    try:
        payment_intents.attempt(context, intent, may_act=True)
    except StripeFailure:  # a decline, which is recorded
        return
    match intent.body["status"]:
        case "succeeded":
            _complete_paid(context, session)
        case "processing":
            session.plan["debit_result"] = _DEBIT_RESULTS[card]
            _close(context, session, "complete")
            context.schedule(session, context.rules.debit_seconds)
            context.emit("checkout.session.completed", session)


def authenticate(context: Context, id_: str, *, passes: bool) -> CheckoutState:
    """The buyer passes or fails the authentication that their card needs. It does nothing unless
    the session waits for it. Raises StripeFailure if there is no such session.
    """
    session = _find(context, id_)
    intent = _intent(context, session)
    if session.body["status"] != "open" or intent is None:
        return _state(context, session)
    if intent.body["status"] == "requires_action":
        if passes:
            payment_intents.resolve(context, intent, "paid")
            _complete_paid(context, session)
        else:
            payment_intents.fail_authentication(context, intent)
    return _state(context, session)


def _find(context: Context, id_: str) -> StoredObject:
    session = context.find(id_)
    if session is None or session.type != TYPE:
        raise missing(TYPE, id_)
    return session


def _start_intent(context: Context, session: StoredObject) -> StoredObject:
    body = {
        "amount": session.body["amount_total"],
        "currency": session.body["currency"],
        **session.plan["intent_data"],
    }
    intent = payment_intents.start(context, body, account=session.account, session_id=session.id)
    session.body["payment_intent"] = intent.id
    context.save(session)
    return intent


def _complete_paid(context: Context, session: StoredObject) -> None:
    _close(context, session, "complete")
    session.body["payment_status"] = "paid"
    context.emit("checkout.session.completed", session)


def _close(context: Context, session: StoredObject, status: str) -> None:
    """The buyer can do nothing more."""
    session.body |= {"status": status, "url": None}
    context.schedule(session, None)
    context.save(session)


def _intent(context: Context, session: StoredObject) -> StoredObject | None:
    id_ = session.body["payment_intent"]
    return None if id_ is None else context.find(id_)


def _state(context: Context, session: StoredObject) -> CheckoutState:
    intent = _intent(context, session)
    return CheckoutState(
        session.body, session.plan["line_items"], None if intent is None else intent.body
    )
