"""Connected accounts, transfers, reversals and payouts of the Stripe look-alike."""

from __future__ import annotations

import asyncio

import pytest
import stripe

from tallystick_sandbox.stripe.context import StripeRules
from tallystick_server.app.database.connections import DatabaseUrls
from tests.sandbox.harness import LookAlike, look_alike, set_clock
from tests.support.platform import unique_id

_NO_FEE = StripeRules(fee_ppm=0, fee_fixed=0)


async def _funded(server: LookAlike, account: str, amount: int = 1000) -> None:
    """An account with an available balance."""
    await server.pay("pm_card_bypassPending", 2 * amount)
    await server.transfer(account, amount)


def test_a_transfer_moves_money_between_balances(scratch_database: DatabaseUrls) -> None:
    """The platform's balance loses what the account's balance gains. More than the available
    balance cannot be transferred.
    """

    async def run() -> None:
        async with look_alike(scratch_database, _NO_FEE) as server:
            await server.pay(amount=5000)
            transfer = await server.transfer("acct_ok:1", 3000, transfer_group="g1")
            assert await server.balance() == {"eur": 2000}
            assert await server.balance("acct_ok:1") == {"eur": 3000}
            with pytest.raises(stripe.InvalidRequestError) as rejected:
                await server.transfer("acct_ok:1", 2001)
            assert rejected.value.code == "balance_insufficient"
            transfers = server.client.v1.transfers
            for query in ({"transfer_group": "g1"}, {"destination": "acct_ok:1"}):
                page = await transfers.list_async(query)
                assert [item.id for item in page.data] == [transfer.id]
            assert (await transfers.list_async({"transfer_group": "g2"})).data == []

    asyncio.run(run())


def test_transfers_of_a_charge_never_exceed_it(database: DatabaseUrls) -> None:
    """With source_transaction all transfers together are at most the charge, in its currency, even
    if they are made at the same time.
    """

    async def run() -> None:
        async with look_alike(database) as server:
            intent = await server.pay(amount=1000)
            account = unique_id("acct_ok::")
            source = {"source_transaction": intent.latest_charge}
            results = await asyncio.gather(
                *(server.transfer(account, 400, **source) for _ in range(5)),
                return_exceptions=True,
            )
            assert sum(not isinstance(item, BaseException) for item in results) == 2
            assert await server.balance(account) == {"eur": 800}
            with pytest.raises(stripe.InvalidRequestError):
                await server.transfer(account, 100, currency="usd", **source)

    asyncio.run(run())


def test_the_money_of_a_transfer_waits_for_that_of_its_charge(
    scratch_database: DatabaseUrls,
) -> None:
    """Money of a charge is pending for the delay of the rules, on the account that it was
    transferred to as well. Until then it cannot be paid out.
    """

    async def run() -> None:
        rules = StripeRules(fee_ppm=0, fee_fixed=0, funds_delay_seconds=3600)
        async with look_alike(scratch_database, rules) as server:
            intent = await server.pay()
            assert await server.balance() == {"eur": 0}
            await server.transfer("acct_ok", 1000, source_transaction=intent.latest_charge)
            assert await server.balance("acct_ok") == {"eur": 0}
            with pytest.raises(stripe.InvalidRequestError):
                await server.pay_out("acct_ok", 1000)
            set_clock(scratch_database, "1 hour 2 seconds")
            assert await server.balance("acct_ok") == {"eur": 1000}
            assert (await server.pay_out("acct_ok", 1000)).status == "pending"

    asyncio.run(run())


def test_a_reversal_needs_the_money_on_the_account(database: DatabaseUrls) -> None:
    """A transfer can be reversed in parts, up to its amount, while the account has the money."""

    async def run() -> None:
        async with look_alike(database) as server:
            account = unique_id("acct_ok::")
            await server.pay("pm_card_bypassPending", 2000)
            transfer = await server.transfer(account, 1000)
            reversals = server.client.v1.transfers.reversals
            await reversals.create_async(transfer.id, {"amount": 300})
            await server.pay_out(account, 600)
            with pytest.raises(stripe.InvalidRequestError) as rejected:
                await reversals.create_async(transfer.id, {"amount": 700})
            assert rejected.value.code == "balance_insufficient"
            await reversals.create_async(transfer.id, {"amount": 100})
            found = await server.client.v1.transfers.retrieve_async(transfer.id)
            assert (found.amount_reversed, found.reversed) == (400, False)
            assert found.reversals.total_count == 2
            with pytest.raises(stripe.InvalidRequestError):
                await reversals.create_async(transfer.id, {"amount": 601})
            assert await server.balance(account) == {"eur": 0}

    asyncio.run(run())


@pytest.mark.parametrize(
    ("account", "statuses"),
    [
        ("acct_ok::", ["pending", "paid", "paid"]),
        ("acct_slow::", ["pending", "in_transit", "paid", "paid"]),
        ("acct_returned::", ["pending", "paid", "failed", "failed"]),
        ("acct_returned_closed::", ["pending", "paid", "failed"]),
        ("acct_failed::", ["pending", "failed", "failed"]),
    ],
)
def test_a_payout_advances_as_its_account_asks(
    database: DatabaseUrls, account: str, statuses: list[str]
) -> None:
    """A payout is pending at first. The account decides whether it is paid, and whether it fails
    after that. The money of a failed one is on the account again.
    """

    async def run() -> None:
        async with look_alike(database) as server:
            name = unique_id(account)
            await _funded(server, name)
            payout = await server.pay_out(name, 700)
            assert await server.balance(name) == {"eur": 300}
            found = [payout.status]
            for _ in statuses[1:]:
                options = {"stripe_account": name}
                payout = await server.client.v1.payouts.retrieve_async(payout.id, {}, options)
                found.append(payout.status)
            assert found == statuses
            failed = statuses[-1] == "failed"
            assert await server.balance(name) == {"eur": 1000 if failed else 300}
            assert bool(payout.failure_balance_transaction) == failed
            if "closed" in account:
                assert payout.failure_code == "account_closed"

    asyncio.run(run())


def test_a_timed_payout_advances_by_itself(scratch_database: DatabaseUrls) -> None:
    """A payout with times advances when they have come, without a lookup: events show it."""

    async def run() -> None:
        async with look_alike(scratch_database) as server:
            account = "acct_returned:1000"
            await _funded(server, account)
            await server.pay_out(account, 700)
            for offset, expected in (
                ("100 seconds", ["payout.created"]),
                ("501 seconds", ["payout.created", "payout.paid"]),
                ("1001 seconds", ["payout.created", "payout.paid", "payout.failed"]),
            ):
                set_clock(scratch_database, offset)
                await server.sandbox.advance_due()
                found = await server.event_types(account, type="payout.*")
                assert found == expected

    asyncio.run(run())


def test_only_a_pending_payout_can_be_cancelled(database: DatabaseUrls) -> None:
    """A cancelled payout gives its money back, and never becomes paid."""

    async def run() -> None:
        async with look_alike(database) as server:
            account = unique_id("acct_slow::")
            options = {"stripe_account": account}
            payouts = server.client.v1.payouts
            await _funded(server, account)
            payout = await server.pay_out(account, 700)
            cancelled = await payouts.cancel_async(payout.id, {}, options)
            assert cancelled.status == "canceled"
            assert await server.balance(account) == {"eur": 1000}
            assert (await payouts.retrieve_async(payout.id, {}, options)).status == "canceled"
            sent = await server.pay_out(account, 700)
            await payouts.retrieve_async(sent.id, {}, options)
            with pytest.raises(stripe.InvalidRequestError):
                await payouts.cancel_async(sent.id, {}, options)

    asyncio.run(run())


def test_a_paid_payout_fails_by_the_control_surface(database: DatabaseUrls) -> None:
    """A payout may fail after it was paid; a failed one does not change any more."""

    async def run() -> None:
        async with look_alike(database) as server:
            account = unique_id("acct_ok::")
            await _funded(server, account)
            payout = await server.pay_out(account, 1000)
            await server.control("advance", id=payout.id, status="paid")
            body = await server.control(
                "advance", id=payout.id, status="failed", reason="debit_not_authorized"
            )
            assert body["failure_code"] == "debit_not_authorized"
            await server.control("advance", id=payout.id, status="paid")
            assert await server.balance(account) == {"eur": 1000}
            page = await server.client.v1.payouts.list_async(
                {"status": "failed"}, {"stripe_account": account}
            )
            assert [item.id for item in page.data] == [payout.id]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("account", "code"),
    [("acct_decline:no_account:", "no_account"), ("acct_paid_late::", "payouts_not_allowed")],
)
def test_an_account_may_decline_payouts(database: DatabaseUrls, account: str, code: str) -> None:
    """A declined payout moves nothing."""

    async def run() -> None:
        async with look_alike(database) as server:
            name = unique_id(account)
            await _funded(server, name)
            with pytest.raises(stripe.InvalidRequestError) as rejected:
                await server.pay_out(name, 700)
            assert rejected.value.code == code
            assert await server.balance(name) == {"eur": 1000}

    asyncio.run(run())


def test_accounts_show_whether_they_can_be_paid(database: DatabaseUrls) -> None:
    """An unverified account is disabled. One under review is enabled at its second lookup. One that
    no token names does not exist.
    """

    async def run() -> None:
        async with look_alike(database) as server:
            accounts = server.client.v1.accounts
            assert (await accounts.retrieve_async(unique_id("acct_ok::"))).payouts_enabled
            unverified = await accounts.retrieve_async(unique_id("acct_unverified::"))
            assert not unverified.payouts_enabled
            assert unverified.requirements.disabled_reason == "rejected.other"
            with pytest.raises(stripe.InvalidRequestError):
                await server.transfer(unverified.id, 100)
            review = unique_id("acct_review::")
            assert [(await accounts.retrieve_async(review)).payouts_enabled for _ in range(2)] == [
                False,
                True,
            ]
            with pytest.raises(stripe.PermissionError) as rejected:
                await accounts.retrieve_async("acct_1nobody")
            assert rejected.value.error is not None
            assert rejected.value.error.code == "account_invalid"
            created = await accounts.create_async({"type": "custom", "country": "DE"})
            assert (await accounts.retrieve_async(created.id)).id == created.id

    asyncio.run(run())


def test_the_payout_schedule_is_shown(database: DatabaseUrls) -> None:
    async def run() -> None:
        async with look_alike(database) as server:
            answer = await server.post(
                "/v1/balance_settings",
                "payments[payouts][schedule][interval]=manual",
                {"Stripe-Account": unique_id("acct_ok::")},
            )
            schedule = answer.json()["payments"]["payouts"]["schedule"]
            assert schedule == {"interval": "manual"}

    asyncio.run(run())


def test_a_top_up_adds_money(scratch_database: DatabaseUrls) -> None:
    async def run() -> None:
        async with look_alike(scratch_database) as server:
            topups = server.client.v1.topups
            topup = await topups.create_async({"amount": 10**9, "currency": "eur"})
            assert (await topups.retrieve_async(topup.id)).status == "succeeded"
            assert await server.balance() == {"eur": 10**9}

    asyncio.run(run())


def test_payouts_may_be_paid_at_once(database: DatabaseUrls) -> None:
    """With the rule for it, a payout is paid when it is answered, unless its account is slow."""

    async def run() -> None:
        async with look_alike(database, StripeRules(pays_out_at_once=True)) as server:
            for account, status in (("acct_ok::", "paid"), ("acct_slow::", "pending")):
                name = unique_id(account)
                await _funded(server, name)
                assert (await server.pay_out(name, 700)).status == status

    asyncio.run(run())
