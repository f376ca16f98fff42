"""The pages of a Checkout Session, in HTML without script. Each form is answered by a redirect, so
that a reload or a second click submits nothing again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from tallystick_core.errors import ApiError
from tallystick_sandbox.stripe.checkout_sessions import BuyerCard, CheckoutState, origin_of
from tallystick_sandbox.stripe.errors import StripeFailure
from tallystick_sandbox.stripe.form import parse_form
from tallystick_sandbox.stripe.money import to_major_units
from tallystick_sandbox.stripe.sandbox import StripeSandbox

CARD_LABELS = {
    BuyerCard.SUCCESS: ("Card that is charged", "The payment succeeds at once."),
    BuyerCard.DECLINED: ("Card that is declined", "The bank rejects the payment."),
    BuyerCard.INSUFFICIENT_FUNDS: ("Card with insufficient funds", "The bank rejects it too."),
    BuyerCard.THREE_D_SECURE: ("Card with 3-D Secure", "The bank asks you to authenticate."),
    BuyerCard.DELAYED_SUCCESS: ("Bank debit that succeeds", "The money arrives later."),
    BuyerCard.DELAYED_FAILURE: ("Bank debit that fails", "The bank rejects it later."),
}
"""What the page shows of each test card: its label, and a hint."""
_RESULTS = {"pass": True, "fail": False}
_SESSION_ID = re.compile("[A-Za-z0-9_]{1,255}")
_STYLE = (Path(__file__).parent / "templates" / "checkout.css").read_bytes()
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_templates = Environment(
    loader=PackageLoader("tallystick_sandbox.stripe"), autoescape=True, undefined=StrictUndefined
)

_Show = Callable[[web.Request, str], Awaitable[web.Response]]


class HostedPage:
    """The pages of the Checkout Sessions of a sandbox."""

    def __init__(self, sandbox: StripeSandbox) -> None:
        self._sandbox = sandbox

    def routes(self) -> list[web.RouteDef]:
        page, challenge = "/c/pay/{session_id}", "/c/pay/{session_id}/authenticate"
        return [
            web.get("/c/checkout.css", _style),
            web.get(page, _with_error_pages(self._show)),
            web.post(page, _with_error_pages(self._pay)),
            web.get(challenge, _with_error_pages(self._show_challenge)),
            web.post(challenge, _with_error_pages(self._authenticate)),
        ]

    async def _show(self, _request: web.Request, session_id: str) -> web.Response:
        return _page_of(await self._sandbox.show_checkout(session_id))

    async def _pay(self, request: web.Request, session_id: str) -> web.Response:
        card = await _field(request, "card")
        if card not in CARD_LABELS:
            state = await self._sandbox.show_checkout(session_id)
            return _page_of(state, "Choose one of the test cards.")
        state = await self._sandbox.submit_checkout(session_id, BuyerCard(card))
        return _redirect(_challenge(state) if _is_challenged(state) else _path(state))

    async def _show_challenge(self, _request: web.Request, session_id: str) -> web.Response:
        state = await self._sandbox.show_checkout(session_id)
        if not _is_challenged(state):
            return _redirect(_path(state))
        return _render(
            "authenticate.html", form_targets=_targets(state), action=_challenge(state), state=state
        )

    async def _authenticate(self, request: web.Request, session_id: str) -> web.Response:
        passes = _RESULTS.get(await _field(request, "result"))
        if passes is None:
            state = await self._sandbox.show_checkout(session_id)
            return _redirect(_challenge(state))
        state = await self._sandbox.authenticate_checkout(session_id, passes=passes)
        return _redirect(_path(state))


def _page_of(state: CheckoutState, mistake: str = "") -> web.Response:
    """The page of a session in its present state. `mistake`: what is wrong with the form."""
    match state.session["status"]:
        case "complete":
            return _redirect(state.success_url)
        case "expired":
            return _message(
                410,
                "This payment page has expired",
                "Nothing was paid. Start again in the shop.",
                state.session["cancel_url"],
            )
    return _render(
        "pay.html",
        400 if mistake else 200,
        form_targets=_targets(state),
        action=_path(state),
        challenge=_challenge(state) if _is_challenged(state) else "",
        alert=mistake or _last_error(state),
        cards=CARD_LABELS,
        state=state,
    )


def _last_error(state: CheckoutState) -> str:
    """Why the last submission took no money."""
    error = state.intent["last_payment_error"] if state.intent else None
    if error is None or _is_challenged(state):
        return ""
    if error["code"] == "payment_intent_authentication_failure":
        return "The authentication failed. Nothing was paid. Choose another card."
    return f"{error['message']} Nothing was paid. Choose another card."


def _is_challenged(state: CheckoutState) -> bool:
    """Whether the buyer must authenticate."""
    return (
        state.session["status"] == "open"
        and state.intent is not None
        and state.intent["status"] == "requires_action"
    )


def _path(state: CheckoutState) -> str:
    return f"/c/pay/{state.session['id']}"


def _challenge(state: CheckoutState) -> str:
    return f"{_path(state)}/authenticate"


def _targets(state: CheckoutState) -> list[str]:
    """Where the forms of a session lead, also by redirects: Chromium checks those too."""
    urls = (state.session["success_url"], state.session["cancel_url"])
    return ["'self'", *dict.fromkeys(origin_of(url) for url in urls if url)]


def _with_error_pages(show: _Show) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that shows a page for a session that does not exist, or without the database."""

    async def handle(request: web.Request) -> web.Response:
        session_id = request.match_info["session_id"]
        try:
            if not _SESSION_ID.fullmatch(session_id):
                return _not_found()
            return await show(request, session_id)
        except StripeFailure:
            return _not_found()
        except ApiError:  # the database is unavailable, as the log shows
            return _message(503, "This page is not available now", "Load it again in a minute.")

    return handle


def _not_found() -> web.Response:
    return _message(404, "There is no such payment page", "Check the address, or start again.")


def _message(status: int, heading: str, text: str, link: str | None = None) -> web.Response:
    return _render("message.html", status, heading=heading, text=text, link=link)


def _render(
    template: str, status: int = 200, *, form_targets: list[str] | None = None, **values: Any
) -> web.Response:
    """A page. `form_targets`: the sources of `form-action`; None: there is no form."""
    sources = " ".join(form_targets or ["'none'"])
    policy = (
        f"default-src 'none'; style-src 'self'; form-action {sources}; frame-ancestors 'none'; "
        "base-uri 'none'"
    )
    return web.Response(
        status=status,
        text=_templates.get_template(template).render(values),
        content_type="text/html",
        charset="utf-8",
        headers={**_HEADERS, "Content-Security-Policy": policy},
    )


def _redirect(url: str) -> web.Response:
    return web.Response(status=303, headers={**_HEADERS, "Location": url})


async def _style(_request: web.Request) -> web.Response:
    return web.Response(body=_STYLE, content_type="text/css", charset="utf-8", headers=_HEADERS)


async def _field(request: web.Request, name: str) -> str:
    """A field of a form; "" if there is none, or if the form cannot be read."""
    try:
        value = parse_form((await request.read()).decode()).get(name)
    except (StripeFailure, UnicodeDecodeError):
        return ""
    return value if isinstance(value, str) else ""


def _money(amount: int, currency: str) -> str:
    return f"{to_major_units(amount, currency)} {currency.upper()}"


_templates.filters["money"] = _money
