"""Checkout Sessions of the Stripe look-alike, through Stripe's own client."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import stripe

from tallystick_sandbox.stripe.checkout_sessions import BuyerCard
from tallystick_sandbox.stripe.context import StripeRules
from tallystick_server.app.database.connections import DatabaseUrls
from tests.sandbox.harness import LookAlike, line_item, look_alike, set_clock

_FORM = (
    "mode=payment&success_url=https://shop.example/paid&line_items[0][quantity]=1"
    "&line_items[0][price_data][currency]=eur&line_items[0][price_data][unit_amount]=1000"
    "&line_items[0][price_data][product_data][name]=Vase"
)


def test_a_session_has_the_shape_of_stripes(database: DatabaseUrls) -> None:
    """A new session is open and unpaid, and has no PaymentIntent before the buyer submits. The
    metadata of the session and of its PaymentIntent are separate.
    """

    async def run() -> None:
        rules = StripeRules(checkout_url="https://pay.example", fee_ppm=15_000, fee_fixed=25)
        async with look_alike(database, rules) as server:
            created = await server.check_out(
                line_items=[line_item("Vase", 400, 2), line_item("Box", 200)],
                client_reference_id="order-1",
                metadata={"a": "session"},
                payment_intent_data={
                    "metadata": {"b": "intent"},
                    "transfer_group": "group-1",
                    "statement_descriptor_suffix": "VASE",
                },
                cancel_url="https://shop.example/basket",
                locale="de",
            )
            assert created.id.startswith("cs_test_")
            assert created.url == f"https://pay.example/c/pay/{created.id}"
            assert (created.object, created.mode, created.livemode) == (
                "checkout.session",
                "payment",
                False,
            )
            assert (created.status, created.payment_status) == ("open", "unpaid")
            assert (created.amount_subtotal, created.amount_total) == (1000, 1000)
            assert (created.currency, created.locale) == ("eur", "de")
            assert created.client_reference_id == "order-1"
            assert created.metadata.to_dict() == {"a": "session"}
            assert created.expires_at - created.created == 86_400
            assert created.payment_intent is None
            assert created.ui_mode == "hosted_page"

            state = await server.sandbox.submit_checkout(created.id, BuyerCard.SUCCESS)
            assert state.success_url == f"https://shop.example/paid?session={created.id}"
            paid = await server.session(created.id)
            assert (paid.status, paid.payment_status, paid.url) == ("complete", "paid", None)
            intent = paid.payment_intent
            assert (intent.status, intent.amount_received) == ("succeeded", 1000)
            assert intent.metadata.to_dict() == {"b": "intent"}
            assert (intent.transfer_group, intent.statement_descriptor_suffix) == (
                "group-1",
                "VASE",
            )
            transaction = intent.latest_charge.balance_transaction
            assert (transaction.amount, transaction.fee, transaction.net) == (1000, 40, 960)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("changed", "param", "code"),
    [
        ("mode=payment=>mode=setup", "mode", None),
        ("mode=payment=>", "mode", "parameter_missing"),
        ("success_url=https://shop.example/paid=>", "success_url", "parameter_missing"),
        ("https://shop.example/paid=>shop.example/paid", "success_url", "url_invalid"),
        ("https://shop.example/paid=>javascript:alert(1)", "success_url", "url_invalid"),
        ("https://shop.example/paid=>https://a;script-src/", "success_url", "url_invalid"),
        ("https://shop.example/paid=>https://a/%0d%0aSet-Cookie:a=b", "success_url", "url_invalid"),
        ("=>&cancel_url=ftp://a", "cancel_url", "url_invalid"),
        ("=>&locale=xx", "locale", None),
        ("=>&client_reference_id=" + "x" * 201, "client_reference_id", None),
        ("=>&customer_email=a@b.example", "customer_email", "parameter_unknown"),
        ("=>&payment_intent_data[amount]=1", "payment_intent_data[amount]", "parameter_unknown"),
        ("=>&line_items[0][price]=p", "line_items[0][price]", "parameter_unknown"),
        ("=>&line_items[1]=x", "line_items", None),
        ("[quantity]=1=>[quantity]=0", "line_items[0][quantity]", "parameter_invalid_integer"),
        (
            "[unit_amount]=1000=>[unit_amount]=-1",
            "line_items[0][price_data][unit_amount]",
            "parameter_invalid_integer",
        ),
        ("[unit_amount]=1000=>[unit_amount]=49", "amount", "amount_too_small"),
        ("[quantity]=1=>[quantity]=999999&line_items[0][x]=1", "line_items[0][x]", None),
        ("[currency]=eur=>[currency]=xxx", "currency", None),
        ("[name]=Vase=>[name]=", "line_items[0][price_data][product_data][name]", None),
        ("=>&expires_at=1", "expires_at", None),
        ("=>&adaptive_pricing[enabled]=true", "adaptive_pricing[enabled]", None),
        ("=>&expires_at=99999999999", "expires_at", None),
        ("=>&expand[]=line_items", "expand", None),
    ],
)
def test_a_wrong_parameter_is_named(
    database: DatabaseUrls, changed: str, param: str, code: str | None
) -> None:
    async def run() -> None:
        old, _, new = changed.partition("=>")
        body = _FORM.replace(old, new) if old else _FORM + new
        async with look_alike(database) as server:
            answer = await server.post("/v1/checkout/sessions", body)
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert error["type"] == "invalid_request_error"
            assert error["param"] == param
            assert code in (None, error.get("code"))

    asyncio.run(run())


@pytest.mark.parametrize("seconds", [1_700, 86_500])
def test_a_session_lives_from_30_minutes_to_a_day(database: DatabaseUrls, seconds: int) -> None:
    async def run() -> None:
        async with look_alike(database) as server:
            with pytest.raises(stripe.InvalidRequestError) as rejected:
                await server.check_out(expires_at=int(time.time()) + seconds)
            assert rejected.value.param == "expires_at"
            expires_at = int(time.time()) + 1_900
            session = await server.check_out(expires_at=expires_at)
            assert session.expires_at == expires_at

    asyncio.run(run())


def test_a_repeated_creation_makes_no_second_session(database: DatabaseUrls) -> None:
    """The key of a creation whose answer was lost gives the session that was made."""

    async def run() -> None:
        async with look_alike(database) as server:
            reference = f"order-{time.time_ns()}"
            options = {"idempotency_key": reference}
            await server.control("request_fault", fault="lost_after", path="/v1/checkout")
            with pytest.raises(stripe.APIConnectionError):
                await server.check_out(client_reference_id=reference, options=options)
            session = await server.check_out(client_reference_id=reference, options=options)
            page = await server.client.v1.checkout.sessions.list_async({"limit": 100})
            same = [item.id for item in page.data if item.client_reference_id == reference]
            assert same == [session.id]
            with pytest.raises(stripe.IdempotencyError):
                await server.check_out(client_reference_id="another", options=options)

    asyncio.run(run())


@pytest.mark.parametrize("way", ["call", "time", "control"])
@pytest.mark.parametrize("card", [None, BuyerCard.DECLINED, BuyerCard.THREE_D_SECURE])
def test_an_expired_session_is_never_completed(
    scratch_database: DatabaseUrls, way: str, card: BuyerCard | None
) -> None:
    """An expired session ends once, and its PaymentIntent with it. The buyer can do nothing."""

    async def run() -> None:
        async with look_alike(scratch_database) as server:
            id_ = (await server.check_out()).id
            if card:
                await server.sandbox.submit_checkout(id_, card)
            await _expire(server, scratch_database, id_, way)
            for _ in range(2):
                state = await server.sandbox.submit_checkout(id_, BuyerCard.SUCCESS)
                assert (state.session["status"], state.session["url"]) == ("expired", None)
                await server.sandbox.authenticate_checkout(id_, passes=True)
                await server.sandbox.advance_due()
            session = await server.session(id_)
            assert (session.status, session.payment_status) == ("expired", "unpaid")
            if card:
                intent = session.payment_intent
                assert (intent.status, intent.cancellation_reason) == ("canceled", "automatic")
            types = await server.event_types()
            assert types.count("checkout.session.expired") == 1
            assert types.count("payment_intent.canceled") == (1 if card else 0)
            assert "charge.succeeded" not in types
            with pytest.raises(stripe.InvalidRequestError) as rejected:
                await server.client.v1.checkout.sessions.expire_async(id_)
            assert rejected.value.http_status == 400

    asyncio.run(run())


async def _expire(server: LookAlike, databases: DatabaseUrls, id_: str, way: str) -> None:
    match way:
        case "call":
            expired = await server.client.v1.checkout.sessions.expire_async(id_)
            assert expired.status == "expired"
        case "time":
            set_clock(databases, "1441 minutes")
        case _:
            await server.control("advance", id=id_, status="expired")


def test_a_complete_session_cannot_expire(scratch_database: DatabaseUrls) -> None:
    async def run() -> None:
        async with look_alike(scratch_database) as server:
            id_ = (await server.check_out()).id
            await server.sandbox.submit_checkout(id_, BuyerCard.SUCCESS)
            with pytest.raises(stripe.InvalidRequestError, match="complete"):
                await server.client.v1.checkout.sessions.expire_async(id_)
            set_clock(scratch_database, "1441 minutes")
            assert (await server.session(id_)).payment_status == "paid"

    asyncio.run(run())


@pytest.mark.parametrize(
    "card", [BuyerCard.DECLINED, BuyerCard.THREE_D_SECURE, BuyerCard.DELAYED_SUCCESS]
)
def test_the_intent_of_a_session_is_changed_by_the_session_only(
    database: DatabaseUrls, card: BuyerCard
) -> None:
    """Neither a confirmation nor a cancellation nor the control surface changes it."""

    async def run() -> None:
        async with look_alike(database) as server:
            id_ = (await server.check_out()).id
            await server.sandbox.submit_checkout(id_, card)
            intent = (await server.session(id_)).payment_intent
            intents = server.client.v1.payment_intents
            for call, parameters in (
                (intents.confirm_async, {"payment_method": "pm_card_visa"}),
                (intents.cancel_async, {}),
            ):
                with pytest.raises(stripe.InvalidRequestError) as rejected:
                    await call(intent.id, parameters)
                assert rejected.value.code == "payment_intent_unexpected_state"
                assert rejected.value.http_status == 400
            answer = await server.post("/sandbox/advance", f"id={intent.id}&status=succeeded")
            assert answer.status_code == 400
            assert (await intents.retrieve_async(intent.id)).status == intent.status

    asyncio.run(run())


def test_a_list_selects_sessions(scratch_database: DatabaseUrls) -> None:
    """By status, by PaymentIntent and by time, page by page."""

    async def run() -> None:
        async with look_alike(scratch_database) as server:
            ids = [(await server.check_out()).id for _ in range(3)]
            paid = await server.sandbox.submit_checkout(ids[1], BuyerCard.SUCCESS)
            sessions = server.client.v1.checkout.sessions

            async def listed(**parameters: Any) -> list[str]:
                return [item.id for item in (await sessions.list_async(parameters)).data]

            assert await listed() == ids[::-1]
            assert await listed(status="open") == [ids[2], ids[0]]
            assert await listed(payment_intent=paid.intent and paid.intent["id"]) == [ids[1]]
            assert await listed(limit=1, starting_after=ids[2]) == [ids[1]]
            assert await listed(created={"gt": int(time.time()) + 60}) == []

    asyncio.run(run())
