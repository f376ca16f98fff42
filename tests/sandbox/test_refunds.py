"""Refunds of the Stripe look-alike."""

from __future__ import annotations

import asyncio

import pytest
import stripe

from tallystick_sandbox.stripe.context import StripeRules
from tallystick_server.app.database.connections import DatabaseUrls
from tests.sandbox.harness import look_alike


def test_refunds_never_exceed_the_charge(scratch_database: DatabaseUrls) -> None:
    """A charge is refunded in parts, up to its amount, even if refunds are made at the same time.
    Its fee is not returned.
    """

    async def run() -> None:
        async with look_alike(scratch_database, StripeRules(fee_ppm=0, fee_fixed=30)) as server:
            intent = await server.pay()
            refunds = server.client.v1.refunds
            results = await asyncio.gather(
                *(
                    refunds.create_async({"payment_intent": intent.id, "amount": 400})
                    for _ in range(5)
                ),
                return_exceptions=True,
            )
            assert sum(not isinstance(item, BaseException) for item in results) == 2
            rest = await refunds.create_async({"charge": intent.latest_charge})
            assert rest.amount == 200
            with pytest.raises(stripe.InvalidRequestError) as rejected:
                await refunds.create_async({"payment_intent": intent.id})
            assert rejected.value.code == "charge_already_refunded"
            charge = await server.client.v1.charges.retrieve_async(intent.latest_charge)
            assert (charge.amount_refunded, charge.refunded) == (1000, True)
            assert await server.balance() == {"eur": -30}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("method", "statuses", "balance"),
    [
        ("pm_card_visa", ["succeeded", "succeeded"], 0),
        ("pm_card_pendingRefund", ["pending", "succeeded"], 0),
        ("pm_card_refundFail", ["succeeded", "failed"], 1000),
    ],
)
def test_a_refund_may_wait_or_fail(
    scratch_database: DatabaseUrls, method: str, statuses: list[str], balance: int
) -> None:
    """A refund may succeed later, or fail after it succeeded; then its money is in the balance
    again.
    """

    async def run() -> None:
        async with look_alike(scratch_database, StripeRules(fee_ppm=0, fee_fixed=0)) as server:
            intent = await server.pay(method)
            refund = await server.client.v1.refunds.create_async({"payment_intent": intent.id})
            found = await server.client.v1.refunds.retrieve_async(refund.id)
            assert [refund.status, found.status] == statuses
            assert await server.balance() == {"eur": balance}
            types = await server.event_types()
            assert ("refund.failed" in types) == (statuses[1] == "failed")
            assert {"charge.refunded", "refund.created"} <= set(types)

    asyncio.run(run())


def test_what_was_not_charged_is_not_refunded(database: DatabaseUrls) -> None:
    async def run() -> None:
        async with look_alike(database) as server:
            waiting = await server.pay("pm_pending:review")
            for parameters in (
                {"payment_intent": waiting.id},
                {"payment_intent": "pi_nobody"},
                {"charge": "ch_nobody", "payment_intent": waiting.id},
                {},
            ):
                with pytest.raises(stripe.InvalidRequestError):
                    await server.client.v1.refunds.create_async(parameters)

    asyncio.run(run())
