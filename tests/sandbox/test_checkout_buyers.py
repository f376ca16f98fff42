"""What buyers do with Checkout Sessions of the Stripe look-alike, in the same process."""

from __future__ import annotations

import asyncio
import time

import pytest
import stripe

from tallystick_sandbox.stripe.checkout_sessions import BuyerCard
from tallystick_sandbox.stripe.context import StripeRules
from tallystick_sandbox.stripe.errors import StripeFailure
from tallystick_server.app.database.connections import DatabaseUrls
from tests.sandbox.harness import look_alike, set_clock


@pytest.mark.parametrize(
    ("card", "code"),
    [(BuyerCard.DECLINED, "generic_decline"), (BuyerCard.INSUFFICIENT_FUNDS, "insufficient_funds")],
)
def test_a_declined_buyer_can_try_again(
    scratch_database: DatabaseUrls, card: BuyerCard, code: str
) -> None:
    """A decline leaves the session open. The PaymentIntent stays the same."""

    async def run() -> None:
        async with look_alike(scratch_database) as server:
            id_ = (await server.check_out()).id
            state = await server.sandbox.submit_checkout(id_, card)
            assert (state.session["status"], state.session["payment_status"]) == ("open", "unpaid")
            declined = await server.session(id_)
            assert declined.payment_intent.status == "requires_payment_method"
            assert declined.payment_intent.last_payment_error.decline_code == code
            assert declined.url is not None
            await server.sandbox.submit_checkout(id_, BuyerCard.SUCCESS)
            paid = await server.session(id_)
            assert paid.payment_status == "paid"
            assert paid.payment_intent.id == declined.payment_intent.id
            assert await server.event_types() == [
                "payment_intent.created",
                "charge.failed",
                "payment_intent.payment_failed",
                "charge.succeeded",
                "payment_intent.succeeded",
                "checkout.session.completed",
                "charge.updated",
            ]

    asyncio.run(run())


@pytest.mark.parametrize("passes", [True, False])
def test_an_authentication_passes_or_fails(scratch_database: DatabaseUrls, passes: bool) -> None:
    """The session stays open while the buyer must authenticate. Only a pass takes the money."""

    async def run() -> None:
        async with look_alike(scratch_database) as server:
            id_ = (await server.check_out()).id
            await server.sandbox.submit_checkout(id_, BuyerCard.THREE_D_SECURE)
            waiting = await server.session(id_)
            assert (waiting.status, waiting.payment_intent.status) == ("open", "requires_action")
            await server.sandbox.authenticate_checkout(id_, passes=passes)
            session = await server.session(id_)
            types = await server.event_types()
            if passes:
                assert (session.status, session.payment_status) == ("complete", "paid")
                assert types.count("charge.succeeded") == 1
            else:
                assert (session.status, session.payment_status) == ("open", "unpaid")
                error = session.payment_intent.last_payment_error
                assert error.code == "payment_intent_authentication_failure"
                assert session.payment_intent.status == "requires_payment_method"
                assert types[-1] == "payment_intent.payment_failed"
                assert "charge.failed" not in types
            before = await server.session(id_)
            await server.sandbox.authenticate_checkout(id_, passes=True)
            assert await server.session(id_) == before

    asyncio.run(run())


@pytest.mark.parametrize("by_time", [True, False])
@pytest.mark.parametrize("card", [BuyerCard.DELAYED_SUCCESS, BuyerCard.DELAYED_FAILURE])
def test_a_bank_debit_ends_later(
    scratch_database: DatabaseUrls, card: BuyerCard, by_time: bool
) -> None:
    """A debit completes the session without a payment. It ends after its time, or when the control
    surface ends it.
    """

    async def run() -> None:
        async with look_alike(scratch_database, StripeRules(debit_seconds=3_600)) as server:
            id_ = (await server.check_out()).id
            await server.sandbox.submit_checkout(id_, card)
            pending = await server.session(id_)
            assert (pending.status, pending.payment_status) == ("complete", "unpaid")
            assert (pending.payment_intent.status, pending.url) == ("processing", None)
            await server.sandbox.submit_checkout(id_, BuyerCard.SUCCESS)
            is_paid = card is BuyerCard.DELAYED_SUCCESS
            if by_time:
                set_clock(scratch_database, "61 minutes")
            else:
                status = "paid" if is_paid else "declined"
                await server.control("advance", id=id_, status=status)
            ended = await server.session(id_)
            assert ended.status == "complete"
            assert ended.payment_status == ("paid" if is_paid else "unpaid")
            assert ended.payment_intent.status == (
                "succeeded" if is_paid else "requires_payment_method"
            )
            outcome = "succeeded" if is_paid else "failed"
            assert [name for name in await server.event_types() if name != "charge.updated"] == [
                "payment_intent.created",
                "payment_intent.processing",
                "checkout.session.completed",
                f"charge.{outcome}",
                f"payment_intent.{'succeeded' if is_paid else 'payment_failed'}",
                f"checkout.session.async_payment_{outcome}",
            ]
            answer = await server.post("/sandbox/advance", f"id={id_}&status=paid")
            assert answer.status_code == 400

    asyncio.run(run())


def test_two_submissions_take_one_payment(database: DatabaseUrls) -> None:
    """A double click, or two tabs: whatever is submitted at the same time, one charge succeeds."""

    async def run() -> None:
        async with look_alike(database) as server:
            for cards in ([BuyerCard.SUCCESS] * 4, list(BuyerCard)):
                id_ = (await server.check_out()).id
                states = await asyncio.gather(
                    *(server.sandbox.submit_checkout(id_, card) for card in cards),
                    *(server.sandbox.authenticate_checkout(id_, passes=True) for _ in cards),
                )
                session = await server.session(id_)
                assert session.status == "complete"
                assert {state.session["payment_intent"] for state in states} <= {
                    None,
                    session.payment_intent.id,
                }
                charges = await server.client.v1.charges.list_async(
                    {"payment_intent": session.payment_intent.id, "limit": 100}
                )
                succeeded = [item.id for item in charges.data if item.status == "succeeded"]
                assert len(succeeded) == (1 if session.payment_status == "paid" else 0)

    asyncio.run(run())


def test_a_session_of_a_connected_account_is_charged_there(database: DatabaseUrls) -> None:
    """The money, the objects and the events are those of the account."""

    async def run() -> None:
        async with look_alike(database, StripeRules(fee_ppm=0, fee_fixed=0)) as server:
            account = f"acct_ok::{time.time_ns()}"
            options = {"stripe_account": account}
            sessions = server.client.v1.checkout.sessions
            paid = await server.check_out(options=options)
            debited = await server.check_out(options=options)
            await server.sandbox.submit_checkout(paid.id, BuyerCard.SUCCESS)
            await server.sandbox.submit_checkout(debited.id, BuyerCard.DELAYED_SUCCESS)
            await server.control("advance", id=debited.id, status="paid")
            for id_ in (paid.id, debited.id):
                session = await sessions.retrieve_async(id_, {}, options)
                assert session.payment_status == "paid"
                with pytest.raises(stripe.InvalidRequestError):
                    await sessions.retrieve_async(id_)
            assert await server.balance(account) == {"eur": 2000}
            types = await server.event_types(account)
            assert types.count("checkout.session.completed") == 2

    asyncio.run(run())


def test_a_buyer_without_a_session_is_rejected(database: DatabaseUrls) -> None:
    async def run() -> None:
        async with look_alike(database) as server:
            intent = await server.pay()
            for id_ in ("cs_test_x", intent.id):
                with pytest.raises(StripeFailure) as rejected:
                    await server.sandbox.submit_checkout(id_, BuyerCard.SUCCESS)
                assert rejected.value.status == 404

    asyncio.run(run())
