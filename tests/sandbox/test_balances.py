"""The balances of the Stripe look-alike, after any sequence of requests, without sockets."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import orjson
import pytest

from tallystick_sandbox.stripe.context import StripeRules
from tallystick_sandbox.stripe.sandbox import StripeSandbox
from tallystick_server.app.database.connections import DatabaseUrls
from tallystick_storage.database import Database
from tests.support.platform import fresh_database

_ACCOUNTS = ("acct_ok", "acct_returned", "acct_slow", "acct_failed", "acct_decline")
_METHODS = (
    "pm_card_visa",
    "pm_card_bypassPending",
    "pm_card_chargeDeclined",
    "pm_card_refundFail",
    "pm_card_pendingRefund",
    "pm_pending:paid",
    "pm_pending:declined",
    "pm_other_amount",
    "pm_error_stored",
)
_CURRENCIES = ("eur", "usd", "jpy")


class _Caller:
    """Sends random requests. It knows the ids of what it has made."""

    def __init__(self, sandbox: StripeSandbox, seed: int) -> None:
        self._sandbox = sandbox
        self._random = random.Random(seed)
        self._ids: dict[str, list[tuple[str, str]]] = {}
        self.statuses: Counter[int] = Counter()

    async def call(
        self, method: str, path: str, account: str = "", **values: Any
    ) -> dict[str, Any]:
        headers = {"Authorization": "Bearer sk_test_x"}
        if account:
            headers["Stripe-Account"] = account
        if method == "POST" and self._random.random() < 0.5:
            headers["Idempotency-Key"] = f"k{self._random.randrange(100)}"
        encoded = urlencode(values)
        target = f"{path}?{encoded}" if method == "GET" else path
        status, _, body = await self._sandbox.handle(
            method, target, headers, encoded.encode() if method == "POST" else b""
        )
        self.statuses[status] += 1
        answer: dict[str, Any] = orjson.loads(body)
        if status == 200 and "id" in answer:
            self._ids.setdefault(answer["object"], []).append((answer["id"], account))
        return answer

    def _any(self, type_: str) -> tuple[str, str]:
        return self._random.choice(self._ids.get(type_) or [(f"{type_}_none", "")])

    async def step(self) -> None:
        """One random request."""
        choice = self._random.choice
        currency, account = choice(_CURRENCIES), choice(_ACCOUNTS)
        amount = self._random.randrange(1, 2000)
        money = {"amount": amount, "currency": currency}
        intent, _ = self._any("payment_intent")
        transfer, _ = self._any("transfer")
        refund, _ = self._any("refund")
        payout, owner = self._any("payout")
        requests: list[tuple[str, str, str, dict[str, Any]]] = [
            (
                "POST",
                "/v1/payment_intents",
                "",
                {**money, "payment_method": choice(_METHODS), "confirm": "true"},
            ),
            ("GET", f"/v1/payment_intents/{intent}", "", {}),
            ("POST", f"/v1/payment_intents/{intent}/cancel", "", {}),
            ("POST", "/v1/refunds", "", {"payment_intent": intent, "amount": amount // 2}),
            ("GET", f"/v1/refunds/{refund}", "", {}),
            ("POST", "/v1/transfers", "", {**money, "destination": account}),
            ("POST", f"/v1/transfers/{transfer}/reversals", "", {"amount": amount // 3}),
            ("POST", "/v1/payouts", choice(["", account]), money),
            ("GET", f"/v1/payouts/{payout}", owner, {}),
            ("POST", f"/v1/payouts/{payout}/cancel", owner, {}),
            ("POST", "/sandbox/automatic_payout", "", {"currency": currency}),
            (
                "POST",
                "/sandbox/advance",
                owner,
                {"id": payout, "status": choice(["paid", "failed"])},
            ),
        ]
        weights = [6, *[1] * (len(requests) - 1)]
        method, path, stripe_account, values = self._random.choices(requests, weights)[0]
        await self.call(method, path, stripe_account, **values)

    async def transactions(self, account: str) -> list[dict[str, Any]]:
        """All balance transactions of an account."""
        found: list[dict[str, Any]] = []
        while True:
            after = {"starting_after": found[-1]["id"]} if found else {}
            page = await self.call("GET", "/v1/balance_transactions", account, limit=100, **after)
            found += page["data"]
            if not page["has_more"]:
                return found


def _sums(transactions: list[dict[str, Any]]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for item in transactions:
        assert item["net"] == item["amount"] - item["fee"]
        sums[item["currency"]] += item["net"]
    return sums


@pytest.mark.parametrize("seed", range(3))
def test_balances_are_the_sums_of_their_transactions(
    scratch_database: DatabaseUrls, seed: int
) -> None:
    """After any sequence of requests, some at the same time and some repeated, the balance of each
    account and currency is the sum of its balance transactions. No connected account is below zero,
    and no transfer creates money.
    """

    async def run() -> None:
        with closing(Database(scratch_database.service("sandbox"), connections=4)) as database:
            rules = StripeRules(fee_ppm=29_000, fee_fixed=30, funds_delay_seconds=seed % 2 * 3600)
            caller = _Caller(StripeSandbox(database, rules), seed)
            for _ in range(40):
                await asyncio.gather(*(caller.step() for _ in range(5)))
            assert caller.statuses[200] > 50
            assert not caller.statuses[0]
            for account in ("", *_ACCOUNTS):
                transactions = await caller.transactions(account)
                balance = await caller.call("GET", "/v1/balance", account)
                total: Counter[str] = Counter()
                for item in balance["available"] + balance["pending"]:
                    total[item["currency"]] += item["amount"]
                assert +total == +_sums(transactions)
                assert -total == -_sums(transactions)
                if account:
                    assert all(amount >= 0 for amount in total.values()), account
            moved = _sums(
                [
                    item
                    for account in ("", *_ACCOUNTS)
                    for item in await caller.transactions(account)
                    if item["type"] in ("transfer", "payment", "transfer_refund", "payment_refund")
                ]
            )
            assert not any(moved.values())

    asyncio.run(run())


def test_the_same_ids_make_the_same_objects(
    admin_url: str, tmp_path: Path, scratch_database: DatabaseUrls
) -> None:
    """All ids follow from those of the requests, so that a simulation with a seed can be repeated,
    on another database too.
    """

    async def ids_on(databases: DatabaseUrls) -> list[str]:
        source = random.Random(7)
        with closing(Database(databases.service("sandbox"), connections=2)) as database:
            sandbox = StripeSandbox(database, new_id=lambda: UUID(int=source.getrandbits(128)))
            caller = _Caller(sandbox, 1)
            money: dict[str, Any] = {
                "amount": 1000,
                "currency": "eur",
                "payment_method": "pm_card_visa",
            }
            intent = await caller.call("POST", "/v1/payment_intents", confirm="true", **money)
            events = await caller.call("GET", "/v1/events", limit=100)
            return [intent["id"], intent["latest_charge"], *(item["id"] for item in events["data"])]

    folder = tmp_path / "other"
    folder.mkdir()
    with fresh_database(admin_url, folder) as other:
        first = asyncio.run(ids_on(scratch_database))
        assert len(set(first)) == 5
        assert asyncio.run(ids_on(other)) == first
