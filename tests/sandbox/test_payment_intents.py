"""PaymentIntents and charges of the Stripe look-alike, through Stripe's own client."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import stripe

from tallystick_sandbox.stripe.context import StripeRules
from tallystick_server.app.database.connections import DatabaseUrls
from tests.sandbox.harness import look_alike, set_clock
from tests.support.platform import unique_id

_PENDING = {"requires_action": "pm_pending:action", "processing": "pm_pending:review"}


def test_a_retrieved_intent_has_its_fee(database: DatabaseUrls) -> None:
    """The balance transaction of a charge is not in the answer to the creation. It is in that to a
    later lookup, with amount, fee and net.
    """

    async def run() -> None:
        async with look_alike(database, StripeRules(fee_ppm=15_000, fee_fixed=25)) as server:
            expand = ["latest_charge.balance_transaction"]
            created = await server.pay(parameters={"expand": expand})
            assert created.latest_charge.balance_transaction is None
            found = await server.client.v1.payment_intents.retrieve_async(
                created.id, {"expand": expand}
            )
            transaction = found.latest_charge.balance_transaction
            assert (transaction.amount, transaction.fee, transaction.net) == (1000, 40, 960)
            assert transaction.source == found.latest_charge.id
            charge = await server.client.v1.charges.retrieve_async(found.latest_charge.id)
            assert charge.balance_transaction == transaction.id

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "code", "decline_code"),
    [
        ("pm_card_chargeDeclined", "card_declined", "generic_decline"),
        ("pm_card_chargeDeclinedInsufficientFunds", "card_declined", "insufficient_funds"),
        ("pm_card_visa_chargeDeclinedLostCard", "card_declined", "lost_card"),
        ("pm_card_chargeDeclinedExpiredCard", "expired_card", "expired_card"),
        ("pm_card_chargeDeclinedIncorrectCvc", "incorrect_cvc", "incorrect_cvc"),
        ("pm_card_chargeDeclinedProcessingError", "processing_error", "processing_error"),
        ("pm_decline:do_not_honor", "card_declined", "do_not_honor"),
        ("tok_decline:fraudulent", "card_declined", "fraudulent"),
    ],
)
def test_a_decline_has_stripes_codes(
    database: DatabaseUrls, method: str, code: str, decline_code: str
) -> None:
    """A decline is a card error. The intent waits for another payment method, and can be charged
    with one.
    """

    async def run() -> None:
        async with look_alike(database) as server:
            with pytest.raises(stripe.CardError) as declined:
                await server.pay(method)
            error: Any = declined.value.error
            assert (declined.value.http_status, error.type) == (402, "card_error")
            assert (error.code, error.decline_code) == (code, decline_code)
            intent = error.payment_intent
            assert intent.status == "requires_payment_method"
            assert intent.last_payment_error.code == code
            charge = await server.client.v1.charges.retrieve_async(error.charge)
            assert (charge.status, charge.failure_code, charge.paid) == ("failed", code, False)
            confirmed = await server.client.v1.payment_intents.confirm_async(
                intent.id, {"payment_method": "pm_card_visa"}
            )
            assert (confirmed.status, confirmed.amount_received) == ("succeeded", 1000)

    asyncio.run(run())


@pytest.mark.parametrize(("status", "method"), _PENDING.items())
def test_a_pending_intent_ends_by_the_control_surface(
    database: DatabaseUrls, status: str, method: str
) -> None:
    """A pending intent stays so for every lookup, until it is advanced to its end."""

    async def run() -> None:
        async with look_alike(database) as server:
            intents = server.client.v1.payment_intents
            paid, declined = await server.pay(method), await server.pay(method)
            assert (paid.status, paid.latest_charge) == (status, None)
            for _ in range(2):
                assert (await intents.retrieve_async(paid.id)).status == status
            await server.control("advance", id=paid.id, status="succeeded")
            await server.control("advance", id=declined.id, status="declined")
            assert (await intents.retrieve_async(paid.id)).amount_received == 1000
            assert (await intents.retrieve_async(declined.id)).status == "requires_payment_method"

    asyncio.run(run())


def test_a_pending_intent_advances_by_lookups(database: DatabaseUrls) -> None:
    """A token says what each lookup finds: first review, then action, then the payment."""

    async def run() -> None:
        async with look_alike(database) as server:
            intent = await server.pay("pm_pending:review-action-paid")
            statuses = [intent.status]
            for _ in range(3):
                found = await server.client.v1.payment_intents.retrieve_async(intent.id)
                statuses.append(found.status)
            assert statuses == ["processing", "requires_action", "succeeded", "succeeded"]

    asyncio.run(run())


def test_authentication_needs_a_buyer(database: DatabaseUrls) -> None:
    """A card that needs authentication waits for the buyer. Without a buyer it is declined."""

    async def run() -> None:
        async with look_alike(database) as server:
            waiting = await server.pay("pm_card_authenticationRequired")
            assert waiting.status == "requires_action"
            assert waiting.next_action.type == "use_stripe_sdk"
            for option in ("off_session", "error_on_requires_action"):
                with pytest.raises(stripe.CardError) as declined:
                    await server.pay("pm_card_authenticationRequired", parameters={option: True})
                assert declined.value.code == "authentication_required"

    asyncio.run(run())


def test_a_cancelled_intent_is_never_charged(database: DatabaseUrls) -> None:
    """A cancelled intent can neither be confirmed nor cancelled again."""

    async def run() -> None:
        async with look_alike(database) as server:
            intents = server.client.v1.payment_intents
            intent = await server.pay("pm_pending:action")
            cancelled = await intents.cancel_async(intent.id, {"cancellation_reason": "abandoned"})
            assert (cancelled.status, cancelled.cancellation_reason) == ("canceled", "abandoned")
            for call in (intents.cancel_async, intents.confirm_async):
                with pytest.raises(stripe.InvalidRequestError) as rejected:
                    await call(intent.id)
                assert rejected.value.code == "payment_intent_unexpected_state"
                error: Any = rejected.value.error
                assert error.payment_intent.status == "canceled"
            assert (await intents.retrieve_async(intent.id)).latest_charge is None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "status"), [("pm_card_visa", "succeeded"), ("pm_pending:review", "processing")]
)
def test_a_succeeded_or_processing_intent_cannot_be_cancelled(
    database: DatabaseUrls, method: str, status: str
) -> None:
    """The error has the intent, so that the client learns its state."""

    async def run() -> None:
        async with look_alike(database) as server:
            intent = await server.pay(method)
            with pytest.raises(stripe.InvalidRequestError) as rejected:
                await server.client.v1.payment_intents.cancel_async(intent.id)
            error: Any = rejected.value.error
            assert error.payment_intent.status == status

    asyncio.run(run())


def test_a_search_finds_an_intent_after_its_lag(scratch_database: DatabaseUrls) -> None:
    """A search by metadata finds nothing during the lag, and the intent after it."""

    async def run() -> None:
        async with look_alike(scratch_database, StripeRules(search_lag_seconds=60)) as server:
            intent = await server.pay(parameters={"metadata": {"charge_id": "order-1"}})
            await server.pay(parameters={"metadata": {"charge_id": "order-2"}})
            query = {"query": "metadata['charge_id']:'order-1'"}
            found = await server.client.v1.payment_intents.search_async(query)
            assert found.data == []
            set_clock(scratch_database, "61 seconds")
            found = await server.client.v1.payment_intents.search_async(query)
            assert [item.id for item in found.data] == [intent.id]

    asyncio.run(run())


def test_a_list_has_pages(scratch_database: DatabaseUrls) -> None:
    """Following starting_after, or ending_before from the other end, shows every intent once."""

    async def run() -> None:
        async with look_alike(scratch_database) as server:
            ids = [(await server.pay()).id for _ in range(7)]
            intents = server.client.v1.payment_intents
            page = await intents.list_async({"limit": 3})
            forward = [item.id async for item in page.auto_paging_iter()]
            assert forward == ids[::-1]
            page = await intents.list_async({"limit": 3, "ending_before": ids[0]})
            assert [item.id for item in page.data] == ids[1:4][::-1]
            assert page.has_more

    asyncio.run(run())


@pytest.mark.parametrize(
    ("currency", "amount", "code"),
    [
        ("eur", 49, "amount_too_small"),
        ("eur", 50, ""),
        ("gbp", 29, "amount_too_small"),
        ("jpy", 49, "amount_too_small"),
        ("jpy", 50, ""),
        ("eur", 10**12, "amount_too_large"),
        ("eur", 10**12 - 1, ""),
        ("eur", 0, "parameter_invalid_integer"),
        ("isk", 1050, "-"),
        ("isk", 1000, ""),
        ("kwd", 1005, "-"),
        ("kwd", 1010, ""),
        ("xxx", 1000, "-"),
        ("btc", 1000, "-"),
    ],
)
def test_amounts_follow_stripes_table(
    database: DatabaseUrls, currency: str, amount: int, code: str
) -> None:
    """Amounts below the minimum, too long ones, those with decimals that their currency has not,
    and unknown currencies are rejected. "-": the error has no code.
    """

    async def run() -> None:
        async with look_alike(database) as server:
            values = {"currency": currency, "amount": amount}
            if not code:
                assert (await server.pay(parameters=values)).amount_received == amount
                return
            with pytest.raises(stripe.InvalidRequestError) as rejected:
                await server.pay(parameters=values)
            assert rejected.value.code == (code if code != "-" else None)
            assert rejected.value.param in ("amount", "currency")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "error"),
    [
        ("pm_lost_before", stripe.APIConnectionError),
        ("pm_unreachable", stripe.APIConnectionError),
        ("pm_lost_after", stripe.APIConnectionError),
        ("pm_cut", stripe.APIConnectionError),
        ("pm_error_before", stripe.APIError),
        ("pm_error_after", stripe.APIError),
        ("pm_busy", stripe.RateLimitError),
        ("pm_forbidden", stripe.AuthenticationError),
        ("pm_html", stripe.APIError),
        ("pm_redirect", stripe.APIError),
    ],
)
def test_a_transient_fault_ends(
    database: DatabaseUrls, method: str, error: type[stripe.StripeError]
) -> None:
    """A fault replaces the first answer. A repeat of the key takes the money, once in all."""

    async def run() -> None:
        async with look_alike(database, StripeRules(fee_ppm=0, fee_fixed=0)) as server:
            key = unique_id("k")
            parameters = {"currency": "sek", "metadata": {"key": key}}
            with pytest.raises(error):
                await server.pay(method, idempotency_key=key, parameters=parameters)
            intent = await server.pay(method, idempotency_key=key, parameters=parameters)
            assert intent.status == "succeeded"
            page = await server.client.v1.payment_intents.list_async({"limit": 100})
            same = [item.id for item in page.data if item.metadata.to_dict().get("key") == key]
            assert same == [intent.id]

    asyncio.run(run())


def test_a_busy_answer_has_a_retry_time(database: DatabaseUrls) -> None:
    async def run() -> None:
        async with look_alike(database) as server:
            with pytest.raises(stripe.RateLimitError) as busy:
                await server.pay("pm_busy")
            assert busy.value.headers is not None
            assert float(busy.value.headers["Retry-After"]) > 0

    asyncio.run(run())


def test_another_amount_may_be_taken(database: DatabaseUrls) -> None:
    """A token makes the look-alike take one minor unit more than was requested."""

    async def run() -> None:
        async with look_alike(database) as server:
            intent = await server.pay("pm_other_amount")
            assert (intent.amount, intent.amount_received) == (1000, 1001)

    asyncio.run(run())


def test_the_control_surface_replaces_answers(database: DatabaseUrls) -> None:
    """The next request of a path gets the fault that was switched on; the one after it does not."""

    async def run() -> None:
        async with look_alike(database) as server:
            intent = await server.pay()
            path = f"/v1/payment_intents/{intent.id}"
            await server.control("request_fault", fault="error_before", path=path)
            with pytest.raises(stripe.APIError):
                await server.client.v1.payment_intents.retrieve_async(intent.id)
            found = await server.client.v1.payment_intents.retrieve_async(intent.id)
            assert found.id == intent.id

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer sk_live_x"}, 401),
        ({"Authorization": "Basic !"}, 401),
        ({"Authorization": "Basic c2tfdGVzdF94Og=="}, 200),
        ({"Stripe-Account": "acct_nobody"}, 403),
        ({"Idempotency-Key": "k" * 256}, 400),
    ],
)
def test_headers_are_checked(database: DatabaseUrls, headers: dict[str, str], status: int) -> None:
    """Keys other than test keys, unknown accounts and long idempotency keys are rejected."""

    async def run() -> None:
        async with look_alike(database) as server:
            body = "amount=1000&currency=eur"
            answer = await server.post("/v1/payment_intents", body, headers)
            assert answer.status_code == status, answer.text
            assert answer.headers["Request-Id"].startswith("req_")

    asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ("amount=1000", "currency"),
        ("currency=eur", "amount"),
        ("amount=1e3&currency=eur", "amount"),
        ("amount=1000.0&currency=eur", "amount"),
        ("amount=٣٠٠&currency=eur", "amount"),
        ("amount[]=1000&currency=eur", "amount"),
        ("amount=" + "9" * 5000 + "&currency=eur", "amount"),
        ("amount=1000&currency=eur&size=big", "size"),
        (
            "amount=1000&currency=eur&automatic_payment_methods[on]=1",
            "automatic_payment_methods[on]",
        ),
        ("amount=1000&currency=eur&confirm=yes", "confirm"),
        ("amount=1000&currency=eur&confirm=true", "payment_method"),
        ("amount=1000&currency=eur&payment_method=pm_card_nobody", "payment_method"),
        ("amount=1000&currency=eur&metadata[a]=" + "x" * 501, "metadata"),
        ("amount=1000&currency=eur&expand[]=nothing", "expand"),
        ("amount=1000&currency=eur&expand[]=a.b.c.d.e", "expand"),
        ("amount=1000&amount=2000&currency=eur", None),
        ("a[b][c][d][e][f]=1", None),
        ("a]b[=1", None),
        ("&".join(f"a{i}=1" for i in range(1001)), None),
        ("amount=%FF%FE", None),
        (b"\xff\xfe", None),
    ],
)
def test_bad_input_is_named(database: DatabaseUrls, body: str | bytes, param: str | None) -> None:
    """A request that cannot be read has an error that names its parameter."""

    async def run() -> None:
        async with look_alike(database) as server:
            answer = await server.post("/v1/payment_intents", body)
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert error["type"] == "invalid_request_error"
            assert error.get("param") == param

    asyncio.run(run())


def test_large_bodies_and_unknown_paths_are_rejected(database: DatabaseUrls) -> None:
    async def run() -> None:
        async with look_alike(database) as server:
            large = await server.post("/v1/payment_intents", b"a=" + b"x" * 300_000)
            assert large.status_code == 413
            for path in ("/v1/nothing", "/", "/v1/payment_intents/a/b/c", "/v1/charges"):
                assert (await server.post(path)).status_code == 404
            async with httpx.AsyncClient(base_url=server.url) as client:
                headers = {"Authorization": "Bearer sk_test_x"}
                for query in ("limit=0", "limit=101", "starting_after=pi_x", "created[gte]=x"):
                    answer = await client.get(f"/v1/payment_intents?{query}", headers=headers)
                    assert answer.status_code == 400

    asyncio.run(run())
