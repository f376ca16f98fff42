"""Whatever buyers, the platform and time do to a Checkout Session, it is paid once at most."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from typing import Any
from urllib.parse import quote

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tallystick_sandbox.stripe.checkout_sessions import BuyerCard
from tallystick_sandbox.stripe.sandbox import StripeSandbox
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_storage.database import Database

_HEADERS = {"Authorization": "Bearer sk_test_x"}
_CREATION = (
    "mode=payment&success_url=https://shop.example/paid&line_items[0][quantity]=1"
    "&line_items[0][price_data][currency]=eur&line_items[0][price_data][unit_amount]=1000"
    "&line_items[0][price_data][product_data][name]=Vase"
)
_INTENT_STATUSES: dict[tuple[str, str], set[str | None]] = {
    ("open", "unpaid"): {None, "requires_payment_method", "requires_action"},
    ("complete", "unpaid"): {"processing", "requires_payment_method"},
    ("complete", "paid"): {"succeeded"},
    ("expired", "unpaid"): {None, "canceled"},
}
"""What the PaymentIntent may be in each state of its session."""

Action = Callable[[StripeSandbox, str], Awaitable[object]]


async def _call(sandbox: StripeSandbox, method: str, path: str, form: str = "") -> Any:
    target, body = (path, form.encode()) if method == "POST" else (f"{path}?{form}", b"")
    return orjson.loads((await sandbox.handle(method, target, _HEADERS, body)).body)


def _submission(card: BuyerCard) -> Action:
    return lambda sandbox, id_: sandbox.submit_checkout(id_, card)


def _authentication(passes: bool) -> Action:
    return lambda sandbox, id_: sandbox.authenticate_checkout(id_, passes=passes)


def _control(status: str) -> Action:
    return lambda sandbox, id_: _call(
        sandbox, "POST", "/sandbox/advance", f"id={id_}&status={status}"
    )


async def _expire(sandbox: StripeSandbox, id_: str) -> None:
    await _call(sandbox, "POST", f"/v1/checkout/sessions/{id_}/expire")


async def _change_intent(sandbox: StripeSandbox, id_: str) -> None:
    """Everything that the API can do to the PaymentIntent, which must change nothing."""
    state = await sandbox.show_checkout(id_)
    if state.intent is None:
        return
    path = f"/v1/payment_intents/{state.intent['id']}"
    await _call(sandbox, "POST", f"{path}/confirm", "payment_method=pm_card_visa")
    await _call(sandbox, "POST", f"{path}/cancel")
    await _call(sandbox, "GET", path)


ACTIONS: dict[str, Action] = {
    **{f"submit {card}": _submission(card) for card in BuyerCard},
    "pass": _authentication(True),
    "fail": _authentication(False),
    **{f"become {status}": _control(status) for status in ("paid", "declined", "expired")},
    "expire": _expire,
    "change the intent": _change_intent,
    "advance": lambda sandbox, _id: sandbox.advance_due(),
}
_STEPS = st.lists(
    st.lists(st.sampled_from(list(ACTIONS)), min_size=1, max_size=2), min_size=1, max_size=6
)
"""The actions of a step happen at the same time."""


@pytest.fixture(scope="module")
def sandbox(database: DatabaseUrls) -> Iterator[StripeSandbox]:
    with closing(Database(database.service("sandbox"), connections=3)) as connected:
        yield StripeSandbox(connected)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@example(steps=[["submit success", "submit success"]])
@example(steps=[["submit 3d_secure"], ["pass", "pass"], ["expire"]])
@example(steps=[["submit 3d_secure"], ["pass", "submit success"]])
@example(steps=[["submit delayed_success"], ["become paid", "become paid"]])
@example(steps=[["submit delayed_failure"], ["submit success"], ["become declined", "expire"]])
@example(steps=[["submit declined"], ["expire", "submit success"]])
@example(steps=[["submit 3d_secure"], ["become expired", "pass"]])
@given(steps=_STEPS)
def test_no_session_is_paid_twice(sandbox: StripeSandbox, steps: list[list[str]]) -> None:
    """After each step the session agrees with its PaymentIntent, and a final state stays."""

    async def run() -> None:
        id_ = (await _call(sandbox, "POST", "/v1/checkout/sessions", _CREATION))["id"]
        final: tuple[str, str] | None = None
        for step in steps:
            await asyncio.gather(*(ACTIONS[name](sandbox, id_) for name in step))
            state = await _check(sandbox, id_)
            assert final in (None, state)
            if state in (("complete", "paid"), ("expired", "unpaid")):
                final = state
        await _check_events(sandbox, id_)

    asyncio.run(run())


async def _check(sandbox: StripeSandbox, id_: str) -> tuple[str, str]:
    """Compares a session with its PaymentIntent and its charges. Returns its statuses."""
    session = await _call(
        sandbox, "GET", f"/v1/checkout/sessions/{id_}", "expand[]=payment_intent.latest_charge"
    )
    intent = session["payment_intent"]
    statuses = (session["status"], session["payment_status"])
    assert (intent and intent["status"]) in _INTENT_STATUSES[statuses]
    assert (session["url"] is None) == (session["status"] != "open")
    if intent is None:
        return statuses
    charges = await _call(sandbox, "GET", "/v1/charges", f"payment_intent={intent['id']}&limit=100")
    succeeded = [charge for charge in charges["data"] if charge["status"] == "succeeded"]
    assert len(succeeded) == (1 if session["payment_status"] == "paid" else 0)
    assert intent["amount_received"] == sum(charge["amount"] for charge in succeeded)
    if succeeded:
        assert intent["latest_charge"]["id"] == succeeded[0]["id"]
    return statuses


async def _check_events(sandbox: StripeSandbox, id_: str) -> None:
    """A session ends once, and its events say how."""
    session = await _call(sandbox, "GET", f"/v1/checkout/sessions/{id_}")
    page = await _call(
        sandbox, "GET", "/v1/events", f"limit=100&type={quote('checkout.session.*')}"
    )
    types = Counter(event["type"] for event in page["data"] if event["data"]["object"]["id"] == id_)
    ends = types["checkout.session.completed"] + types["checkout.session.expired"]
    assert ends == (0 if session["status"] == "open" else 1)
    delayed = {name: count for name, count in types.items() if "async" in name}
    assert sum(delayed.values()) <= types["checkout.session.completed"]
    if delayed:
        is_paid = session["payment_status"] == "paid"
        assert ("checkout.session.async_payment_succeeded" in delayed) == is_paid
